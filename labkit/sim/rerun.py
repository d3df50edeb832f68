"""A measured run again on a simulated engine: the same requests in the same order, in a run's tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from labkit.bundle import Run
from labkit.engines.ollama_settings import OllamaSettings
from labkit.engines.vllm_settings import VLLMSettings
from labkit.sim.drive import closed_loop
from labkit.sim.profile import Profile, build
from labkit.sim.request import Request
from labkit.summary import summarise
from labkit.tables import columns

PAUSE_S = 1.0
"""Between two levels; long enough for nothing to be left over."""


@dataclass(frozen=True)
class Level:
    """One level of an arm as it was measured: lengths of its questions and answers, in order of sending."""

    record: dict[str, Any]
    rows: pl.DataFrame

    @property
    def key(self) -> tuple[int, int]:
        """Users and repeat."""
        return self.record["level"], self.record["repeat"]

    @property
    def measured(self) -> bool:
        """Whether it counts as a result: no warm-up, no drift check."""
        return not self.record["warmup"] and not self.record.get("drift", False)


def levels(run: Run, arm: str) -> list[Level]:
    """The levels of an arm in the order in which they were measured."""
    requests = run.requests.filter(pl.col("arm") == arm).sort("id")
    found = []
    for record in run.meta["levels"]:
        if record["arm"] == arm:
            same = {name: record[name] for name in ("level", "repeat", "warmup")}
            found.append(Level(record, requests.filter(**same)))
    return found


def whole_settings(arm: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of an arm's server started with these: labkit's defaults on its device where none is.

    Args:
        arm: as ``run.json`` describes it.
    """
    if arm["engine"] not in ("ollama", "vllm"):
        return dict(given)  # a proxy's own
    if arm["engine"] == "ollama":
        return OllamaSettings.of(given).as_dict()
    on_cpu = str(arm["facts"].get("device")).startswith("cpu")
    return VLLMSettings.of(given).resolved("cpu" if on_cpu else "cuda").as_dict()


def rerun(
    run: Run, arm: str, profile: Profile, only: set[int] | None = None
) -> dict[tuple[int, int], dict[str, Any]]:
    """What the profile predicts for each measured level of an arm, or those of these users alone.

    Returns:
        By users and repeat, a row of :func:`labkit.summary.summarise`.
    """
    described = run.meta["arms"][arm]
    engine = build(profile, described["engine"], whole_settings(described, described["settings"]))
    begin = shared(run)
    now, predicted = 0.0, {}
    for level in levels(run, arm):
        if level.measured and only is not None and level.key[0] not in only:
            continue
        users = 1 if level.record["warmup"] else level.record["level"]
        answered = level.rows.filter(pl.col("outcome") == "ok")
        asked = requests(answered.select("id", "prompt_tokens", "output_tokens").iter_rows(), begin)
        done = closed_loop(engine, list(asked), users, now + PAUSE_S)
        now = max(request.ended_s or 0.0 for request in done)
        if level.measured:
            predicted[level.key] = _summary(done, level.record)
    return predicted


def measured(run: Run, arm: str) -> dict[tuple[int, int], dict[str, Any]]:
    """The same of what was measured, one row a repeat."""
    found = {}
    for level in levels(run, arm):
        if level.measured:
            tokens = run.tokens.filter(pl.col("request_id").is_in(level.rows["id"].implode()))
            found[level.key] = summarise(level.rows, tokens, [level.record]).row(0, named=True)
    return found


def shared(run: Run) -> int:
    """Tokens with which all questions begin: no two are the same, so what was cached was the beginning."""
    return int(run.requests["cached_tokens"].max() or 0)  # type: ignore[arg-type]


def requests(asked: Iterable[tuple[int, int, int]], shared: int) -> Iterator[Request]:
    """Questions to a simulated engine from their numbers, prompt tokens and output tokens; all begin alike
    for ``shared`` tokens."""
    for number, length, output_tokens in asked:
        own = number * 10_000 + 1_000_000
        prompt = (*range(min(shared, length)), *range(own, own + max(0, length - shared)))
        answer = range(own + 5_000, own + 5_000 + output_tokens)
        yield Request(number, prompt, tuple(answer), model="m")


def _summary(done: list[Request], record: dict[str, Any]) -> dict[str, Any]:
    requests, tokens = tables(done, record)
    window = {
        **record,
        "started_s": min(r.sent_s for r in done),
        "ended_s": max(r.ended_s or 0 for r in done),
    }
    return summarise(requests, tokens, [window]).row(0, named=True)


def tables(done: list[Request], labels: dict[str, Any]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Simulated requests as the tables of a bundle; ``labels`` has arm, engine, level, repeat, warmup."""
    rows = [
        {
            **{name: labels[name] for name in ("arm", "engine", "level", "repeat", "warmup")},
            "id": request.id,
            "intended_s": request.sent_s,
            "sent_s": request.sent_s,
            "first_token_s": request.token_s[0] if request.token_s else None,
            "last_token_s": request.token_s[-1] if request.token_s else None,
            "end_s": request.ended_s,
            "prompt_tokens": len(request.prompt),
            "output_tokens": len(request.token_s),
            "cached_tokens": request.cached,
            "outcome": "unfinished" if request.ended_s is None else "ok" if request.token_s else "failed",
            **_reported(request, labels["engine"]),
        }
        for request in done
    ]
    times = [(request.id, at, 1, False) for request in done for at in request.token_s]
    return (
        pl.DataFrame(rows, schema=columns("requests")),
        pl.DataFrame(times, schema=columns("tokens"), orient="row"),
    )


def _reported(request: Request, engine: str) -> dict[str, Any]:
    """What Ollama tells of each request, and vLLM of none."""
    if engine != "ollama" or request.admitted_s is None or not request.token_s:
        return {"queue_basis": "unknown"}
    waited = request.admitted_s - request.sent_s - request.load_s
    return {
        "load_s": request.load_s,
        "prefill_s": request.token_s[0] - request.admitted_s,
        "queue_s": max(0.0, waited),
        "queue_basis": "reported",
    }
