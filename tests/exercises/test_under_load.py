"""Exercises of notebook 02: solutions are right, mistakes are recognised, unfit runs get a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from queue_runs import Asked, burst, queue_run

from labkit import exercises
from labkit.bundle import Run
from labkit.verdict import Verdict
from tests.exercises.gallery import assert_recognised

Make = Callable[..., Run]
Runs = Run | list[Run]

STALL = {"stall_s": 3.0}
CLOSED = {"arrivals": "closed", "rounds": 20, **STALL}
OPEN = {"arrivals": "constant", "requests": 20, **STALL}
LONG, SHORT = "Tell me all that you know.", "Who are you?"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    count = iter(range(1000))
    return lambda *given, **more: queue_run(tmp_path / f"run{next(count)}", *given, **more)


def closed_loop(pause: float = 3.0) -> list[Asked]:
    return [Asked(at=0.4 * n + (3.0 if n > 6 else 0.0), pause=pause if n == 6 else 0.0) for n in range(20)]


def open_loop(waits: list[float], pause: float = 0.0) -> list[Asked]:
    late = [*[0.0] * 6, *waits, *[0.0] * (14 - len(waits))]
    return [Asked(at=0.8 * n, waits=wait, pause=pause if n == 6 else 0.0) for n, wait in enumerate(late)]


@pytest.fixture
def runs(make: Make) -> dict[str, Runs]:
    loaded = make({20: burst([0.4] * 20)}, settings={"max_queue": 1})
    trap = {"load": {"cold": True}, "settings": {"max_queue": 1}}
    first, second = (make({4: burst(work)}, own_prompts=asked) for work, asked in ORDERS)
    return {
        "staircase": make({8: burst([0.8] * 8)}),
        "repeats": make({8: [burst([0.8] * 8), burst([0.9] * 8), burst([0.7] * 8)]}),
        "a slot each": make({8: [Asked() for _ in range(8)]}),
        "trap": [loaded, make({20: burst([0.4] * 2, refused=18)}, **trap)],
        "no trap": [loaded, make({20: burst([0.4] * 20)}, **trap)],
        "late for many": [
            make({1: closed_loop()}, load=CLOSED),
            make({50: open_loop([2.8, 2.4, 2.0, 1.6])}, load=OPEN),
        ],
        "late for few": [
            make({1: closed_loop()}, load=CLOSED),
            make({50: open_loop([], pause=3.0)}, load=OPEN),
        ],
        "order": [first, second],
    }


ORDERS = (
    ([2.0, 0.4, 0.4, 0.4], (LONG, SHORT, SHORT, SHORT)),
    ([0.4, 0.4, 0.4, 2.0], (SHORT, SHORT, SHORT, LONG)),
)

EXPECTED: dict[tuple[str, str], float | str] = {
    ("load-last", "staircase"): 7.0,
    ("load-last", "repeats"): 7.0,
    ("load-last", "a slot each"): "none",
    ("load-refused", "trap"): "cold",
    ("load-refused", "no trap"): "neither",
    ("load-stall", "late for many"): "open",
    ("load-stall", "late for few"): "neither",
    ("load-own", "order"): 3.29,
}


def test_every_solution_is_right(runs: dict[str, Runs]) -> None:
    for (exercise, name), answer in EXPECTED.items():
        assert exercises.solution(exercise, runs[name]) == answer, name
        verdict = exercises.check(exercise, runs[name], answer)
        assert verdict.ok, (name, verdict)


def test_every_mistake_is_recognised_and_explained(runs: dict[str, Runs]) -> None:
    assert_recognised(EXPECTED, runs)


@pytest.mark.parametrize(
    ("answer", "ok"), [(6.2, False), (6.5, True), (7.6, True), (8, False), ("none", False)]
)
def test_the_wait_is_right_within_a_tenth(runs: dict[str, Runs], answer: Any, ok: bool) -> None:
    assert exercises.check("load-last", runs["staircase"], answer).ok is ok


def test_the_reasons_hold_the_runs_numbers(runs: dict[str, Runs]) -> None:
    last = exercises.check("load-last", runs["staircase"], 3).reason
    assert "waited 5.60 s" in last
    assert "busy for 0.80 s" in last
    refused = exercises.check("load-refused", runs["trap"], "both").reason
    assert "Not loaded: 2 of 20 answered, 18 turned away with status 503" in refused
    stall = exercises.check("load-stall", runs["late for many"], "both").reason
    assert "Closed loop: 1 of 20 answers came late" in stall
    assert "Open loop: 4 of 20" in stall


def sentence(exercise: str, runs: Runs, answer: Any) -> str:
    verdict = exercises.check(exercise, runs, answer)
    assert (verdict.ok, verdict.title) == (False, "These measurements cannot tell"), verdict
    return verdict.reason


def test_runs_that_cannot_tell_get_a_sentence(make: Make, runs: dict[str, Any]) -> None:
    closed = make({1: closed_loop()}, load={**CLOSED, "stall_s": None})
    silent = make({8: burst([0.8] * 8)}, basis="unknown")
    away = make({8: burst([], refused=8)})
    others = make({8: burst([0.8] * 8)}, verdict=Verdict("contaminated", ["someone else"]))
    assert "no burst" in sentence("load-last", closed, 7)
    assert "how long its work took" in sentence("load-last", silent, 7)
    assert "no whole answer" in sentence("load-last", away, 7)
    assert "someone else" in sentence("load-last", others, 7)
    assert "cold=True second" in sentence("load-refused", runs["trap"][::-1], "cold")
    other_limit = make({20: burst([0.4] * 20)}, settings={"max_queue": 4})
    assert "limit was 4" in sentence("load-refused", [other_limit, runs["trap"][1]], "cold")
    assert "closed loop first" in sentence("load-stall", runs["late for many"][::-1], "open")
    assert "never stood still" in sentence("load-stall", [closed, runs["late for many"][1]], "open")
    longer = make({50: open_loop([2.0])}, load={**OPEN, "stall_s": 5.0})
    assert "3.0 s and the other 5.0 s" in sentence("load-stall", [runs["late for many"][0], longer], "open")


def test_own_runs_must_ask_the_same_in_another_order(make: Make, runs: dict[str, Any]) -> None:
    first = runs["order"][0]
    assert "the same run" in sentence("load-own", [first, first], 2)
    again = make({4: burst(ORDERS[0][0])}, own_prompts=ORDERS[0][1])
    assert "same order" in sentence("load-own", [first, again], 2)
    other = make({4: burst([0.4] * 4)}, own_prompts=(SHORT, "What is a queue?"))
    assert "the same questions" in sentence("load-own", [first, other], 2)
    assert "the same questions" in sentence("load-own", [runs["staircase"], runs["repeats"]], 2)
    imitated = make({4: burst(ORDERS[1][0])}, own_prompts=ORDERS[1][1], kind="simulated")
    assert "simulated" in sentence("load-own", [first, imitated], 2)
    closed = make({1: closed_loop()}, load=CLOSED, own_prompts=ORDERS[1][1])
    assert "A closed loop has no line" in sentence("load-own", [first, closed], 2)
