"""Closed and open loop beside each other: how many requests an engine had, and how long each user waited."""

from __future__ import annotations

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
)
"""Colour of Okabe and Ito and dashes for each load, since all are on the same engine."""

_TIME = "time since the first request, s"
_INSIDE = "requests sent and not answered"
_ANSWER = "moment of asking to whole answer, s"


def backlog(*runs: Run) -> Figure:
    """Requests that the engine had at a time, a line for each level of each run.

    Of levels that were measured repeatedly the first repeat is drawn.

    Raises:
        UsageError: no run was given.
    """
    series = [
        _Series(label, rows)
        for run in _some(runs)
        for label, rows in _by_level(run, inside(run).filter(pl.col("repeat") == 0))
    ]
    said = " ".join(_most(one) for one in series) or "Nothing was measured."
    alt = f"A line chart of {_kinds(runs)}: requests that the engine had, against time. {said}"
    data = _table(series)
    return Figure(
        data, _backlog_chart(series), _backlog_png(series, _note(runs)), alt, _captions(runs), runs[0].kind
    )


def answer_times(*runs: Run) -> Figure:
    """How long each user waited for the whole answer, from the moment of asking; a panel for each load.

    A level's p50 and p95 are lines across its panel.

    Raises:
        UsageError: no run was given.
    """
    series = [
        _Series(label, rows.drop_nulls("e2e_intended_s"))
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
    """One level of one run."""

    label: str
    rows: pl.DataFrame

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


def _table(series: Sequence[_Series]) -> pl.DataFrame:
    labelled = [one.rows.select(pl.lit(one.label).alias("load"), pl.all()) for one in series]
    return pl.concat(labelled, how="diagonal") if labelled else pl.DataFrame()


def _look(index: int) -> tuple[str, str, str]:
    return _LOOKS[index % len(_LOOKS)]


def _backlog_chart(series: Sequence[_Series]) -> go.Figure:
    chart = go.Figure()
    for index, one in enumerate(series):
        colour, dash, _ = _look(index)
        chart.add_scatter(
            name=one.label, x=one.rows["t_s"].to_numpy(), y=one.rows["inside"].to_numpy(), mode="lines",
            line={"color": colour, "dash": dash, "width": 2, "shape": "hv"},
            hovertemplate=f"{one.label}<br>%{{x:.3g}} s: %{{y}}<extra></extra>",
        )  # fmt: skip
    _dress(chart, 360, _INSIDE)
    chart.update_xaxes(title=_TIME)
    return chart


def _backlog_png(series: Sequence[_Series], note: str) -> bytes:
    picture = Picture(figsize=(10, 3.6), dpi=110, layout="constrained")
    panel = picture.subplots()
    for index, one in enumerate(series):
        colour, _, dash = _look(index)
        panel.step(one.rows["t_s"], one.rows["inside"], dash, where="post", color=colour, label=one.label)
    panel.set_xlabel(_TIME)
    panel.set_title(_INSIDE, fontsize=11)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    if series:
        panel.legend(frameon=False)
    return picture_png(picture, note)


def _times_chart(series: Sequence[_Series]) -> go.Figure:
    chart = make_subplots(
        rows=max(len(series), 1), cols=1, shared_yaxes="all", vertical_spacing=0.14,
        subplot_titles=[one.label for one in series],
    )  # fmt: skip
    for index, one in enumerate(series):
        colour, row = _look(index)[0], index + 1
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
    for index, (panel, one) in enumerate(zip(panels, series, strict=False)):
        colour = _look(index)[0]
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
