"""Measure what a calibration needs and the learner's runs do not have yet.

A cell is one engine under one shape of questions from one number of users. Two shapes tell reading from
writing, three numbers of users tell what a step costs from what an answer costs in it, and a shared prefix
tells what a cached token saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from labkit import designs, paths
from labkit.arms import Arm
from labkit.budget import Budget
from labkit.bundle import Run
from labkit.errors import BundleError, CalibrationRefused
from labkit.experiments import OnProgress
from labkit.sim.calibrate import Source, check
from labkit.workload import Workload

USERS = (4, 16, 1)
"""Not the least first: the first level is measured again at the end, and two answers tell no drift."""

LONG_OUT = Workload()
"""The course's own questions: about 60 tokens in, 64 out."""
LONG_IN = Workload("long in", output_tokens=16, prompt_words=220)
"""About 256 tokens in, 16 out."""
SHARED = Workload("shared prefix", output_tokens=64, shared_words=256)
"""256 tokens that all have in common, before a question like the others; it is warm after the first."""
CELLS: tuple[tuple[Workload, tuple[int, ...]], ...] = ((LONG_OUT, USERS), (LONG_IN, USERS), (SHARED, (1, 4)))
BUDGET = Budget("calibration", USERS, USERS, rounds=2, max_s=120, repeats=1)


@dataclass(frozen=True)
class Found:
    """Cells that runs have already, and why others could not be used."""

    sources: list[Source]
    refused: list[str]

    def missing(self, engine: str) -> list[tuple[Workload, tuple[int, ...]]]:
        """Shapes and users that an engine still has to be measured with."""
        left = []
        for workload, users in CELLS:
            have = {
                user
                for source in self.sources
                if source.engine == engine and workload.asked_in(source.run.meta["workload"])
                for user in source.users or ()
            }
            if wanted := tuple(user for user in users if user not in have):
                left.append((workload, wanted))
        return left


def look(runs: Iterable[Run], engines: Sequence[str]) -> Found:
    """The cells of these runs, one arm an engine and shape: of several the one that served most at once, for
    it shows most, and of these the newest. What cannot stand for an engine is left out with the reason."""
    found = Found([], [])
    arms = [
        (run, arm, shape)
        for run in runs
        for shape in CELLS
        if shape[0].asked_in(run.meta["workload"])
        for arm in run.arms
    ]
    for run, arm, (workload, users) in sorted(arms, key=_telling, reverse=True):
        source = Source(run, arm, tuple(user for user in users if user in _levels(run, arm)))
        known = any(
            s.engine == source.engine and workload.asked_in(s.run.meta["workload"]) for s in found.sources
        )
        if source.engine not in engines or not source.users or known:
            continue
        try:
            check(source)
        except CalibrationRefused as error:
            found.refused.append(str(error))
        else:
            found.sources.append(source)
    return found


def _telling(candidate: tuple[Run, str, object]) -> tuple[int, str]:
    run, arm, _ = candidate
    return run.meta["arms"][arm]["facts"].get("slots") or 0, str(run.meta["started_at"])


def kept(folder: Path) -> list[Run]:
    """The whole runs under a folder."""
    runs = []
    for path in sorted(folder.glob("*/run.json")):
        try:
            run = Run.load(path.parent)
        except BundleError:
            continue
        if run.partial is None and designs.plain(run):
            runs.append(run)
    return runs


async def measure(
    arm: Arm, workload: Workload, users: Sequence[int], seed: int, report: OnProgress
) -> Source:
    """Measure cells of one shape on one engine that is up."""
    folder = paths.runs() / f"calibration-{datetime.now():%Y%m%d-%H%M%S-%f}"
    experiment = designs.sweep([arm], users, workload=workload, budget=BUDGET, seed=seed, folder=folder)
    return Source(await experiment.run(report), arm.name, tuple(users))


def _levels(run: Run, arm: str) -> set[int]:
    """Users whose level came whole."""
    return {
        record["level"]
        for record in run.meta["levels"]
        if record["arm"] == arm and not record["warmup"] and record["ok"] == record["planned"]
    }
