"""Every judge gives each of its words, for the reason that the run holds.

The cases are in the modules beside this one. Claims of notebooks 00 to 05 are in ``sweeps`` and ``moments``;
each other module has ``BUILT``, whose last field makes the evidence in a folder, and may have its own
``REFUTED_ONLY``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic import make_run

import judges
from judges import moments, sweeps
from judges.made import made, served
from labkit import claims
from labkit.bundle import Run
from labkit.judges import HELD, JUDGES, NOT_HELD, NOT_HERE, READERS
from labkit.transcript import Transcript
from labkit.verdict import Verdict

Evidence = Run | Transcript | Sequence[Run | Transcript]

TOPICS = [
    importlib.import_module(f"judges.{module.name}")
    for module in pkgutil.iter_modules(judges.__path__)
    if not module.name.startswith("test_")
]
BUILT = [case for topic in TOPICS for case in getattr(topic, "BUILT", ())]
REFUTED_ONLY = {"C03", "C19", "C37", "C82"}.union(*(getattr(topic, "REFUTED_ONLY", ()) for topic in TOPICS))
"""One counterexample refutes them; that none turned up would prove nothing."""


def short(value: object) -> str:
    """The same in each process, which a function's address is not."""
    return str(getattr(value, "__name__", value))[:24]


@pytest.mark.parametrize(("claim", "word", "words", "given"), sweeps.CASES, ids=short)
def test_a_sweep_decides(tmp_path: Path, claim: str, word: str, words: str, given: dict[str, Any]) -> None:
    (found,) = claims.judge([claim], make_run(tmp_path / "run", **given))
    assert (found.word, words in found.reason) == (word, True), found.reason


@pytest.mark.parametrize(("claim", "word", "words", "given"), moments.CASES, ids=short)
def test_moments_decide(tmp_path: Path, claim: str, word: str, words: str, given: dict[str, Any]) -> None:
    (found,) = claims.judge([claim], made(tmp_path / "run", **given))
    assert (found.word, words in found.reason) == (word, True), found.reason


@pytest.mark.parametrize(("claim", "word", "words", "given"), moments.TOLD, ids=short)
def test_a_transcript_decides(claim: str, word: str, words: str, given: Transcript) -> None:
    (found,) = claims.judge([claim], given)
    assert (found.word, words in found.reason) == (word, True), found.reason


@pytest.mark.parametrize(("claim", "word", "words", "build"), BUILT, ids=short)
def test_what_a_topic_builds_decides(
    tmp_path: Path, claim: str, word: str, words: str, build: Callable[[Path], Evidence]
) -> None:
    (found,) = claims.judge([claim], build(tmp_path))
    assert (found.word, words in found.reason) == (word, True), found.reason


@pytest.mark.parametrize("claim", sorted(JUDGES.keys() | READERS.keys()))
def test_every_word_has_a_case(claim: str) -> None:
    words = {NOT_HELD, NOT_HERE} | ({HELD} if claim not in REFUTED_ONLY else set())
    cases = [*sweeps.CASES, *moments.CASES, *moments.TOLD, *BUILT]
    assert {word for named, word, *_ in cases if named == claim} == words


def test_the_first_that_can_decide_is_taken(tmp_path: Path) -> None:
    first = made(tmp_path / "first", {"vLLM": served([0.0])})
    second = made(tmp_path / "second", **moments.default(4))
    (found,) = claims.judge(["C04"], [first, second])
    assert found.word == HELD


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_trap_takes_both_runs_whatever_their_order(tmp_path: Path, order: tuple[int, int]) -> None:
    runs = [
        made(tmp_path / "loaded", **moments.trap(1, 20, 0)),
        made(tmp_path / "cold", **moments.trap(1, 2, 18, cold=True)),
    ]
    for found in claims.judge(["C21", "C66"], [runs[place] for place in order]):
        assert found.word == NOT_HELD
        assert "model loaded, 0 of 20" in found.reason
        assert "model not loaded, 18 of 20" in found.reason


def test_caches_of_two_runs_are_compared(tmp_path: Path) -> None:
    runs = [
        made(tmp_path / "a", **moments.cache((4, 2048, 180))),
        made(tmp_path / "b", **moments.cache((1, 8192, 180))),
    ]
    assert [found.word for found in claims.judge(["C67"], runs)] == [HELD]


def test_a_contaminated_run_takes_no_part(tmp_path: Path) -> None:
    spoilt = made(tmp_path / "a", **moments.trap(1, 20, 0), verdict=Verdict("contaminated", ["others"]))
    whole = made(tmp_path / "b", **moments.trap(1, 2, 18, cold=True))
    (found,) = claims.judge(["C66"], [spoilt, whole])
    assert found.word == HELD
    assert "model loaded" not in found.reason


def test_a_transcript_of_something_else_is_passed_over(tmp_path: Path) -> None:
    run = made(tmp_path / "run", {"vLLM": served([0.0])})
    other = moments.told("start_log_vllm")
    (found,) = claims.judge(["C17"], [other, run])
    assert (found.word, "It takes the transcript lifecycle" in found.reason) == (NOT_HERE, True)
    (found,) = claims.judge(["C04"], other)
    assert (found.word, "It takes a run" in found.reason) == (NOT_HERE, True)


def test_a_run_of_the_other_engine_is_not_worth_a_word(tmp_path: Path) -> None:
    vllm = made(tmp_path / "a", {"vLLM": served([0.0])})
    ollama = made(tmp_path / "b", {"Ollama": served([0.0])})
    (found,) = claims.judge(["C05"], [vllm, ollama])
    assert "no arm with ollama" not in found.reason
    (found,) = claims.judge(["C05"], vllm)
    assert "no arm with ollama" in found.reason
