"""What every judge shares: the three words, what it is given, and when two numbers count as apart."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from labkit.bundle import Run
from labkit.sides import Missing, Side, Waiting, people, side, sides, waiting
from labkit.transcript import Transcript

HELD = "held"
NOT_HELD = "did not hold"
NOT_HERE = "not measurable here"

SIMILAR = 0.25
"""Two latencies are "similar" within this share, or within the spread of their repeats if that is larger. A
level with few users has few answers, whose medians differ by about as much from one run to the next."""

Finding = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """What a judge is given.

    Attributes:
        run: the run to judge on.
        runs: all runs that were given, this one too, for a claim that takes two runs to decide.
        published: values of the claim's published figures, in the file's order.
    """

    run: Run
    runs: tuple[Run, ...] = ()
    published: tuple[float, ...] = ()

    @cached_property
    def ollama(self) -> Side:
        """Ollama's first arm, under a known number of users."""
        by_users(self.run)
        return side(self.run, "ollama")

    @cached_property
    def vllm(self) -> Side:
        """vLLM's first arm, under a known number of users."""
        by_users(self.run)
        return side(self.run, "vllm")

    def arms(self, engine: str) -> Iterator[tuple[Run, Side]]:
        """All arms of an engine over all runs."""
        for run in self.runs:
            with contextlib.suppress(Missing):  # a run of the other engine only
                yield from ((run, found) for found in sides(run, engine))


Judge = Callable[[Case], Finding]
Reader = Callable[[Transcript], Finding]
"""Judges a claim on a transcript instead of a run."""


def by_users(run: Run) -> None:
    """Refuse a run whose levels are no numbers of users, or in which the engine was disturbed on purpose.

    Raises:
        Missing: it is such a run.
    """
    load = run.arrivals
    if load["arrivals"] in {"poisson", "constant"}:
        raise Missing("Requests came at a rate in this run, and not from a number of users")
    if load.get("sharing") or load.get("workloads"):
        raise Missing("One user asked in this run, and its levels are what was asked")
    for field, what in (("stall_s", "stood still"), ("cold", "had to load its model")):
        if load.get(field):
            raise Missing(f"The engine {what} on purpose in this run")


def slots_of(s: Side) -> str:
    """ "1 slot", "4 slots"."""
    return f"{s.slots} slot{'' if s.slots == 1 else 's'}"


def measured_wait(case: Case, s: Side, users: int) -> Waiting:
    """Waiting that was measured, not deduced from the number of slots."""
    found = waiting(case.run, s, users)
    if found.basis == "slots":
        raise Missing(f"No answer at {people(users)} on {s.name} tells waiting from work")
    return found


def beside(other: Callable[[], str]) -> str:
    """A remark on the other engine, if the run has what it takes."""
    try:
        return f"; {other()}"
    except Missing:
        return ""


def source(s: Side, field: str) -> str:
    """Where a fact was read, in brackets; empty if unknown."""
    where = s.facts.get("sources", {}).get(field)
    return f" ({where})" if where else ""


def capital(sentence: str) -> str:
    """With a capital at its beginning, and the rest as it is."""
    return sentence[:1].upper() + sentence[1:]
