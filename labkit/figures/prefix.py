"""What a shared beginning saves: time to first token and cached tokens over its length, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from plotly.subplots import make_subplots

from labkit import prefixes
from labkit.bundle import Run
from labkit.figures.base import (
    COLOURS,
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

PANELS = {"ttft": "TTFT p50, ms", "cached": "tokens from the cache"}
"""The two panels of the chart, with their titles."""

MOST_MARKS = 24
"""More of them could not be told apart; then a mark stands at every second block, or third."""

_X = "tokens that a question shares with the one before"
_ALL = "all that is shared"
_NOTHING = "the run ended before its first level did."


def prefix(run: Run) -> Figure:
    """TTFT of first and later questions, and tokens from the cache, over the tokens that they share.

    Dotted marks stand at whole blocks, as large as the engine says that they are.

    Args:
        run: what ``lab.prefixes()`` measures.

    Raises:
        Missing: it is another run.
    """
    data = prefixes.table(run).drop_nulls("shared_tokens")
    return Figure(
        data,
        draw_prefix(data),
        _png(data, badge_note(run)),
        _alt(run, data),
        markdown([*conditions(run), *_told(data)]),
        run.kind,
    )


def draw_prefix(data: pl.DataFrame) -> go.Figure:
    """The interactive chart of :func:`labkit.prefixes.table`: two panels, one above the other."""
    chart = make_subplots(rows=len(PANELS), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    if data.is_empty():
        chart.add_scatter(showlegend=False, row=1, col=1)  # a panel without a line would not be drawn
    for arm, rows, colour in _arms(data):
        _draw_arm(chart, arm, rows, colour)
    ends = _ends(data)
    chart.add_scatter(
        name=_ALL,
        meta="all",
        x=ends,
        y=ends,
        mode="lines",
        line={"color": INK, "dash": "dash", "width": 1},
        row=2,
        col=1,
    )
    plain_layout(chart, 560)
    for mark in block_marks(data):
        chart.add_vline(x=mark, line={"color": INK, "dash": "dot", "width": 1}, opacity=0.5)
    chart.update_xaxes(gridcolor=GRID, zeroline=False)
    chart.update_xaxes(title=_X, row=len(PANELS))
    chart.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True, rangemode="tozero")
    for row, title in enumerate(PANELS.values(), start=1):
        chart.update_yaxes(title=title, row=row)
    return chart


def _draw_arm(chart: go.Figure, arm: str, rows: pl.DataFrame, colour: str) -> None:
    """Its first questions and its later ones above, what came from the cache below."""
    own = {"x": rows["shared_tokens"].to_numpy(), "legendgroup": arm}
    dots = {"size": 8, "color": colour, "symbol": _marker(rows)[0]}
    chart.add_scatter(
        name=f"{arm}: first question",
        meta="cold",
        y=rows["ttft_cold_ms_p50"].to_numpy(),
        mode="lines",
        line={"color": colour, "dash": "dot", "width": 1.5},
        hovertemplate=f"{arm}<br>%{{x}} shared, first: %{{y:.4g}} ms<extra></extra>",
        row=1,
        col=1,
        **own,
    )
    chart.add_scatter(
        name=f"{arm}: later ones",
        meta="warm",
        y=rows["ttft_warm_ms_p50"].to_numpy(),
        mode="lines+markers",
        line={"color": colour, "width": 2.5},
        marker=dots,
        hovertemplate=f"{arm}<br>%{{x}} shared, later: %{{y:.4g}} ms<extra></extra>",
        row=1,
        col=1,
        **own,
    )
    chart.add_scatter(
        name=arm,
        meta="cached",
        showlegend=False,
        y=rows["cached_tokens"].to_numpy(),
        mode="lines+markers",
        line={"color": colour, "width": 2.5},
        marker=dots,
        hovertemplate=f"{arm}<br>%{{x}} shared, %{{y}} from the cache<extra></extra>",
        row=2,
        col=1,
        **own,
    )


def block_marks(data: pl.DataFrame) -> list[int]:
    """Whole blocks up to the most shared tokens, :data:`MOST_MARKS` at most; none without a block size."""
    size, most = _size(data), _ends(data)[-1]
    if size is None:
        return []
    apart = size * max(1, -(-(most // size) // MOST_MARKS))
    return list(range(apart, most + 1, apart))


def _size(data: pl.DataFrame) -> int | None:
    """Tokens of a block; None if no engine tells."""
    return next(iter(data["block_size"].drop_nulls()), None)


def _arms(data: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame, str]]:
    """Each arm with its rows and its colour: the engine's own, and grey where caching was switched off."""
    for arm in data["arm"].unique(maintain_order=True):
        rows = data.filter(arm=arm).sort("shared_tokens")
        yield arm, rows, INK if _off(rows) else COLOURS.get(rows["engine"][0], INK)


