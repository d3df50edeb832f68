"""A chart that grows while it is measured: a point for each whole level, and one for the level that runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

# at module top: the first FigureWidget costs seconds more when plotly imports this inside a function
import plotly.basewidget  # noqa: F401
import plotly.graph_objects as go
import polars as pl

from labkit.arms import Step
from labkit.bundle import Run
from labkit.experiments import Progress
from labkit.figures.base import CONFIG, INK
from labkit.load.process import Frame

WINDOW_S = 2.0
"""The point of the running level is the rate over this time, or over the level so far."""

_NOW = "running now, not final"


class GrowingChart(ABC):
    """A plotly FigureWidget that a run fills level by level; its first panel shows total tokens/s.

    Attributes:
        widget: to be placed in a view.
        points: rows of data drawn from whole levels.
    """

    period_s = 0.25  # each update resends whole lines

    def __init__(self, empty: go.Figure) -> None:
        """Show a chart without data, which has one empty line in each of its panels."""
        self.widget = go.FigureWidget(empty)
        self.widget._config = CONFIG
        self._panels = len(self.widget.data)
        marker = {"symbol": "circle-open-dot", "size": 13, "color": INK}
        # the first empty line becomes the point of the running level
        self._now = self.widget.data[0].update(name=_NOW, mode="markers", marker=marker, showlegend=True)
        self.clear()

    @abstractmethod
    def data(self, run: Run) -> pl.DataFrame:
        """What is drawn of a run."""

    @abstractmethod
    def drawn(self, data: pl.DataFrame) -> go.Figure:
        """The finished chart of these data, whose lines are taken over."""

    @abstractmethod
    def place(self, step: Step) -> float | None:
        """Where on the horizontal axis a running level is; None while that is not known."""

    def clear(self) -> None:
        """Take all points away, for the next run."""
        self.points = 0
        self._run: Run | None = None
        self._step: Step | None = None
        self._frames: deque[Frame] = deque()
        self.widget.data = self.widget.data[: self._panels]
        self._now.update(x=[], y=[])

    def take(self, progress: Progress) -> None:
        """Keep what is news; cheap enough for every sample."""
        self._run = progress.run or self._run
        if progress.frame is None or progress.step is not self._step:
            self._frames.clear()
        self._step = progress.step
        if progress.frame is not None:
            self._frames.append(progress.frame)
            while self._frames[-1].t_s - self._frames[0].t_s > WINDOW_S:
                self._frames.popleft()

    def draw(self) -> None:
        """Bring the chart up to date."""
        if self._run is not None:
            self._draw_levels(self.data(self._run))
            self._run = None
        at = self.place(self._step) if self._step is not None and self._step.phase == "measure" else None
        if at is not None and len(self._frames) > 1:
            first, *later = self._frames
            rate = sum(frame.tokens for frame in later) / (later[-1].t_s - first.t_s)
            self._now.update(x=[at], y=[rate])
        else:
            self._now.update(x=[], y=[])

    def _draw_levels(self, data: pl.DataFrame) -> None:
        self.points = data.height
        drawn = self.drawn(data)
        present = {(line.name, line.meta): line for line in self.widget.data}
        self.widget.add_traces([line for line in drawn.data if (line.name, line.meta) not in present])
        with self.widget.batch_update():
            for line in drawn.data:
                if old := present.get((line.name, line.meta)):
                    old.update(x=line.x, y=line.y, marker=line.marker, error_y=line.error_y)
