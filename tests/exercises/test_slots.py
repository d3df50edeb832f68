"""Exercises of notebook 03: every solution is right, every wrong answer is recognised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from synthetic import make_run

from labkit import exercises
from labkit.bundle import Run
from labkit.transcript import Transcript
from labkit.verdict import Verdict
from labkit.workload import Workload
from tests.exercises.gallery import assert_recognised

KIB22_5 = 23_040
"""Bytes a token, for instance."""

BENDS_AT_4 = {1: 50.0, 2: 70.0, 4: 90.0, 8: 92.0}
BENDS_AT_2 = {1: 50.0, 2: 70.0, 4: 71.0, 8: 72.0}
CLIMBS = {1: 50.0, 2: 70.0, 4: 100.0, 8: 140.0}
FLAT = {1: 50.0, 2: 50.5, 4: 50.0, 8: 49.0}
ITL = {1: 0.01, 2: 0.015, 4: 0.03, 8: 0.06}

Evidence = Run | Transcript | list[Run]


def arm(slots: int, context: int = 4096) -> str:
    return f"ollama, {slots} × {context}"


def facts(slots: int, context: int = 4096, kv_bytes: int | None = None) -> dict[str, Any]:
    reserved = slots * context * KIB22_5 if kv_bytes is None else kv_bytes
    return {"slots": slots, "context": context, "kv_bytes": reserved, "sources": {"kv_bytes": "log"}}


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def one(
        name: str,
        rates: Mapping[int, float] = BENDS_AT_4,
        *,
        users: int = 8,
        itl: Mapping[int, float] = ITL,
        ttft: Mapping[int, float] | None = None,
        **more: Any,
    ) -> Run:
        waits = ttft or {slots: 8.0 / slots for slots in rates}
        return make_run(
            tmp_path / name,
            rates={arm(slots): {users: rate} for slots, rate in rates.items()},
            ttft={arm(slots): {users: waits[slots]} for slots in rates},
            itl={arm(slots): {users: itl[slots]} for slots in rates},
            facts={arm(slots): facts(slots) for slots in rates},
            **more,
        )

    return one


@pytest.fixture
def reserve(tmp_path: Path) -> Any:
    def one(name: str, many: int | None = None, long: int | None = None) -> Run:
        given = {(4, 2048): many, (1, 8192): long}
        return make_run(
            tmp_path / name,
            rates={arm(*which): {1: 50.0} for which in given},
            facts={arm(*which): facts(*which, kv_bytes=told) for which, told in given.items()},
        )

    return one


def loads(*steps: tuple[str, str, str]) -> Transcript:
    """Of model, keep-alive, and which model went for it."""
    events = [
        {"t_s": float(at), "what": "load", "model": model, "keep_alive": keep, "evicted": gone.split()}
        for at, (model, keep, gone) in enumerate(steps)
    ]
    return Transcript("evictions", "live", {}, tuple(events))


FIRST_THREE = (("f16", "40m", ""), ("q8_0", "30m", ""), ("q4_K_M", "10m", ""))


@pytest.fixture
def runs(make: Any, reserve: Any) -> dict[str, Evidence]:
    first = make("first")
    steady = dict.fromkeys(ITL, 0.02)
    return {
        "bends": first,
        "bends early": make("early", BENDS_AT_2),
        "climbs": make("climbs", CLIMBS),
        "flat": make("flat", FLAT, itl=steady, ttft=dict.fromkeys(FLAT, 3.0)),
        "soonest with one": make("one", BENDS_AT_4, ttft={1: 1.0, 2: 2.0, 4: 3.0, 8: 4.0}),
        "all better": make("better", CLIMBS, itl={1: 0.06, 2: 0.03, 4: 0.02, 8: 0.01}),
        "same room": reserve("same room"),
        "more for slots": reserve("more for slots", many=2**30),
        "more for context": reserve("more for context", long=2**30),
        "nothing": reserve("nothing", many=0, long=0),
        "shortest goes": loads(*FIRST_THREE, ("q4_K_S", "20m", "q4_K_M")),
        "oldest goes": loads(*FIRST_THREE, ("q4_K_S", "20m", "f16")),
        "down": [first, make("fewer users", BENDS_AT_2, users=2)],
        "up": [first, make("short", CLIMBS, workload=Workload(own_prompts=("Who are you?",)))],
        "same": [first, make("taller", {k: 2 * v for k, v in BENDS_AT_4.items()}, users=4)],
    }


EXPECTED: dict[tuple[str, str], float | str] = {
    ("slots-knee", "bends"): 4,
    ("slots-knee", "bends early"): 2,
    ("slots-knee", "climbs"): 8,
    ("slots-knee", "flat"): 1,
    ("slots-knee", "soonest with one"): 4,
    ("slots-who-gains", "bends"): "ttft",
    ("slots-who-gains", "flat"): "neither",
    ("slots-who-gains", "all better"): "both",
    ("slots-kv", "bends"): 8 * 4096 * KIB22_5 / 2**20,
    ("slots-kv", "same room"): 4 * 2048 * KIB22_5 / 2**20,
    ("slots-memory", "same room"): "same",
    ("slots-memory", "more for slots"): "slots",
    ("slots-memory", "more for context"): "context",
    ("slots-memory", "nothing"): "none",
    ("slots-evicted", "shortest goes"): "q4_k_m",
    ("slots-evicted", "oldest goes"): "f16",
    ("slots-own", "down"): "down",
    ("slots-own", "up"): "up",
    ("slots-own", "same"): "same",
}


def test_every_solution_is_right(runs: dict[str, Evidence]) -> None:
    for (exercise, name), answer in EXPECTED.items():
        assert exercises.solution(exercise, runs[name]) == pytest.approx(answer), (exercise, name)
        assert exercises.check(exercise, runs[name], answer).ok, (exercise, name)


def test_every_mistake_is_recognised_and_explained(runs: dict[str, Evidence]) -> None:
    assert_recognised(EXPECTED, runs)


@pytest.mark.parametrize(("answer", "ok"), [(1, False), (2, True), (4, True), (8, False)])
def test_a_knee_is_right_for_a_limit_of_ones_own(make: Any, answer: int, ok: bool) -> None:
    """40 %, 25 % and 2 %: from a limit of 25 % on it is 2, below that 4; nobody may ask for over 30 %."""
    verdict = exercises.check("slots-knee", make("run", {1: 50.0, 2: 70.0, 4: 87.5, 8: 89.25}), answer)
    assert verdict.ok is ok
    assert "1 to 2 slots +40%, 2 to 4 slots +25%, 4 to 8 slots +2%" in verdict.reason


def test_the_reason_says_for_which_limits_a_setting_is_the_knee(make: Any) -> None:
    reason = exercises.check("slots-knee", make("run"), 4).reason
    assert "4 is the knee for any limit from 5% to 29% a doubling" in reason


def test_gains_are_by_doubling_whatever_the_steps(make: Any) -> None:
    reason = exercises.check("slots-knee", make("run", {1: 50.0, 8: 400.0}, itl=ITL), 8).reason
    assert "1 to 8 slots +100%" in reason


def test_a_setting_that_was_not_measured_is_told_so(make: Any) -> None:
    verdict = exercises.check("slots-knee", make("run"), 3)
    assert not verdict.ok
    assert "Measured were 1, 2, 4, 8 slots" in verdict.reason


def test_a_drop_on_the_way_is_told(make: Any) -> None:
    verdict = exercises.check("slots-knee", make("run", {1: 50.0, 2: 55.0, 4: 80.0, 8: 81.0}), 2)
    assert not verdict.ok
    assert "the step after 2 brings +45%, more than one before it (+10%)" in verdict.reason


def test_memory_is_told_as_read_and_as_a_product(make: Any) -> None:
    reason = exercises.check("slots-kv", make("run"), 90).reason
    assert "720.0 MiB: 8 slots × 4096 tokens × 23,040 bytes" in reason


@pytest.mark.parametrize("exercise", ["slots-knee", "slots-who-gains", "slots-kv", "slots-memory"])
def test_a_run_that_cannot_tell_is_a_sentence(tmp_path: Path, exercise: str) -> None:
    run = make_run(tmp_path / "run", rates={"ollama": {1: 50.0}, "vllm": {1: 20.0}})
    answer = {"slots-knee": 1, "slots-who-gains": "ttft", "slots-kv": 90}.get(exercise, "same")
    verdict = exercises.check(exercise, run, answer)
    assert (verdict.ok, verdict.title) == (False, "These measurements cannot tell")


def test_many_slots_and_a_long_context_must_add_up_to_the_same(make: Any) -> None:
    verdict = exercises.check("slots-memory", make("run"), "same")
    assert verdict.title == "These measurements cannot tell"


def test_a_contaminated_run_is_not_judged(make: Any) -> None:
    verdict = exercises.check("slots-knee", make("run", verdict=Verdict("contaminated", ["someone"])), 4)
    assert verdict.title == "These measurements cannot tell"


def test_two_runs_must_differ_in_a_setting_and_serve_one_file(make: Any, tmp_path: Path) -> None:
    first = make("first")
    assert "is noise" in exercises.check("slots-own", [first, make("again")], "same").reason
    other = {arm(slots): {**facts(slots), "model_digest": "cc", "quantisation": "Q4_1"} for slots in (1, 4)}
    rates = {name: {8: 50.0} for name in other}
    smaller = make_run(tmp_path / "4 bit", rates=rates, facts=other)
    assert "4-bit" in exercises.check("slots-own", [first, smaller], "same").reason


def test_near_the_limit_both_readings_are_right_and_it_says_so(make: Any) -> None:
    first = make("first", {1: 50.0, 2: 70.0, 4: 76.3, 8: 77.0})  # 9 %: just not worth it
    second = make("second", {1: 50.0, 2: 70.0, 4: 77.7, 8: 78.0}, users=4)  # 11 %: just worth it
    for answer in ("up", "same"):
        verdict = exercises.check("slots-own", [first, second], answer)
        assert verdict.ok
        assert "can also be otherwise" in verdict.reason
    assert not exercises.check("slots-own", [first, second], "down").ok


def test_the_reason_shows_who_was_there_and_for_how_long(runs: dict[str, Evidence]) -> None:
    reason = exercises.check("slots-evicted", runs["shortest goes"], "f16").reason
    assert "f16 (to be kept for 40m), q8_0 (to be kept for 30m), q4_K_M (to be kept for 10m)" in reason
    assert "q4_K_S was loaded, and q4_K_M went" in reason


def test_a_transcript_in_which_all_stay_cannot_tell() -> None:
    verdict = exercises.check("slots-evicted", loads(*FIRST_THREE), "none")
    assert verdict.title == "These measurements cannot tell"
