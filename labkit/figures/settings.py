"""One engine under one load with several settings: tokens/s, TTFT and ITL against how many it works on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import plotly.graph_objects as go
import polars as pl
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import NullLocator
from plotly.subplots import make_subplots

from labkit.bundle import Run
from labkit.figures.base import (
    GRID,
    Figure,
    Style,
    badge_note,
    conditions,
    markdown,
    number,
    picture_line,
    picture_png,
    plain_layout,
    repeats_bar,
    spread_told,
    styles,
)
from labkit.sides import people

AXES = {"ollama": "slots", "vllm": "max_num_seqs"}
"""What each engine calls the number of requests that it works on at once."""

PANELS = {
    "tokens_per_s": "total tokens/s",
    "ttft_ms_p50": "TTFT p50, ms",
    "itl_ms_p50": "ITL p50, ms",
}
"""Columns of the data that are drawn, one panel each, with their titles."""

_NOTHING = "the run ended before its first level did, or its engine does not tell how many it works on."


def settings(run: Run) -> Figure:
    """Total tokens/s, TTFT p50 and ITL p50 against slots (vLLM: max_num_seqs), a number of users a line.

    Of a run that was stopped before its first level it draws empty axes and says so.
    """
    data = settings_data(run)
    return Figure(
        data,
        draw_settings(data),
        _png(data, badge_note(run)),
        _alt(run, data),
        markdown([*conditions(run), *spread_told(data, _NOTHING)]),
        run.kind,
    )


def settings_data(run: Run) -> pl.DataFrame:
    """What the figure and its live view draw, one row per arm and level, fewest slots first.

    Returns:
        arm, engine, level, slots as read from the engine; tokens_per_s with _low and _high (range over
        repeats), ttft_ms_p50, itl_ms_p50, lower_bound, repeats, as :func:`labkit.summary.summarise` defines
        them. Arms whose engine does not tell its slots are left out.
    """
    arms = run.meta["arms"]
    known = {name: (arm["engine"], slots_of(arm)) for name, arm in arms.items() if slots_of(arm) is not None}
    described = pl.DataFrame(
        [(name, *pair) for name, pair in known.items()],
        schema={"arm": pl.String, "engine": pl.String, "slots": pl.Int64},
        orient="row",
    )
    columns = ("tokens_per_s", "tokens_per_s_low", "tokens_per_s_high", "ttft_ms_p50", "itl_ms_p50")
    return (
        run.summary()
        .join(described, on="arm", how="inner")
        .select("arm", "engine", "level", "slots", *columns, "lower_bound", "repeats")
        .sort("engine", "level", "slots", maintain_order=True)
    )


def slots_of(arm: Mapping[str, Any]) -> int | None:
    """Requests that an arm of ``run.json`` works on at once, as its engine told; None if it did not."""
    slots = arm["facts"].get("slots")
    return None if slots is None else int(slots)


def draw_settings(data: pl.DataFrame) -> go.Figure:
    """The interactive chart: three panels, one above the other so that it fits a narrow window."""
    chart = make_subplots(rows=len(PANELS), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for line, style, rows in _lines(data):
        for row, column in enumerate(PANELS, start=1):
            chart.add_trace(_trace(line, style, rows, column), row=row, col=1)
    if data.is_empty():
        for row in range(1, len(PANELS) + 1):  # a panel without a line would not be drawn at all
            chart.add_scatter(showlegend=False, row=row, col=1)
    plain_layout(chart, 620)
    chart.update_xaxes(gridcolor=GRID, zeroline=False, **slots_axis(data))
    chart.update_xaxes(title=axis_title(data), row=len(PANELS))
    chart.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True, rangemode="tozero")
    for row, title in enumerate(PANELS.values(), start=1):
        chart.update_yaxes(title=title, row=row)
    return chart


def slots_axis(data: pl.DataFrame) -> dict[str, Any]:
    """Plotly's axis: doublings are equally far apart, and the settings that were measured are marked."""
    ticks = data["slots"].unique().sort().to_list()
    return {"type": "log", "tickvals": ticks, "ticktext": [str(n) for n in ticks]}


