"""The arms of an experiment and its steps: which arm is on its engine now, what it is, what it served."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from labkit import watch
from labkit.bundle import Recorder
from labkit.engines.base import Engine, EngineFacts, Served
from labkit.engines.base import Progress as Say
from labkit.errors import UsageError
from labkit.verdict import Verdict
from labkit.workload import Workload

LOG_LINES = 2000
"""Kept of an engine's log."""


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: an engine with a model and the settings it was asked for.

    Attributes:
        name: what figures call it ("Ollama, 1 slot").
        model: the name a client sends.
        source: where the model file came from (``ModelSide.source``).
        settings: as asked; what the engine really uses is in its facts.
        start: gives the engine these settings, where other arms use the same engine with others.
    """

    name: str
    engine: Engine
    model: str
    source: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    start: Callable[[Say], Awaitable[object]] | None = None


def asked_name(engine: str, settings: Mapping[str, Any]) -> str:
    """What figures call an arm that is named before its engine has started."""
    rest = dict(settings)
    name = "vLLM"
    if engine == "ollama":
        slots = rest.pop("num_parallel", 1)
        name = (
            "Ollama, its own slots" if slots is None else f"Ollama, {slots} slot{'' if slots == 1 else 's'}"
        )
    return ", ".join([name, *(f"{key}={value}" for key, value in rest.items())])


@dataclass(frozen=True)
class Step:
    """One level of load on one arm.

    Attributes:
        level: users of a closed loop, requests of a burst, offered load in per cent of an open loop; or what
            ``words`` says.
        load: fields of :class:`labkit.load.plan.Plan` that make the load ("arrivals", "users", "rounds" …).
        phase: "warm-up", "measure" or "drift" (the first level again, at the end).
        stall_s: after the first answers the whole engine stands still for so many seconds.
        cold: the model is unloaded first.
        workload: asked at this step in place of the experiment's, in words that are new in every run.
        words: what the level is, where it is no number of the above.
        shares: while it goes on, a proxy moves to each of these shares in turn; it begins at 0.
    """

    arm: Arm
    level: int
    repeat: int
    load: dict[str, Any]
    phase: str = "measure"
    stall_s: float | None = None
    cold: bool = False
    workload: Workload | None = None
    words: str | None = None
    shares: tuple[float, ...] = ()

    def __str__(self) -> str:
        many = "" if self.level == 1 else "s"
        what = self.words or {
            "closed": f"{self.level} user{many}",
            "burst": f"{self.level} request{many} at once",
        }.get(self.load.get("arrivals", "closed"), f"{self.level} % of the capacity")
        words = {"warm-up": "warm-up", "measure": what, "drift": f"{what} again, to see drift"}
        return f"{self.arm.name}: {words[self.phase]}"

    @property
    def requests(self) -> int | None:
        """Requests that it issues if no time limit cuts it short; None if only time ends it."""
        if (whole := self.load.get("requests")) is not None:
            return int(whole)
        rounds = self.load.get("rounds")
        return None if rounds is None else int(self.load["users"] * rounds)


class Arms:
    """Brings arms onto their engines, and says of each that was there what it was and whether it was alone.

    Attributes:
        described: of each arm that was there, what ``run.json`` says of it.
        kind, time_scale: what all of them have in common.
        dead: of arms whose engine died, the verdict.
    """

    def __init__(self, run: str, arms: Sequence[Arm]) -> None:
        """Plan it.

        Raises:
            UsageError: two arms of one name.
        """
        self._run = run
        self.by_name = {arm.name: arm for arm in arms}
        if any(self.by_name[arm.name] is not arm for arm in arms):
            raise UsageError(f"plan the experiment {run}", "two arms have one name", "name them apart")
        self.described: dict[str, dict[str, Any]] = {}
        self.kind, self.time_scale = "live", 1.0
        self.dead: dict[str, Verdict] = {}
        self._before: dict[str, Served] = {}

    def engines(self) -> list[Engine]:
        """Each engine once."""
        return list({id(arm.engine): arm.engine for arm in self.by_name.values()}.values())

    def first(self) -> list[Arm]:
        """The arm that each engine begins with."""
        return [next(arm for arm in self.by_name.values() if arm.engine is one) for one in self.engines()]

    def present(self) -> list[Arm]:
        """The arms that are on their engines now."""
        return [self.by_name[name] for name in self._before]

    async def bring(self, arm: Arm, say: Say) -> bool:
        """Give the arm's engine its settings and model, and read what it is then; whether that was needed.

        Raises:
            UsageError: it is live and another arm simulated, or they are simulated at unlike pace.
        """
        if arm.name in self._before:
            return False
        if arm.start is not None:
            await arm.start(say)
        await arm.engine.load(arm.model)
        facts = await arm.engine.facts()
        facts = replace(facts, model=arm.model, model_source=facts.model_source or arm.source)
        self._check(arm, facts)
        self._before[arm.name] = await arm.engine.served()
        self.described[arm.name] = {
            "engine": arm.engine.name,
            "settings": arm.settings,
            "facts": facts.as_dict(),
        }
        return True

    async def recount(self) -> None:
        """Count from here on what the present arms serve: what they were asked so far was no load."""
        for arm in self.present():
            self._before[arm.name] = await arm.engine.served()

    def _check(self, arm: Arm, facts: EngineFacts) -> None:
        if not self.described:
            self.kind, self.time_scale = facts.kind, facts.time_scale
        if facts.kind != self.kind:
            raise UsageError(
                f"run {self._run}", "live and simulated engines in one run", "use one kind for all"
            )
        if facts.time_scale != self.time_scale:
            seen = f"{arm.name}: {facts.time_scale:g} times real time, others {self.time_scale:g}"
            raise UsageError(f"run {self._run}", seen, "start all simulated engines with one time_scale")

    async def leave(self, arm: Arm, recorder: Recorder, output_tokens: int) -> Verdict:
        """Keep the engine's log in the bundle, and judge by its own count whether the arm had it alone.

        Args:
            output_tokens: what each request asked for.
        """
        recorder.artefact(re.sub(r"\W+", "-", arm.name) + ".log", "\n".join(arm.engine.log_tail(LOG_LINES)))
        before = self._before.pop(arm.name)
        if arm.name in self.dead:
            return Verdict("clean")  # its death is told already
        levels = [record for record in recorder.levels if record["arm"] == arm.name]
        return await watch.foreign_load(arm.engine, arm.name, levels, before, output_tokens)

    def bury(self, arm: Arm, step: str) -> None:
        """The engine died at this step: later levels of the arm are left out."""
        tail = " | ".join(arm.engine.log_tail(5))
        self.dead[arm.name] = Verdict(
            "suspect",
            [f"{step}: the engine died, later levels of this arm are missing; its log ends: {tail}"],
        )
