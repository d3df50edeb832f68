"""What a learner promised, paid and predicted, beside what a run says of it: transcripts to be judged.

A check or a claim that depends on the learner's own limits cannot be judged on a run alone. These transcripts
hold both: ``about`` has what was asked for, the events what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import takewhile
from typing import Any

import polars as pl

from labkit import costs
from labkit.bundle import Run
from labkit.decision import Row
from labkit.figures.goodput import goodput_data
from labkit.sides import Missing, bits
from labkit.slo import NAMES, Slo, kept
from labkit.transcript import Event, Transcript

UNKNOWN = "not known here"
_FOLDER = re.compile(r"'model': '(?:/|LABKIT_HOME)")  # a recorded log has no path of its machine

_KEY = ["arm", "level"]
_RATES = ("tokens_per_s", "per_million_output", "per_million_all", "per_user_month")


def promise(
    run: Run, slo: Slo, *, price_per_hour: float, utilisation: float = 1.0, users: int | None = None
) -> Transcript:
    """Whether each arm keeps a promise at each level of a run, and what its tokens cost there.

    Args:
        slo: the promise.
        price_per_hour: of the machine, in the learner's currency.
        utilisation: share of the time in which there is as much to do as in the run.
        users: at once, for whom the learner plans, if the question is about them.

    Returns:
        Transcript "promise" with an event "level" for each arm and number of users: the columns of
        :func:`labkit.slo.kept`, those of :func:`labkit.costs.table`, ``ttft_p50_s``, ``tpot_p50_s`` and
        ``e2e_p50_s`` (medians, seconds), ``answers_per_s``.

    Raises:
        UsageError: a negative price, a utilisation outside 0 to 1.
    """
    middles = {f"{name[:-2]}_p50_s": pl.col(f"{name[:-2]}_ms_p50") / 1000 for name in NAMES}
    answers = goodput_data(run).select(*_KEY, answers_per_s="all_per_s")
    rates = costs.table(run, price_per_hour, utilisation=utilisation).select(*_KEY, *_RATES)
    rows = kept(run, slo)
    for more in (run.summary().select(*_KEY, **middles), rates, answers):
        rows = rows.join(more, on=_KEY, how="left", maintain_order="left")
    asked = {**asdict(slo), "price_per_hour": price_per_hour, "utilisation": utilisation, "users": users}
    return _transcript("promise", run, asked, "level", rows.iter_rows(named=True))


def forecast(errors: pl.DataFrame, run: Run) -> Transcript:
    """Predictions beside the measurement and beside the plain line.

    Args:
        errors: of :func:`labkit.predict.errors`.
        run: the measurement.

    Returns:
        Transcript "forecast" with an event "point" for each row.
    """
    return _transcript("forecast", run, {}, "point", errors.iter_rows(named=True))


def rows(run: Run, *, life: Transcript, log: Transcript, file: Transcript) -> list[Row]:
    """Rows of a decision table that no user sees and every operator does.

    Args:
        life: of ``await lab.lifecycle()``, for Ollama's start and for what it runs with.
        log: of ``await lab.start_log()``, for vLLM's start.
        file: of ``await lab.gguf()``, for the size.
    """
    loaded = next((event["load_s"] for event in life.of("answer") if event["turn"] == "first"), None)
    ends = [event["t_s"] + event["took_s"] for event in log.of("phase")]
    flags = [flag for event in life.of("process") for flag in event.get("flags", ())]
    offline = "its child runs with --offline" if "--offline" in flags else UNKNOWN
    local = any(_FOLDER.search(str(event.get("says"))) for event in log.of("phase"))
    ollama, vllm = (
        ", ".join(run.gauges.filter(engine=engine)["name"].unique().sort()) or "nothing"
        for engine in ("ollama", "vllm")
    )
    return [
        Row(
            "start, until a question can be answered",
            UNKNOWN if loaded is None else f"{loaded:.1f} s to load the model into a server that is up",
            f"{max(ends):.0f} s from its first process to its last phase" if ends else UNKNOWN,
            f"{life.kind} life of a model, {log.kind} start-up log",
        ),
        Row(
            "size of the model file",
            f"{file.one('file')['bytes'] / 1e6:,.0f} MB",
            "the same numbers, so about as much" if _same_width(run) else UNKNOWN,
            f"{file.kind} file",
        ),
        Row("told of itself while it works", ollama, vllm, f"{run.kind} run"),
        Row(
            "once the model is there, without a network",
            offline,
            "it was started from a folder on this machine" if local else UNKNOWN,
            f"{life.kind} life of a model, {log.kind} start-up log",
        ),
    ]


def _same_width(run: Run) -> bool:
    """Whether both engines serve weights of equally many bits."""
    widths = {bits(arm["facts"]) for arm in run.meta["arms"].values()}
    return len(widths) == 1 and None not in widths


def levels(given: Transcript, engine: str) -> list[Event]:
    """The levels of an engine's first arm in a transcript "promise", fewest users first.

    Raises:
        Missing: it has none, or somebody else's load was on the engines.
    """
    trusted(given)
    rows = [event for event in given.of("level") if event["engine"] == engine]
    if not rows:
        raise Missing(f"The run {given.about['run']} has no measured level of {engine}")
    return sorted((row for row in rows if row["arm"] == rows[0]["arm"]), key=lambda row: int(row["level"]))


def trusted(given: Transcript) -> Transcript:
    """A transcript of this module, if nobody else's load was on the engines of its run.

    Raises:
        Missing: there was.
    """
    verdict = given.about["verdict"]
    if verdict["word"] == "contaminated":
        raise Missing(f"The run {given.about['run']} is contaminated: {'; '.join(verdict['reasons'])}")
    return given


def holds(row: Event) -> bool:
    """Whether a level keeps the promise."""
    return bool(row["holds"])


def seats(rows: Sequence[Event], keeps: Callable[[Event], bool] = holds) -> Event | None:
    """Of the levels of an arm, fewest users first, the largest that keeps the promise with all before it."""
    held = list(takewhile(keeps, rows))
    return held[-1] if held else None


def _transcript(
    name: str, run: Run, asked: Mapping[str, Any], what: str, rows: Iterable[dict[str, Any]]
) -> Transcript:
    host = run.meta["host"]
    about = {
        "machine": f"{host['cpu']}, {host['cores']} cores",
        "date": run.meta["started_at"][:10],
        "run": run.path.name,
        "verdict": run.meta["verdict"],
        "asked": dict(asked),
    }
    return Transcript(name, run.kind, about, tuple({"t_s": 0.0, "what": what, **row} for row in rows))
