"""Right answers and known mistakes of the exercises in notebook 00: reading TTFT and ITL off one answer.

Judged on the answers that :func:`labkit.figures.stream` draws, one of each arm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

import polars as pl

from labkit.bundle import Run
from labkit.exercises.base import Answer, Runs, Solver, which
from labkit.exercises.runs import refuse_unlike, trusted
from labkit.figures.stream import drawn_answers, stream_data
from labkit.sides import Missing

READING = 0.10
"""Share by which a number that was read off a drawing may be off."""

OF_AXIS = 0.01
"""The same as a share of the whole axis: no eye is better on a chart of some hundred pixels."""

GUESSED = 1.5
"""Factor by which a number that was guessed may be off."""

GREW = 1.25
"""Factor from which on one answer's time "grew": single answers differ by less from each other, if idle."""

LONGER = 2.0
"""Factor by which a question has to be longer for its effect to be seen in one answer."""

CACHED = 0.5
"""Share of a question from which on it was not read but remembered."""


@dataclass(frozen=True)
class _Drawn:
    """One answer as it is drawn: its arm, tokens of its question and of these in a cache, its times in ms."""

    arm: str
    question: int | None
    cached: int | None
    ttft: float
    gaps: list[float]
    end: float
    axis: float

    @property
    def itl(self) -> float:
        return median(self.gaps)

    @property
    def asked(self) -> int:
        """Tokens of the question.

        Raises:
            Missing: the engine did not tell.
        """
        if self.question is None:
            raise Missing(f"{self.arm} did not tell how many tokens the question has")
        return self.question


def _drawn(run: Run) -> list[_Drawn]:
    """Every arm's answer, in the order of the drawing."""
    data = stream_data(trusted(run))
    asked = drawn_answers(run).select("arm", "prompt_tokens", "cached_tokens").rows()
    lengths = {arm: (tokens, cached) for arm, tokens, cached in asked}
    axis = max(data["at_ms"].to_list(), default=0.0)
    found = []
    for arm in run.meta["arms"]:
        pieces = data.filter(pl.col("arm") == arm)
        if len(pieces) < 3:
            raise Missing(f"{arm} gave no answer of three pieces or more, so there is nothing to read off")
        times = pieces["at_ms"].to_list()
        gaps = pieces["gap_ms"].drop_nulls().to_list()
        found.append(_Drawn(arm, *lengths[arm], times[0], gaps, times[-1], axis))
    return found


def _upper(runs: Runs) -> _Drawn:
    """The answer that is drawn on top, which the questions are about."""
    return _drawn(runs[0])[0]


def _of_upper(value: Callable[[_Drawn], float | None]) -> Callable[[Runs], Answer | None]:
    return lambda runs: value(_upper(runs))


# stream-gaps


def _wait_in_gaps(drawn: _Drawn) -> float:
    return drawn.ttft / drawn.itl


def _judge_gaps(runs: Runs, answer: Answer) -> tuple[bool, str]:
    drawn = _upper(runs)
    truth = _wait_in_gaps(drawn)
    ok = truth / GUESSED <= float(answer) <= truth * GUESSED
    asked = f", and the question has {drawn.question} tokens" if drawn.question else ""
    return ok, f"{drawn.arm}: TTFT is as long as {truth:.1f} gaps{asked}."


# stream-ttft and stream-itl


def _judge_ttft(runs: Runs, answer: Answer) -> tuple[bool, str]:
    drawn = _upper(runs)
    off = max(READING * drawn.ttft, OF_AXIS * drawn.axis)
    ok = abs(float(answer) - drawn.ttft) <= off
    return ok, (
        f"{drawn.arm}: the first tick stands at {drawn.ttft:.1f} ms; within {off:.0f} ms of it is near "
        "enough for a drawing."
    )


def _judge_itl(runs: Runs, answer: Answer) -> tuple[bool, str]:
    drawn = _upper(runs)
    low, _, high = quantiles(drawn.gaps, n=4, method="inclusive")
    low, high = min(low, drawn.itl * (1 - READING)), max(high, drawn.itl * (1 + READING))
    return low <= float(answer) <= high, (
        f"{drawn.arm}: the median gap is {drawn.itl:.1f} ms; gaps from {low:.1f} to {high:.1f} ms are usual."
    )


# stream-own


