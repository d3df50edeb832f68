"""What an engine said of itself during a level: requests worked on and waiting, and its KV pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import MaxNLocator
from plotly.subplots import make_subplots

from labkit.bundle import Run
from labkit.errors import UsageError
from labkit.figures.base import (
    COLOURS,
    GRID,
    INK,
    Figure,
    badge_note,
    conditions,
    markdown,
    picture_png,
    plain_layout,
)

NAMES = ("running", "waiting", "kv_use", "preemptions")
"""Gauges that are drawn, see :class:`labkit.engines.base.Gauges`; the last one counts since the start."""

_NOTHING = "No engine of this run was read while it worked: not every engine has such gauges."
_REQUESTS, _POOL, _TIME = "requests", "KV use, %", "seconds since the burst or level began"


@dataclass(frozen=True)
class _Arm:
    """One arm's readings in one level, of which at least one is there.

    Attributes:
        length_s: of the level.
        rows: t_s from the level's start, then a column for each of :data:`NAMES`, nulls where not read;
            kv_use in percent, preemptions counted from the first reading on.
    """

    name: str
    engine: str
    level: int
    length_s: float
    rows: pl.DataFrame

    @property
    def colour(self) -> str:
        return COLOURS.get(self.engine, INK)

    def line(self, name: str) -> pl.DataFrame:
        """t_s and value of one gauge, where it was read."""
        return self.rows.select("t_s", name).drop_nulls()

    def drawn(self, name: str) -> tuple[list[float], list[float]]:
        """The same as times and values of a line, which holds its last value to the end of the level."""
        line = self.line(name)
        times, values = line["t_s"].to_list(), line[name].to_list()
        return [*times, max(self.length_s, *times)], [*values, values[-1]]

    def most(self, name: str) -> float | None:
        value = self.rows[name].max()
        return None if value is None else float(value)  # type: ignore[arg-type]  # a column of floats

    def stolen(self) -> pl.DataFrame:
        """t_s of each reading that found new preemptions, and how many."""
        counted = self.line("preemptions")
        return counted.with_columns(more=pl.col("preemptions").diff()).filter(pl.col("more") > 0)


def gauges(run: Run, level: int | None = None) -> Figure:
    """Requests running and waiting, KV use and preemptions over the time of one level, arm below arm.

    An arm whose engine has no such gauges is left out. What is shorter than
    the time between two readings may not be seen.

    Args:
        level: which one (default: the highest that was measured); its first repeat is drawn.

    Raises:
        UsageError: the run has no such level.
    """
    arms = gauge_arms(run, level)
    data = pl.concat([_table(arm) for arm in arms]) if arms else _table(None)
    return Figure(
        data, _interactive(arms), _png(arms, badge_note(run)), _alt(run, arms), _caption(run, arms), run.kind
    )


def gauge_arms(run: Run, level: int | None = None) -> list[_Arm]:
    """The arms of a run whose engines were read in this level, with the readings."""
    measured = [r for r in run.meta["levels"] if not r["warmup"] and not r.get("drift")]
    levels = sorted({r["level"] for r in measured})
    if level is not None and level not in levels:
        raise UsageError(f"draw the gauges at level {level}", f"measured are {levels}", "name one of these")
    wanted = level if level is not None else max(levels, default=None)
    found = []
    for name, arm in run.meta["arms"].items():
        window = next((r for r in measured if (r["arm"], r["level"]) == (name, wanted)), None)
        if window is not None and wanted is not None:
            rows = _readings(run, name, window["started_s"], window["ended_s"])
            if rows.height:
                length_s = window["ended_s"] - window["started_s"]
                found.append(_Arm(name, arm["engine"], wanted, length_s, rows))
    return found


def _readings(run: Run, arm: str, started_s: float, ended_s: float) -> pl.DataFrame:
    within = run.gauges.filter(
        (pl.col("arm") == arm)
        & pl.col("t_s").is_between(started_s, ended_s)
        & pl.col("name").is_in(NAMES)
        & pl.col("value").is_not_null()
    )
    wide = within.pivot("name", index="t_s", values="value", aggregate_function="last").sort("t_s")
    missing = [pl.lit(None, pl.Float64).alias(name) for name in NAMES if name not in wide.columns]
    return wide.with_columns(missing).select(
        pl.col("t_s") - started_s,
        "running",
        "waiting",
        pl.col("kv_use") * 100,
        pl.col("preemptions") - pl.col("preemptions").drop_nulls().first(),
    )


def _table(arm: _Arm | None) -> pl.DataFrame:
    if arm is None:
        columns = {"arm": pl.String, "level": pl.Int64, **dict.fromkeys(("t_s", *NAMES), pl.Float64)}
        return pl.DataFrame(schema=columns)
    labels = [pl.lit(arm.name).alias("arm"), pl.lit(arm.level, pl.Int64).alias("level")]
    return arm.rows.select(*labels, "t_s", *NAMES)


def _panels(arms: Sequence[_Arm]) -> list[tuple[_Arm, bool]]:
    """One panel an arm for its requests, and one (True) for its pool if it tells of one."""
    return [
        (arm, pool)
        for arm in arms
        for pool in (False, True)
        if any(arm.most(name) is not None for name in (("kv_use",) if pool else ("running", "waiting")))
    ]


def _interactive(arms: Sequence[_Arm]) -> go.Figure:
    panels = _panels(arms)
    titles = [f"{arm.name}: {_POOL if pool else _REQUESTS}" for arm, pool in panels]
    rows = max(1, len(panels))
    chart = make_subplots(rows=rows, cols=1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.09)
    for row, (arm, pool) in enumerate(panels, start=1):
        for name, dash, colour, fill in _strokes(arm, pool=pool):
            times, values = arm.drawn(name)
            trace = go.Scatter(
                name=f"{arm.name}: {name}",
                x=times,
                y=values,
                mode="lines+markers",
                line={"shape": "hv", "color": colour, "dash": dash, "width": 2},
                marker={"size": 5},
                fill="tozeroy" if fill else None,
                hovertemplate=f"{name}: %{{y:.4g}} after %{{x:.1f}} s<extra>{arm.name}</extra>",
            )
            chart.add_trace(trace, row=row, col=1)
        if pool:
            for at_s, more in arm.stolen().select("t_s", "more").rows():
                chart.add_vline(x=at_s, line={"color": INK, "dash": "dot"}, row=row, col=1)
                chart.add_annotation(
                    x=at_s, y=100, text=f"−{more:.0f}", showarrow=False, xshift=10, row=row, col=1
                )
            chart.update_yaxes(range=[0, 105], row=row)
    plain_layout(chart, 80 + 170 * rows)
    chart.update_layout(showlegend=False)
    chart.update_xaxes(gridcolor=GRID, zeroline=False, rangemode="tozero")
    chart.update_xaxes(title=_TIME, row=rows)
    chart.update_yaxes(gridcolor=GRID, zeroline=False, rangemode="tozero", automargin=True)
    return chart


def _strokes(arm: _Arm, *, pool: bool) -> list[tuple[str, str, str, bool]]:
    """Gauge, dash, colour and whether it is filled, of each line in a panel."""
    if pool:
        return [("kv_use", "solid", arm.colour, True)]
    lines = [("running", "solid", arm.colour, True), ("waiting", "dash", INK, False)]
    return [line for line in lines if arm.most(line[0]) is not None]


def _png(arms: Sequence[_Arm], note: str) -> bytes:
    panels = _panels(arms)
    rows = max(1, len(panels))
    picture = Picture(figsize=(8, 0.6 + 1.7 * rows), dpi=110, layout="constrained")
    axes = picture.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axis, (arm, pool) in zip(axes, panels, strict=False):
        _panel(axis, arm, pool=pool)
    axes[-1].set_xlabel(_TIME)
    if arms:
        axes[-1].set_xlim(0, 1.02 * max(arm.length_s for arm in arms))
    return picture_png(picture, note)


def _panel(axis: Axes, arm: _Arm, *, pool: bool) -> None:
    for name, dash, colour, fill in _strokes(arm, pool=pool):
        times, values = arm.drawn(name)
        style = {"solid": "-", "dash": "--"}[dash]
        axis.step(times, values, style, where="post", color=colour, linewidth=2, label=name)
        if fill:
            axis.fill_between(times, values, step="post", color=colour, alpha=0.15)
    if pool:
        axis.set_ylim(0, 108)
        for at_s, more in arm.stolen().select("t_s", "more").rows():
            axis.axvline(at_s, color="0.35", linestyle=":", linewidth=1.2)
            axis.annotate(f"−{more:.0f}", (at_s, 98), (3, 0), textcoords="offset points", fontsize=8)
    else:
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(
            frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, ncols=2
        )
    axis.set_title(f"{arm.name}: {_POOL if pool else _REQUESTS}", fontsize=10, loc="left")
    axis.grid(alpha=0.3)


def _alt(run: Run, arms: Sequence[_Arm]) -> str:
    if not arms:
        return f"An empty chart of a {run.kind} run. {_NOTHING}"
    said = []
    for arm in arms:
        parts = [
            f"at most {arm.most(name):.0f} requests {name}"
            for name in ("running", "waiting")
            if arm.most(name) is not None
        ]
        if (most := arm.most("kv_use")) is not None:
            parts.append(f"KV use up to {most:.1f} %")
        if (count := arm.most("preemptions")) is not None:
            parts.append(f"{count:.0f} preemptions")
        said.append(f"{arm.name}, level {arm.level}: {', '.join(parts)}")
    return f"Lines over the time of a {run.kind} run. {'; '.join(said)}."


def _caption(run: Run, arms: Sequence[_Arm]) -> str:
    lines = conditions(run)
    if left_out := [name for name in run.arms if name not in {arm.name for arm in arms}]:
        lines.append(
            f"- Not drawn, since the engine has no such gauges or was not read: {', '.join(left_out)}"
        )
    if any(arm.stolen().height for arm in arms):
        lines.append(
            "- Dotted: so many preemptions were counted since the reading before; vLLM counts one when it "
            "next tells of that request, which is later than it happened"
        )
    if not arms:
        lines.append(f"- {_NOTHING}")
    return markdown(lines)
