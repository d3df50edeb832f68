"""The headline figure: total tokens/s and TTFT against the number of users."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import polars as pl
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import NullFormatter, NullLocator, StrMethodFormatter
from plotly.subplots import make_subplots

from labkit.bundle import Run
from labkit.crossover import Crossover, crossover
from labkit.figures.base import (
    GRID,
    INK,
    SHADE,
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

_NOTHING = "the run ended before its first level did."
_RATE_TITLE = "total tokens/s"
_TTFT_TITLE = "TTFT, ms: p50 thick, p95 thin"
_USERS_TITLE = "users at once"


def gap(run: Run) -> Figure:
    """Total tokens/s and TTFT against users, an arm a line, with the point from which vLLM leads.

    Of a run that was stopped before its first level it draws empty axes and says so.
    """
    data = gap_data(run)
    crossings = _crossings(data)
    return Figure(
        data,
        draw_gap(data, crossings),
        _gap_png(data, crossings, badge_note(run)),
        _gap_alt(run, data, crossings),
        _caption(run, data, crossings),
        run.kind,
    )


def gap_data(run: Run) -> pl.DataFrame:
    """What the gap figure and the gap's live view draw, one row per arm and level.

    Returns:
        arm, engine, level, tokens_per_s with _low and _high (range over repeats), ttft_ms_p50, ttft_ms_p95,
        lower_bound, repeats, as :func:`labkit.summary.summarise` defines them.
    """
    engines = {name: arm["engine"] for name, arm in run.meta["arms"].items()}
    rates = ("tokens_per_s", "tokens_per_s_low", "tokens_per_s_high")
    return run.summary().select(
        "arm",
        pl.col("arm").replace_strict(engines, return_dtype=pl.String).alias("engine"),
        "level",
        *rates,
        "ttft_ms_p50",
        "ttft_ms_p95",
        "lower_bound",
        "repeats",
    )


def draw_gap(data: pl.DataFrame, crossings: Sequence[Crossover] = ()) -> go.Figure:
    """The interactive gap chart: tokens/s above TTFT, one above the other so that it fits a narrow window."""
    chart = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for arm, style, rows in _by_arm(data):
        for trace, row in _traces(arm, style, rows):
            chart.add_trace(trace, row=row, col=1)
    if data.is_empty():
        for row in (1, 2):  # a panel without a line would not be drawn at all
            chart.add_scatter(showlegend=False, row=row, col=1)
    levels = data["level"].unique().sort().to_list()
    for found in _drawn(crossings):
        low, high = found.low, min(found.high, levels[-1])
        chart.add_vrect(x0=low, x1=high, fillcolor=SHADE, line_width=0, layer="below")
        chart.add_vline(x=found.users, line={"color": INK, "dash": "dot", "width": 1.5})
    plain_layout(chart, 520)
    chart.update_xaxes(
        type="log", tickvals=levels, ticktext=[str(n) for n in levels], gridcolor=GRID, zeroline=False
    )
    chart.update_xaxes(title=_USERS_TITLE, row=2)
    chart.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)
    chart.update_yaxes(title=_RATE_TITLE, rangemode="tozero", row=1)
    chart.update_yaxes(title=_TTFT_TITLE, type="log", dtick=1, row=2)
    return chart


def _by_arm(data: pl.DataFrame) -> list[tuple[str, Style, pl.DataFrame]]:
    pairs = data.select("arm", "engine").unique(maintain_order=True).rows()
    looks = styles(dict(pairs))
    return [(arm, looks[arm], data.filter(pl.col("arm") == arm).sort("level")) for arm, _ in pairs]


def _traces(arm: str, style: Style, rows: pl.DataFrame) -> list[tuple[go.Scatter, int]]:
    """An arm's three lines, each with the row of its panel."""
    hollow = rows["lower_bound"].to_list()
    spread = repeats_bar(rows, style.colour)
    made = []
    for column, row, width, size in (
        ("tokens_per_s", 1, 2.5, 9),
        ("ttft_ms_p50", 2, 2.5, 9),
        ("ttft_ms_p95", 2, 1.0, 6),
    ):
        marker = {
            "symbol": [f"{style.marker[0]}-open" if h else style.marker[0] for h in hollow],
            "size": size,
            "color": style.colour,
        }
        trace = go.Scatter(
            name=arm,
            meta=column,
            legendgroup=arm,
            showlegend=row == 1,
            x=rows["level"].to_numpy(),
            y=rows[column].to_numpy(),
            mode="lines+markers",
            line={"color": style.colour, "dash": style.dash[0], "width": width},
            marker=marker,
            error_y=spread if row == 1 else None,
            hovertemplate=f"{arm}<br>%{{x}} users: %{{y:.4g}} ({column})<extra></extra>",
        )
        made.append((trace, row))
    return made


