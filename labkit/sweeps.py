"""What the Run button of a view does: measure on engines, or replay what was recorded."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol, TypedDict

from labkit import designs, paths, recorded
from labkit.arms import Arm
from labkit.budget import Budget
from labkit.bundle import Run
from labkit.designs import Load
from labkit.device import holding
from labkit.engines.base import Engine
from labkit.engines.base import Progress as Say
from labkit.experiments import Experiment, OnProgress, Progress
from labkit.queueing import asked_words
from labkit.replay import Replay
from labkit.workload import Workload

SPEEDS = {"1×": 1.0, "10×": 10.0, "60×": 60.0, "at once": math.inf}

SLIDER_TOP = 16
"""Highest number of users or requests that a slider offers, unless more are planned."""


Settings = Mapping[str, Any]


class Asked(TypedDict, total=False):
    """What every experiment takes.

    Attributes:
        pair: "fair", "4bit" or "tp", see :data:`labkit.depths.PAIRS`.
        workload: default: stories of 64 tokens.
        ollama, vllm: settings to start the engine with, or several of them, an arm for each: then the engine
            is started anew for each arm. Default: those that the engine was last started with by hand, as by
            ``await lab.ollama.restart(num_parallel=4)``, else labkit's.
    """

    pair: str
    workload: Workload | None
    ollama: Settings | Sequence[Settings] | None
    vllm: Settings | Sequence[Settings] | None


@dataclass(frozen=True)
class Side:
    """An engine and the settings that it is to have; one arm of a run."""

    engine: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Order:
    """A measurement as it was asked for.

    Attributes:
        model: a row of ``data/models.toml``.
    """

    name: str
    sides: Sequence[Side]
    load: Load
    model: str
    workload: Workload
    budget: Budget
    seed: int

    @property
    def shared(self) -> bool:
        """Whether an engine is started anew in the middle of the run."""
        return any(self.shares(side.engine) for side in self.sides)

    def shares(self, engine: str) -> bool:
        """Whether this engine has more than one side."""
        return sum(side.engine == engine for side in self.sides) > 1

    def apart(self, side: Side) -> dict[str, Any]:
        """The settings that not all sides of its engine have alike, and the slots of an Ollama."""
        alike = [one.settings for one in self.sides if one.engine == side.engine]
        return {
            name: value
            for name, value in side.settings.items()
            if name == "num_parallel" or any(name not in one or one[name] != value for one in alike)
        }

    def first(self, engine: str) -> Side:
        """The side that this engine begins with."""
        return next(side for side in self.sides if side.engine == engine)


@dataclass(frozen=True)
class Control:
    """What a reader may choose for the next run.

    Attributes:
        options: words and the values that they stand for, or a range of numbers.
        value: the first one.
        steers: a change reaches a run that is going on, too.
    """

    label: str
    options: Mapping[str, Any] | range
    value: Any
    steers: bool = False


class Job(Protocol):
    """A measurement, to be carried out as often as Run is pressed.

    Attributes:
        badge: one line on what answers.
        control: :meth:`start` is given the value that it has then.
    """

    badge: str
    control: Control

    async def start(self, value: Any, report: OnProgress) -> Run:
        """From beginning to end."""

    def halt(self) -> None:
        """Make a start that is under way return early with what came."""

    def steer(self, value: Any) -> None:
        """The control has this value now, while a start is under way; for one that steers."""


class Measuring:
    """Starts the engines, then measures; the control chooses among arms or levels."""

    def __init__(
        self,
        order: Order,
        badge: str,
        engines: Sequence[Engine],
        arms: Callable[[Order, Say], Awaitable[list[Arm]]],
        *,
        steered: bool = False,
    ) -> None:
        """Prepare it.

        Args:
            arms: starts the engines and returns what to measure.
            steered: the control is the number of users, also while they are at it.
        """
        self.badge = badge
        self.control, self._chosen = _choice(order, steered=steered)
        self._engines = engines
        self._arms = arms
        self._experiment: Experiment | None = None
        self._wish: int | None = None  # of a reader who steers while the engines are still starting

    async def start(self, value: Any, report: OnProgress) -> Run:
        """See :class:`Job`."""
        try:
            return await self._measured(self._chosen(value), report)
        finally:
            self._experiment = self._wish = None

    async def _measured(self, order: Order, report: OnProgress) -> Run:
        urls = [engine.url for engine in self._engines]

        def say(line: str) -> None:
            report(Progress(line))

        # held from here on: starting an engine takes as much of the machine as measuring one
        async with holding(urls, owner=order.name, on_wait=say):
            self._experiment = designs.design(
                order.name,
                await self._arms(order, say),
                order.load,
                workload=order.workload,
                budget=order.budget,
                seed=order.seed,
                folder=paths.runs() / f"{order.name}-{datetime.now():%Y%m%d-%H%M%S-%f}",
            )
            if self._wish is not None:
                self._experiment.steer(self._wish)
            return await self._experiment.run(report, held=True)

    def halt(self) -> None:
        """See :class:`Job`."""
        if self._experiment is not None:
            self._experiment.stop()

    def steer(self, value: int) -> None:
        """See :class:`Job`."""
        self._wish = value
        if self._experiment is not None:
            self._experiment.steer(value)


class Replaying:
    """Replays a recording; the control sets the speed."""

    def __init__(self, recording: Run, levels: Sequence[int]) -> None:
        """Prepare it."""
        self.badge = recorded.badge([recording.meta])
        self.control = Control("Replay speed", SPEEDS, SPEEDS["60×"])
        self._recording = recording
        self._levels = levels
        self._replay: Replay | None = None

    async def start(self, value: float, report: OnProgress) -> Run:
        """See :class:`Job`."""
        self._replay = Replay(self._recording, self._levels, speed=value)
        return await self._replay.run(report)

    def halt(self) -> None:
        """See :class:`Job`."""
        if self._replay is not None:
            self._replay.stop()

    def steer(self, value: float) -> None:
        """The next replay has the new speed."""


def _choice(order: Order, *, steered: bool) -> tuple[Control, Callable[[Any], Order]]:
    """The one control that matters for an order, and the order that each of its values stands for."""
    levels, top = order.load.levels, order.load.levels[-1]

    def at(*chosen: int) -> Order:
        return replace(order, load=replace(order.load, levels=chosen))

    if steered:
        # at its first place the slider stands for the plan, elsewhere for the number that it shows
        return Control(
            "Users", _range(top), levels[0], steers=True
        ), lambda users: order if users == levels[0] else at(users)
    if order.shared:
        # each choice is an order, since a dropdown takes the value None for no choice at all
        each = {_words(order, side): replace(order, sides=[side]) for side in order.sides}
        return Control("Measure", {"all, one after the other": order, **each}, order), lambda chosen: chosen
    if order.load.arrivals == "burst" and len(levels) == 1:
        return Control("Requests at once", _range(top), top), at
    label = {"closed": "Users up to", "burst": "Requests up to"}.get(order.load.arrivals, "Load in % up to")
    label = label if order.load.by_users else "Up to"
    shown = {asked_words(order.load.as_dict(), level) or str(level): level for level in levels}
    return Control(label, shown, top), lambda up_to: at(*(level for level in levels if level <= up_to))


def _range(top: int) -> range:
    return range(1, max(SLIDER_TOP, top) + 1)


def _words(order: Order, side: Side) -> str:
    """A side's settings, and its engine where there is another."""
    engine = f"{side.engine}: " if len({one.engine for one in order.sides}) > 1 else ""
    given = ", ".join(f"{name}={value}" for name, value in side.settings.items())
    return engine + (given or "labkit's settings")
