"""What a notebook's exercises are made of: the right answer and known mistakes, as functions of the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from labkit.bundle import Run

Answer = float | str
Runs = tuple[Run, ...]


@dataclass(frozen=True)
class Solver:
    """How one exercise is judged.

    Attributes:
        solve: the right answer on these runs.
        judge: whether an answer is right, and why, in numbers.
        wrong: per rule of the gallery, what somebody who makes that mistake would answer; None if the mistake
            leads nowhere on these runs.
        runs: how many runs it takes.
    """

    solve: Callable[[Runs], Answer]
    judge: Callable[[Runs, Answer], tuple[bool, str]]
    wrong: Mapping[str, Callable[[Runs], Answer | None]]
    runs: int = 1
