"""What a notebook's exercises are made of: the right answer and known mistakes, as functions of the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from labkit.bundle import Run
from labkit.transcript import Transcript

Answer = float | str
Runs = tuple[Run, ...]
Transcripts = tuple[Transcript, ...]
Evidence = tuple[Any, ...]
""":data:`Runs` or :data:`Transcripts`, by what the solver ``takes``."""


@dataclass(frozen=True)
class Solver:
    """How one exercise is judged.

    Attributes:
        solve: the right answer on these runs.
        judge: whether an answer is right, and why, in numbers.
        wrong: per rule of the gallery, what somebody who makes that mistake would answer; None if the mistake
            leads nowhere on these runs.
        runs: how many runs, or transcripts, it takes.
        takes: which of the two.
    """

    solve: Callable[[Evidence], Answer]
    judge: Callable[[Evidence, Answer], tuple[bool, str]]
    wrong: Mapping[str, Callable[[Evidence], Answer | None]]
    runs: int = 1
    takes: type[Run] | type[Transcript] = Run


def always(answer: Answer) -> Callable[[Any], Answer | None]:
    """A mistake that leads to the same answer on all evidence."""
    return lambda _evidence: answer


def which(first: str, second: str, is_first: bool, is_second: bool) -> str:
    """ "both", one of two words, or "neither"."""
    if is_first and is_second:
        return "both"
    return first if is_first else second if is_second else "neither"
