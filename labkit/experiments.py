"""Experiments: which engine is under which load in which order, and whether the outcome can be trusted.

An :class:`Experiment` is a list of :class:`Step`, each one level of load on one arm. One engine is under
load at a time. :func:`labkit.designs.design` makes the usual lists.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from labkit import host, migration, verdict, watch
from labkit.arms import Arm, Arms, Step
from labkit.budget import Budget
from labkit.bundle import Recorder, Run
from labkit.device import holding
from labkit.engines.base import Gauges
from labkit.engines.models import assert_same_prompt
from labkit.errors import ExperimentStopped, LabkitError, UsageError
from labkit.load.plan import Plan
from labkit.load.process import Frame, LoadProcess
from labkit.verdict import Verdict
from labkit.workload import Prompt, Workload

__all__ = ["Arm", "Experiment", "OnProgress", "Progress", "Step"]

PROBE_TOKENS = 8

STALL_AFTER = 5
"""Answers after which an engine is made to stand still: enough to see what is usual."""

STEER_S = 60.0
"""How long a level lasts that a reader asked for while the load ran, unless they ask for another."""

SETTLE_S = 0.25
SETTLED = 0.1  # cores
SETTLE_TRIES = 20
"""Before a level the other engines must be at rest. vLLM's threads spin on for most of a second after their
last step, which made Ollama's next prefill ten times longer on the 2-core reference machine."""

_IDS_PER_STEP = 1_000_000  # leaves room, so that ids stay unique even if a load process is killed


@dataclass(frozen=True)
class Progress:
    """Where an experiment is.

    Attributes:
        phase: one line for people.
        done, total: finished and planned steps.
        eta_s: estimated seconds to the end by the wall clock, None while there is nothing to estimate from.
        step: the level that is running, or has just ended.
        frame: its newest samples, while it is running.
        gauges: the engine's newest reading of itself, while it is running.
        run: everything measured so far; set each time a level ends.
    """

    phase: str
    done: int = 0
    total: int = 0
    eta_s: float | None = None
    step: Step | None = None
    frame: Frame | None = None
    gauges: Gauges | None = None
    run: Run | None = None


OnProgress = Callable[[Progress], None]


