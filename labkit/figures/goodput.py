"""Answers a second that keep a promise, beside all answers a second, against the number of users."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import NullLocator

from labkit import metrics
from labkit.bundle import Run
from labkit.figures.base import (
    GRID,
    Figure,
    badge_note,
    conditions,
    markdown,
    number,
    picture_line,
    picture_png,
    plain_layout,
    styles,
)
from labkit.sides import people
from labkit.summary import measured_levels

_TITLE = "answers/s: good thick, all thin"
_USERS = "users at once"
_COLUMNS = {"good_per_s": 2.5, "all_per_s": 1.0}
"""What is drawn, with the widths of its lines."""


def goodput(
    run: Run, *, ttft_s: float | None = None, tpot_s: float | None = None, e2e_s: float | None = None
) -> Figure:
    """Goodput against users, an arm a line, and thin beside it the rate of all whole answers.

    Args:
        ttft_s, tpot_s, e2e_s: the promise, in seconds: an answer is good if it keeps each that is given.
    """
    limits = {"TTFT": ttft_s, "TPOT": tpot_s, "E2E": e2e_s}
    promise = " and ".join(
        f"{name} within {limit:g} s" for name, limit in limits.items() if limit is not None
    )
    kept = f"whole ones with {promise}" if promise else "all whole ones"
    data = goodput_data(run, ttft_s=ttft_s, tpot_s=tpot_s, e2e_s=e2e_s)
    return Figure(
        data,
        _draw(data),
        _png(data, badge_note(run)),
        _alt(run, data, kept),
        markdown([*conditions(run), f"- Good answers are {kept}."]),
        run.kind,
    )


def goodput_data(
    run: Run, *, ttft_s: float | None = None, tpot_s: float | None = None, e2e_s: float | None = None
) -> pl.DataFrame:
    """What the figure draws, one row per arm and level.

    Returns:
        arm, engine, level, good_per_s (:func:`labkit.metrics.goodput`) and all_per_s (the same without
        limits), medians over the repeats; lower_bound, false everywhere.
    """
    requests = run.requests.filter(~pl.col("warmup"))
    rows = []
    for arm, level, repeat, window_s in measured_levels(run.meta["levels"]).rows():
        answers = requests.filter(arm=arm, level=level, repeat=repeat)
        good = metrics.goodput(answers, window_s, ttft_s=ttft_s, tpot_s=tpot_s, e2e_s=e2e_s)
        rows.append((arm, level, good, metrics.goodput(answers, window_s)))
    schema = {"arm": pl.String, "level": pl.Int64, "good_per_s": pl.Float64, "all_per_s": pl.Float64}
    engines = {name: arm["engine"] for name, arm in run.meta["arms"].items()}
    return (
        pl.DataFrame(rows, schema=schema, orient="row")
        .group_by("arm", "level", maintain_order=True)
        .agg(pl.col("good_per_s", "all_per_s").median())
        .with_columns(
            engine=pl.col("arm").replace_strict(engines, return_dtype=pl.String),
            lower_bound=False,  # who got no answer got no good one either: nothing is missing from a count
        )
        .sort("arm", "level", maintain_order=True)
    )


def _by_arm(data: pl.DataFrame) -> dict[str, pl.DataFrame]:
    return {arm: data.filter(pl.col("arm") == arm) for arm in data["arm"].unique(maintain_order=True)}


def _draw(data: pl.DataFrame) -> go.Figure:
    chart = go.Figure()
    looks = styles(dict(data.select("arm", "engine").unique(maintain_order=True).rows()))
    for arm, rows in _by_arm(data).items():
        for column, width in _COLUMNS.items():
            chart.add_scatter(
                name=arm,
                meta=column,
                legendgroup=arm,
                showlegend=column == "good_per_s",
                x=rows["level"].to_numpy(),
                y=rows[column].to_numpy(),
                mode="lines+markers",
                line={"color": looks[arm].colour, "dash": looks[arm].dash[0], "width": width},
                marker={"symbol": looks[arm].marker[0], "size": 3 * width + 2, "color": looks[arm].colour},
                hovertemplate=f"{arm}<br>%{{x}} users: %{{y:.3g}} ({column})<extra></extra>",
            )
    plain_layout(chart, 340)
    levels = data["level"].unique().sort().to_list()
    ticks = {"tickvals": levels, "ticktext": [str(level) for level in levels]}
    chart.update_xaxes(type="log", title=_USERS, gridcolor=GRID, zeroline=False, **ticks)
    chart.update_yaxes(title=_TITLE, rangemode="tozero", gridcolor=GRID, zeroline=False, automargin=True)
    return chart


def _png(data: pl.DataFrame, note: str) -> bytes:
    picture = Picture(figsize=(7, 3.4), dpi=110, layout="constrained")
    panel = picture.subplots()
    looks = styles(dict(data.select("arm", "engine").unique(maintain_order=True).rows()))
    for arm, rows in _by_arm(data).items():
        for column, width in _COLUMNS.items():
            label = arm if column == "good_per_s" else None
            picture_line(panel, looks[arm], rows, "level", column, width=width, label=label)
    levels = data["level"].unique().sort().to_list()
    panel.set_xscale("log", base=2)
    panel.set_xticks(levels, [str(level) for level in levels])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel(_USERS)
    panel.set_ylim(bottom=0)
    panel.set_title(_TITLE, fontsize=11)
    panel.grid(alpha=0.3)
    if levels:
        panel.legend(frameon=False)
    return picture_png(picture, note)


def _alt(run: Run, data: pl.DataFrame, kept: str) -> str:
    said = []
    for arm, rows in _by_arm(data).items():
        steps = [
            f"{number(good)} of {number(every)} at {people(users)}"
            for users, good, every in rows.select("level", *_COLUMNS).iter_rows()
        ]
        said.append(f"{arm}, good answers of all answers a second: {', '.join(steps)}.")
    chart = f"A line chart of a {run.kind} run over the number of users at once; good answers are {kept}."
    return " ".join([chart, *(said or ["It is empty: the run ended before its first level did."])])
