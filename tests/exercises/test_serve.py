"""Exercises of notebook 04: solutions are right, mistakes are recognised, unfit evidence gets a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from burst_runs import Burst, burst_run, groups

from labkit import exercises
from labkit.bundle import Run
from labkit.transcript import Transcript
from labkit.verdict import Verdict
from tests.exercises.gallery import assert_recognised

Make = Callable[..., Run]
Evidence = Run | Transcript


@pytest.fixture
def make(tmp_path: Path) -> Make:
    count = iter(range(1000))
    return lambda arms, **more: burst_run(tmp_path / f"run{next(count)}", arms, **more)


def start(**took: float) -> Transcript:
    events: list[dict[str, Any]] = []
    now = 0.0
    for phase, took_s in took.items():
        events.append({"t_s": now, "what": "phase", "phase": phase.replace("_", " "), "took_s": took_s})
        now += took_s
    return Transcript("start_log_vllm", "live", {"engine": "vllm"}, tuple(events))


def seats(slots: int, count: int = 16) -> Burst:
    return Burst(groups(count, slots), readings={0.0: {"waiting": count - slots}}, facts={"slots": slots})


def squeezed(**more: Any) -> Burst:
    """12 requests, of which 5 lost their blocks."""
    read = {0.0: {"preemptions": 3.0}, 2.0: {"preemptions": 8.0}}
    return Burst([0.1] * 12, **{"readings": read, "pauses": dict.fromkeys(range(7, 12), 2.0)} | more)


OWN = {0.0: {"preemptions": 8.0}, 2.0: {"preemptions": 8.0}}


@pytest.fixture
def evidence(make: Make) -> dict[str, Evidence]:
    return {
        "small model": start(imports=13, engine_core=11, worker=10, weights=3, KV_pool=4, HTTP_server=2),
        "large model": start(imports=13, weights=80, warm_up=6),
        "four seats": make({"vllm": seats(128), "vllm, max_num_seqs=4": seats(4)}),
        "two seats, repeated": make({"vllm, max_num_seqs=2": seats(2, 6)}, repeats=2),
        "seats for all": make({"vllm": seats(128)}),
        "pool": make({"vllm": Burst([0.1] * 8, facts={"kv_tokens": 46_592, "context": 4096})}),
        "another model": make({"vllm": Burst([0.1] * 8, facts={"model": "other"})}),
        "paused": make({"vllm": squeezed()}),
        "even": make({"vllm": squeezed(pauses={})}),
        "lost": make({"vllm": squeezed(outcomes={3: "failed"})}),
        "own, half as many": make({"vllm": Burst([0.1] * 6, readings=OWN)}),
        "own, many": make({"vllm": squeezed(tokens=128)}),
        "own, one block each": make({"vllm": Burst([0.1] * 6, tokens=40)}),
    }


EXPECTED: dict[tuple[str, str], float | str] = {
    ("serve-start", "small model"): "programs",
    ("serve-start", "large model"): "weights",
    ("serve-seats", "four seats"): 12.0,
    ("serve-seats", "two seats, repeated"): 4.0,
    ("serve-seats", "seats for all"): "none",
    ("serve-kv", "pool"): 46_592.0,
    ("serve-kv", "another model"): 1664.0,
    ("serve-preempted", "paused"): "paused",
    ("serve-preempted", "even"): "slow",
    ("serve-preempted", "lost"): "lost",
    ("serve-fits", "own, half as many"): 6.0,
    ("serve-fits", "own, many"): 6.0,
    ("serve-fits", "own, one block each"): 12.0,
}


@pytest.mark.parametrize(("exercise", "name"), EXPECTED)
def test_the_solution_is_right(evidence: dict[str, Evidence], exercise: str, name: str) -> None:
    answer = EXPECTED[exercise, name]
    assert exercises.solution(exercise, evidence[name]) == answer
    assert exercises.check(exercise, evidence[name], answer).ok


def test_every_mistake_is_recognised_and_explained(evidence: dict[str, Evidence]) -> None:
    assert_recognised(EXPECTED, evidence)


def test_reasons_have_the_runs_own_numbers(evidence: dict[str, Evidence]) -> None:
    def told(exercise: str, name: str, answer: float | str) -> str:
        return exercises.check(exercise, evidence[name], answer).reason

    assert "weights 3.0 s" in told("serve-start", "small model", "programs")
    assert "12 of 16 requests" in told("serve-seats", "four seats", 12)
    assert "showed 12 waiting at most" in told("serve-seats", "four seats", 12)
    assert "364 blocks of 128" in told("serve-kv", "pool", 46_592)
    assert "23,040 bytes a token" in told("serve-kv", "another model", 1664)
    assert "5 preemptions" in told("serve-preempted", "paused", "paused")
    assert "usual gap between two tokens is 50 ms, the longest one 2,050 ms" in told(
        "serve-preempted", "paused", "paused"
    )
    assert "there were 6 at once, and 0 preemptions" in told("serve-fits", "own, half as many", 6)


@pytest.mark.parametrize(
    ("answer", "ok"), [(46_603, True), (46_464, True), (46_700.5, True), (46_400, False)]
)
def test_the_pool_is_right_within_one_block(evidence: dict[str, Evidence], answer: float, ok: bool) -> None:
    assert exercises.check("serve-kv", evidence["pool"], answer).ok is ok


BURST = Burst([0.1] * 6)


@pytest.mark.parametrize(
    ("exercise", "arms", "more", "words"),
    [
        ("serve-seats", {"vllm": BURST}, {"arrivals": "closed"}, "the run of a burst"),
        ("serve-seats", {"ollama": BURST}, {}, "no arm with vllm"),
        ("serve-seats", {"vllm": BURST}, {"verdict": Verdict("contaminated", ["a guest"])}, "a guest"),
        ("serve-seats", {"vllm": Burst([0.1] * 2, facts={"slots": None})}, {}, "did not tell its slots"),
        (
            "serve-seats",
            {"vllm": Burst([0.1] * 2, outcomes={0: "failed", 1: "failed"})},
            {},
            "no whole answer",
        ),
        ("serve-kv", {"vllm": Burst([0.1] * 2, facts={"kv_tokens": None})}, {}, "did not tell its kv_tokens"),
        ("serve-preempted", {"vllm": BURST}, {}, "showed a preemption"),
        ("serve-preempted", {"vllm": squeezed(outcomes={2: "unfinished"})}, {}, "cut off by the time limit"),
        ("serve-preempted", {"vllm": squeezed(tokens=1)}, {}, "two tokens"),
        ("serve-fits", {"vllm": Burst([0.1] * 2, outcomes={0: "failed", 1: "failed"})}, {}, "how long its"),
        ("serve-fits", {"vllm": Burst([0.1] * 2, tokens=2000)}, {}, "does not fit into the pool"),
        ("serve-fits", {"vllm": squeezed(tokens=40)}, {}, "something else was in its pool"),
    ],
)
def test_unfit_runs_are_a_sentence(
    make: Make, exercise: str, arms: dict[str, Burst], more: dict[str, Any], words: str
) -> None:
    answer = "paused" if exercise == "serve-preempted" else 4
    verdict = exercises.check(exercise, make(arms, **more), answer)
    assert (verdict.ok, verdict.title) == (False, "These measurements cannot tell")
    assert words in verdict.reason


def test_a_transcript_of_something_else_is_a_sentence(make: Make) -> None:
    other = Transcript("refusal", "live", {}, ({"t_s": 0.0, "what": "said", "text": "no"},))
    assert "has no phases" in exercises.check("serve-start", other, "weights").reason
    assert "the transcript" in exercises.check("serve-start", make({"vllm": BURST}), "weights").reason
