"""The block table of a KV pool, step by step: which request holds which block, and who loses one."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl
from matplotlib.figure import Figure as Picture

from labkit.figures.base import GRID, INK, Figure, markdown, picture_png, plain_layout

HUES = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
"""Okabe and Ito's colours; requests take them in turn, and their numbers say the same again."""

_STEPS, _BLOCK = "step of computing", "block"
LOST = "✕"
"""Stands where a request lost a block before its answer was whole."""


def blocks(held: pl.DataFrame, total: int, about: str) -> Figure:
    """Who holds which block of a simulated pool at each step; a block that nobody holds stays empty.

    Args:
        held: one row for each block that a request holds at a step: ``step``, ``block``, ``request``, whole
            numbers from 0. Equal beginnings may share a block, which then has several rows in a step.
        total: blocks in the pool.
        about: whose decisions these are, such as the profile of the simulated engine.
    """
    spans = block_spans(held)
    return Figure(
        spans,
        _interactive(spans, total),
        _png(spans, total, f"simulated · {about}"),
        _alt(spans, held, total),
        markdown(
            [f"**simulated** · {about}", f"- {LOST}: the block was taken away before the answer was whole"]
        ),
        "simulated",
    )


def block_spans(held: pl.DataFrame) -> pl.DataFrame:
    """Rows of consecutive steps in which the same requests held a block.

    Returns:
        block, who (request numbers, "+" between those that share it), first (the lowest of them), begin and
        end in steps, lost: whether one of them came back for blocks later, which is what preemption looks
        like.
    """
    shared = (
        held.sort("block", "step", "request")
        .group_by("block", "step", maintain_order=True)
        .agg(
            pl.col("request").cast(pl.String).str.join("+").alias("who"),
            pl.col("request").min().alias("first"),
        )
    )
    new = (pl.col("who") != pl.col("who").shift()) | (pl.col("step") != pl.col("step").shift() + 1)
    spans = (
        shared.with_columns(span=new.fill_null(value=True).cum_sum().over("block"))
        .group_by("block", "span", maintain_order=True)
        .agg(
            pl.col("who").first(),
            pl.col("first").first(),
            pl.col("step").min().alias("begin"),
            (pl.col("step").max() + 1).alias("end"),
        )
    )
    gaps = _absences(held)
    lost = [
        any(str(request) in who.split("+") and end == gone for request, gone in gaps)
        for who, end in spans.select("who", "end").rows()
    ]
    return spans.drop("span").with_columns(pl.Series("lost", lost, pl.Boolean))


def _absences(held: pl.DataFrame) -> set[tuple[int, int]]:
    """Request and step at which it had no block any more, of those that came back later."""
    steps = held.select("request", "step").unique().sort("request", "step")
    back = steps.with_columns(before=pl.col("step").shift().over("request")).filter(
        pl.col("step") > pl.col("before") + 1
    )
    return {(request, before + 1) for request, _, before in back.rows()}


def _interactive(spans: pl.DataFrame, total: int) -> go.Figure:
    chart = go.Figure()
    chart.add_bar(
        orientation="h",
        y=spans["block"].to_numpy(),
        base=spans["begin"].to_numpy(),
        x=(spans["end"] - spans["begin"]).to_numpy(),
        text=_labels(spans),
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        marker={"color": _hues(spans), "line": {"color": INK, "width": 1}},
        customdata=spans["who"].to_list(),
        hovertemplate="block %{y}: request %{customdata}, from step %{base} on<extra></extra>",
    )
    plain_layout(chart, 110 + 24 * total)
    chart.update_layout(showlegend=False, bargap=0.1, margin={"t": 16})
    chart.update_xaxes(title=_STEPS, gridcolor=GRID, zeroline=False, rangemode="tozero")
    chart.update_yaxes(title=_BLOCK, range=[total - 0.4, -0.6], dtick=1, gridcolor=GRID, zeroline=False)
    return chart


def _labels(spans: pl.DataFrame) -> list[str]:
    return [f"{who} {LOST}" if lost else who for who, lost in spans.select("who", "lost").rows()]


def _hues(spans: pl.DataFrame) -> list[str]:
    return [HUES[number % len(HUES)] for number in spans["first"]]


def _png(spans: pl.DataFrame, total: int, note: str) -> bytes:
    picture = Picture(figsize=(9, 1.2 + 0.27 * total), dpi=110, layout="constrained")
    axis = picture.subplots()
    lengths = (spans["end"] - spans["begin"]).to_list()
    axis.barh(
        spans["block"].to_list(),
        lengths,
        left=spans["begin"].to_list(),
        height=0.9,
        color=_hues(spans),
        edgecolor="0.3",
        linewidth=0.6,
    )
    for label, block, begin, length in zip(
        _labels(spans), spans["block"], spans["begin"], lengths, strict=True
    ):
        axis.text(begin + length / 2, block, label, ha="center", va="center", fontsize=7, clip_on=True)
    axis.set_ylim(total - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.set_yticks(range(total))
    axis.tick_params(labelsize=7)
    axis.set_xlabel(_STEPS)
    axis.set_ylabel(_BLOCK)
    axis.grid(axis="x", alpha=0.3)
    return picture_png(picture, note)


def _alt(spans: pl.DataFrame, held: pl.DataFrame, total: int) -> str:
    if spans.is_empty():
        return f"An empty table of {total} blocks: nobody held one."
    most = max(held.group_by("step").agg(pl.col("block").n_unique())["block"].to_list())
    steps = max(spans["end"].to_list())
    losers = sorted({request for request, _ in _absences(held)})
    lost = (
        f"Lost their blocks and came back later: {', '.join(map(str, losers))}"
        if losers
        else "Nobody lost one"
    )
    return (
        f"A simulated pool of {total} blocks over {steps} steps, a bar for each time that a request holds a "
        f"block. At most {most} are held at once. {lost}."
    )
