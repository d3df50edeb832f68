"""Experiments: which engine is under which load in which order, and whether the outcome can be trusted.

An :class:`Experiment` is a list of :class:`Step`, each one level of load on one arm. One engine is under
load at a time; arms take turns level by level, so that slow drift of the machine hits all alike; the first
level is measured again at the end to see that drift. :func:`sweep` and :func:`staircase` make the usual ones.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from labkit import host, verdict, watch
from labkit.budget import Budget
from labkit.bundle import Recorder, Run
from labkit.device import holding
from labkit.engines.base import Engine, EngineFacts, Served
from labkit.engines.models import assert_same_prompt
from labkit.errors import ExperimentStopped, UsageError
from labkit.load.plan import Plan
from labkit.load.process import Frame, LoadProcess
from labkit.verdict import Verdict
from labkit.workload import Prompt, Workload

PROBES = 4
"""Warm-up requests an arm, one after another: the first may carry set-up, the median is the idle TTFT."""

PROBE_TOKENS = 8

SETTLE_S = 0.25
SETTLED = 0.1  # cores
SETTLE_TRIES = 20
"""Before a level the other engines must be at rest. vLLM's threads spin on for most of a second after their
last step, which made Ollama's next prefill ten times longer on the 2-core reference machine."""

_IDS_PER_STEP = 1_000_000  # leaves room, so that ids stay unique even if a load process is killed


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: an engine with a model and the settings it was asked for.

    Attributes:
        name: what figures call it ("Ollama, 1 slot").
        model: the name a client sends.
        source: where the model file came from (``ModelSide.source``).
        settings: as asked; what the engine really uses is in its facts.
    """

    name: str
    engine: Engine
    model: str
    source: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One level of load on one arm.

    Attributes:
        level: users of a closed loop, requests of a burst.
        load: fields of :class:`labkit.load.plan.Plan` that make the load ("arrivals", "users", "rounds" …).
        phase: "warm-up", "measure" or "drift" (the first level again, at the end).
    """

    arm: Arm
    level: int
    repeat: int
    load: dict[str, Any]
    phase: str = "measure"

    def __str__(self) -> str:
        what = f"{self.level} user{'s' if self.level > 1 else ''}"
        words = {"warm-up": "warm-up", "measure": what, "drift": f"{what} again, to see drift"}
        return f"{self.arm.name}: {words[self.phase]}"


@dataclass(frozen=True)
class Progress:
    """Where an experiment is.

    Attributes:
        phase: one line for people.
        done, total: finished and planned steps.
        eta_s: estimated seconds to the end by the wall clock, None while there is nothing to estimate from.
        step: the level that is running, or has just ended.
        frame: its newest samples, while it is running.
        run: everything measured so far; set each time a level ends.
    """

    phase: str
    done: int = 0
    total: int = 0
    eta_s: float | None = None
    step: Step | None = None
    frame: Frame | None = None
    run: Run | None = None


OnProgress = Callable[[Progress], None]


