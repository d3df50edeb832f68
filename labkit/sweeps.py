"""What the Run button of a sweep's view does: measure on engines, or replay what was recorded."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from labkit import experiments, paths, recorded
from labkit.budget import Budget
from labkit.bundle import Run
from labkit.device import holding
from labkit.engines.base import Engine
from labkit.engines.base import Progress as Say
from labkit.experiments import Arm, Experiment, OnProgress, Progress
from labkit.replay import Replay
from labkit.workload import Workload

SPEEDS = {"1×": 1.0, "10×": 10.0, "60×": 60.0, "at once": math.inf}


@dataclass(frozen=True)
class Order:
    """A sweep as it was asked for.

    Attributes:
        settings: of each engine that takes part, by its name.
        model: a row of ``data/models.toml``.
    """

    name: str
    settings: Mapping[str, dict[str, Any]]
    users: Sequence[int]
    model: str
    workload: Workload
    budget: Budget
    seed: int


@dataclass(frozen=True)
class Control:
    """What a reader may choose for the next run: words, the values that they stand for, the first value."""

    label: str
    options: Mapping[str, Any]
    value: Any


class Job(Protocol):
    """A sweep, to be carried out as often as Run is pressed.

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


class Measuring:
    """Starts the engines, then measures; the control ends it at a lower level."""

    def __init__(
        self,
        order: Order,
        badge: str,
        engines: Sequence[Engine],
        arms: Callable[[Order, Say], Awaitable[list[Arm]]],
    ) -> None:
        """Prepare it.

        Args:
            arms: starts the engines and returns what to measure.
        """
        self.badge = badge
        self.control = Control("Users up to", {str(level): level for level in order.users}, order.users[-1])
        self._order = order
        self._engines = engines
        self._arms = arms
        self._experiment: Experiment | None = None

    async def start(self, value: int, report: OnProgress) -> Run:
        """See :class:`Job`."""
        order = self._order
        urls = [engine.url for engine in self._engines]

        def say(line: str) -> None:
            report(Progress(line))

        # held from here on: starting an engine takes as much of the machine as measuring one
        async with holding(urls, owner=order.name, on_wait=say):
            self._experiment = experiments.sweep(
                await self._arms(order, say),
                [level for level in order.users if level <= value],
                workload=order.workload,
                budget=order.budget,
                seed=order.seed,
                folder=paths.runs() / f"{order.name}-{datetime.now():%Y%m%d-%H%M%S-%f}",
            )
            return await self._experiment.run(report, held=True)

    def halt(self) -> None:
        """See :class:`Job`."""
        if self._experiment is not None:
            self._experiment.stop()


class Replaying:
    """Replays a recording; the control sets the speed."""

    def __init__(self, recording: Run, users: Sequence[int]) -> None:
        """Prepare it."""
        self.badge = recorded.badge([recording.meta])
        self.control = Control("Replay speed", SPEEDS, SPEEDS["60×"])
        self._recording = recording
        self._users = users
        self._replay: Replay | None = None

    async def start(self, value: float, report: OnProgress) -> Run:
        """See :class:`Job`."""
        self._replay = Replay(self._recording, self._users, speed=value)
        return await self._replay.run(report)

    def halt(self) -> None:
        """See :class:`Job`."""
        if self._replay is not None:
            self._replay.stop()
