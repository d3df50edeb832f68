"""Exercises of notebook 00: reading one answer off its drawing, on answers whose pieces the test places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from synthetic import make_run

from labkit import exercises
from labkit.bundle import Run
from labkit.verdict import Verdict
from tests.exercises.gallery import assert_recognised

ITL = 0.02
TTFT = 0.1

Make = Callable[..., Run]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """One answer of 16 pieces of each engine; Ollama's can be given a stall, and the questions a length."""

    def one(name: str, *, ttft: float = TTFT, itl: float = ITL, stall: float = 0.0, asked: int = 24) -> Run:
        made = make_run(
            tmp_path / name,
            rates={"ollama": {1: 40.0}, "vllm": {1: 25.0}},
            ttft={"ollama": {1: ttft}, "vllm": {1: 2 * ttft}},
            itl={"ollama": {1: itl}, "vllm": {1: 2 * itl}},
        )
        answer = made.requests.filter(~pl.col("warmup"), arm="ollama")["id"][0]
        late = (pl.col("request_id") == answer) & (pl.col("nth") > 8)
        tokens = made.tokens.with_columns(nth=pl.int_range(pl.len()).over("request_id")).with_columns(
            t_s=pl.when(late).then(pl.col("t_s") + stall).otherwise(pl.col("t_s"))
        )
        questions = made.requests.with_columns(prompt_tokens=pl.lit(asked, dtype=pl.Int64))
        return replace(made, tokens=tokens.drop("nth"), requests=questions)

    return one


@pytest.fixture
def runs(make: Make) -> dict[str, Run | list[Run]]:
    first = make("first")
    return {
        "stalled": make("stalled", stall=0.3),
        "ttft": [first, make("longer", ttft=0.15, asked=240)],
        "ttft, stalled": [first, make("longer, stalled", ttft=0.13, stall=0.03, asked=240)],
        "both": [first, make("both", ttft=0.15, itl=0.03, asked=240)],
        "itl": [first, make("itl", itl=0.03, asked=240)],
        "neither": [first, make("neither", asked=240)],
    }


EXPECTED: dict[tuple[str, str], float | str] = {
    ("stream-gaps", "stalled"): TTFT / ITL,
    ("stream-ttft", "stalled"): 1000 * TTFT,
    ("stream-itl", "stalled"): 1000 * ITL,
    ("stream-own", "ttft"): "ttft",
    ("stream-own", "ttft, stalled"): "ttft",
    ("stream-own", "both"): "both",
    ("stream-own", "itl"): "itl",
    ("stream-own", "neither"): "neither",
}


def test_every_solution_is_right(runs: dict[str, Run | list[Run]]) -> None:
    for (exercise, name), answer in EXPECTED.items():
        found = exercises.solution(exercise, runs[name])
        assert found == (answer if isinstance(answer, str) else pytest.approx(answer, rel=0.03)), name
        assert exercises.check(exercise, runs[name], answer).ok, (exercise, name)


def test_every_mistake_is_recognised_and_explained(runs: dict[str, Run | list[Run]]) -> None:
    assert_recognised(EXPECTED, runs)


@pytest.mark.parametrize(
    ("exercise", "answer", "ok"),
    [
        ("stream-ttft", 91, True),  # an eye on a drawing
        ("stream-ttft", 80, False),
        ("stream-itl", 21.5, True),
        ("stream-itl", 23, False),
        ("stream-gaps", 3.5, True),  # a guess
        ("stream-gaps", 8, False),
    ],
)
def test_a_reading_is_right_within_what_can_be_read(
    make: Make, exercise: str, answer: float, ok: bool
) -> None:
    assert exercises.check(exercise, make("run"), answer).ok is ok


def test_a_usual_gap_is_a_right_reading_too(make: Make) -> None:
    """A quarter of the gaps is half as long again: whoever read one of the middle half has read a gap."""
    run = make("run")
    answer = run.requests.filter(~pl.col("warmup"), arm="ollama")["id"][0]
    late = pl.when(pl.col("request_id") == answer).then(pl.col("nth").clip(0, 7) * ITL / 2).otherwise(0.0)
    tokens = run.tokens.with_columns(nth=pl.int_range(pl.len()).over("request_id")).with_columns(
        t_s=pl.col("t_s") + late
    )
    uneven = replace(run, tokens=tokens.drop("nth"))
    assert exercises.check("stream-itl", uneven, 1000 * ITL * 1.4).ok
    assert not exercises.check("stream-itl", run, 1000 * ITL * 1.4).ok


def test_what_was_drawn_is_told(make: Make) -> None:
    run = make("run")
    assert "first tick stands at 99.8 ms" in exercises.check("stream-ttft", run, 5).reason
    assert "the question has 24 tokens" in exercises.check("stream-gaps", run, 1).reason


def cannot_tell(exercise: str, run: Run | list[Run], answer: float | str) -> str:
    verdict = exercises.check(exercise, run, answer)
    assert (verdict.ok, verdict.title) == (False, "These measurements cannot tell")
    return verdict.reason


def test_a_question_that_is_not_longer_tells_nothing(make: Make) -> None:
    first = make("first")
    assert "at least 2 times" in cannot_tell("stream-own", [first, make("second", asked=40)], "ttft")
    assert "the same run" in cannot_tell("stream-own", [first, first], "ttft")
    elsewhere = replace(make("else"), meta={**first.meta, "kind": "simulated"})
    assert "simulated" in cannot_tell("stream-own", [first, elsewhere], "ttft")


def test_a_question_that_the_engine_remembers_tells_nothing(make: Make) -> None:
    first, again = make("first"), make("again", ttft=0.05, asked=240)
    rows = again.requests.with_columns(cached_tokens=pl.lit(239, dtype=pl.Int64))
    reason = cannot_tell("stream-own", [first, replace(again, requests=rows)], "neither")
    assert "239 of your question's 240 tokens in its cache" in reason


def test_a_run_without_an_answer_or_with_foreign_load_is_not_judged(make: Make, tmp_path: Path) -> None:
    run = make("run")
    assert "no answer" in cannot_tell("stream-ttft", replace(run, tokens=run.tokens.clear()), 100)
    foreign = make_run(tmp_path / "x", rates={"ollama": {1: 9.0}}, verdict=Verdict("contaminated", ["who?"]))
    assert "who?" in cannot_tell("stream-ttft", foreign, 100)
    untold = replace(run, requests=run.requests.with_columns(prompt_tokens=pl.lit(None, dtype=pl.Int64)))
    assert "did not tell" in cannot_tell("stream-own", [run, replace(untold, path=tmp_path)], "ttft")
    assert exercises.check("stream-gaps", untold, 90).title == "Not on this run"