class Experiment:
    """A planned sequence of steps; :meth:`run` carries it out once."""

    def __init__(
        self, name: str, steps: Sequence[Step], *, workload: Workload, budget: Budget, seed: int, folder: Path
    ) -> None:
        """Plan it.

        Raises:
            UsageError: no steps, or two arms of one name.
        """
        if not steps:
            raise UsageError(f"plan the experiment {name}", "no level to measure", "give at least one level")
        self.name = name
        self.steps = list(steps)
        self._by_name = {step.arm.name: step.arm for step in steps}
        if any(self._by_name[step.arm.name] is not step.arm for step in steps):
            raise UsageError(f"plan the experiment {name}", "two arms have one name", "name them apart")
        self.workload = workload
        self.budget = budget
        self.seed = seed
        self.folder = folder
        self._stopping = False
        self._load: LoadProcess | None = None
        self._dead: dict[str, Verdict] = {}

    def stop(self) -> None:
        """End early and keep what came. May be called at any time and more than once."""
        self._stopping = True
        if self._load is not None:
            self._load.stop()

    def prompts(self, step: Step) -> list[Prompt]:
        """What is asked at a step: the same of every arm at one level and repeat, else something new."""
        seed = f"{self.seed}/{step.phase}/{step.level}/{step.repeat}"
        prompts = self.workload.prompts(_answers(step), seed)
        if step.phase == "warm-up":
            return [replace(prompt, output_tokens=PROBE_TOKENS) for prompt in prompts]
        return prompts

    @property
    def load_pid(self) -> int | None:
        """The load process of the level that is running, None between levels."""
        return None if self._load is None else self._load.pid

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
        urls = [arm.engine.url for arm in self._by_name.values()]
        async with holding(urls, owner=self.name, on_wait=lambda sentence: on_progress(Progress(sentence))):
            return await self._run(on_progress)

    async def _run(self, on_progress: OnProgress) -> Run:
        facts = {name: await self._facts(arm) for name, arm in self._by_name.items()}
        kind, time_scale = self._common(facts)
        await self._same_prompts()
        before = {name: await arm.engine.served() for name, arm in self._by_name.items()}
        recorder = Recorder(
            self.folder,
            kind=kind,
            arms={
                name: {"engine": arm.engine.name, "settings": arm.settings, "facts": facts[name].as_dict()}
                for name, arm in self._by_name.items()
            },
            workload={**self.workload.as_dict(), "experiment": self.name, "budget": self.budget.name},
            seed=self.seed,
            time_scale=time_scale,
        )
        return await self._measure(recorder, before, on_progress)

    async def _facts(self, arm: Arm) -> EngineFacts:
        await arm.engine.load(arm.model)
        facts = await arm.engine.facts()
        return replace(facts, model=arm.model, model_source=facts.model_source or arm.source)

    def _common(self, facts: dict[str, EngineFacts]) -> tuple[str, float]:
        """What all arms must have in common: kind and time scale."""
        found = {(f.kind, f.time_scale) for f in facts.values()}
        if len({kind for kind, _ in found}) > 1:
            raise UsageError(
                f"run {self.name}", "live and simulated engines in one run", "use one kind for all"
            )
        if len(found) > 1:
            paces = ", ".join(f"{name}: {f.time_scale:g} times real time" for name, f in facts.items())
            raise UsageError(f"run {self.name}", paces, "start all simulated engines with one time_scale")
        return found.pop()

    async def _same_prompts(self) -> None:
        sides = [(arm.engine, arm.model) for arm in self._by_name.values()]
        if len(sides) > 1:
            await assert_same_prompt(sides, self.workload.prompts(1, "token count")[0].messages)

    async def _measure(self, recorder: Recorder, before: dict[str, Served], on_progress: OnProgress) -> Run:
        done = 0
        for index, step in enumerate(self.steps):
            if self._stopping:
                break
            if step.arm.name not in self._dead:
                await self._step(index, step, recorder, on_progress)
            done += 1
            eta = self._eta(recorder, index + 1)
            on_progress(Progress(str(step), done, len(self.steps), eta, step, run=recorder.so_far()))
        if not recorder.levels:
            shutil.rmtree(recorder.folder)
            raise ExperimentStopped(f"run {self.name}", "stopped before the first level", "press Run again")
        for arm in self._by_name.values():
            recorder.artefact(re.sub(r"\W+", "-", arm.name) + ".log", "\n".join(arm.engine.log_tail(2000)))
        judged = await self._judge(recorder, before)
        run = recorder.finish(judged, stopped=self._stopping)
        on_progress(Progress("stopped" if self._stopping else "done", done, len(self.steps), 0.0, run=run))
        return run

    async def _step(self, index: int, step: Step, recorder: Recorder, on_progress: OnProgress) -> None:
        await self._settle(step.arm)
        plan = self._plan(index, step, recorder)
        eta = self._eta(recorder, index)
        cpu = host.CpuWatch(step.arm.engine.cpu_s)
        async with LoadProcess(plan) as load, watch.gauges(step.arm.engine, step.arm.name, recorder):
            self._load = load
            if self._stopping:  # stop() came while the process was starting
                load.stop()
            async for frame in load.frames():
                on_progress(Progress(str(step), index, len(self.steps), eta, step, frame))
            self._load = None
        if load.tally.planned == 0 and load.broken is None:
            return  # stopped before its first request: there was no such level
        recorder.level(
            {
                "arm": step.arm.name,
                "engine": step.arm.engine.name,
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
        if not step.arm.engine.alive():
            tail = " | ".join(step.arm.engine.log_tail(5))
            self._dead[step.arm.name] = Verdict(
                "suspect",
                [f"{step}: the engine died, later levels of this arm are missing; its log ends: {tail}"],
            )

    async def _settle(self, arm: Arm) -> None:
        """Wait, for a few seconds at most, until the engines that are not measured now use no CPU."""
        others = [other.engine for other in self._by_name.values() if other.engine is not arm.engine]
        used = [engine.cpu_s() or 0.0 for engine in others]
        for _ in range(SETTLE_TRIES if others else 0):
            if self._stopping:
                return
            await asyncio.sleep(SETTLE_S)
            before, used = used, [engine.cpu_s() or 0.0 for engine in others]
            if sum(used) - sum(before) < SETTLED * SETTLE_S:
                return

    def _plan(self, index: int, step: Step, recorder: Recorder) -> Plan:
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
                "first_id": index * _IDS_PER_STEP,
                "t0": recorder.clock.t0,
                "time_scale": recorder.clock.scale,
                **step.load,
            }
        )

    def _eta(self, recorder: Recorder, next_index: int) -> float | None:
        """Rest of the plan at the answer rate each arm last showed; None until each arm has shown one."""
        rates: dict[str, float] = {}
        for record in recorder.levels:
            window = record["ended_s"] - record["started_s"]
            if record["ok"] and window > 0 and not record["warmup"]:
                rates[record["arm"]] = record["ok"] / window
        if any(name not in rates for name in self._by_name if name not in self._dead):
            return None
        left = 0.0
        for step in self.steps[next_index:]:
            if step.arm.name in rates:
                left += min(_answers(step) / rates[step.arm.name], step.load.get("seconds") or float("inf"))
        return left / recorder.clock.scale

    async def _judge(self, recorder: Recorder, before: dict[str, Served]) -> Verdict:
        verdicts = list(self._dead.values())
        if self._stopping:
            verdicts.append(Verdict("suspect", ["stopped early: later levels are missing or incomplete"]))
        for name, arm in self._by_name.items():
            engine, asked = arm.engine, self.workload.output_tokens
            levels = [r for r in recorder.levels if r["arm"] == name]
            verdicts += [verdict.judge_clients(levels), verdict.judge_drift(name, levels)]
            if name not in self._dead:
                verdicts.append(await watch.foreign_load(engine, name, levels, before[name], asked))
        return verdict.combine(verdicts)