def _lines(data: pl.DataFrame) -> Iterator[tuple[str, Style, pl.DataFrame]]:
    """A line for each engine and number of users: its name, its look, its rows."""
    pairs = data.select("engine", "level").unique(maintain_order=True).rows()
    names = {(engine, level): f"{engine}, {people(level)}" for engine, level in pairs}
    looks = styles({names[pair]: pair[0] for pair in pairs})
    for (engine, level), name in names.items():
        yield name, looks[name], data.filter(engine=engine, level=level)


def _trace(line: str, style: Style, rows: pl.DataFrame, column: str) -> go.Scatter:
    rate = column == "tokens_per_s"
    hollow = rows["lower_bound"].to_list()
    return go.Scatter(
        name=line,
        meta=column,
        legendgroup=line,
        showlegend=rate,
        x=rows["slots"].to_numpy(),
        y=rows[column].to_numpy(),
        mode="lines+markers",
        line={"color": style.colour, "dash": style.dash[0], "width": 2.5},
        marker={
            "symbol": [f"{style.marker[0]}-open" if h else style.marker[0] for h in hollow],
            "size": 9,
            "color": style.colour,
        },
        error_y=repeats_bar(rows, style.colour) if rate else None,
        hovertemplate=f"{line}<br>%{{x}} at once: %{{y:.4g}} ({column})<extra></extra>",
    )


def axis_title(data: pl.DataFrame) -> str:
    """What the engines of these data call the number of requests that they work on at once."""
    words = [AXES.get(engine, "at once") for engine in data["engine"].unique(maintain_order=True)]
    return " or ".join(dict.fromkeys(words)) or AXES["ollama"]


def _png(data: pl.DataFrame, note: str) -> bytes:
    picture = Picture(figsize=(11, 3.8), dpi=110, layout="constrained")
    panels = dict(zip(PANELS, picture.subplots(1, len(PANELS)), strict=True))
    ticks = data["slots"].unique().sort().to_list()
    for line, style, rows in _lines(data):
        for column, panel in panels.items():
            picture_line(panel, style, rows, "slots", column, width=2.2, label=line)
        spread = [
            (rows["tokens_per_s"] - rows["tokens_per_s_low"]).to_list(),
            (rows["tokens_per_s_high"] - rows["tokens_per_s"]).to_list(),
        ]
        panels["tokens_per_s"].errorbar(
            rows["slots"], rows["tokens_per_s"], spread, fmt="none", ecolor=style.colour, capsize=3
        )
    for column, panel in panels.items():
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, [str(n) for n in ticks])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel(axis_title(data))
        panel.set_title(PANELS[column], fontsize=11)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    if ticks:
        panels["tokens_per_s"].legend(frameon=False)
    return picture_png(picture, note)


def _alt(run: Run, data: pl.DataFrame) -> str:
    if data.is_empty():
        return f"Three empty charts of a {run.kind} run: {_NOTHING}"
    parts = []
    for line, _, rows in _lines(data):
        first, last = rows.row(0, named=True), rows.row(-1, named=True)
        word = AXES.get(first["engine"], "at once")
        ends = {column: f"from {number(first[column])} to {number(last[column])}" for column in PANELS}
        steps = [f"{a} to {b}" for a, b in itertools.pairwise(rows["tokens_per_s"].round(1).to_list())]
        parts.append(
            f"{line}: from {first['slots']} to {last['slots']} {word}, total tokens per second go "
            f"{ends['tokens_per_s']} (step by step: {', '.join(steps) or 'one setting only'}), the median "
            f"time to first token {ends['ttft_ms_p50']} ms, the median inter-token latency "
            f"{ends['itl_ms_p50']} ms."
        )
    charts = f"Three line charts of a {run.kind} run over the number of {axis_title(data)}."
    return " ".join([charts, *parts])
