"""Exercises: a question, and a check that judges the answer on the learner's own run.

No answer is stored anywhere: the right one is computed from the run, and so are the mistakes of the gallery,
so that a wrong answer can be told why it is wrong *on this run*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from numbers import Real
from pathlib import Path
from typing import Any

from labkit import paths, records
from labkit.bundle import Run
from labkit.errors import LabkitError, UsageError
from labkit.exercises import decide, gap, migrate, parallel, prefix, pull, serve, slots, stream, under_load
from labkit.exercises.base import Answer, Evidence, Solver
from labkit.records import Record
from labkit.sides import Missing
from labkit.transcript import Transcript

KINDS = ("number", "choice")

SOLVERS: dict[str, Solver] = {
    **stream.SOLVERS,
    **pull.SOLVERS,
    **gap.SOLVERS,
    **under_load.SOLVERS,
    **slots.SOLVERS,
    **migrate.SOLVERS,
    **serve.SOLVERS,
    **decide.SOLVERS,
    **prefix.SOLVERS,
    **parallel.SOLVERS,
}


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that is recognised: ``rule`` names the function that computes it from a run."""

    rule: str
    title: str
    explanation: str


@dataclass(frozen=True)
class Exercise:
    """One exercise; the fields are explained at the top of ``data/exercises/05_the_gap.toml``."""

    id: str
    question: str
    kind: str
    options: tuple[str, ...]
    hint: str
    solution: str
    wrong: tuple[Mistake, ...]

    def _repr_html_(self) -> str:
        folded = (("Hint", self.hint), ("Solution", self.solution))
        return f"<p>{escape(self.question)}</p>" + "".join(
            f"<details><summary>{title}</summary><p>{escape(text)}</p></details>" for title, text in folded
        )


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and why, in the run's own numbers.

    Attributes:
        mistake: the gallery's rule that the answer matched, if one did.
        depth: live | simulated | recorded, of the run that it was judged on; None if it was on none.
    """

    ok: bool
    title: str
    reason: str
    mistake: str | None = None
    depth: str | None = None

    def __str__(self) -> str:
        return f"{self._head}\n{self.reason}"

    def _repr_html_(self) -> str:
        return f'<div role="status"><b>{escape(self._head)}</b><p>{escape(self.reason)}</p></div>'

    @property
    def _head(self) -> str:
        badge = f" ({self.depth} run)" if self.depth else ""
        sign = "✓" if self.ok else "✗" if self.depth else "–"
        return f"{sign} {self.title}{badge}"


class NoAnswer(ValueError):
    """What was given is not an answer to the question; the text says what one looks like."""


def load(folder: Path | None = None) -> dict[str, Exercise]:
    """All exercises by id.

    Args:
        folder: another folder than the course's own.

    Raises:
        SchemaError: a field is missing or wrong; names the file, the exercise and the field.
    """
    found: dict[str, Exercise] = {}
    for path in sorted((folder or paths.data() / "exercises").glob("*.toml")):
        for record in records.read(path).records("exercise"):
            exercise = _exercise(record)
            if exercise.id in found:
                raise record.error("id", f"{exercise.id} is there twice")
            found[exercise.id] = exercise
    return found


def check(exercise_id: str, run: Run | Transcript | Sequence[Run | Transcript], answer: Any) -> Verdict:
    """Judge an answer on a run, or on two where the exercise compares them. Never raises.

    Args:
        run: the learner's run; for "gap-own" the two runs, the one to compare with first.
        answer: a number or a word, as the question asks.
    """
    try:
        exercise = _known(exercise_id)
        solver = SOLVERS[exercise.id]
        given = _answer(exercise, answer)
        runs = _runs(solver, run)
        return replace(_judge(exercise, solver, runs, given), depth=runs[0].kind)
    except NoAnswer as error:
        return Verdict(False, "No answer yet", str(error))
    except Missing as missing:
        return Verdict(False, "These measurements cannot tell", f"{missing}.")
    except LabkitError as error:
        return Verdict(False, "This cannot be checked", str(error))


def solution(exercise_id: str, run: Run | Transcript | Sequence[Run | Transcript]) -> Answer:
    """The right answer on this run.

    Raises:
        UsageError: no such exercise.
        Missing: the run cannot tell.
    """
    solver = SOLVERS[_known(exercise_id).id]
    return solver.solve(_runs(solver, run))


def mistakes(exercise_id: str, run: Run | Transcript | Sequence[Run | Transcript]) -> dict[str, Answer]:
    """What each mistake of the gallery would answer on this run, unless it is right there by luck."""
    exercise = _known(exercise_id)
    solver = SOLVERS[exercise.id]
    runs = _runs(solver, run)
    answers = {mistake.rule: solver.wrong[mistake.rule](runs) for mistake in exercise.wrong}
    return {rule: a for rule, a in answers.items() if a is not None and not solver.judge(runs, a)[0]}


def _judge(exercise: Exercise, solver: Solver, runs: Evidence, given: Answer) -> Verdict:
    ok, reason = solver.judge(runs, given)
    if ok:
        return Verdict(True, "Right", reason)
    for mistake in exercise.wrong:
        if _same(solver.wrong[mistake.rule](runs), given):
            return Verdict(False, mistake.title, f"{mistake.explanation} {reason}", mistake.rule)
    return Verdict(False, "Not on this run", reason)


def _same(a: Answer | None, b: Answer) -> bool:
    if isinstance(a, str) or isinstance(b, str) or a is None:
        return a == b
    return math.isclose(a, b, rel_tol=0.01)


def _known(exercise_id: Any) -> Exercise:
    exercises = load()
    if not isinstance(exercise_id, str) or exercise_id not in exercises:
        raise UsageError(f"find exercise {exercise_id!r}", f"there are {', '.join(exercises)}", "name one")
    return exercises[exercise_id]


def _runs(solver: Solver, run: Any) -> Evidence:
    runs = tuple(run) if isinstance(run, list | tuple) else (run,)
    if not all(isinstance(one, solver.takes) for one in runs) or len(runs) != solver.runs:
        kind = solver.takes.__name__.lower()
        wanted = f"the {kind}" if solver.runs == 1 else f"two {kind}s, as [first, second]"
        raise Missing(
            f"This exercise is judged on {wanted}: run the measuring cell first, then give its result"
        )
    return runs


def _answer(exercise: Exercise, answer: Any) -> Answer:
    text = answer.strip().lower() if isinstance(answer, str) else None
    if text in exercise.options:
        return text
    options = ", ".join(f'"{word}"' for word in exercise.options)
    if exercise.kind == "choice":
        raise NoAnswer(f"{answer!r:.40} is not one of {options}.")
    value = None
    if not isinstance(answer, bool) and isinstance(answer, Real | str):
        try:
            value = float(answer)
        except (ValueError, OverflowError):
            value = None
    if value is None or not math.isfinite(value) or value <= 0:
        raise NoAnswer(f"{answer!r:.40} is not a number above 0{' or ' if options else ''}{options}.")
    return value


def _exercise(record: Record) -> Exercise:
    record.no_others(*Exercise.__dataclass_fields__)
    exercise_id = record.get("id", str)
    if exercise_id not in SOLVERS:
        raise record.error("id", f"{exercise_id} has no function that solves it")
    plain = record.data.get("kind") == "number" and record.data.get("options") == []  # no word is an answer
    return Exercise(
        id=exercise_id,
        question=record.get("question", str),
        kind=record.one_of("kind", KINDS),
        options=() if plain else record.texts("options"),
        hint=record.get("hint", str),
        solution=record.get("solution", str),
        wrong=tuple(_mistake(one, tuple(SOLVERS[exercise_id].wrong)) for one in record.records("wrong")),
    )


def _mistake(record: Record, rules: tuple[str, ...]) -> Mistake:
    record.no_others(*Mistake.__dataclass_fields__)
    return Mistake(
        rule=record.one_of("rule", rules),
        title=record.get("title", str),
        explanation=record.get("explanation", str),
    )
