"""Right answers and known mistakes of the exercises in notebook 05, computed from the learner's runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl

from labkit.bundle import Run
from labkit.crossover import Crossover, crossover
from labkit.exercises.base import Answer, Runs, Solver
from labkit.sides import NOISE, Missing, Side, both, people, ratio, shared, waiting


@dataclass(frozen=True)
class _Gap:
    """A run prepared for questions about its crossover."""

    ollama: Side
    vllm: Side
    levels: list[int]
    table: pl.DataFrame

    def crossing(self, metric: str = "tokens_per_s") -> Crossover:
        return crossover(self.table, self.vllm.arm, self.ollama.arm, metric)

    def ratio_at(self, users: int) -> float:
        return ratio(self.vllm, self.ollama, users).value


def _gap(run: Run) -> _Gap:
    if run.verdict.word == "contaminated":
        raise Missing(f"The run {run.path.name} is contaminated: {'; '.join(run.verdict.reasons)}")
    o, v = both(run)
    levels = shared(o, v)
    return _Gap(o, v, levels, run.summary().filter(pl.col("level").is_in(levels)))


# gap-crossover


def _first_level(gap: _Gap, found: Crossover) -> Answer:
    """The first tested level with a lasting lead, by the medians."""
    if found.users is None:
        return "never"
    return float(min((n for n in gap.levels if n >= found.users), default=gap.levels[-1]))


def _accepted(gap: _Gap, found: Crossover, users: float) -> tuple[float, float]:
    """Lowest and highest right number of users: the crossover's interval, and the tested step that holds its
    best estimate. Where the lead is never sure, everything from there to the top."""
    below = max((level for level in gap.levels if level < users), default=0)
    return min(found.low, below), min(found.high, gap.levels[-1])


def _solve_crossover(runs: Runs) -> Answer:
    gap = _gap(runs[0])
    return _first_level(gap, gap.crossing())


def _judge_crossover(runs: Runs, answer: Answer) -> tuple[bool, str]:
    gap = _gap(runs[0])
    found = gap.crossing()
    if isinstance(answer, str):
        return found.high == math.inf, found.sentence
    if found.users is not None:
        low, high = _accepted(gap, found, found.users)
        if low <= answer <= high:
            return True, found.sentence
    near = min(gap.levels, key=lambda level: abs(math.log(level / answer)))
    rates = [s.value(near, "tokens_per_s") for s in (gap.vllm, gap.ollama)]
    shown = f"{gap.vllm.name} {rates[0]:.1f} and {gap.ollama.name} {rates[1]:.1f} tokens/s"
    return False, f"Look at {people(near)}: {shown}."


def _by_metric(metric: str) -> Callable[[Runs], Answer | None]:
    def rule(runs: Runs) -> Answer | None:
        gap = _gap(runs[0])
        known = gap.table.drop_nulls(metric)
        if any(known.filter(pl.col("arm") == s.arm).height < len(gap.levels) for s in (gap.vllm, gap.ollama)):
            return None
        return _first_level(gap, gap.crossing(metric))

    return rule


def _widest(runs: Runs) -> Answer | None:
    gap = _gap(runs[0])
    return float(max(gap.levels, key=gap.ratio_at))


def _upside_down(runs: Runs) -> Answer | None:
    gap = _gap(runs[0])
    return float(min(gap.levels, key=gap.ratio_at))


def _one_level_off(runs: Runs) -> Answer | None:
    gap = _gap(runs[0])
    found = gap.crossing()
    if found.users is None:
        return None
    low, high = _accepted(gap, found, found.users)
    above = [float(level) for level in gap.levels if level > high]
    below = [float(level) for level in gap.levels if level < low]
    return above[0] if above else below[-1] if below else None


# gap-who-waits


def _engines(o: bool, v: bool) -> str:
    return {(True, True): "both", (True, False): "ollama", (False, True): "vllm"}.get((o, v), "neither")


def _top(gap: _Gap) -> int:
    return gap.levels[-1]


def _solve_waits(runs: Runs) -> Answer:
    gap = _gap(runs[0])
    return _engines(*(waiting(runs[0], s, _top(gap)).queued for s in (gap.ollama, gap.vllm)))


def _judge_waits(runs: Runs, answer: Answer) -> tuple[bool, str]:
    gap = _gap(runs[0])
    facts = [waiting(runs[0], s, _top(gap)).sentence for s in (gap.ollama, gap.vllm)]
    return answer == _solve_waits(runs), f"{'; '.join(facts)}."


def _slower_stream(runs: Runs) -> Answer | None:
    gap = _gap(runs[0])
    o, v = (s.rows[_top(gap)]["itl_ms_p50"] for s in (gap.ollama, gap.vllm))
    return None if o is None or v is None else _engines(o > v, v > o)


def _any_rise(runs: Runs) -> Answer | None:
    gap = _gap(runs[0])
    rises = []
    for s in (gap.ollama, gap.vllm):
        few, many = (s.rows[users]["ttft_ms_p50"] for users in (gap.levels[0], _top(gap)))
        if few is None or many is None:
            return None
        rises.append(many > few * (1 + NOISE))
    return _engines(*rises)


def _closed_loop(_runs: Runs) -> Answer | None:
    return "neither"


# gap-own


def _pair(runs: Runs) -> tuple[_Gap, _Gap, list[str]]:
    """Both runs and what was changed between them, if they may be compared."""
    first, second = runs
    gaps = _gap(first), _gap(second)
    _refuse_unlike(first, second)
    changed = []
    asked = [{**run.meta["workload"], "experiment": None, "budget": None} for run in runs]
    if asked[0] != asked[1]:
        names = sorted(
            name for name in asked[0].keys() | asked[1] if asked[0].get(name) != asked[1].get(name)
        )
        changed.append(f"the prompts ({', '.join(names)})")
    for a, b in zip(_sides(gaps[0]), _sides(gaps[1]), strict=True):
        _refuse_other_file(a, b)
        if a.slots != b.slots:
            changed.append(f"{a.facts['engine']}'s slots ({a.slots} to {b.slots})")
    if not changed:
        raise Missing(
            "The two runs have the same prompts and the same slots, so what differs between them is noise; "
            "change one of the two and measure again"
        )
    return *gaps, changed


def _sides(gap: _Gap) -> tuple[Side, Side]:
    return gap.ollama, gap.vllm


def _refuse_unlike(first: Run, second: Run) -> None:
    if first.path == second.path:
        raise Missing("Both are the same run; give the first and a second one")
    if first.kind != second.kind:
        raise Missing(
            f"One run is {first.kind} and the other {second.kind}, so more than your setting differs"
        )
    machines = [
        [run.meta["host"].get(name) for name in ("machine", "cpu", "cores")] for run in (first, second)
    ]
    if machines[0] != machines[1]:
        raise Missing("The two runs come from different machines, so more than your setting differs")


def _refuse_other_file(a: Side, b: Side) -> None:
    def file(s: Side) -> tuple[Any, Any]:
        origin = s.facts.get("simulated")  # stands on a profile where a real engine has a file
        return origin["profile"] if origin else s.facts.get("model_digest"), s.facts.get("quantisation")

    if file(a) == file(b) and file(a)[0] is not None:
        return
    what = " and ".join(
        f"{digest or 'an unknown file'} ({precision})" for digest, precision in map(file, (a, b))
    )
    raise Missing(
        f"{a.facts['engine']} did not surely serve one model file in both runs: {what}. A 4-bit file takes "
        "less memory to read than a 16-bit one and is faster whatever the engine does; keep the file"
    )


def _moved(first: Crossover, second: Crossover) -> str:
    if second.low >= first.high:
        return "up"
    return "down" if second.high <= first.low else "same"


def _solve_own(runs: Runs) -> Answer:
    first, second, _ = _pair(runs)
    return _moved(first.crossing(), second.crossing())


def _judge_own(runs: Runs, answer: Answer) -> tuple[bool, str]:
    first, second, changed = _pair(runs)
    a, b = first.crossing(), second.crossing()
    more = " More than one thing was changed, so the two cannot be told apart." if len(changed) > 1 else ""
    return answer == _moved(a, b), (
        f"Changed: {' and '.join(changed)}.{more} First run: {a.sentence} Second run: {b.sentence}"
    )


def _estimate_only(runs: Runs) -> Answer | None:
    a, b = (_gap(run).crossing().users for run in runs)
    if a is None or b is None or a == b:
        return None
    return "up" if b > a else "down"


def _height(runs: Runs) -> Answer | None:
    first, second = (_gap(run) for run in runs)
    top = max((n for n in first.levels if n in second.levels), default=None)
    if top is None:
        return None
    change = second.ratio_at(top) / first.ratio_at(top)
    return "up" if change > 1 + NOISE else "down" if change < 1 - NOISE else None


def _backwards(runs: Runs) -> Answer | None:
    first, second = (_gap(run).crossing() for run in runs)
    return _moved(second, first)


SOLVERS = {
    "gap-crossover": Solver(
        _solve_crossover,
        _judge_crossover,
        {
            "first_token": _by_metric("ttft_ms_p50"),
            "per_user": _by_metric("tpot_ms_p50"),
            "widest": _widest,
            "upside_down": _upside_down,
            "one_level_off": _one_level_off,
        },
    ),
    "gap-who-waits": Solver(
        _solve_waits,
        _judge_waits,
        {"slower_stream": _slower_stream, "any_rise": _any_rise, "closed_loop": _closed_loop},
    ),
    "gap-own": Solver(
        _solve_own,
        _judge_own,
        {"estimate_only": _estimate_only, "height": _height, "backwards": _backwards},
        runs=2,
    ),
}