class Experiment:
    """A planned sequence of steps; :meth:`run` carries it out once."""

    def __init__(
        self,
        name: str,
        steps: Sequence[Step],
        *,
        workload: Workload,
        load: dict[str, Any],
        budget: Budget,
        seed: int,
        folder: Path,
    ) -> None:
        """Plan it.

        Args:
            load: what ``run.json`` says of how requests come.

        Raises:
            UsageError: no steps, or two arms of one name.
        """
        if not steps:
            raise UsageError(f"plan the experiment {name}", "no level to measure", "give at least one level")
        self.name = name
        self.steps = list(steps)
        self._arms = Arms(name, [step.arm for step in steps])
        self.workload = workload
        self.load = load
        self.budget = budget
        self.seed = seed
        self.folder = folder
        self._stopping = False
        self._process: LoadProcess | None = None
        self._bringing: asyncio.Task[bool] | None = None
        self._present: Step | None = None
        self._wish: int | None = None
        self._begun = 0
        self._verdicts: list[Verdict] = []

    def stop(self) -> None:
        """End early and keep what came. May be called at any time and more than once."""
        self._stopping = True
        if self._bringing is not None:
            self._bringing.cancel()
        if self._process is not None:
            self._process.stop()

    def steer(self, users: int) -> None:
        """Go on with this number of users at once; the rest of the plan is dropped.

        The level that is running ends, its requests in flight are cancelled, and one with the new number
        begins; in the warm-up it begins after that.
        """
        self._wish = users
        if self._process is not None and self._present and self._present.phase != "warm-up":
            self._process.stop()

    def prompts(self, step: Step) -> list[Prompt]:
        """What is asked at a step: the same of every arm at one level and repeat, else something new.

        Where a step has a workload of its own, it is about what an engine has read before: then it is new in
        every run too, since a server may still know what was asked in another.
        """
        seed = f"{self.seed}/{step.phase}/{step.level}/{step.repeat}"
        if step.workload is not None:
            seed += f"/{self.folder.name}"
        prompts = (step.workload or self.workload).prompts(step.requests or 100 * step.level, seed)
        if step.phase == "warm-up":
            return [replace(prompt, output_tokens=PROBE_TOKENS) for prompt in prompts]
        return prompts

    @property
    def load_pid(self) -> int | None:
        """The load process of the level that is running, None between levels."""
        return None if self._process is None else self._process.pid

    async def run(self, on_progress: OnProgress = lambda _progress: None, *, held: bool = False) -> Run:
        """Measure, write the bundle and return the run with its verdict.

        Args:
            held: the caller holds the devices of all arms already (:func:`labkit.device.holding`).

        Raises:
            ExperimentStopped: stop() came before the first level had begun.
            UsageError: live and simulated engines in one experiment, or simulated ones of unlike pace.
            UnfairPair: the arms count different prompt tokens for the same question.
        """
        if held:
            return await self._run(on_progress)
        urls = [engine.url for engine in self._arms.engines()]
        async with holding(urls, owner=self.name, on_wait=lambda sentence: on_progress(Progress(sentence))):
            return await self._run(on_progress)

    async def _run(self, on_progress: OnProgress) -> Run:
        for arm in self._arms.first():
            await self._arms.bring(arm, lambda line: on_progress(Progress(line)))
        await self._same_prompts()
        recorder = Recorder(
            self.folder,
            kind=self._arms.kind,
            arms=self._arms.described,
            workload={
                **self.workload.as_dict(),
                "experiment": self.name,
                "budget": self.budget.name,
                "load": self.load,
            },
            seed=self.seed,
            time_scale=self._arms.time_scale,
        )
        return await self._measure(recorder, on_progress)

    async def _same_prompts(self) -> None:
        sides = [(arm.engine, arm.model) for arm in self._arms.first()]
        if len(sides) > 1:
            await assert_same_prompt(sides, self.workload.prompts(1, "token count")[0].messages)
            await self._arms.recount()

    async def _measure(self, recorder: Recorder, on_progress: OnProgress) -> Run:
        left = deque(self.steps)
        done = 0
        while left and not self._stopping:
            step = self._present = left.popleft()
            there = Progress(str(step), done, done + 1 + len(left), self._eta(recorder, [step, *left]), step)
            if await self._bring(step.arm, recorder, there, on_progress):
                await self._step(step, recorder, there, on_progress)
            done += 1
            if self._wish is not None and not self._stopping and step.phase != "warm-up":
                left = deque([self._steered(step, self._wish)])
                self._wish = None
            eta, total = self._eta(recorder, left), done + len(left)
            on_progress(Progress(str(step), done, total, eta, step, run=recorder.so_far()))
        if not recorder.levels:
            shutil.rmtree(recorder.folder)
            raise ExperimentStopped(f"run {self.name}", "stopped before the first level", "press Run again")
        for arm in self._arms.present():
            await self._leave(arm, recorder)
        run = recorder.finish(self._judged(recorder), stopped=self._stopping)
        on_progress(Progress("stopped" if self._stopping else "done", done, done, 0.0, run=run))
        return run

    def _steered(self, step: Step, users: int) -> Step:
        """A level of the reader's own. Its repeat is one that no planned step has."""
        load = {**step.load, "users": users, "rounds": None, "seconds": STEER_S}
        repeat = self.budget.repeats + self._begun
        return replace(step, level=users, load=load, repeat=repeat, phase="measure")

    async def _bring(self, arm: Arm, recorder: Recorder, there: Progress, on_progress: OnProgress) -> bool:
        """See that the arm is on its engine; whether it can be measured."""
        if arm.name in self._arms.dead:
            return False
        for other in self._arms.present():
            if other is not arm and other.engine is arm.engine:
                await self._leave(other, recorder)
        self._bringing = asyncio.ensure_future(
            self._arms.bring(arm, lambda line: on_progress(replace(there, phase=line)))
        )
        try:
            await self._bringing
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            return False
        except LabkitError as error:  # what the other arms gave is worth no less
            self._arms.dead[arm.name] = Verdict("suspect", [f"{arm.name} could not be measured: {error}"])
            return False
        finally:
            self._bringing = None
        recorder.arms(self._arms.described)
        return not self._stopping

    async def _leave(self, arm: Arm, recorder: Recorder) -> None:
        longest = max((step.workload or self.workload).output_tokens for step in self.steps)
        self._verdicts.append(await self._arms.leave(arm, recorder, longest))

    async def _step(self, step: Step, recorder: Recorder, there: Progress, on_progress: OnProgress) -> None:
        if step.cold:
            await step.arm.engine.unload(step.arm.model)
        await self._settle(step.arm)
        cpu = host.CpuWatch(step.arm.engine.cpu_s)
        engine, name = step.arm.engine, step.arm.name
        async with (
            LoadProcess(self._plan(step, recorder)) as load,
            watch.gauges(engine, name, recorder) as newest,
            _stalling(step, recorder.clock.scale) as answered,
            migration.shifting(step, recorder) as moves,
        ):
            self._process = load
            if self._stopping or (self._wish is not None and step.phase != "warm-up"):
                load.stop()  # stop() or steer() came while the process was starting
            async for frame in load.frames():
                answered(frame.tally.ok)
                moves.ended(frame.tally.ok + frame.tally.failed)
                if moves.failed is not None:
                    load.stop()
                on_progress(replace(there, frame=frame, gauges=newest()))
            self._process = None
        if load.tally.planned == 0 and load.broken is None:
            return  # stopped before its first request: there was no such level
        if step.stall_s is not None and load.tally.ok < STALL_AFTER:
            reason = f"{step}: the engine did not stand still, since fewer than {STALL_AFTER} answers came"
            self._verdicts.append(Verdict("suspect", [reason]))
        if moves.failed is not None:
            self._verdicts.append(Verdict("suspect", [f"{step}: the rest is missing: {moves.failed}"]))
        recorder.level(
            {
                "arm": name,
                "engine": engine.name,
                "level": step.level,
                "repeat": step.repeat,
                "warmup": step.phase == "warm-up",
                "drift": step.phase == "drift",
                **asdict(load.tally),
                "client": asdict(load.health),
                "broken": load.broken,
                # a simulated engine computes nothing that others could slow down; being late shows in the lag
                "others_cpu": None if recorder.kind == "simulated" else cpu.others(load.health.cpu_s),
            }
        )
        if not engine.alive():
            self._arms.bury(step.arm, str(step))

    async def _settle(self, arm: Arm) -> None:
        """Wait, for a few seconds at most, until the engines that are not measured now use no CPU."""
        others = [engine for engine in self._arms.engines() if engine is not arm.engine]
        used = [engine.cpu_s() or 0.0 for engine in others]
        for _ in range(SETTLE_TRIES if others else 0):
            if self._stopping:
                return
            await asyncio.sleep(SETTLE_S)
            before, used = used, [engine.cpu_s() or 0.0 for engine in others]
            if sum(used) - sum(before) < SETTLED * SETTLE_S:
                return

    def _plan(self, step: Step, recorder: Recorder) -> Plan:
        first_id = self._begun * _IDS_PER_STEP
        self._begun += 1
        return Plan(
            **{
                "url": step.arm.engine.url,
                "protocol": step.arm.engine.protocol,
                "model": step.arm.model,
                "prompts": self.prompts(step),
                "seed": self.seed,
                "api_key": step.arm.engine.api_key,
                "engine": step.arm.engine.name,
                "arm": step.arm.name,
                "level": step.level,
                "repeat": step.repeat,
                "warmup": step.phase == "warm-up",
                "rows": str(recorder.folder),
                "first_id": first_id,
                "t0": recorder.clock.t0,
                "time_scale": recorder.clock.scale,
                **step.load,
            }
        )

    def _eta(self, recorder: Recorder, left: Iterable[Step]) -> float | None:
        """Rest of the plan at the answer rate each arm last showed; None until each arm has shown one."""
        rates: dict[str, float] = {}
        for record in recorder.levels:
            window = record["ended_s"] - record["started_s"]
            if record["ok"] and window > 0 and not record["warmup"]:
                rates[record["arm"]] = record["ok"] / window
        if any(name not in rates for name in self._arms.by_name if name not in self._arms.dead):
            return None
        unlimited = float("inf")
        seconds = [
            min((step.requests or unlimited) / rates[step.arm.name], step.load.get("seconds") or unlimited)
            for step in left
            if step.arm.name in rates
        ]
        return sum(seconds) / recorder.clock.scale

    def _judged(self, recorder: Recorder) -> Verdict:
        verdicts = [*self._arms.dead.values(), *self._verdicts]
        if self._stopping:
            verdicts.append(Verdict("suspect", ["stopped early: later levels are missing or incomplete"]))
        for name in self._arms.by_name:
            levels = [record for record in recorder.levels if record["arm"] == name]
            # of the warm-up a result takes the TTFT of the idle engine alone, a median
            counted = [record for record in levels if not record["warmup"]]
            verdicts += [verdict.judge_clients(counted), verdict.judge_drift(name, levels)]
        return verdict.combine(verdicts)


@contextlib.asynccontextmanager
async def _stalling(step: Step, scale: float) -> AsyncIterator[Callable[[int], None]]:
    """Told how many answers have come, makes the engine stand still once, if the step wants that."""
    stall: asyncio.Task[None] | None = None

    def answered(ok: int) -> None:
        nonlocal stall
        if step.stall_s is not None and stall is None and ok >= STALL_AFTER:
            stall = asyncio.create_task(step.arm.engine.stall(step.stall_s / scale))

    try:
        yield answered
    finally:
        if stall is not None:
            await stall
