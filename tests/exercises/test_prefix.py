"""Exercises of notebook 06: solutions are right, mistakes are recognised, unfit evidence gets a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from prefix_runs import OFF, ON, flat, level, prefix_run, reuse, staircase, workloads_run
from prefix_runs import Question as Q

from labkit import exercises
from labkit.bundle import Run
from labkit.transcript import Transcript
from labkit.verdict import Verdict
from tests.exercises.gallery import assert_recognised

Make = Callable[..., Run]
TEXT = "You are kind and answer in one line."


def asked(prompt: int, cached: int, ttft_ms: float, first: int = 0) -> list[Q]:
    """Four questions, of which the first finds less."""
    return [Q(900.0, first, prompt), *[Q(ttft_ms, cached, prompt)] * 3]


THREE = {
    "system prompt": asked(420, 384, 90.0),
    "documents": asked(330, 256, 80.0),
    "agent": asked(300, 256, 70.0),
}
MIXED = {
    "system prompt": asked(200, 128, 60.0),
    "documents": asked(900, 640, 300.0),
    "agent": asked(500, 384, 160.0),
}


def own(last: int, first: int, whole: int = 230) -> dict[str, Sequence[Q]]:
    return {"changes last": asked(whole, last, 90.0), "changes first": asked(whole, first, 200.0)}


@pytest.fixture
def made(tmp_path: Path) -> Make:
    count = iter(range(100))

    def run(arms: dict[str, Any], make: Callable[..., Run] = prefix_run, **more: Any) -> Run:
        return make(tmp_path / f"run{next(count)}", arms, **more)

    return run


@pytest.fixture
def evidence(made: Make) -> dict[str, Run | Transcript]:
    def three(workloads: dict[str, Any]) -> Run:
        return made({OFF: dict.fromkeys(workloads, asked(300, 0, 400.0)), ON: workloads}, workloads_run)

    return {
        "both arms": made({ON: staircase(), OFF: flat()}),
        "reuses nothing": made({ON: flat()}),
        "reuses all": made({ON: {255: level(900, 400, 255)}}),
        "rounds up": made({ON: {255: level(900, 300, 256)}}),
        "system prompt": three(THREE),
        "agent": three(MIXED),
        "own": made({ON: own(128, 0)}, workloads_run, system=TEXT),
        "own, short": made({ON: own(0, 0, whole=60)}, workloads_run, system=TEXT),
        "own, both": made({ON: own(256, 128, whole=300)}, workloads_run, system=TEXT),
        "slots": reuse(),
        "blocks": reuse("vllm", busy=640, idle=640),
        "in part": reuse("vllm", busy=128, idle=640),
    }


EXPECTED: dict[tuple[str, str], float | str] = {
    ("prefix-short", "both arms"): "n - 1",
    ("prefix-short", "reuses nothing"): "nothing",
    ("prefix-short", "reuses all"): "all",
    ("prefix-short", "rounds up"): "n",
    ("prefix-speed", "both arms"): 896 / 384,
    ("prefix-speed", "rounds up"): 3.0,
    ("prefix-workloads", "system prompt"): "system prompt",
    ("prefix-workloads", "agent"): "agent",
    ("prefix-own", "own"): 128,
    ("prefix-own", "own, short"): "none",
    ("prefix-own", "own, both"): 256,
    ("prefix-busy", "slots"): "nothing",
    ("prefix-busy", "blocks"): "as much",
    ("prefix-busy", "in part"): "part",
}


def test_every_solution_is_right(evidence: dict[str, Run | Transcript]) -> None:
    for (exercise, name), answer in EXPECTED.items():
        assert exercises.solution(exercise, evidence[name]) == pytest.approx(answer), (exercise, name)
        assert exercises.check(exercise, evidence[name], answer).ok, (exercise, name)


def test_every_mistake_is_recognised_and_explained(evidence: dict[str, Run | Transcript]) -> None:
    assert_recognised(EXPECTED, evidence)


def test_reasons_are_made_of_the_runs_numbers(evidence: dict[str, Run | Transcript]) -> None:
    reasons = {
        ("prefix-short", "both arms", "n"): "With 255 tokens shared, later questions took 128",
        (
            "prefix-speed",
            "both arms",
            9.0,
        ): "With 256 of 448 tokens from the cache TTFT was 384 ms, without 896",
        (
            "prefix-workloads",
            "agent",
            "documents",
        ): "documents 53% of 3,600 tokens, agent 58% of 2,000 tokens",
        (
            "prefix-own",
            "own",
            "none",
        ): "128 came from the cache with the changing part last, and 0 with it first",
        ("prefix-busy", "slots", "part"): "ollama reused 3 of 661 tokens while A was answered",
    }
    for (exercise, name, answer), words in reasons.items():
        verdict = exercises.check(exercise, evidence[name], answer)
        assert (verdict.ok, words in verdict.reason) == (False, True), verdict.reason


def test_a_ratio_may_be_read_off_a_chart(evidence: dict[str, Run | Transcript]) -> None:
    assert exercises.check("prefix-speed", evidence["both arms"], 2.5).ok
    assert not exercises.check("prefix-speed", evidence["both arms"], 2.7).ok


def test_two_workloads_that_share_about_as_much_are_both_right(made: Make) -> None:
    close = {"system prompt": asked(400, 320, 90.0), "agent": asked(400, 316, 90.0)}
    run = made({ON: close}, workloads_run)
    assert all(exercises.check("prefix-workloads", run, name).ok for name in close)


def test_a_first_question_that_was_warm_already_takes_no_part(made: Make) -> None:
    """The learner's own text is the same whenever the cell runs."""
    again = {"changes last": asked(230, 128, 90.0, first=128), "changes first": asked(230, 0, 90.0)}
    assert exercises.solution("prefix-own", made({ON: again}, workloads_run)) == 128


