"""Right answers and known mistakes of the exercises in notebook 01, from the learner's transcripts."""

from __future__ import annotations

import re
from collections.abc import Callable

from labkit.errors import UsageError
from labkit.exercises.base import Answer, Solver, Transcripts
from labkit.sides import Missing
from labkit.transcript import Event, Transcript

CLOSE = 0.02
"""How near a number that can be read off exactly has to be, as a share."""

POINTS = 5.0
"""How near a share in per cent has to be, in points: two ways to see it differ by a few."""

GONE_S = 0.5
"""How near the moment of an unloading has to be: it is looked for twenty times a second."""

DEFAULT_KEEP_S = 300.0
"""Ollama's own keep-alive where neither server nor request says otherwise."""


def _one(transcripts: Transcripts, what: str) -> Event:
    try:
        return transcripts[0].one(what)
    except UsageError:
        raise Missing(f"The transcript {transcripts[0].name} has no {what}; give the other one") from None


def _near(given: Answer, right: float, share: float = CLOSE) -> bool:
    return not isinstance(given, str) and abs(given - right) <= share * right


# pull-rest


def _layers(transcripts: Transcripts) -> list[Event]:
    _one(transcripts, "layer")
    return transcripts[0].of("layer")


def _others(transcripts: Transcripts) -> list[Event]:
    return [layer for layer in _layers(transcripts) if layer["kind"] != "model"]


def _solve_rest(transcripts: Transcripts) -> Answer:
    return float(sum(layer["bytes"] for layer in _others(transcripts)))


def _judge_rest(transcripts: Transcripts, answer: Answer) -> tuple[bool, str]:
    right = float(_solve_rest(transcripts))
    parts = ", ".join(f"{layer['kind']} {layer['bytes']:,}" for layer in _others(transcripts))
    return _near(answer, right), f"Beside the weights came {right:,.0f} bytes: {parts}."


def _all_bytes(transcripts: Transcripts) -> Answer:
    return float(sum(layer["bytes"] for layer in _layers(transcripts)))


def _largest(transcripts: Transcripts) -> Answer:
    return float(max(layer["bytes"] for layer in _others(transcripts)))


def _counted(transcripts: Transcripts) -> Answer:
    return float(len(_others(transcripts)))


# pull-bits


def _types(transcripts: Transcripts) -> list[Event]:
    _one(transcripts, "type")
    return transcripts[0].of("type")


def _bits(transcripts: Transcripts) -> float:
    types = _types(transcripts)
    return 8 * float(sum(one["bytes"] for one in types)) / float(sum(one["elements"] for one in types))


def _judge_bits(transcripts: Transcripts, answer: Answer) -> tuple[bool, str]:
    right = _bits(transcripts)
    parts = ", ".join(
        f"{one['elements']:,} in {one['type']} of {one['bits']:g}" for one in _types(transcripts)
    )
    return _near(answer, right), f"It is {right:.2f} bits: {parts} bits each."


def _in_bytes(transcripts: Transcripts) -> Answer:
    return _bits(transcripts) / 8


def _by_name(transcripts: Transcripts) -> Answer | None:
    most = max(_types(transcripts), key=lambda one: one["elements"])
    number = re.search(r"\d+", most["type"])
    return float(number[0]) if number else None


def _most_common(transcripts: Transcripts) -> Answer:
    return float(max(_types(transcripts), key=lambda one: one["elements"])["bits"])


def _mean_of_types(transcripts: Transcripts) -> Answer:
    types = _types(transcripts)
    return float(sum(one["bits"] for one in types) / len(types))


# pull-load-share


def _first(transcripts: Transcripts) -> tuple[Event, Event]:
    answers = {event["turn"]: event for event in transcripts[0].of("answer")}
    if not {"first", "second"} <= answers.keys() or answers["first"]["load_s"] is None:
        raise Missing("This transcript has no two answers to compare; give the one of the life of a model")
    return answers["first"], answers["second"]


def _solve_share(transcripts: Transcripts) -> Answer:
    first, _ = _first(transcripts)
    return 100 * float(first["load_s"] / first["ttft_s"])


