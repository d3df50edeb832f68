"""The gap chart while it is measured: it grows level by level, a point shows the running level."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

# at module top: the first FigureWidget costs seconds more when plotly imports this inside a function
import plotly.basewidget  # noqa: F401
import plotly.graph_objects as go
import polars as pl

from labkit.bundle import Run
from labkit.experiments import Progress, Step
from labkit.figures.base import CONFIG, INK
from labkit.figures.gap import draw_gap, gap_data
from labkit.load.process import Frame

WINDOW_S = 2.0
"""The point of the running level is the rate over this time, or over the level so far."""

_NOW = "running now, not final"
_PANELS = 2  # the empty chart has a line in each; the first one becomes the point of the running level


class GapView:
    """A plotly FigureWidget with the two panels of :func:`labkit.figures.gap.draw_gap`.

    Attributes:
        widget: to be placed in a view.
        points: arm-level pairs drawn from whole levels.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        """An empty chart with room for these numbers of users."""
        self._levels: list[int] | None = list(levels)
        self.widget = go.FigureWidget(draw_gap(_no_data()))
        self.widget._config = CONFIG
        marker = {"symbol": "circle-open-dot", "size": 13, "color": INK}
        self._now = self.widget.data[0].update(name=_NOW, mode="markers", marker=marker, showlegend=True)
        self.clear()

    def clear(self) -> None:
        """Take all points away, for the next run."""
        self.points = 0
        self._run: Run | None = None
        self._step: Step | None = None
        self._frames: deque[Frame] = deque()
        self.widget.data = self.widget.data[:_PANELS]
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
        """Bring the chart up to date; at most four times a second, since each update resends whole lines."""
        if self._levels is not None:
            self._draw_axis(self._levels)
            self._levels = None  # the reader may zoom
        if self._run is not None:
            self._draw_levels(gap_data(self._run))
            self._run = None
        if self._step is not None and self._step.phase == "measure" and len(self._frames) > 1:
            first, *later = self._frames
            rate = sum(frame.tokens for frame in later) / (later[-1].t_s - first.t_s)
            self._now.update(x=[self._step.level], y=[rate])
        else:
            self._now.update(x=[], y=[])

    def _draw_levels(self, data: pl.DataFrame) -> None:
        self.points = data.height
        drawn = draw_gap(data)
        present = {(line.name, line.meta): line for line in self.widget.data}
        self.widget.add_traces([line for line in drawn.data if (line.name, line.meta) not in present])
        with self.widget.batch_update():
            for line in drawn.data:
                if old := present.get((line.name, line.meta)):
                    old.update(x=line.x, y=line.y, marker=line.marker, error_y=line.error_y)

    def _draw_axis(self, levels: list[int]) -> None:
        """Make room; done when the chart is on the page, where a first change gives it the full width."""
        ends = [math.log10(levels[0] / 1.2), math.log10(levels[-1] * 1.2)]
        self.widget.update_xaxes(tickvals=levels, ticktext=[str(level) for level in levels], range=ends)


def _no_data() -> pl.DataFrame:
    return pl.DataFrame(schema={"arm": pl.String, "engine": pl.String, "level": pl.Int64})