@pytest.mark.parametrize(
    ("exercise", "answer"), [("prefix-short", "n - 1"), ("prefix-speed", 2), ("prefix-workloads", "agent")]
)
def test_a_run_that_cannot_tell_is_a_sentence(made: Make, exercise: str, answer: Any) -> None:
    unfit = [
        made({OFF: flat()}),
        made({OFF: {"agent": asked(300, 0, 400.0)}}, workloads_run),
        made({ON: staircase()}, verdict=Verdict("contaminated", ["someone"])),
        made({ON: staircase([64, 128])}, block=None),
    ]
    for run in unfit:
        verdict = exercises.check(exercise, run, answer)
        assert (verdict.ok, verdict.title) == (False, "These measurements cannot tell"), verdict.reason


def test_what_is_no_whole_number_of_blocks_cannot_tell(made: Make) -> None:
    verdict = exercises.check("prefix-short", made({ON: {255: level(900, 400, 64)}}), "n - 1")
    assert (verdict.ok, "none of these" in verdict.reason) == (False, True), verdict.reason


def test_a_run_that_was_stopped_after_a_first_question_cannot_tell(made: Make) -> None:
    verdict = exercises.check("prefix-speed", made({ON: {128: [Q(900.0)]}}), 2)
    assert "No later question was answered" in verdict.reason


def test_an_arm_without_a_cache_takes_no_part_in_ones_own_orders(made: Make) -> None:
    run = made({OFF: own(0, 0), ON: own(128, 0)}, workloads_run, system=TEXT)
    assert exercises.solution("prefix-own", run) == 128


def test_other_names_than_the_exercise_asks_for_are_told(made: Make) -> None:
    run = made({ON: {"mine": asked(300, 128, 90.0), "yours": asked(300, 0, 90.0)}}, workloads_run)
    assert '"changes last"' in exercises.check("prefix-own", run, 128).reason


def test_a_transcript_in_which_nothing_is_reused_cannot_tell() -> None:
    assert "nothing was reused" in exercises.check("prefix-busy", reuse(idle=0), "nothing").reason
