"""Right answers and known mistakes of the exercises in notebook 09.

They are judged on transcripts of :mod:`labkit.evidence`, which hold the learner's own limits and price beside
what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

from labkit.evidence import holds, levels, seats, trusted
from labkit.exercises.base import Answer, Solver, Transcripts, which
from labkit.sides import Missing, people
from labkit.slo import NAMES
from labkit.transcript import Event, Transcript

READING = 0.05
"""Share by which a cost that was worked out from rounded numbers may be off."""

EVEN = 0.01
"""Errors whose size differs by less are equally large."""

Keeps = Callable[[Event], bool]
"""Whether a level keeps a promise."""


def _promise(evidence: Transcripts) -> Transcript:
    return _named(evidence[0], "promise")


def _named(given: Transcript, name: str) -> Transcript:
    """A transcript of this name from a run that can be trusted.

    Raises:
        Missing: it is another one, or somebody else's load was on the engines.
    """
    if given.name != name:
        raise Missing(f"This is the transcript {given.name}; give the one that labkit.evidence.{name} makes")
    return trusted(given)


def _limits(given: Transcript) -> dict[str, float]:
    asked = given.about["asked"]
    return {name: asked[name] for name in NAMES if asked[name] is not None}


def _by_median(given: Transcript) -> Keeps:
    """The mistake of looking at the answer in the middle."""
    limits = _limits(given)
    return lambda row: all((row[f"{name[:-2]}_p50_s"] or 0.0) <= limit for name, limit in limits.items())


def _first_token_only(given: Transcript) -> Keeps:
    """The mistake of looking at TTFT where more is promised."""
    limit = _limits(given).get("ttft_s")
    return lambda row: limit is None or (row["ttft_s"] is not None and row["ttft_s"] <= limit)


def _users(row: Event | None) -> Answer:
    return "none" if row is None else float(row["level"])


def _told(given: Transcript, row: Event) -> str:
    """A level in words: each limit with what was measured."""
    asked = given.about["asked"]
    parts = [
        f"{NAMES[name]} {row[name]:.2f} s of {limit:g} s"
        for name, limit in _limits(given).items()
        if row[name] is not None
    ]
    whole = f"{row['kept']} of {row['planned']} answers kept it"
    return f"{row['arm']} at {people(row['level'])}: {', '.join(parts)} at {asked['share']:.0%}; {whole}"


# decide-seats


def _solve_seats(evidence: Transcripts) -> Answer:
    return _users(seats(levels(_promise(evidence), "vllm")))


def _judge_seats(evidence: Transcripts, answer: Answer) -> tuple[bool, str]:
    given = _promise(evidence)
    rows = levels(given, "vllm")
    kept = seats(rows)
    above = next((row for row in rows if not row["holds"]), None)
    told = [_told(given, row) for row in (kept, above) if row is not None]
    if above is None:
        told.append("It was kept at every measured level, so the true number may be larger")
    right = _users(kept)
    # between the last level that keeps it and the first that does not nobody has measured
    between = (
        not isinstance(answer, str)
        and kept is not None
        and above is not None
        and kept["level"] <= answer < above["level"]
    )
    return answer == right or between, f"{'. '.join(told)}."


def _seats_by(keeps: Callable[[Transcript], Keeps]) -> Callable[[Transcripts], Answer | None]:
    def rule(evidence: Transcripts) -> Answer | None:
        given = _promise(evidence)
        return _users(seats(levels(given, "vllm"), keeps(given)))

    return rule


def _one_beyond(evidence: Transcripts) -> Answer | None:
    above = next((row for row in levels(_promise(evidence), "vllm") if not row["holds"]), None)
    return None if above is None else float(above["level"])


def _most_tokens(evidence: Transcripts) -> Answer | None:
    return float(_busiest(levels(_promise(evidence), "vllm"))["level"])


def _busiest(rows: Sequence[Event]) -> Event:
    return max(rows, key=lambda row: float(row["tokens_per_s"] or 0.0))


def _other_engine(evidence: Transcripts) -> Answer | None:
    return _users(seats(levels(_promise(evidence), "ollama")))


# decide-cost


def _seat(evidence: Transcripts) -> Event:
    """vLLM at the largest level that keeps the promise.

    Raises:
        Missing: none does, or its tokens cost nothing.
    """
    given = _promise(evidence)
    rows = levels(given, "vllm")
    found = seats(rows)
    if found is None:
        raise Missing(f"The promise is kept at no level ({_told(given, rows[0])}); promise less")
    if not found["per_million_output"]:
        raise Missing("At a price of 0 every token costs nothing; enter a price")
    return found


def _solve_cost(evidence: Transcripts) -> Answer:
    return float(_seat(evidence)["per_million_output"])


def _judge_cost(evidence: Transcripts, answer: Answer) -> tuple[bool, str]:
    found, asked = _seat(evidence), _promise(evidence).about["asked"]
    right = float(found["per_million_output"])
    return abs(float(answer) / right - 1) <= READING, (
        f"{found['arm']} writes {found['tokens_per_s']:.1f} tokens/s at {people(found['level'])}; at "
        f"{asked['price_per_hour']:g} an hour, busy {asked['utilisation']:.0%} of the time."
    )


def _cost_of(column: str) -> Callable[[Transcripts], Answer | None]:
    return lambda evidence: float(_seat(evidence)[column])


def _always_busy(evidence: Transcripts) -> Answer | None:
    return float(_seat(evidence)["per_million_output"]) * float(
        _promise(evidence).about["asked"]["utilisation"]
    )


def _one_stream(evidence: Transcripts) -> Answer | None:
    found = _seat(evidence)
    return float(found["per_million_output"]) * int(found["level"])


def _busiest_level(evidence: Transcripts) -> Answer | None:
    _seat(evidence)
    return float(_busiest(levels(_promise(evidence), "vllm"))["per_million_output"])


# decide-closer


def _points(evidence: Transcripts) -> list[Event]:
    """Predictions that have a line beside them.

    Raises:
        Missing: there are none.
    """
    given = _named(evidence[0], "forecast")
    points = [point for point in given.of("point") if point["line_error"] is not None]
    if not points:
        raise Missing("No prediction has a line beside it: the fit has fewer than two levels")
    return points


Score = Callable[[Sequence[float]], float]


def _middle(errors: Sequence[float]) -> float:
    return median(abs(error) for error in errors)


def _scores(points: Sequence[Event], score: Score) -> tuple[float, float]:
    """Simulator's and line's."""
    simulator, line = (score([float(point[name]) for point in points]) for name in ("error", "line_error"))
    return simulator, line


def _closer(simulator: float, line: float) -> Answer:
    if abs(simulator - line) < EVEN:
        return "equal"
    return "simulator" if simulator < line else "line"


def _solve_closer(evidence: Transcripts) -> Answer:
    return _closer(*_scores(_points(evidence), _middle))


def _judge_closer(evidence: Transcripts, answer: Answer) -> tuple[bool, str]:
    points = _points(evidence)
    simulator, line = _scores(points, _middle)
    inside = [point["inside"] for point in points if point["inside"] is not None]
    band = f", {sum(inside)} of {len(inside)} measurements inside its band" if inside else ""
    return answer == _closer(simulator, line), (
        f"Over {len(points)} predictions the error in the middle is {simulator:.0%} for the simulator{band}, "
        f"and {line:.0%} for the line."
    )


def _closer_by(score: Score) -> Callable[[Transcripts], Answer | None]:
    return lambda evidence: _closer(*_scores(_points(evidence), score))


def _signed(errors: Sequence[float]) -> float:
    return abs(fmean(errors))


def _worst(errors: Sequence[float]) -> float:
    return max(abs(error) for error in errors)


def _below(errors: Sequence[float]) -> float:
    """The mistake of taking an error below zero for a smaller one."""
    return median(errors)


def _inside(evidence: Transcripts) -> Answer | None:
    return "simulator" if all(point["inside"] for point in _points(evidence)) else None


# decide-own


def _pair(evidence: Transcripts, users: int | None = None) -> tuple[Transcript, Event, Event]:
    """Ollama's and vLLM's level with the learner's users, or with others.

    Raises:
        Missing: it was not measured.
    """
    given = _promise(evidence)
    wanted = users or given.about["asked"]["users"]
    if wanted is None:
        raise Missing("The promise names no number of users; give evidence.promise(…, users=N)")
    found = []
    for engine in ("ollama", "vllm"):
        rows = levels(given, engine)
        row = next((row for row in rows if row["level"] == wanted), None)
        if row is None:
            measured = ", ".join(str(row["level"]) for row in rows)
            raise Missing(f"{rows[0]['arm']} was measured with {measured} users, and not with {wanted}")
        found.append(row)
    return given, found[0], found[1]


def _kept_by(rows: tuple[Event, Event], keeps: Keeps) -> Answer:
    return which("ollama", "vllm", keeps(rows[0]), keeps(rows[1]))


def _solve_own(evidence: Transcripts) -> Answer:
    _, *rows = _pair(evidence)
    return _kept_by((rows[0], rows[1]), holds)


def _judge_own(evidence: Transcripts, answer: Answer) -> tuple[bool, str]:
    given, ollama, vllm = _pair(evidence)
    told = ". ".join(_told(given, row) for row in (ollama, vllm))
    return answer == _kept_by((ollama, vllm), holds), f"{told}."


def _own_by(keeps: Callable[[Transcript], Keeps]) -> Callable[[Transcripts], Answer | None]:
    def rule(evidence: Transcripts) -> Answer | None:
        given, ollama, vllm = _pair(evidence)
        return _kept_by((ollama, vllm), keeps(given))

    return rule


def _alone(evidence: Transcripts) -> Answer | None:
    """With the fewest users that were measured."""
    fewest = levels(_promise(evidence), "ollama")[0]["level"]
    _, ollama, vllm = _pair(evidence, int(fewest))
    return _kept_by((ollama, vllm), holds)


def _ahead(column: str, *, more: bool) -> Callable[[Transcripts], Answer | None]:
    """Who has more, or less, of something, whatever was promised."""

    def rule(evidence: Transcripts) -> Answer | None:
        _, ollama, vllm = _pair(evidence)
        values: list[Any] = [row[column] for row in (ollama, vllm)]
        if None in values or values[0] == values[1]:
            return None
        return "ollama" if (values[0] > values[1]) == more else "vllm"

    return rule


SOLVERS = {
    "decide-seats": Solver(
        _solve_seats,
        _judge_seats,
        {
            "median": _seats_by(_by_median),
            "first_token_only": _seats_by(_first_token_only),
            "one_beyond": _one_beyond,
            "most_tokens": _most_tokens,
            "other_engine": _other_engine,
        },
        takes=Transcript,
    ),
    "decide-closer": Solver(
        _solve_closer,
        _judge_closer,
        {
            "signed_mean": _closer_by(_signed),
            "worst": _closer_by(_worst),
            "below_zero": _closer_by(_below),
            "inside": _inside,
        },
        takes=Transcript,
    ),
    "decide-cost": Solver(
        _solve_cost,
        _judge_cost,
        {
            "all_tokens": _cost_of("per_million_all"),
            "always_busy": _always_busy,
            "one_stream": _one_stream,
            "busiest": _busiest_level,
        },
        takes=Transcript,
    ),
    "decide-own": Solver(
        _solve_own,
        _judge_own,
        {
            "median": _own_by(_by_median),
            "first_token_only": _own_by(_first_token_only),
            "alone": _alone,
            "more_tokens": _ahead("tokens_per_s", more=True),
            "faster_stream": _ahead("tpot_p50_s", more=False),
        },
        takes=Transcript,
    ),
}
