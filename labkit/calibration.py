"""Measure what a calibration needs and the learner's runs do not have yet.

A cell is one engine under one shape of questions from one number of users. Two shapes tell reading from
writing, three numbers of users tell what a step costs from what an answer costs in it, and a shared prefix
tells what a cached token saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from html import escape
from pathlib import Path

from labkit import designs, paths
from labkit.arms import Arm
from labkit.budget import Budget
from labkit.bundle import Run
from labkit.engines import model_table
from labkit.errors import BundleError, CalibrationRefused
from labkit.experiments import OnProgress
from labkit.sim import profile as profiles
from labkit.sim.calibrate import Calibration, Source, calibrate, check
from labkit.sim.profile import Profile
from labkit.sim.rerun import whole_settings
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
FROM_DATASHEETS = "cpu-2core-roofline"
"""The profile to start from where the course's own would be the answer."""
COMPUTING = ("tensor_parallel_size", "cpu_threads", "eager")
"""Settings of vLLM that change what a step takes, not only what is in it."""
OWN = "own runs"
"""Name of the profile that is fitted in a lesson; it has no file."""
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


def look(
    runs: Iterable[Run],
    engines: Sequence[str],
    prior: Profile,
    *,
    held_out: Sequence[int] = (),
    simulated: bool = False,
) -> Found:
    """The cells of these runs, one arm an engine and shape: of several the one that served most at once, for
    it shows most, and of these the newest. What cannot stand for an engine is left out with the reason.

    Args:
        prior: arms with another model or precision than its own are left out, and so are those whose steps
            are computed in another way (:data:`COMPUTING`).
        held_out: numbers of users whose levels no fit may see.
        simulated: simulated runs will do.
    """
    found = Found([], [])
    arms = [
        (run, arm, shape)
        for run in runs
        for shape in CELLS
        if shape[0].asked_in(run.meta["workload"])
        for arm in run.arms
    ]
    for run, arm, (workload, users) in sorted(arms, key=_telling, reverse=True):
        there = _levels(run, arm) - set(held_out)
        source = Source(run, arm, tuple(user for user in users if user in there))
        known = any(
            s.engine == source.engine and workload.asked_in(s.run.meta["workload"]) for s in found.sources
        )
        if source.engine not in engines or not source.users or known or _another(source, prior):
            continue
        try:
            check(source, simulated=simulated)
        except CalibrationRefused as error:
            found.refused.append(str(error))
        else:
            found.sources.append(source)
    return found


def _another(source: Source, prior: Profile) -> bool:
    """Whether an arm has another model, other weights or another way to compute than the prior stands for."""
    arm = source.run.meta["arms"][source.arm]
    row = model_table.load_table().get(prior.model.name)
    names = {prior.model.name, *((row.ollama.name, row.vllm.name) if row else ())}
    wanted = {"model": names, "quantisation": {prior.engines[source.engine].quantisation}}
    if any(
        (has := arm["facts"].get(name)) is not None and has not in known for name, known in wanted.items()
    ):
        return True
    own, usual = whole_settings(arm, arm["settings"]), whole_settings(arm, {})
    return any(own.get(name) != usual.get(name) for name in COMPUTING)


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


@dataclass(frozen=True)
class Calibrated:
    """A profile that is fitted to a reader's own runs, with what it saw, what it did not, and its bands.

    Attributes:
        made: the fit.
        found: the runs' levels that it saw, and the runs that could not be used.
        engines: that were asked for.
    """

    made: Calibration
    found: Found
    engines: tuple[str, ...]

    @property
    def profile(self) -> Profile:
        """To predict with."""
        return self.made.profile

    @property
    def sources(self) -> list[Source]:
        """Arms of runs, each with the levels that were used."""
        return self.found.sources

    def users(self, engine: str) -> tuple[int, ...]:
        """Numbers of users, ascending, that the fit saw of an engine under the course's own questions."""
        return tuple(sorted(source.users or ()) if (source := self.source(engine)) else ())

    def source(self, engine: str) -> Source | None:
        """The arm that shows an engine under the course's own questions, or under others if under none."""
        own = [source for source in self.sources if source.engine == engine]
        plain = [source for source in own if LONG_OUT.asked_in(source.run.meta["workload"])]
        return next(iter([*plain, *own]), None)

    @property
    def missing(self) -> list[str]:
        """A line for each shape of questions with cells that no run has."""
        return [
            f"{engine}: {workload.name} at {', '.join(map(str, sorted(users)))} users"
            for engine in self.engines
            for workload, users in self.found.missing(engine)
        ]

    def __repr__(self) -> str:
        return "\n".join(self._told())

    def _repr_html_(self) -> str:
        first, *rest = map(escape, self._told())
        return f"<p><b>{first}</b></p><ul>{''.join(f'<li>{line}</li>' for line in rest)}</ul>"

    def _told(self) -> list[str]:
        lines = [f"profile {self.profile.name}, {self.profile.basis}"]
        for source in self.sources:
            users = ", ".join(map(str, sorted(source.users or ())))
            asked = source.run.meta["workload"]["name"]
            lines.append(f"seen: {source.run.path.name}, {source.arm}, {asked}, users {users}")
        for engine in self.engines:
            band = self.profile.engines[engine].band
            bands = ", ".join(f"{name} {1 + half:.2f}" for name, half in band.items())
            if engine in self.made.residual:
                kept = ", ".join(self.made.kept[engine]) or "none"
                lines += [
                    f"{engine}: step times of the fit off by {self.made.residual[engine]:.1%} (median)",
                    f"{engine}: terms that these runs do not move: {kept}",
                ]
            else:
                lines.append(f"{engine}: no run of it could be used, so all of it is as it was")
            lines.append(f"{engine}: nine times of ten within these factors of a prediction: {bands}")
        lines += [f"left out: {' '.join(reason.split())}" for reason in self.found.refused]
        return [*lines, *(f"never measured: {line}" for line in self.missing)]


def fit(
    runs: Iterable[Run],
    engines: Sequence[str],
    prior: Profile | None = None,
    *,
    held_out: Sequence[int] = (),
    simulated: bool = False,
    seed: int = 0,
) -> Calibrated:
    """Fit a profile to the runs that there are; nothing is measured.

    Args:
        prior: what to start from (default: the course's profile; for simulated runs one from datasheets,
            since the course's is what made them).
        held_out, simulated: see :func:`look`.

    Raises:
        CalibrationRefused: no run can be used, or they show too little; says why.
    """
    start = prior or profiles.load(FROM_DATASHEETS if simulated else profiles.DEFAULT)
    found = look(runs, engines, start, held_out=held_out, simulated=simulated)
    if not found.sources:
        raise CalibrationRefused(
            f"calibrate {' and '.join(engines)}",
            "; ".join(found.refused) or "no run has the course's questions from 1, 4 or 16 users",
            "measure one first: lab.sweep(users=[1, 4, 16])",
        )
    made = calibrate(found.sources, start, seed=seed, simulated=simulated)
    own = replace(made.profile, name=OWN, source=f"the reader's runs, starting from {start.name}")
    return Calibrated(replace(made, profile=own), found, tuple(engines))


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
