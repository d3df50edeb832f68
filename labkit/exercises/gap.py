"""Right answers and known mistakes of the exercises in notebook 05, computed from the learner's runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from labkit.bundle import Run
from labkit.crossover import Crossover, crossover
from labkit.exercises.base import Answer, Runs, Solver, which
from labkit.exercises.runs import changed_questions, refuse_other_file, refuse_unlike, trusted
from labkit.sides import NOISE, Missing, Side, bits, both, people, ratio, shared, waiting

READING = 0.10
"""Share by which a ratio that was read off a table or a figure may be off."""


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
    o, v = both(trusted(run))
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
    return which("ollama", "vllm", o, v)


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
    refuse_unlike(first, second)
    changed = changed_questions(first, second)
    for a, b in zip(_sides(gaps[0]), _sides(gaps[1]), strict=True):
        refuse_other_file(a.facts, b.facts)
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


# gap-4bit


def _files(runs: Runs) -> tuple[Side, Side, list[int]]:
    """Ollama in the fair run and in the 4-bit run, and the levels that both measured.

    Raises:
        Missing: anything but Ollama's file differs, or the file does not.
    """
    first, second = runs
    refuse_unlike(first, second)
    fair, small = (_gap(run).ollama for run in runs)
    if fair.slots != small.slots:
        raise Missing(f"Ollama's slots differ too ({fair.slots} to {small.slots}); change the file alone")
    if origin := small.facts.get("simulated"):
        raise Missing(
            f"The simulated Ollama takes its times from the profile {origin['profile']}, which was fitted to "
            "one file, and knows no other; this needs the real engine: MODE = 'live' or 'recorded'"
        )
    widths = bits(fair.facts), bits(small.facts)
    if None in widths or widths[0] == widths[1]:
        raise Missing(
            f"Ollama's files have {widths[0]} and {widths[1]} bits a weight; give the fair run first"
        )
    return fair, small, shared(fair, small)


def _speed_up(runs: Runs, nth: int = 0) -> float:
    """How many times as fast Ollama is with the smaller file, at the lowest common level or another."""
    fair, small, levels = _files(runs)
    return ratio(small, fair, levels[nth]).value


def _judge_files(runs: Runs, answer: Answer) -> tuple[bool, str]:
    fair, small, levels = _files(runs)
    found = ratio(small, fair, levels[0])
    rates = [f"{side.value(levels[0], 'tokens_per_s'):.1f}" for side in (fair, small)]
    off = abs(float(answer) / found.value - 1)
    return off <= READING, (
        f"Ollama wrote {rates[0]} tokens/s with {fair.facts['quantisation']} and {rates[1]} with "
        f"{small.facts['quantisation']}, a ratio of {found}."
    )


def _bits_alone(runs: Runs) -> Answer | None:
    fair, small, _ = _files(runs)
    return float(bits(fair.facts) or 0) / float(bits(small.facts) or 1)


def _against_vllm(runs: Runs) -> Answer | None:
    _, small, levels = _files(runs)
    return ratio(small, _gap(runs[1]).vllm, levels[0]).value


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
    "gap-4bit": Solver(
        _speed_up,
        _judge_files,
        {
            "bits_alone": _bits_alone,
            "no_difference": lambda _runs: 1.0,
            "against_vllm": _against_vllm,
            "upside_down": lambda runs: 1 / _speed_up(runs),
            "with_many_users": lambda runs: _speed_up(runs, -1),
        },
        runs=2,
    ),
    "gap-own": Solver(
        _solve_own,
        _judge_own,
        {"estimate_only": _estimate_only, "height": _height, "backwards": _backwards},
        runs=2,
    ),
}
