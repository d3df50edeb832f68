"""Right answers and known mistakes of the exercises in notebook 02, computed from the learner's runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl

from labkit import metrics
from labkit.bundle import Run
from labkit.exercises.base import Answer, Runs, Solver, always
from labkit.exercises.runs import refuse_unlike, trusted
from labkit.queueing import in_order
from labkit.sides import Missing

TURNS = 0.5
"""A wait in whole answers is right within half of one, or within a tenth of it where that is more."""

RATIO = 0.1
"""A ratio is right within this share: it is read off a table or a figure."""

SHOWN = 0.5
"""A number shows a stall if it is longer than usual by more than this share of the stall."""


def _load(run: Run) -> dict[str, Any]:
    """The run's load, if it may be judged."""
    return trusted(run).arrivals


def _answers(run: Run, what: str) -> pl.DataFrame:
    """Whole answers at the run's highest level, in the order of sending."""
    rows = in_order(run).filter(pl.col("level") == pl.col("level").max(), outcome="ok")
    if rows.is_empty():
        raise Missing(f"{what} has no whole answer")
    return rows


# load-last


@dataclass(frozen=True)
class _Line:
    """The line of a burst, in seconds: medians over its repeats.

    Attributes:
        longest, mean: wait before the work on a request begins.
        work: how long one answer keeps a slot busy.
        last_ttft: of the request that waited longest.
        many: answers.
    """

    longest: float
    mean: float
    work: float
    last_ttft: float
    many: float

    @property
    def turns(self) -> float:
        return self.longest / self.work


def _line(runs: Runs) -> _Line:
    run = runs[0]
    if _load(run)["arrivals"] != "burst":
        raise Missing("This run is no burst, so its requests were not sent at one moment")
    rows = _answers(run, "The burst")
    if rows["queue_s"].null_count():
        raise Missing("The engine did not tell how long its work took, so the wait is not known")
    busy = pl.col("e2e_s") - pl.col("queue_s")
    each = rows.group_by("arm", "repeat").agg(
        longest=pl.col("queue_s").max(),
        mean=pl.col("queue_s").mean(),
        work=busy.median(),
        last_ttft=pl.col("ttft_s").max(),
        many=pl.len(),
    )
    return _Line(**each.select(pl.exclude("arm", "repeat").median()).row(0, named=True))


def _solve_last(runs: Runs) -> Answer:
    turns = _line(runs).turns
    return "none" if turns < TURNS else round(turns, 1)


def _judge_last(runs: Runs, answer: Answer) -> tuple[bool, str]:
    line = _line(runs)
    given = 0.0 if isinstance(answer, str) else answer
    right = abs(given - line.turns) <= max(TURNS, RATIO * line.turns)
    return right, (
        f"Of {line.many:.0f} requests the last one waited {line.longest:.2f} s before it was taken on; one "
        f"answer keeps the engine busy for {line.work:.2f} s. That is the time of {line.turns:.1f} answers."
    )


def _own_too(runs: Runs) -> Answer | None:
    return _line(runs).many


def _shared(_runs: Runs) -> Answer | None:
    return "none"


def _average(runs: Runs) -> Answer | None:
    line = _line(runs)
    return line.mean / line.work or None


def _in_seconds(runs: Runs) -> Answer | None:
    return _line(runs).last_ttft


# load-refused


@dataclass(frozen=True)
class _Trap:
    """One of the two bursts against a short queue."""

    answered: int
    refused: int
    sent: int
    limit: int | None

    def __str__(self) -> str:
        return f"{self.answered} of {self.sent} answered, {self.refused} turned away with status 503"


def _traps(runs: Runs) -> tuple[_Trap, _Trap]:
    loads = [_load(run) for run in runs]
    if [bool(load.get("cold")) for load in loads] != [False, True]:
        raise Missing("Give the burst on the loaded model first and the one with cold=True second")
    loaded, cold = (_trap(run) for run in runs)
    if loaded.limit != cold.limit:
        raise Missing(f"The limit was {loaded.limit} in one burst and {cold.limit} in the other")
    return loaded, cold


def _trap(run: Run) -> _Trap:
    rows = in_order(run)
    if rows.is_empty():
        raise Missing(f"The run {run.path.name} has no measured request")
    limits = [arm["settings"].get("max_queue") for arm in run.meta["arms"].values()]
    return _Trap(
        answered=rows.filter(outcome="ok").height,
        refused=rows.filter(http_status=503).height,
        sent=len(rows),
        limit=limits[0],
    )


def _which(first: bool, second: bool, names: tuple[str, str]) -> str:
    words = {(True, True): "both", (False, False): "neither", (True, False): names[0]}
    return words.get((first, second), names[1])


def _solve_refused(runs: Runs) -> Answer:
    loaded, cold = _traps(runs)
    return _which(loaded.refused > 0, cold.refused > 0, ("loaded", "cold"))


def _judge_refused(runs: Runs, answer: Answer) -> tuple[bool, str]:
    loaded, cold = _traps(runs)
    said = f"Loaded: {loaded}. Not loaded: {cold}. OLLAMA_MAX_QUEUE was {loaded.limit} both times."
    return answer == _solve_refused(runs), said


# load-stall