def _judge_share(transcripts: Transcripts, answer: Answer) -> tuple[bool, str]:
    first, second = _first(transcripts)
    told = float(_solve_share(transcripts))
    seen = 100 * (1 - second["ttft_s"] / first["ttft_s"])
    reason = (
        f"The first word came after {first['ttft_s']:.2f} s; Ollama says that {first['load_s']:.2f} s of it "
        f"were loading: {told:.0f} %. The second time it came after {second['ttft_s']:.2f} s."
    )
    low, high = min(told, seen) - POINTS, max(told, seen) + POINTS
    return not isinstance(answer, str) and low <= answer <= high, reason


def _of_whole(transcripts: Transcripts) -> Answer:
    first, _ = _first(transcripts)
    return 100 * float(first["load_s"] / first["took_s"])


def _reading(transcripts: Transcripts) -> Answer | None:
    first, _ = _first(transcripts)
    return None if first["prompt_s"] is None else 100 * float(first["prompt_s"] / first["ttft_s"])


def _in_seconds(transcripts: Transcripts) -> Answer:
    first, _ = _first(transcripts)
    return float(first["load_s"])


# pull-api


def _telling(transcripts: Transcripts, field: str) -> Answer:
    """Which of the two replies has a field whose name ends so."""
    _one(transcripts, "api")
    having = [
        event["api"]
        for event in transcripts[0].of("api")
        if any(name.endswith(field) for name in event["fields"])
    ]
    return {0: "neither", 2: "both"}.get(len(having)) or str(having[0])


def _solve_api(transcripts: Transcripts) -> Answer:
    return _telling(transcripts, "load_duration")


def _judge_api(transcripts: Transcripts, answer: Answer) -> tuple[bool, str]:
    _one(transcripts, "api")
    told = "; ".join(
        f"{event['path']} has {', '.join(name for name in event['fields'] if 'duration' in name) or 'none'}"
        for event in transcripts[0].of("api")
    )
    return answer == _solve_api(transcripts), f"Of fields about durations {told}."


def _token_counts(_transcripts: Transcripts) -> Answer:
    return "both"


def _the_standard(_transcripts: Transcripts) -> Answer:
    return "openai"


def _only_shared(_transcripts: Transcripts) -> Answer:
    return "neither"


# pull-own


def _solve_own(transcripts: Transcripts) -> Answer:
    after_s = _one(transcripts, "expired")["after_s"]
    return "still there" if after_s is None else float(after_s)


def _judge_own(transcripts: Transcripts, answer: Answer) -> tuple[bool, str]:
    right = _solve_own(transcripts)
    asked = _one(transcripts, "expired")["keep_alive"]
    if isinstance(right, str):
        return answer == right, f"With keep_alive={asked} the model was not waited for: it is to stay longer."
    reason = f"With keep_alive={asked} it was gone {right:.1f} s after the answer had ended."
    return not isinstance(answer, str) and abs(answer - right) <= max(GONE_S, CLOSE * right), reason


def _default(_transcripts: Transcripts) -> Answer:
    return DEFAULT_KEEP_S


def _servers(transcripts: Transcripts) -> Answer | None:
    keep_s = _one(transcripts, "loaded")["keep_s"]
    return None if keep_s is None else float(keep_s)


def _from_question(transcripts: Transcripts) -> Answer | None:
    right = _solve_own(transcripts)
    third = next((event for event in transcripts[0].of("answer") if event["turn"] == "third"), None)
    if isinstance(right, str) or third is None:
        return None
    return max(0.0, right - float(third["took_s"])) or None


def _solver(
    solve: Callable[[Transcripts], Answer],
    judge: Callable[[Transcripts, Answer], tuple[bool, str]],
    **wrong: Callable[[Transcripts], Answer | None],
) -> Solver:
    return Solver(solve, judge, wrong, takes=Transcript)


SOLVERS = {
    "pull-rest": _solver(_solve_rest, _judge_rest, all_bytes=_all_bytes, largest=_largest, counted=_counted),
    "pull-bits": _solver(
        _bits,
        _judge_bits,
        in_bytes=_in_bytes,
        by_name=_by_name,
        most_common=_most_common,
        mean_of_types=_mean_of_types,
    ),
    "pull-load-share": _solver(
        _solve_share, _judge_share, of_whole=_of_whole, reading=_reading, in_seconds=_in_seconds
    ),
    "pull-api": _solver(
        _solve_api,
        _judge_api,
        token_counts=_token_counts,
        the_standard=_the_standard,
        only_shared=_only_shared,
    ),
    "pull-own": _solver(
        _solve_own, _judge_own, default=_default, servers=_servers, from_question=_from_question
    ),
}