def _crossings(data: pl.DataFrame) -> list[Crossover]:
    """Where the first vLLM arm passes each Ollama arm; arms that share no level have none."""
    levels = {arm: set(rows["level"]) for arm, _, rows in _by_arm(data)}
    engines = dict(data.select("arm", "engine").rows())
    ahead = next((arm for arm in levels if engines[arm] == "vllm"), None)
    if ahead is None:
        return []
    behind = [arm for arm in levels if engines[arm] == "ollama" and levels[arm] & levels[ahead]]
    return [crossover(data, ahead, arm) for arm in behind]


def _drawn(crossings: Sequence[Crossover]) -> list[Crossover]:
    """Those with something to mark: a lead that starts after the first level."""
    return [found for found in crossings if found.users is not None and found.low > 0]


def _gap_png(data: pl.DataFrame, crossings: list[Crossover], note: str) -> bytes:
    picture = Picture(figsize=(10, 4.2), dpi=110, layout="constrained")
    rate, ttft = picture.subplots(1, 2)
    levels = data["level"].unique().sort().to_list()
    for arm, style, rows in _by_arm(data):
        spread = [
            (rows["tokens_per_s"] - rows["tokens_per_s_low"]).to_list(),
            (rows["tokens_per_s_high"] - rows["tokens_per_s"]).to_list(),
        ]
        picture_line(rate, style, rows, "level", "tokens_per_s", width=2.2, label=arm)
        rate.errorbar(rows["level"], rows["tokens_per_s"], spread, fmt="none", ecolor=style.colour, capsize=3)
        picture_line(ttft, style, rows, "level", "ttft_ms_p50", width=2.2, label=arm)
        picture_line(ttft, style, rows, "level", "ttft_ms_p95", width=0.9)
    for panel, title in ((rate, _RATE_TITLE), (ttft, _TTFT_TITLE)):
        panel.set_xscale("log", base=2)
        panel.set_xticks(levels, [str(n) for n in levels])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel(_USERS_TITLE)
        panel.set_title(title, fontsize=11)
        panel.grid(alpha=0.3)
        for found in _drawn(crossings):
            panel.axvspan(found.low, min(found.high, levels[-1]), color="0.5", alpha=0.15, linewidth=0)
            panel.axvline(found.users, color="0.35", linestyle=":", linewidth=1.2)
    rate.set_ylim(bottom=0)
    if levels:
        rate.legend(frameon=False)
        rate.set_xlim(levels[0] / 1.2, levels[-1] * 1.2)
        ttft.set_xlim(rate.get_xlim())  # also where the first levels have no answer to time
    ttft.set_yscale("log")
    ttft.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ttft.yaxis.set_minor_formatter(NullFormatter())
    return picture_png(picture, note)


def _gap_alt(run: Run, data: pl.DataFrame, crossings: list[Crossover]) -> str:
    if data.is_empty():
        return f"Two empty charts of a {run.kind} run: {_NOTHING}"
    parts = []
    for arm, _, rows in _by_arm(data):
        first, last = rows.row(0, named=True), rows.row(-1, named=True)
        parts.append(
            f"{arm}: from {first['level']} to {last['level']} users, total tokens per second go from "
            f"{number(first['tokens_per_s'])} to {number(last['tokens_per_s'])}, the median time to first "
            f"token from {number(first['ttft_ms_p50'])} to {number(last['ttft_ms_p50'])} ms, its 95th "
            f"percentile to {number(last['ttft_ms_p95'])} ms."
        )
    said = [found.sentence for found in crossings]
    charts = f"Two line charts of a {run.kind} run over the number of users at once."
    return " ".join([charts, *parts, *said])


def _caption(run: Run, data: pl.DataFrame, crossings: list[Crossover]) -> str:
    said = [f"- {found.sentence}" for found in crossings]
    return markdown([*conditions(run), *said, *spread_told(data, _NOTHING)])
