"""The gap chart while it is measured: it grows level by level, a point shows the running level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
import polars as pl

from labkit.arms import Step
from labkit.bundle import Run
from labkit.figures.gap import draw_gap, gap_data
from labkit.live.growing import GrowingChart


class GapView(GrowingChart):
    """The two panels of :func:`labkit.figures.gap.draw_gap`; a point for each arm and level."""

    def __init__(self, levels: Sequence[int]) -> None:
        """An empty chart with room for these numbers of users."""
        self._levels: list[int] | None = list(levels)
        super().__init__(
            draw_gap(pl.DataFrame(schema={"arm": pl.String, "engine": pl.String, "level": pl.Int64}))
        )

    def data(self, run: Run) -> pl.DataFrame:
        """See :class:`GrowingChart`."""
        return gap_data(run)

    def drawn(self, data: pl.DataFrame) -> go.Figure:
        """See :class:`GrowingChart`."""
        return draw_gap(data)

    def place(self, step: Step) -> float:
        """See :class:`GrowingChart`."""
        return step.level

    def draw(self) -> None:
        """Bring the chart up to date."""
        if self._levels is not None:
            self._draw_axis(self._levels)
            self._levels = None  # the reader may zoom
        super().draw()

    def _draw_axis(self, levels: list[int]) -> None:
        """Make room; done when the chart is on the page, where a first change gives it the full width."""
        ends = [math.log10(levels[0] / 1.2), math.log10(levels[-1] * 1.2)]
        self.widget.update_xaxes(tickvals=levels, ticktext=[str(level) for level in levels], range=ends)
