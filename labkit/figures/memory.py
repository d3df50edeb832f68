"""The memory that an engine set aside for conversations, against the tokens that it promised room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl
from matplotlib.figure import Figure as Picture
from plotly.subplots import make_subplots

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

MIB = 2**20
_LINE = "context × slots × bytes per token"
_READ = "read from the engine"
_X, _Y = "tokens reserved: context × slots", "KV memory, MiB"


def kv_memory(runs: Run | Sequence[Run], bytes_per_token: int) -> Figure:
    """Each arm's KV memory as its engine told it, beside the line that arithmetic gives.

    Args:
        runs: of one depth; arms that several of them have are drawn once.
        bytes_per_token: of the model, from its layers and heads.
    """
    given = [runs] if isinstance(runs, Run) else list(runs)
    data = kv_data(given, bytes_per_token)
    return Figure(
        data,
        _chart(data, bytes_per_token),
        _png(data, bytes_per_token, badge_note(given[0])),
        _alt(given[0], data),
        _caption(given, data, bytes_per_token),
        given[0].kind,
    )


def kv_data(runs: Sequence[Run], bytes_per_token: int) -> pl.DataFrame:
    """One row for each arm that tells its context, slots and KV memory.

    Returns:
        arm, context (tokens one request may use), slots, tokens (context × slots), expected_mib (tokens ×
        ``bytes_per_token``), read_mib (what the engine told), source (where it told it).
    """
    rows: dict[tuple[str, int], tuple[Any, ...]] = {}
    for run in runs:
        for name, arm in run.meta["arms"].items():
            facts = arm["facts"]
            context, slots, told = (facts.get(field) for field in ("context", "slots", "kv_bytes"))
            if context is None or slots is None or told is None:
                continue
            tokens = context * slots
            source = (facts.get("sources") or {}).get("kv_bytes")
            expected = tokens * bytes_per_token / MIB
            rows[name, context] = (name, context, slots, tokens, expected, told / MIB, source)
    schema = {
        "arm": pl.String,
        "context": pl.Int64,
        "slots": pl.Int64,
        "tokens": pl.Int64,
        "expected_mib": pl.Float64,
        "read_mib": pl.Float64,
        "source": pl.String,
    }
    return pl.DataFrame(list(rows.values()), schema=schema, orient="row").sort(
        "tokens", "slots", maintain_order=True
    )


def _ends(data: pl.DataFrame) -> list[int]:
    """Both ends of the line that arithmetic gives."""
    return [0, *data.select(pl.col("tokens").max()).drop_nulls()["tokens"].to_list()]


def _labels(data: pl.DataFrame) -> list[str]:
    return [f"{slots} × {context}" for slots, context in data.select("slots", "context").rows()]


def _chart(data: pl.DataFrame, bytes_per_token: int) -> go.Figure:
    chart = make_subplots()
    ends = _ends(data)
    chart.add_scatter(
        name=_LINE,
        x=ends,
        y=[tokens * bytes_per_token / MIB for tokens in ends],
        mode="lines",
        line={"color": INK, "dash": "dot", "width": 1.5},
    )
    chart.add_scatter(
        name=_READ,
        x=data["tokens"].to_numpy(),
        y=data["read_mib"].to_numpy(),
        text=_labels(data),
        mode="markers",
        marker={"color": COLOURS["ollama"], "size": 10, "symbol": "circle-open", "line": {"width": 2}},
        hovertemplate="%{text}: %{y:.4g} MiB<extra></extra>",
    )
    plain_layout(chart, 340)
    chart.update_xaxes(title=_X, gridcolor=GRID, zeroline=False, rangemode="tozero")
    chart.update_yaxes(title=_Y, gridcolor=GRID, zeroline=False, rangemode="tozero", automargin=True)
    return chart


def _png(data: pl.DataFrame, bytes_per_token: int, note: str) -> bytes:
    picture = Picture(figsize=(7, 3.6), dpi=110, layout="constrained")
    panel = picture.subplots()
    ends = _ends(data)
    panel.plot(ends, [tokens * bytes_per_token / MIB for tokens in ends], ":", color="0.35", label=_LINE)
    panel.plot(
        data["tokens"],
        data["read_mib"],
        "o",
        color=COLOURS["ollama"],
        markerfacecolor="none",
        markersize=8,
        label=_READ,
    )
    places = data.group_by("tokens", "read_mib", maintain_order=True).agg("slots", "context")
    for row in places.iter_rows(named=True):
        # several arms may lie on one point, which is the point of them: one label names them all
        names = [f"{s} × {c}" for s, c in zip(row["slots"], row["context"], strict=True)]
        at = (row["tokens"], row["read_mib"])
        panel.annotate(", ".join(names), at, (6, -11), textcoords="offset points", fontsize=8)
    panel.set_xlabel(_X)
    panel.set_ylabel(_Y)
    panel.set_xlim(0, 1.2 * (ends[-1] or 1))  # room for the last label
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    return picture_png(picture, note)


def _alt(run: Run, data: pl.DataFrame) -> str:
    if data.is_empty():
        return f"An empty chart of a {run.kind} run: no arm tells its context, slots and KV memory."
    points = [
        f"{row['slots']} × {row['context']} tokens: {number(row['read_mib'])} MiB read, "
        f"{number(row['expected_mib'])} by arithmetic"
        for row in data.iter_rows(named=True)
    ]
    start = (
        f"A chart of a {run.kind} run: KV memory over tokens reserved, with the line that arithmetic gives."
    )
    return f"{start} {'; '.join(points)}."


def _caption(runs: Sequence[Run], data: pl.DataFrame, bytes_per_token: int) -> str:
    sources = ", ".join(data["source"].drop_nulls().unique(maintain_order=True)) or "its server's answers"
    lines = conditions(runs[0])
    for run in runs[1:]:
        lines += [line for line in conditions(run)[1:] if line not in lines]
    lines.append(f"- KV memory as read from {sources}; the line has {bytes_per_token:,} bytes a token.")
    if data.is_empty():
        lines.append("- Nothing to draw: no arm tells its context, slots and KV memory.")
    return markdown(lines)