@dataclass(frozen=True)
class _Stalled:
    """One load during which the engine stood still."""

    name: str
    stall_s: float
    times: pl.Series
    longest_pause_s: float

    @property
    def usual(self) -> float:
        return self.quantile(0.25)

    def quantile(self, share: float) -> float:
        return float(self.times.quantile(share, interpolation="linear"))  # type: ignore[arg-type]

    def shows(self, value: float) -> bool:
        return value - self.usual > SHOWN * self.stall_s

    def __str__(self) -> str:
        late = sum(self.shows(one) for one in self.times)
        return (
            f"{self.name}: {late} of {len(self.times)} answers came late by more than half of the stall; "
            f"p50 {self.quantile(0.5):.2f} s, p95 {self.quantile(0.95):.2f} s, "
            f"slowest {self.quantile(1.0):.2f} s"
        )


def _stalls(runs: Runs) -> tuple[_Stalled, _Stalled]:
    loads = [_load(run) for run in runs]
    if [load["arrivals"] == "closed" for load in loads] != [True, False]:
        raise Missing("Give the closed loop first and the open loop second")
    closed, open_loop = (_stalled(run, load) for run, load in zip(runs, loads, strict=True))
    if closed.stall_s != open_loop.stall_s:
        raise Missing(f"One stall lasted {closed.stall_s} s and the other {open_loop.stall_s} s")
    return closed, open_loop


def _stalled(run: Run, load: dict[str, Any]) -> _Stalled:
    if not load.get("stall_s"):
        raise Missing(f"In the run {run.path.name} the engine never stood still; measure with stall_s")
    rows = _answers(run, f"The run {run.path.name}")
    pauses = metrics.gaps(run.tokens).filter(pl.col("request_id").is_in(rows["id"].to_list()))
    name = "Closed loop" if load["arrivals"] == "closed" else "Open loop"
    longest = pauses["itl_s"].max() if len(pauses) else 0.0
    return _Stalled(name, float(load["stall_s"]), rows["e2e_intended_s"], float(longest))  # type: ignore[arg-type]


def _by_quantile(share: float) -> Callable[[Runs], Answer]:
    """Which of the two runs shows the stall in this quantile of its answer times."""

    def rule(runs: Runs) -> Answer:
        first, second = (one.shows(one.quantile(share)) for one in _stalls(runs))
        return _which(first, second, ("closed", "open"))

    return rule


def _judge_stall(runs: Runs, answer: Answer) -> tuple[bool, str]:
    closed, open_loop = _stalls(runs)
    said = f"The engine stood still for {closed.stall_s:g} s. {closed}. {open_loop}."
    return answer == _by_quantile(0.95)(runs), said


def _by_pause(runs: Runs) -> Answer | None:
    first, second = (one.longest_pause_s > SHOWN * one.stall_s for one in _stalls(runs))
    return _which(first, second, ("closed", "open"))


# load-own


def _medians(runs: Runs) -> tuple[float, float]:
    """Median TTFT of both runs, if only the order of their questions differs."""
    first, second = runs
    refuse_unlike(first, second)
    if any(_load(run)["arrivals"] == "closed" for run in runs):
        raise Missing(
            "A closed loop has no line whose order you choose; send the questions with lab.arrivals"
        )
    asked = [list(run.meta["workload"].get("own_prompts", [])) for run in runs]
    if sorted(asked[0]) != sorted(asked[1]) or len(asked[0]) < 2:
        raise Missing("The two runs must ask the same questions of yours, two at least")
    if asked[0] == asked[1]:
        raise Missing("Both runs ask the questions in the same order, so what differs is noise")
    a, b = (_answers(run, f"The run {run.path.name}")["ttft_s"].median() for run in runs)
    return float(a), float(b)  # type: ignore[arg-type]  # a column of floats without nulls


def _solve_own(runs: Runs) -> Answer:
    a, b = _medians(runs)
    return round(a / b, 2)


def _judge_own(runs: Runs, answer: Answer) -> tuple[bool, str]:
    a, b = _medians(runs)
    right = not isinstance(answer, str) and abs(answer / (a / b) - 1) <= RATIO
    return right, f"Median TTFT: {a:.2f} s in the first run, {b:.2f} s in the second, {a / b:.2f} times."


def _inverse(runs: Runs) -> Answer | None:
    a, b = _medians(runs)
    return b / a


def _same_work(_runs: Runs) -> Answer | None:
    return 1.0


def _difference(runs: Runs) -> Answer | None:
    a, b = _medians(runs)
    return abs(a - b) or None


SOLVERS = {
    "load-last": Solver(
        _solve_last,
        _judge_last,
        {"own_too": _own_too, "shared": _shared, "average": _average, "in_seconds": _in_seconds},
    ),
    "load-refused": Solver(
        _solve_refused,
        _judge_refused,
        {"every_line": always("both"), "no_limit": always("neither"), "busy": always("loaded")},
        runs=2,
    ),
    "load-stall": Solver(
        _by_quantile(0.95),
        _judge_stall,
        {"slowest": _by_quantile(1.0), "middle": _by_quantile(0.5), "pause": _by_pause},
        runs=2,
    ),
    "load-own": Solver(
        _solve_own,
        _judge_own,
        {"inverse": _inverse, "same_work": _same_work, "difference": _difference},
        runs=2,
    ),
}
