"""The live view of one experiment: Run, Stop, one control, what answers, what is happening, and a chart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from html import escape
from typing import Any, Protocol

import ipywidgets
from IPython.display import display

from labkit.bundle import Run
from labkit.errors import ExperimentStopped, LabkitError
from labkit.experiments import OnProgress, Progress
from labkit.load.plan import Tally

DRAW_PERIOD_S = 0.25

_COUNTS = ("planned", "ok", "failed", "cancelled", "unfinished")


class Chart(Protocol):
    """What a view needs of the chart in it."""

    widget: Any
    points: int

    def clear(self) -> None:
        """Forget everything, for the next run."""

    def take(self, progress: Progress) -> None:
        """Keep what is news."""

    def draw(self) -> None:
        """Show it."""


class RunView:
    """One experiment that runs in the background of the notebook, and its controls.

    It starts at once. Run repeats it with the control's value of that moment, Stop ends it early and keeps
    what came; neither is ever disabled, because a disabled button loses the keyboard's focus.

    Attributes:
        widget: the box with everything.
    """

    def __init__(
        self,
        start: Callable[[Any, OnProgress], Coroutine[Any, Any, Run]],
        halt: Callable[[], None],
        *,
        control: ipywidgets.ValueWidget,
        chart: Chart,
        badge: str,
    ) -> None:
        """Start.

        Args:
            start: the experiment from beginning to end, given the control's value; cancelled if Stop comes
                before its first sample.
            halt: makes a running ``start`` return early with what came.
            badge: one line on what answers, always in sight.
        """
        self._start = start
        self._halt = halt
        self._control = control
        self._chart = chart
        self._loop = asyncio.get_running_loop()
        self._seen = self._seen_before = 0  # samples, and points of earlier runs: it never falls
        self._stopping = False
        self._next_draw = 0.0
        self._tally = Tally()
        self._run: Run | None = None
        self._status = ipywidgets.HTML()
        self._numbers = ipywidgets.HTML()
        self.widget = self._layout(badge)
        self._task = self._begin()

    def _layout(self, badge: str) -> ipywidgets.Box:
        run, stop = (ipywidgets.Button(description=word) for word in ("Run", "Stop"))
        # callbacks may come in any thread (kernel subshells), so they only pass the click on
        run.on_click(lambda _: self._loop.call_soon_threadsafe(self._press_run))
        stop.on_click(lambda _: self._loop.call_soon_threadsafe(self._press_stop))
        badge_line = ipywidgets.HTML(f'<span class="labkit-badge">{escape(badge)}</span>')
        controls = ipywidgets.Box([run, stop, self._control, badge_line], layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([controls, self._status, self._numbers, self._chart.widget])

    def show(self) -> None:
        """Display the view; once more shows the same view twice."""
        forms = self.widget._repr_mimebundle_()
        forms["text/plain"] = "A live view; it needs a running notebook."
        display(forms, raw=True)  # type: ignore[no-untyped-call]

    @property
    def task(self) -> asyncio.Task[Run]:
        """The newest run, going on or ended."""
        return self._task

    async def result(self) -> Run:
        """The newest run, when it has ended. Interrupting the wait also stops the run.

        Raises:
            ExperimentStopped: Stop came before the first sample.
            LabkitError: what broke the experiment off.
        """
        try:
            await asyncio.wait({self._task})
        except asyncio.CancelledError:
            self.stop()
            raise
        if self._task.cancelled():
            raise ExperimentStopped("wait for the result", "stopped before the first sample", "press Run")
        error = self._task.exception()
        if isinstance(error, LabkitError):
            raise error.with_traceback(None) from None  # the reader's cell, not labkit's inside
        return self._task.result()

    def stop(self) -> None:
        """End the run early and keep what came; harmless when nothing runs, and when called again."""
        if self._task.done() or self._stopping:
            return
        self._stopping = True
        self._say("Stopping …")
        if self._seen_before < self._seen:
            self._halt()
        else:
            self._task.cancel()

    def _begin(self) -> asyncio.Task[Run]:
        self._stopping = False
        self._seen += self._chart.points
        self._seen_before = self._seen
        self._tally, self._run = Tally(), None
        self._chart.clear()
        self._say("Starting …")
        self._count()
        task = self._loop.create_task(self._start(self._control.value, self._take))
        task.add_done_callback(self._ended)
        return task

    def _press_run(self) -> None:
        if self._task.done():
            self._task = self._begin()
        else:
            self._say("It is running already; Stop ends it.")

    def _press_stop(self) -> None:
        if self._task.done():
            self._say("Nothing is running; Run starts it again.")
        self.stop()

    def _take(self, progress: Progress) -> None:
        """Every report of the experiment; samples are drawn four times a second, all else at once."""
        self._chart.take(progress)
        self._run = progress.run or self._run
        self._tally = progress.frame.tally if progress.frame else Tally()
        self._seen += progress.frame is not None
        now = self._loop.time()
        if progress.frame is not None and now < self._next_draw:
            return
        self._next_draw = now + DRAW_PERIOD_S
        if not self._stopping:
            self._say(_sentence(progress))
        self._chart.draw()
        self._count()

    def _ended(self, task: asyncio.Task[Run]) -> None:
        self._chart.draw()
        self._count()
        if task.cancelled():
            self._say("Stopped before the first sample; there is nothing to keep. Run starts again.")
        elif (error := task.exception()) is not None:
            self._say(str(error) or repr(error))
        else:
            run = task.result()
            ended = "Stopped early; what was measured is kept." if self._stopping else "Done."
            self._say("\n".join([f"{ended} Verdict: {run.verdict.word}.", *run.verdict.reasons]))

    def _say(self, sentence: str) -> None:
        """Set the status, which screen readers speak: not for what changes with every sample."""
        said = f'<div role="status" style="white-space: pre-wrap">{escape(sentence)}</div>'
        if self._status.value != said:
            self._status.value = said

    def _count(self) -> None:
        levels = self._run.meta["levels"] if self._run else []
        parts = []
        for name in _COUNTS:
            total = sum(level[name] for level in levels) + getattr(self._tally, name)
            parts.append(f"{name} {total}")
        if levels:
            parts.append(f"client lag p99 {levels[-1]['client']['loop_lag_p99_ms']:.1f} ms")
        points = self._seen + self._chart.points
        self._numbers.value = f'<span data-points="{points}">{" · ".join(parts)}</span>'


def _sentence(progress: Progress) -> str:
    parts = [progress.phase]
    if progress.step is not None:
        parts.append(f"step {min(progress.done + 1, progress.total)} of {progress.total}")
    if progress.eta_s:
        parts.append(f"about {_duration(progress.eta_s)} left")
    return " · ".join(parts)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
