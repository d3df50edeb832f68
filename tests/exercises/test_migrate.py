"""Exercises of notebook 08: solutions are right, mistakes are recognised, unfit evidence gets a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gallery import assert_recognised
from moved import CONTRACT, check, clients_of, contract_of, gateway_run, shift_run

from labkit import exercises, mapping
from labkit.exercises.migrate import SOLVERS
from labkit.transcript import Transcript


def reply(engine: str, *, status: int = 200, fields: tuple[str, ...] = ("id",), text: str = "A") -> Any:
    return {"what": "reply", "engine": engine, "status": status, "fields": list(fields), "text": text}


def both(**vllm: Any) -> Transcript:
    return contract_of(reply("ollama"), reply("vllm", **vllm), name="both")


@pytest.fixture
def evidence(tmp_path: Path) -> dict[str, Any]:
    """For each exercise what it is judged on."""
    return {
        "migrate-lines": clients_of(),
        "migrate-differences": CONTRACT,
        "migrate-limit": CONTRACT,
        "migrate-share": shift_run(tmp_path / "shift"),
        "migrate-map": mapping.transcript(),
        "migrate-own": both(fields=("id", "extra"), text="B"),
    }


EXPECTED: dict[str, Any] = {
    "migrate-lines": 2,
    "migrate-differences": 6,
    "migrate-limit": "vllm",
    "migrate-share": 62,
    "migrate-map": "d",
    "migrate-own": "fields",
}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_solution_is_right(name: str, evidence: dict[str, Any]) -> None:
    solution = exercises.solution(name, evidence[name])
    assert solution == EXPECTED[name]
    assert exercises.check(name, evidence[name], solution).ok


def test_every_mistake_of_the_gallery_is_recognised(evidence: dict[str, Any]) -> None:
    assert_recognised([(name, name) for name in SOLVERS], evidence)


def test_with_one_name_from_the_beginning_one_line_is_right() -> None:
    told = clients_of(address_ok=True)
    assert exercises.check("migrate-lines", told, 1).ok
    assert not exercises.check("migrate-lines", told, 2).ok


@pytest.mark.parametrize(
    ("vllm", "right"),
    [({"status": 400}, "status"), ({"fields": ("x",)}, "fields"), ({"text": "B"}, "text"), ({}, "same")],
)
def test_an_own_request_is_judged_by_what_a_program_meets_first(vllm: dict[str, Any], right: str) -> None:
    for answer in ("status", "fields", "text", "same"):
        assert exercises.check("migrate-own", both(**vllm), answer).ok == (answer == right)


def test_a_number_of_requests_may_be_read_off_roughly(evidence: dict[str, Any]) -> None:
    for answer, ok in ((60, True), (70, True), (40, False), (90, False)):
        assert exercises.check("migrate-share", evidence["migrate-share"], answer).ok == ok


@pytest.mark.parametrize("name", SOLVERS)
def test_evidence_of_another_sort_gets_a_sentence(name: str, tmp_path: Path) -> None:
    unfit = gateway_run(tmp_path / "gateway") if name == "migrate-share" else replace(CONTRACT, events=())
    verdict = exercises.check(name, unfit, EXPECTED[name])
    assert (verdict.ok, verdict.title) == (False, "These measurements cannot tell"), verdict.reason
    assert "judged on the" in exercises.check(name, [], EXPECTED[name]).reason


def test_one_engine_alone_decides_nothing() -> None:
    alone = contract_of(check("vllm", "max-completion-tokens"))
    for name, answer in (("migrate-limit", "vllm"), ("migrate-differences", 3)):
        assert not exercises.check(name, alone, answer).ok


def test_a_share_that_is_large_from_the_beginning_cannot_tell(tmp_path: Path) -> None:
    run = shift_run(tmp_path / "run", [(0, 10, 0), (50, 5, 5), (100, 0, 10)])
    assert "No share between" in exercises.check("migrate-share", run, 60).reason