def sweep(
    arms: Sequence[Arm],
    users: Sequence[int],
    *,
    workload: Workload,
    budget: Budget,
    seed: int,
    folder: Path,
) -> Experiment:
    """Closed-loop load at each number of users on each arm in turn; the first level again at the end."""
    if not users or any(n < 1 for n in users):
        raise UsageError(f"sweep over users {users}", "no level, or one without users", "1 or more each")
    limits = {"rounds": budget.rounds, "seconds": budget.max_s}
    steps = _warm_up(arms)
    for repeat in range(budget.repeats):
        for position, level in enumerate(users):
            turn = arms if (repeat + position) % 2 == 0 else list(reversed(arms))
            steps += [Step(arm, level, repeat, {"users": level, **limits}) for arm in turn]
    again = {"users": users[0], **limits}
    steps += [Step(arm, users[0], budget.repeats, again, "drift") for arm in arms]
    return Experiment("sweep", steps, workload=workload, budget=budget, seed=seed, folder=folder)


def staircase(
    arms: Sequence[Arm],
    burst: int,
    *,
    workload: Workload,
    budget: Budget,
    seed: int,
    folder: Path,
) -> Experiment:
    """``burst`` requests at one moment, on each arm in turn: where a queue is, TTFT climbs in steps."""
    load = {"arrivals": "burst", "users": burst, "requests": burst, "seconds": budget.max_s}
    steps = _warm_up(arms)
    for repeat in range(budget.repeats):
        steps += [Step(arm, burst, repeat, load) for arm in arms]
    return Experiment("staircase", steps, workload=workload, budget=budget, seed=seed, folder=folder)


def _answers(step: Step) -> int:
    """Requests that a step issues if no time limit cuts it short."""
    asked = step.load.get("requests") or step.load["users"] * step.load["rounds"]
    return int(asked)


def _warm_up(arms: Sequence[Arm]) -> list[Step]:
    return [Step(arm, 1, 0, {"users": 1, "requests": PROBES}, "warm-up") for arm in arms]