def _off(rows: pl.DataFrame) -> bool:
    return rows["caching"][0] is False


def _marker(rows: pl.DataFrame) -> tuple[str, str]:
    """Plotly's word and matplotlib's; tells the two apart in any colour."""
    return ("square", "s") if _off(rows) else ("circle", "o")


def _ends(data: pl.DataFrame) -> list[int]:
    """Both ends of the line on which all that is shared is reused."""
    return [0, *data.select(pl.col("shared_tokens").max()).drop_nulls()["shared_tokens"].to_list()]


def _png(data: pl.DataFrame, note: str) -> bytes:
    picture = Picture(figsize=(8, 6), dpi=110, layout="constrained")
    times, tokens = picture.subplots(len(PANELS), 1, sharex=True)
    for arm, rows, colour in _arms(data):
        marker = _marker(rows)[1]
        x = rows["shared_tokens"]
        times.plot(x, rows["ttft_cold_ms_p50"], ":", color=colour, label=f"{arm}: first question")
        times.plot(x, rows["ttft_warm_ms_p50"], f"-{marker}", color=colour, label=f"{arm}: later ones")
        tokens.plot(x, rows["cached_tokens"], f"-{marker}", color=colour)
    ends = _ends(data)
    tokens.plot(ends, ends, "--", color="0.5", linewidth=1, label=_ALL)
    for panel, title in zip((times, tokens), PANELS.values(), strict=True):
        _finish(panel, title, block_marks(data))
    tokens.set_xlabel(_X)
    return picture_png(picture, note)


def _finish(panel: Axes, title: str, marks: list[int]) -> None:
    for mark in marks:
        panel.axvline(mark, linestyle=":", color="0.6", linewidth=1)
    panel.set_ylabel(title)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False, fontsize=8)


def _told(data: pl.DataFrame) -> list[str]:
    """Lines of the caption on what a point is and where blocks end."""
    if data.is_empty():
        return [f"- Nothing to draw: {_NOTHING}"]
    lines = [
        "- First: the question of each level, and of each repeat, whose text was new. Later: medians of up "
        f"to {max(data['warm'])} questions that begin with the same tokens."
    ]
    size = _size(data)
    if size is None:
        lines.append("- The engine does not tell its block size.")
    else:
        lines.append(f"- Dotted marks: whole blocks of {size} tokens, as the engine says.")
        if (marks := block_marks(data)) and marks[0] > size:
            lines.append(f"- A mark at each {marks[0]} tokens: there are more blocks than could be marked.")
    return lines


def _alt(run: Run, data: pl.DataFrame) -> str:
    if data.is_empty():
        return f"Two empty charts of a {run.kind} run: {_NOTHING}"
    parts = [f"Two line charts of a {run.kind} run over the tokens that questions share."]
    for arm, rows, _ in _arms(data):
        points: list[dict[str, Any]] = rows.to_dicts()
        told = ", ".join(
            f"{row['shared_tokens']} shared: {number(row['ttft_warm_ms_p50'])} ms, "
            f"{number(row['cached_tokens'])} from the cache"
            for row in points
        )
        cold = rows["ttft_cold_ms_p50"].median()
        first = number(cold if isinstance(cold, float) else None)
        parts.append(f"{arm}: a first question takes {first} ms at the median; later ones, {told}.")
    return " ".join(parts)
