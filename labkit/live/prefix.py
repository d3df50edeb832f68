"""The chart of shared beginnings while it is measured: it grows length by length."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl

from labkit import prefixes
from labkit.arms import Step
from labkit.bundle import Run
from labkit.figures.prefix import draw_prefix
from labkit.live.growing import GrowingChart


class PrefixView(GrowingChart):
    """The two panels of :func:`labkit.figures.prefix.draw_prefix`; a point for each arm and length."""

    def __init__(self) -> None:
        """An empty chart."""
        super().__init__(draw_prefix(prefixes.EMPTY))
        self._now.update(showlegend=False)  # a rate of tokens has no place on an axis of milliseconds

    def data(self, run: Run) -> pl.DataFrame:
        """See :class:`GrowingChart`."""
        return prefixes.table(run).drop_nulls("shared_tokens")

    def drawn(self, data: pl.DataFrame) -> go.Figure:
        """See :class:`GrowingChart`. Whole blocks are marked as soon as the engine has told their size."""
        chart = draw_prefix(data)
        self.widget.layout.shapes = chart.layout.shapes
        return chart

    def place(self, step: Step) -> None:
        """See :class:`GrowingChart`. The running level has no point."""
        return
