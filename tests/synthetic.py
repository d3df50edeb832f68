"""Run bundles written by hand, in which every number is chosen by the test.

``make_run`` goes through :class:`labkit.bundle.Recorder`, so what it returns was
written to disk and read back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from labkit.bundle import Recorder, Run
from labkit.load.plan import ClientHealth, Tally
from labkit.schema import TOKEN
from labkit.verdict import Verdict
from labkit.workload import Workload

TOKENS_EACH = 16
IDLE_S = 0.1
"""TTFT of the warm-up requests of every arm."""

FACTS: dict[str, dict[str, Any]] = {
    "ollama": {"version": "0.34.0", "model": "smollm2:135m", "model_digest": "aa", "quantisation": "F16"},
    "vllm": {"version": "0.32.0", "model": "smollm2", "model_digest": "bb", "quantisation": "bfloat16"},
}

PerLevel = Mapping[int, float]
Rates = Mapping[str, Mapping[int, float | Sequence[float]]]


def make_run(
    folder: Path,
    *,
    rates: Rates,
    ttft: Mapping[str, PerLevel] | None = None,
    itl: Mapping[str, PerLevel] | None = None,
    queue: Mapping[str, PerLevel] | None = None,
    unfinished: Mapping[str, PerLevel] | None = None,
    in_line: Mapping[str, PerLevel] | None = None,
    slots: int = 1,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    workload: Workload | None = None,
    verdict: Verdict | None = None,
    stopped: bool = False,
    kind: str = "live",
) -> Run:
    """A sweep's bundle, one arm per key of ``rates``; an arm's name starts with its engine's.

    Two arms of one engine are named apart after a comma: "ollama", "ollama, 4 slots".

    Args:
        rates: total tokens/s per arm and users; a list gives one value per repeat.
        ttft: median seconds; by default Ollama's users wait in turn for ``slots`` slots,
            and vLLM's rises gently.
        itl: seconds between tokens; by default what rate, users and TTFT leave over.
        queue: seconds that the engine reports as waiting; by default Ollama's TTFT beyond idle, and
            nothing for vLLM.
        unfinished: share of a level's requests that were cut off.
        in_line: what the engine's gauge of waiting requests read during a level; no reading by default.
        slots: of Ollama; vLLM has 128 sequences.
        facts: changes to an arm's engine facts.
    """
    workload = workload or Workload(output_tokens=TOKENS_EACH)
    arms = {name: _arm(name, slots, (facts or {}).get(name, {})) for name in rates}
    described = {**workload.as_dict(), "experiment": "sweep", "budget": "short"}
    recorder = Recorder(folder, kind=kind, arms=arms, workload=described, seed=0)
    level = _Writer(recorder)
    for arm in rates:
        level.write(arm, 1, 0, rate=10.0, ttft_s=IDLE_S, itl_s=0.01, warmup=True)
    for arm, by_users in rates.items():
        for users, given in by_users.items():
            for repeat, rate in enumerate(given if isinstance(given, Sequence) else [given]):
                first = _pick(ttft, arm, users, _usual_ttft(arm, users, rate, slots))
                step = (users * TOKENS_EACH / rate - first) / (TOKENS_EACH - 1)
                waited = max(first - IDLE_S, 0.0) if arm.startswith("ollama") else None
                level.write(
                    arm,
                    users,
                    repeat,
                    rate=rate,
                    ttft_s=first,
                    itl_s=_pick(itl, arm, users, max(step, 0.001)),
                    queue_s=_pick(queue, arm, users, waited),
                    cut=_pick(unfinished, arm, users, 0.0),
                    in_line=_pick(in_line, arm, users, None),
                )
    return recorder.finish(verdict or Verdict("clean", []), stopped=stopped)


def _pick(table: Mapping[str, PerLevel] | None, arm: str, users: int, default: Any) -> Any:
    return (table or {}).get(arm, {}).get(users, default)


def _usual_ttft(arm: str, users: int, rate: float, slots: int) -> float:
    if arm.startswith("ollama"):
        return IDLE_S + max(users - slots, 0) * TOKENS_EACH / rate
    return IDLE_S * (1 + (users - 1) / 20)


def _arm(name: str, slots: int, changed: Mapping[str, Any]) -> dict[str, Any]:
    engine = name.partition(",")[0]
    facts = {
        "engine": engine,
        "kind": "live",
        "url": "http://127.0.0.1:1",
        "model_source": "local folder",
        "slots": slots if engine == "ollama" else 128,
        "device": "cpu",
        **FACTS[engine],
        **changed,
    }
    return {"engine": engine, "settings": {}, "facts": facts}


class _Writer:
    """Appends rows the way the load process does: two rounds of every user at each level."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.now = 0.0
        self.next_id = 0

    def write(
        self,
        arm: str,
        users: int,
        repeat: int,
        *,
        rate: float,
        ttft_s: float,
        itl_s: float,
        queue_s: float | None = None,
        cut: float = 0.0,
        in_line: float | None = None,
        warmup: bool = False,
    ) -> None:
        engine = arm.partition(",")[0]
        planned = 2 * users if not warmup else 4
        lost = round(planned * cut)
        rows, records = [], []
        for number in range(planned):
            row = {
                "id": self.next_id,
                "engine": engine,
                "arm": arm,
                "level": users,
                "repeat": repeat,
                "warmup": warmup,
                "user": number % users,
                "intended_s": self.now,
                "sent_s": self.now,
                "outcome": "unfinished",
                "output_tokens": 0,
            }
            if number >= lost:
                # a little jitter around the median, alike above and below it
                first = self.now + ttft_s * (1 + 0.01 * (number - lost - (planned - lost - 1) / 2) / planned)
                times = [first + itl_s * k for k in range(TOKENS_EACH)]
                records += [TOKEN.pack(self.next_id, t, 1, 0) for t in times]
                row |= {
                    "first_token_s": first,
                    "last_token_s": times[-1],
                    "end_s": times[-1],
                    "prompt_tokens": 24,
                    "output_tokens": TOKENS_EACH,
                    "outcome": "ok",
                    "queue_s": queue_s,
                    "queue_basis": "unknown" if queue_s is None else "reported",
                }
            rows.append(row)
            self.next_id += 1
        if in_line is not None:
            reading = {"t_s": self.now, "engine": engine, "arm": arm, "name": "waiting", "value": in_line}
            self._append("gauges.rows", orjson.dumps(reading) + b"\n")
        self._append("requests.rows", b"".join(orjson.dumps(row) + b"\n" for row in rows))
        self._append("tokens.rows", b"".join(records))
        self._end(arm, users, repeat, planned - lost, lost, rate, warmup)

    def _end(self, arm: str, users: int, repeat: int, ok: int, lost: int, rate: float, warmup: bool) -> None:
        tokens = ok * TOKENS_EACH
        window = tokens / rate if tokens else 1.0
        tally = Tally(
            planned=ok + lost,
            ok=ok,
            unfinished=lost,
            tokens=tokens,
            started_s=self.now,
            ended_s=self.now + window,
        )
        self.recorder.level(
            {
                "arm": arm,
                "engine": arm.partition(",")[0],
                "level": users,
                "repeat": repeat,
                "warmup": warmup,
                "drift": False,
                **tally.__dict__,
                "client": ClientHealth().__dict__,
                "broken": None,
                "others_cpu": None,
            }
        )
        self.now += window

    def _append(self, name: str, data: bytes) -> None:
        with (self.recorder.folder / name).open("ab") as out:
            out.write(data)
