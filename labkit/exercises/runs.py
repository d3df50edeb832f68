"""Which runs an answer may be judged on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labkit.bundle import Run
from labkit.sides import Missing


def trusted(run: Run) -> Run:
    """The run, if nobody else's load was on its engines.

    Raises:
        Missing: it is contaminated.
    """
    if run.verdict.word == "contaminated":
        raise Missing(f"The run {run.path.name} is contaminated: {'; '.join(run.verdict.reasons)}")
    return run


def refuse_unlike(first: Run, second: Run) -> None:
    """Two runs can be compared only if what differs between them is the learner's change.

    Raises:
        Missing: they are one run, of two depths, or of two machines.
    """
    if first.path == second.path:
        raise Missing("Both are the same run; give the first and a second one")
    if first.kind != second.kind:
        raise Missing(
            f"One run is {first.kind} and the other {second.kind}, so more than your setting differs"
        )
    machines = [
        [run.meta["host"].get(name) for name in ("machine", "cpu", "cores")] for run in (first, second)
    ]
    if machines[0] != machines[1]:
        raise Missing("The two runs come from different machines, so more than your setting differs")


def refuse_other_file(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """An engine, by its facts in two runs, served one model file in both.

    Raises:
        Missing: it did not, or does not tell.
    """

    def file(facts: Mapping[str, Any]) -> tuple[Any, Any]:
        origin = facts.get("simulated")  # stands on a profile where a real engine has a file
        return origin["profile"] if origin else facts.get("model_digest"), facts.get("quantisation")

    if file(first) == file(second) and file(first)[0] is not None:
        return
    what = " and ".join(
        f"{digest or 'an unknown file'} ({precision})" for digest, precision in map(file, (first, second))
    )
    raise Missing(
        f"{first['engine']} did not surely serve one model file in both runs: {what}. A 4-bit file takes "
        "less memory to read than a 16-bit one and is faster whatever the engine does; keep the file"
    )


def changed_questions(first: Run, second: Run) -> list[str]:
    """Whether two runs asked other questions, as the beginning of a list of what was changed."""
    one, other = (run.meta["workload"] for run in (first, second))
    beside = {"experiment", "budget", "load"}  # of a run's workload, what says nothing of its questions
    names = sorted(name for name in one.keys() | other if one.get(name) != other.get(name))
    unlike = [name for name in names if name not in beside]
    return [f"the prompts ({', '.join(unlike)})"] if unlike else []
