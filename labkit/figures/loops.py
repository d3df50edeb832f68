"""Closed and open loop beside each other: how many requests an engine had, and how long each user waited."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import polars as pl
from matplotlib.figure import Figure as Picture
from plotly.subplots import make_subplots

from labkit import metrics
from labkit.bundle import Run
from labkit.errors import UsageError
from labkit.figures.base import (
    GRID,
    INK,
    Figure,
    badge_note,
    conditions,
    markdown,
    number,
    picture_png,
    plain_layout,
)
from labkit.queueing import in_order, inside, load_words

_LOOKS = (
    ("#0072B2", "solid", "-"),
    ("#E69F00", "dash", "--"),
    ("#009E73", "dot", ":"),
    ("#CC79A7", "dashdot", "-."),
    ("#56B4E9", "solid", "-"),
    ("#8C6D31", "dash", "--"),
)
"""Colours that are told apart with any colour vision, and dashes, for each load: all are on one engine."""

_TIME = "time since the first request, s"
_INSIDE = "requests sent and not answered"
_ANSWER = "moment of asking to whole answer, s"


def backlog(*runs: Run) -> Figure:
    """Requests that the engine had at a time: a panel for each run, in it a line for each level.

    Of levels that were measured repeatedly the first repeat is drawn.

    Raises:
        UsageError: no run was given.
    """
    count = itertools.count()
    panels = [
        [_Series(next(count), *one) for one in _by_level(run, _first_repeat(inside(run)))]
        for run in _some(runs)
    ]
    series = [one for panel in panels for one in panel]
    said = " ".join(_most(one) for one in series) or "Nothing was measured."
    alt = f"Line charts of {_kinds(runs)}: requests that the engine had, against time. {said}"
    data = _table(series)
    return Figure(
        data, _backlog_chart(panels), _backlog_png(panels, _note(runs)), alt, _captions(runs), runs[0].kind
    )


def answer_times(*runs: Run) -> Figure:
    """How long each user waited for the whole answer, from the moment of asking; a panel for each load.

    A level's p50 and p95 are lines across its panel.

    Raises:
        UsageError: no run was given.
    """
    count = itertools.count()
    series = [
        _Series(next(count), label, rows.drop_nulls("e2e_intended_s"))
        for run in _some(runs)
        for label, rows in _by_level(run, in_order(run))
    ]
    said = " ".join(_spread(one) for one in series) or "Nothing was measured."
    alt = f"A point chart of {_kinds(runs)}: seconds from asking to the whole answer, by time. {said}"
    data = _table(series)
    return Figure(
        data, _times_chart(series), _times_png(series, _note(runs)), alt, _captions(runs), runs[0].kind
    )


@dataclass(frozen=True)
class _Series:
    """One level of one run; ``number`` counts those of a figure, from 0."""

    number: int
    label: str
    rows: pl.DataFrame

    @property
    def look(self) -> tuple[str, str, str]:
        return _LOOKS[self.number % len(_LOOKS)]

    def quantile(self, share: float) -> float | None:
        return self.rows["e2e_intended_s"].quantile(share, interpolation="linear")


def _some(runs: Sequence[Run]) -> Sequence[Run]:
    if not runs:
        raise UsageError("draw a figure of loads", "no run was given", "give one run or more")
    return runs


def _by_level(run: Run, rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    for (arm, level), some in rows.group_by("arm", "level", maintain_order=True):
        words = load_words(run, int(level))
        yield (words if len(run.meta["arms"]) == 1 else f"{arm}: {words}"), some


def _first_repeat(rows: pl.DataFrame) -> pl.DataFrame:
    """Of each level; one that a reader asked for in the middle of a run need not begin with 0."""
    return rows.filter(pl.col("repeat") == pl.col("repeat").min().over("arm", "level"))


def _table(series: Sequence[_Series]) -> pl.DataFrame:
    labelled = [one.rows.select(pl.lit(one.label).alias("load"), pl.all()) for one in series]
    return pl.concat(labelled, how="diagonal") if labelled else pl.DataFrame()


def _backlog_chart(panels: Sequence[Sequence[_Series]]) -> go.Figure:
    chart = make_subplots(
        rows=len(panels), cols=1, shared_xaxes=True, shared_yaxes="all", vertical_spacing=0.08
    )
    for row, series in enumerate(panels, start=1):
        for one in series:
            colour, dash, _ = one.look
            chart.add_scatter(
                name=one.label, x=one.rows["t_s"].to_numpy(), y=one.rows["inside"].to_numpy(), mode="lines",
                line={"color": colour, "dash": dash, "width": 2, "shape": "hv"},
                hovertemplate=f"{one.label}<br>%{{x:.3g}} s: %{{y}}<extra></extra>", row=row, col=1,
            )  # fmt: skip
    _dress(chart, 120 + 220 * len(panels), _INSIDE)
    chart.update_xaxes(title=_TIME, row=len(panels))
    return chart


def _backlog_png(panels: Sequence[Sequence[_Series]], note: str) -> bytes:
    picture = Picture(figsize=(10, 3.9), dpi=110, layout="constrained")
    axes = picture.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, series in zip(axes, panels, strict=True):
        for one in series:
            colour, _, dash = one.look
            panel.step(one.rows["t_s"], one.rows["inside"], dash, where="post", color=colour, label=one.label)
        panel.set_xlabel(_TIME)
        panel.grid(alpha=0.3)
        if series:
            panel.legend(frameon=False)
    axes[0].set_ylabel(_INSIDE)
    axes[0].set_ylim(bottom=0)
    return picture_png(picture, note)


def _times_chart(series: Sequence[_Series]) -> go.Figure:
    chart = make_subplots(
        rows=max(len(series), 1), cols=1, shared_yaxes="all", vertical_spacing=0.14,
        subplot_titles=[one.label for one in series],
    )  # fmt: skip
    for row, one in enumerate(series, start=1):
        colour = one.look[0]
        chart.add_scatter(
            name=one.label, x=one.rows["at_s"].to_numpy(), y=one.rows["e2e_intended_s"].to_numpy(),
            mode="markers", marker={"color": colour, "size": 8}, showlegend=False,
            hovertemplate="asked at %{x:.3g} s: %{y:.3g} s<extra></extra>", row=row, col=1,
        )  # fmt: skip
        for share, dash in ((0.5, "dot"), (0.95, "dash")):
            if (value := one.quantile(share)) is not None:
                chart.add_hline(
                    y=value, line={"color": INK, "dash": dash, "width": 1.5}, row=row, col=1,
                    annotation_text=f"p{share * 100:.0f}", annotation_font_color=INK,
                )  # fmt: skip
    _dress(chart, 140 + 190 * max(len(series), 1), "s to the answer")
    chart.update_xaxes(title=_TIME, row=max(len(series), 1))
    return chart


def _times_png(series: Sequence[_Series], note: str) -> bytes:
    picture = Picture(figsize=(10, 3.9), dpi=110, layout="constrained")
    panels = picture.subplots(1, max(len(series), 1), sharey=True, squeeze=False)[0]
    for panel, one in zip(panels, series, strict=False):
        colour = one.look[0]
        panel.plot(one.rows["at_s"], one.rows["e2e_intended_s"], "o", color=colour, markersize=4)
        for share, dash in ((0.5, ":"), (0.95, "--")):
            if (value := one.quantile(share)) is not None:
                panel.axhline(value, color="0.35", linestyle=dash, label=f"p{share * 100:.0f}")
        panel.set_title(one.label, fontsize=11)
        panel.set_xlabel(_TIME)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    panels[0].set_ylabel(_ANSWER)
    panels[0].set_ylim(bottom=0)
    return picture_png(picture, note)


def _dress(chart: go.Figure, height: int, title: str) -> None:
    plain_layout(chart, height)
    chart.update_xaxes(gridcolor=GRID, zeroline=False)
    chart.update_yaxes(title=title, gridcolor=GRID, zeroline=False, automargin=True, rangemode="tozero")


def _most(one: _Series) -> str:
    most, last = one.rows.select(pl.col("inside").max(), pl.col("t_s").max()).row(0)
    return f"{one.label}: at most {most} at a time, over after {number(last)} s."


def _spread(one: _Series) -> str:
    told = ", ".join(f"p{share * 100:.0f} {number(one.quantile(share))} s" for share in metrics.QUANTILES[:2])
    slowest = number(one.quantile(1.0))
    return f"{one.label}, {len(one.rows)} answers: {told}, slowest {slowest} s."


def _kinds(runs: Sequence[Run]) -> str:
    kinds = " and ".join(dict.fromkeys(run.kind for run in runs))
    return f"{len(runs)} {kinds} runs" if len(runs) > 1 else f"a {kinds} run"


def _note(runs: Sequence[Run]) -> str:
    return " / ".join(dict.fromkeys(badge_note(run) for run in runs))


def _captions(runs: Sequence[Run]) -> str:
    return "\n\n".join(markdown(conditions(run)) for run in runs)
