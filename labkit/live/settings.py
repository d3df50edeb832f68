"""The settings chart while it is measured: it grows setting by setting, a point shows the running one."""

from __future__ import annotations

import math

import plotly.graph_objects as go
import polars as pl

from labkit.arms import Step
from labkit.bundle import Run
from labkit.figures.settings import axis_title, draw_settings, settings_data, slots_axis, slots_of
from labkit.live.growing import GrowingChart

_ROOM = [1, 8]
"""Slots that the empty chart has room for."""

_NO_DATA = pl.DataFrame(schema={"arm": pl.String, "engine": pl.String, "level": pl.Int64, "slots": pl.Int64})


class SettingsView(GrowingChart):
    """The three panels of :func:`labkit.figures.settings.draw_settings`; a point for each arm and level.

    Where a point belongs is read from the engine, not taken from what was asked for.
    """

    def __init__(self) -> None:
        """An empty chart."""
        self._slots: dict[str, int | None] = {}
        self._fresh = True
        super().__init__(draw_settings(_NO_DATA))

    def data(self, run: Run) -> pl.DataFrame:
        """See :class:`GrowingChart`."""
        self._slots = {name: slots_of(arm) for name, arm in run.meta["arms"].items()}
        return settings_data(run)

    def drawn(self, data: pl.DataFrame) -> go.Figure:
        """See :class:`GrowingChart`. The axis makes room for each setting that comes to be known."""
        if known := sorted({slots for slots in self._slots.values() if slots is not None}):
            self._draw_axis(known)
            self.widget.layout.xaxis3.title = axis_title(data)
        return draw_settings(data)

    def draw(self) -> None:
        """Bring the chart up to date."""
        if self._fresh:  # on the page, where a first change gives it the full width
            self._draw_axis(_ROOM)
            self._fresh = False
        super().draw()

    def _draw_axis(self, known: list[int]) -> None:
        ends = [math.log10(known[0] / 1.2), math.log10(known[-1] * 1.2)]
        self.widget.update_xaxes(range=ends, **slots_axis(pl.DataFrame({"slots": known})))

    def place(self, step: Step) -> float | None:
        """See :class:`GrowingChart`. Known from the end of the arm's warm-up on."""
        return self._slots.get(step.arm.name)
