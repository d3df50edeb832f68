"""What every notebook's gallery of wrong answers keeps to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from labkit import exercises


def assert_recognised(cases: Iterable[tuple[str, str]], evidence: Mapping[str, Any]) -> None:
    """Each mistake of these exercises is met on some evidence, and told apart there; at least three each.

    Args:
        cases: exercises, each with the name of evidence to judge on.
    """
    cases = list(cases)
    seen: set[tuple[str, str | None]] = set()
    for exercise, name in cases:
        for rule, answer in exercises.mistakes(exercise, evidence[name]).items():
            verdict = exercises.check(exercise, evidence[name], answer)
            assert not verdict.ok, (exercise, name, rule)
            assert verdict.mistake, (exercise, name, rule)
            seen.add((exercise, verdict.mistake))
    asked = [exercises.load()[exercise] for exercise in {exercise for exercise, _ in cases}]
    assert seen == {(exercise.id, mistake.rule) for exercise in asked for mistake in exercise.wrong}
    assert all(len(exercise.wrong) >= 3 for exercise in asked)
