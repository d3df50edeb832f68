"""Exercises of notebook 07: every solution is right, every wrong answer is recognised."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from parallel_runs import CONFIG, GPUS, ONE, POOLS, RANKS, SMALL, parallel_run

from labkit import exercises, parallel
from labkit.bundle import Run
from labkit.transcript import Transcript
from labkit.verdict import Verdict
from tests.exercises.gallery import assert_recognised

WIDE = {**CONFIG, "num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 4860}


@pytest.fixture
def evidence(tmp_path: Path) -> dict[str, Run | Transcript]:
    def run(name: str, *given: Any, **more: Any) -> Run:
        return parallel_run(tmp_path / name, *given, **more)

    told = Transcript("ranks", "recorded", {}, ({"t_s": 0.0, "what": "model", **asdict(SMALL)},))
    return {
        "cores": run("cores"),
        "noise": run("noise", {**dict.fromkeys(("vllm, both",), 150.0), ONE: 200.0, RANKS: 100.0}),
        "soon": run("soon", {"vllm, both": 120.0, ONE: 130.0, RANKS: 200.0}, ttft={ONE: 0.05}),
        "gpus": run("gpus", settings=GPUS),
        "same room": run("same room", pools={**POOLS, RANKS: 1000}),
        "told": told,
        "neat": parallel.shares(WIDE, devices=8),
        "odd": parallel.shares(CONFIG, devices=8),
        "copied": parallel.shares({**CONFIG, "num_attention_heads": 16, "num_key_value_heads": 2}, devices=8),
        "six": parallel.shares(CONFIG, devices=6),
        "all": parallel.shares({**CONFIG, "num_attention_heads": 16}, devices=6),
    }


EXPECTED: dict[tuple[str, str], float | str] = {
    ("tp-fastest", "cores"): "both",
    ("tp-fastest", "noise"): "one",
    ("tp-fastest", "soon"): "ranks",
    ("tp-fastest", "gpus"): "ranks",
    ("tp-room", "cores"): 2,
    ("tp-room", "same room"): 1,
    ("tp-reduces", "told"): 6,
    ("tp-own", "neat"): 4,
    ("tp-own", "odd"): 2,
    ("tp-own", "six"): 2,
    ("tp-own", "copied"): 8,
    ("tp-own", "all"): 4,
}


def test_every_solution_is_right(evidence: dict[str, Run | Transcript]) -> None:
    for (exercise, name), answer in EXPECTED.items():
        assert exercises.solution(exercise, evidence[name]) == pytest.approx(answer), (exercise, name)
        assert exercises.check(exercise, evidence[name], answer).ok, (exercise, name)


def test_every_mistake_is_recognised_and_explained(evidence: dict[str, Run | Transcript]) -> None:
    assert_recognised(EXPECTED, evidence)


def test_a_number_that_fits_but_is_not_the_largest_is_told_so(evidence: dict[str, Run | Transcript]) -> None:
    verdict = exercises.check("tp-own", evidence["neat"], 2)
    assert (verdict.ok, "2 fit as well, and are fewer" in verdict.reason) == (False, True)


@pytest.mark.parametrize("answer", [3, 0.5, 99])
def test_an_impossible_number_is_wrong_and_no_crash(
    evidence: dict[str, Run | Transcript], answer: float
) -> None:
    assert not exercises.check("tp-own", evidence["odd"], answer).ok


def test_what_cannot_tell_is_a_sentence(tmp_path: Path, evidence: dict[str, Run | Transcript]) -> None:
    alone = parallel_run(tmp_path / "alone", {ONE: 100.0})
    silent = parallel_run(tmp_path / "silent", pools={**POOLS, RANKS: None})
    busy = parallel_run(tmp_path / "busy", verdict=Verdict("contaminated", ["somebody else"]))
    for exercise, given, words in (
        ("tp-fastest", alone, "several"),
        ("tp-fastest", busy, "somebody else"),
        ("tp-room", silent, "Not every arm"),
        ("tp-own", evidence["told"], "parallel.shares"),
    ):
        verdict = exercises.check(exercise, given, 2 if exercise != "tp-fastest" else "both")
        assert (verdict.ok, words in verdict.reason) == (False, True), verdict.reason
