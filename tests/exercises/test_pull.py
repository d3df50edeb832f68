"""Exercises of notebook 01: solutions are right, mistakes are recognised, unfit evidence gets a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from labkit import exercises, transcript
from labkit.exercises.pull import SOLVERS
from labkit.transcript import Transcript

LAYERS = (("model", 270_000_000), ("template", 102), ("license", 127), ("config", 151))
TYPES = (("F32", 61, 35_000, 32.0), ("Q4_1", 210, 106_000_000, 5.0), ("Q8_0", 1, 28_000_000, 8.5))


def of(name: str, *events: dict[str, Any]) -> Transcript:
    return Transcript(name, "live", {}, tuple({"t_s": 0.0, **event} for event in events))


PULL = of("pull", *({"what": "layer", "kind": kind, "bytes": size} for kind, size in LAYERS))
HEAD = of(
    "gguf",
    *(
        {"what": "type", "type": name, "tensors": count, "elements": n, "bits": bits, "bytes": n * bits / 8}
        for name, count, n, bits in TYPES
    ),
)


def answer(turn: str, load_s: float, ttft_s: float, took_s: float) -> dict[str, Any]:
    return {
        "what": "answer",
        "turn": turn,
        "load_s": load_s,
        "prompt_s": 0.07,
        "ttft_s": ttft_s,
        "took_s": took_s,
    }


def life(after_s: float | None = 2.03) -> Transcript:
    return of(
        "lifecycle",
        answer("first", 0.5, 0.6, 0.9),
        {"what": "loaded", "keep_s": 86400.0},
        answer("second", 0.0, 0.03, 0.3),
        answer("third", 0.5, 0.6, 0.9),
        {"what": "expired", "keep_alive": "2s", "after_s": after_s},
        {"what": "api", "api": "native", "path": "/api/chat", "fields": ["model", "load_duration"]},
        {
            "what": "api",
            "api": "openai",
            "path": "/v1/chat/completions",
            "fields": ["id", "usage.total_tokens"],
        },
    )


EVIDENCE = {
    "pull-rest": PULL,
    "pull-bits": HEAD,
    "pull-load-share": life(),
    "pull-api": life(),
    "pull-own": life(),
}
EXPECTED: dict[str, Any] = {
    "pull-rest": 380,
    "pull-bits": pytest.approx(5.738, abs=0.001),
    "pull-load-share": pytest.approx(83.3, abs=0.1),
    "pull-api": "native",
    "pull-own": 2.03,
}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_solution_is_right(name: str) -> None:
    solution = exercises.solution(name, EVIDENCE[name])
    assert solution == EXPECTED[name]
    assert exercises.check(name, EVIDENCE[name], solution).ok


@pytest.mark.parametrize("name", SOLVERS)
def test_every_mistake_of_the_gallery_is_recognised(name: str) -> None:
    gallery = {mistake.rule for mistake in exercises.load()[name].wrong}
    assert gallery == set(SOLVERS[name].wrong)
    assert len(gallery) >= 3
    seen = set()
    for given in exercises.mistakes(name, EVIDENCE[name]).values():
        verdict = exercises.check(name, EVIDENCE[name], given)
        assert not verdict.ok
        seen.add(verdict.mistake)
    assert seen == gallery


def test_two_ways_to_see_the_share_of_loading_are_both_right() -> None:
    assert exercises.check("pull-load-share", life(), 95).ok  # by the second answer, which had no loading
    assert exercises.check("pull-load-share", life(), 83).ok  # by what Ollama says
    assert not exercises.check("pull-load-share", life(), 70).ok


def test_a_model_that_nobody_waited_for_is_still_there() -> None:
    assert exercises.check("pull-own", life(None), "still there").ok
    assert not exercises.check("pull-own", life(None), 2).ok
    assert not exercises.check("pull-own", life(), "still there").ok


@pytest.mark.parametrize("name", SOLVERS)
def test_evidence_of_another_sort_gets_a_sentence(name: str) -> None:
    solution = exercises.solution(name, EVIDENCE[name])
    assert "judged on the transcript" in exercises.check(name, [], solution).reason
    empty = replace(PULL, events=())
    verdict = exercises.check(name, empty, solution)
    assert (verdict.ok, verdict.title) == (False, "These measurements cannot tell")


def test_the_recorded_transcripts_can_be_judged() -> None:
    recorded = {
        "pull-rest": "pull",
        "pull-bits": "gguf_smollm2-135m-q4_1",
        "pull-load-share": "lifecycle",
        "pull-api": "lifecycle",
        "pull-own": "lifecycle-2",
    }
    for name, kept in recorded.items():
        evidence = transcript.recorded(kept)
        assert exercises.check(name, evidence, exercises.solution(name, evidence)).ok