def _pairs(runs: Runs) -> list[tuple[_Drawn, _Drawn]]:
    """Each arm's answers to the first and to the longer question.

    Raises:
        Missing: the runs cannot be compared, the second question is not much longer, or it was not read.
    """
    first, second = runs
    refuse_unlike(first, second)
    others = {drawn.arm: drawn for drawn in _drawn(second)}
    pairs = [(drawn, others[drawn.arm]) for drawn in _drawn(first) if drawn.arm in others]
    if not pairs:
        raise Missing("The two runs have no engine with the same settings in common")
    for one, other in pairs:
        if (other.cached or 0) > CACHED * other.asked:
            raise Missing(
                f"{other.arm} had {other.cached} of your question's {other.asked} tokens in its cache, since "
                "they were asked before, and did not read them again; set another SEED, run the set-up cell "
                "and measure again"
            )
        if other.asked < LONGER * one.asked:
            raise Missing(
                f"Your question has {other.asked} tokens and the first one had {one.asked}; make yours at "
                f"least {LONGER:g} times as long, so that its effect can be seen in a single answer"
            )
    return pairs


def _grew(value: Callable[[_Drawn], float], pair: tuple[_Drawn, _Drawn]) -> bool:
    one, other = map(value, pair)
    return other > GREW * one


def _ttft(drawn: _Drawn) -> float:
    return drawn.ttft


def _itl(drawn: _Drawn) -> float:
    return drawn.itl


def _found(pair: tuple[_Drawn, _Drawn]) -> str:
    return which("ttft", "itl", _grew(_ttft, pair), _grew(_itl, pair))


def _judge_own(runs: Runs, answer: Answer) -> tuple[bool, str]:
    pairs = _pairs(runs)
    told = [
        f"{one.arm}: from {one.asked} to {other.asked} tokens asked, TTFT went from {one.ttft:.0f} to "
        f"{other.ttft:.0f} ms, the median gap from {one.itl:.1f} to {other.itl:.1f} ms: "
        f"{_found((one, other))}"
        for one, other in pairs
    ]
    return answer in {_found(pair) for pair in pairs}, f"{'; '.join(told)}."


def _as_seen(ttft: Callable[[_Drawn], float], itl: Callable[[_Drawn], float]) -> Callable[[Runs], Answer]:
    """What the upper engine's pair seems to say if other times are taken for TTFT and ITL."""

    def rule(runs: Runs) -> Answer:
        pair = _pairs(runs)[0]
        return which("ttft", "itl", _grew(ttft, pair), _grew(itl, pair))

    return rule


def _end(drawn: _Drawn) -> float:
    return drawn.end


def _largest(drawn: _Drawn) -> float:
    return max(drawn.gaps)


SOLVERS = {
    "stream-gaps": Solver(
        lambda runs: _wait_in_gaps(_upper(runs)),
        _judge_gaps,
        {
            "like_any_other": lambda _runs: 1.0,
            "token_by_token": _of_upper(lambda drawn: drawn.question),
            "upside_down": _of_upper(lambda drawn: drawn.itl / drawn.ttft),
            "milliseconds": _of_upper(_ttft),
        },
    ),
    "stream-ttft": Solver(
        lambda runs: _upper(runs).ttft,
        _judge_ttft,
        {
            "last_piece": _of_upper(_end),
            "in_seconds": _of_upper(lambda drawn: drawn.ttft / 1000),
            "one_gap": _of_upper(_itl),
            "other_engine": lambda runs: _drawn(runs[0])[-1].ttft,
        },
    ),
    "stream-itl": Solver(
        lambda runs: _upper(runs).itl,
        _judge_itl,
        {
            "per_second": _of_upper(lambda drawn: 1000 / drawn.itl),
            "in_seconds": _of_upper(lambda drawn: drawn.itl / 1000),
            "with_the_wait": _of_upper(lambda drawn: drawn.end / (len(drawn.gaps) + 1)),
            "largest": _of_upper(_largest),
            "the_wait": _of_upper(_ttft),
        },
    ),
    "stream-own": Solver(
        lambda runs: _found(_pairs(runs)[0]),
        _judge_own,
        {
            "swapped": _as_seen(_itl, _ttft),
            "whole_answer": _as_seen(_end, _end),
            "largest_gap": _as_seen(_ttft, _largest),
        },
        runs=2,
    ),
}
