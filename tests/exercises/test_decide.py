"""Exercises of notebook 09: every solution is right, every wrong answer is recognised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from synthetic import make_run

from labkit import evidence, exercises
from labkit.bundle import Run
from labkit.slo import Slo
from labkit.transcript import Transcript
from labkit.verdict import Verdict
from tests.exercises.gallery import assert_recognised

LEVELS = (1, 2, 4, 8, 16)
OLLAMA_S = dict(zip(LEVELS, (0.1, 1.0, 3.0, 6.0, 12.0), strict=True))
VLLM_S = dict(zip(LEVELS, (0.1, 0.2, 0.5, 3.0, 6.0), strict=True))
SOON = dict.fromkeys(LEVELS, 0.1)
RATES: dict[str, dict[int, float]] = {
    "ollama": dict.fromkeys(LEVELS, 60.0),
    "vllm": dict(zip(LEVELS, (20.0, 35.0, 60.0, 100.0, 140.0), strict=True)),
}
ITL: dict[str, dict[int, float]] = {
    "ollama": dict.fromkeys(LEVELS, 0.01),
    "vllm": dict(zip(LEVELS, (0.02, 0.03, 0.04, 0.08, 0.1), strict=True)),
}
PRICE, BUSY = 1.8, 0.5


def a_run(
    folder: Path, ollama: Mapping[int, float] = OLLAMA_S, vllm: Mapping[int, float] = VLLM_S, **more: Any
) -> Run:
    return make_run(folder, rates=RATES, ttft={"ollama": ollama, "vllm": vllm}, itl=ITL, **more)


def promised(run: Run, *, users: int | None = 8, price: float = PRICE, **limits: float) -> Transcript:
    slo = Slo(**(limits or {"ttft_s": 2.0}))
    return evidence.promise(run, slo, price_per_hour=price, utilisation=BUSY, users=users)


def told(
    run: Run, simulator: Sequence[float], line: Sequence[float | None], inside: bool | None
) -> Transcript:
    """Predictions with these errors."""
    rows = {"error": list(simulator), "line_error": list(line), "inside": [inside] * len(simulator)}
    return evidence.forecast(pl.DataFrame(rows, schema_overrides={"inside": pl.Boolean}), run)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return a_run(tmp_path / "run")


@pytest.fixture
def judged(tmp_path: Path, run: Run) -> dict[str, Transcript]:
    lost = a_run(tmp_path / "lost", vllm=SOON, unfinished={"vllm": {8: 0.25, 16: 0.25}})
    return {
        "plain": promised(run),
        "some never came": promised(lost),
        "slow stream": promised(a_run(tmp_path / "slow", vllm=SOON), ttft_s=2.0, tpot_s=0.05),
        "too much": promised(run, ttft_s=0.001),
        "enough": promised(run, ttft_s=60.0),
        "Ollama's users": promised(a_run(tmp_path / "other", ollama=SOON)),
        "close": told(run, [0.05, 0.04, -0.05], [0.2, -0.2, 0.2], inside=False),
        "wide band": told(run, [0.3, 0.2, 0.3], [0.1, 0.1, 0.1], inside=True),
        "cancel": told(run, [0.3, -0.3, 0.2, -0.2], [0.1, 0.1, 0.1, 0.1], inside=False),
        "too low": told(run, [-0.3, -0.3], [0.1, 0.1], inside=False),
        "one far off": told(run, [0.01, 0.01, 0.01, -0.4, 0.38], [0.2] * 5, inside=None),
        "alike": told(run, [0.1, -0.1], [0.105, 0.1], inside=False),
    }


EXPECTED: dict[tuple[str, str], float | str] = {
    ("decide-seats", "plain"): 4,
    ("decide-seats", "some never came"): 4,
    ("decide-seats", "slow stream"): 4,
    ("decide-seats", "too much"): "none",
    ("decide-seats", "enough"): 16,
    ("decide-cost", "plain"): PRICE / 3600 / 60 * 1e6 / BUSY,
    ("decide-closer", "close"): "simulator",
    ("decide-closer", "wide band"): "line",
    ("decide-closer", "cancel"): "line",
    ("decide-closer", "too low"): "line",
    ("decide-closer", "one far off"): "simulator",
    ("decide-closer", "alike"): "equal",
    ("decide-own", "plain"): "neither",
    ("decide-own", "some never came"): "neither",
    ("decide-own", "slow stream"): "neither",
    ("decide-own", "enough"): "both",
    ("decide-own", "Ollama's users"): "ollama",
}


def test_every_solution_is_right(judged: dict[str, Transcript]) -> None:
    for (exercise, name), answer in EXPECTED.items():
        assert exercises.solution(exercise, judged[name]) == pytest.approx(answer), (exercise, name)
        assert exercises.check(exercise, judged[name], answer).ok, (exercise, name)


def test_every_mistake_is_recognised_and_explained(judged: dict[str, Transcript]) -> None:
    assert_recognised(EXPECTED, judged)


@pytest.mark.parametrize(("answer", "ok"), [(3, False), (4, True), (6, True), (8, False)])
def test_between_two_levels_nobody_measured(run: Run, answer: float, ok: bool) -> None:
    assert exercises.check("decide-seats", promised(run), answer).ok is ok


def test_the_reason_has_the_limit_and_what_was_measured(run: Run) -> None:
    reason = exercises.check("decide-seats", promised(run), 16).reason
    assert "vllm at 4 users: TTFT 0.50 s of 2 s at 95%; 8 of 8 answers kept it" in reason
    assert "vllm at 8 users: TTFT 3.0" in reason


def test_a_promise_that_is_never_broken_may_hold_for_more(run: Run) -> None:
    reason = exercises.check("decide-seats", promised(run, ttft_s=60.0), 16).reason
    assert "the true number may be larger" in reason


def test_a_cost_may_be_read_off_rounded_numbers(run: Run) -> None:
    right = exercises.solution("decide-cost", promised(run))
    assert isinstance(right, float)
    assert exercises.check("decide-cost", promised(run), 1.04 * right).ok
    assert not exercises.check("decide-cost", promised(run), 1.06 * right).ok


@pytest.mark.parametrize(
    ("exercise", "given", "answer", "says"),
    [
        ("decide-cost", {"ttft_s": 0.001}, 1, "promise less"),
        ("decide-cost", {"price": 0.0}, 1, "enter a price"),
        ("decide-own", {"users": None}, "both", "names no number of users"),
        ("decide-own", {"users": 5}, "both", "measured with 1, 2, 4, 8, 16 users, and not with 5"),
        ("decide-closer", {}, "line", "give the one that labkit.evidence.forecast makes"),
    ],
)
def test_what_cannot_be_told_is_a_sentence(
    run: Run, exercise: str, given: dict[str, Any], answer: Any, says: str
) -> None:
    verdict = exercises.check(exercise, promised(run, **given), answer)
    assert (verdict.ok, verdict.title) == (False, "These measurements cannot tell")
    assert says in verdict.reason


def test_without_a_line_there_is_nothing_to_compare(run: Run) -> None:
    verdict = exercises.check("decide-closer", told(run, [0.1], [None], inside=True), "line")
    assert "has a line beside it" in verdict.reason


@pytest.mark.parametrize("engine", ["ollama", "vllm"])
def test_a_run_of_one_engine_cannot_tell(tmp_path: Path, engine: str) -> None:
    run = make_run(tmp_path / "one", rates={engine: {8: 50.0}})
    verdict = exercises.check("decide-own", promised(run), "both")
    assert "has no measured level of" in verdict.reason


def test_a_contaminated_run_is_not_judged(tmp_path: Path) -> None:
    run = a_run(tmp_path / "foreign", verdict=Verdict("contaminated", ["someone"]))
    for exercise, given in (
        ("decide-seats", promised(run)),
        ("decide-closer", told(run, [0.1], [0.2], inside=True)),
    ):
        answer = 4 if exercise == "decide-seats" else "line"
        assert "is contaminated: someone" in exercises.check(exercise, given, answer).reason
