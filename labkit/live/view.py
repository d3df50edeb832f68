"""The live view of one experiment: Run, Stop, one control, what answers, what is happening, and a chart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from labkit.bundle import Run
from labkit.engines.base import Gauges
from labkit.experiments import OnProgress, Progress
from labkit.live.background import BackgroundView
from labkit.load.plan import Tally

_COUNTS = ("planned", "ok", "failed", "cancelled", "unfinished")


class Chart(Protocol):
    """What a view needs of the chart in it.

    Attributes:
        widget: to be placed in the view.
        points: what it has drawn so far, as a number that grows; 0 after :meth:`clear`.
        period_s: it is drawn at most so often.
    """

    widget: Any
    points: int
    period_s: float

    def clear(self) -> None:
        """Forget everything, for the next run."""

    def take(self, progress: Progress) -> None:
        """Keep what is news."""

    def draw(self) -> None:
        """Show it."""


class RunView(BackgroundView[Run]):
    """One experiment that runs in the background of the notebook, and its controls.

    It starts at once. Run repeats it with the control's value of that moment, Stop ends it early and keeps
    what came.
    """

    def __init__(
        self,
        start: Callable[[Any, OnProgress], Coroutine[Any, Any, Run]],
        halt: Callable[[], None],
        *,
        control: Any,
        chart: Chart,
        badge: str,
        steer: Callable[[Any], None] | None = None,
    ) -> None:
        """Start.

        Args:
            start: the experiment from beginning to end, given the control's value; cancelled if Stop comes
                before its first sample.
            halt: makes a running ``start`` return early with what came.
            control: a widget with a ``value``.
            badge: one line on what answers, always in sight.
            steer: called with the control's new value when that changes while the experiment runs.
        """
        super().__init__(chart.widget, badge=badge, control=control, steer=steer)
        self._start = start
        self._halt = halt
        self._chart = chart
        self._seen = self._seen_before = 0  # samples, and points of earlier runs: it never falls
        self.begin()

    def start(self) -> Coroutine[Any, Any, Run]:
        """See :class:`BackgroundView`."""
        self._seen += self._chart.points
        self._seen_before = self._seen
        self._next_draw = 0.0
        self._tally = Tally()
        self._gauges: Gauges | None = None
        self._run: Run | None = None
        self._chart.clear()
        self.controls.say("Starting …")
        self._count()
        return self._start(self.controls.value, self._take)

    def halt(self) -> bool:
        """See :class:`BackgroundView`."""
        if self._seen == self._seen_before:
            return False
        self._halt()
        return True

    def _take(self, progress: Progress) -> None:
        """Every report of the experiment. The chart thins samples out to its own pace; all else is shown."""
        self._chart.take(progress)
        self._run = progress.run or self._run
        self._tally = progress.frame.tally if progress.frame else Tally()
        self._gauges = progress.gauges
        self._seen += progress.frame is not None
        if not self.stopping:
            self.controls.say(_sentence(progress))
        now = self._loop.time()
        if progress.frame is None or now >= self._next_draw:
            self._next_draw = now + self._chart.period_s
            self._chart.draw()
        self._count()

    def ended(self, task: asyncio.Task[Run]) -> None:
        """See :class:`BackgroundView`."""
        self._chart.draw()
        self._count()
        if task.cancelled():
            self.controls.say("Stopped before the first sample; there is nothing to keep. Run starts again.")
        elif (error := task.exception()) is not None:
            self.controls.say(str(error) or repr(error))
        else:
            run = task.result()
            ended = "Stopped early; what was measured is kept." if self.stopping else "Done."
            self.controls.say("\n".join([f"{ended} Verdict: {run.verdict.word}.", *run.verdict.reasons]))

    def _count(self) -> None:
        levels = self._run.meta["levels"] if self._run else []
        parts = []
        for name in _COUNTS:
            total = sum(level[name] for level in levels) + getattr(self._tally, name)
            parts.append(f"{name} {total}")
        parts += _told(self._gauges)
        if levels:
            parts.append(f"client lag p99 {levels[-1]['client']['loop_lag_p99_ms']:.1f} ms")
        self.controls.count(parts, self._seen + self._chart.points)


def _sentence(progress: Progress) -> str:
    parts = [progress.phase]
    if progress.step is not None:
        parts.append(f"step {min(progress.done + 1, progress.total)} of {progress.total}")
    if progress.eta_s:
        parts.append(f"about {_duration(progress.eta_s)} left")
    return " · ".join(parts)


def _told(gauges: Gauges | None) -> list[str]:
    """What the engine said last of itself, as far as it has such gauges."""
    if gauges is None:
        return []
    parts = [(name, value) for name in ("running", "waiting") if (value := getattr(gauges, name)) is not None]
    told = [f"in the engine: {', '.join(f'{value:.0f} {name}' for name, value in parts)}"] if parts else []
    if gauges.kv_use is not None:
        told.append(f"KV cache {gauges.kv_use:.0%} in use")
    return told


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
