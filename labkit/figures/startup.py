"""A server's start as a flight of bars: one phase after the other, with its seconds."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
import polars as pl
from matplotlib.figure import Figure as Picture
from matplotlib.patches import Patch

from labkit.errors import UsageError
from labkit.figures.base import GRID, INK, Figure, markdown, picture_png, plain_layout
from labkit.transcript import Transcript

PARTS: Mapping[str, tuple[str, ...]] = {
    "programs": ("imports", "configuration", "engine core", "worker", "HTTP server"),
    "weights": ("weights",),
    "memory": ("KV pool",),
    "warm-up": ("warm-up",),
}
"""Phases of a start (:data:`labkit.demos.startup.PHASES`) by what they are spent on."""

HUES = {"programs": INK, "weights": "#0072B2", "memory": "#D55E00", "warm-up": "#009E73"}
_TIME = "seconds since the server's process began"


def startup(log: Transcript) -> Figure:
    """The phases of a start-up log, each a bar from its beginning to its end.

    Args:
        log: what ``await lab.start_log("vllm")`` returns.

    Raises:
        UsageError: the transcript has no phases.
    """
    phases = startup_data(log)
    return Figure(
        phases, _interactive(phases), _png(phases, log.title), _alt(log, phases), _caption(log), log.kind
    )


def startup_data(log: Transcript) -> pl.DataFrame:
    """phase, part (a key of :data:`PARTS`, or "other"), t_s (its beginning), took_s; one row a phase."""
    if not (events := log.of("phase")):
        raise UsageError(
            f"draw the start in {log.name}",
            "it has no phases of a start",
            "give the result of lab.start_log('vllm')",
        )
    part_of = {name: part for part, names in PARTS.items() for name in names}
    rows = [
        (e["phase"], part_of.get(e["phase"], "other"), float(e["t_s"]), float(e["took_s"])) for e in events
    ]
    return pl.DataFrame(rows, schema=["phase", "part", "t_s", "took_s"], orient="row")


def _hues(phases: pl.DataFrame) -> list[str]:
    return [HUES.get(part, INK) for part in phases["part"]]


def _labels(phases: pl.DataFrame) -> list[str]:
    return [f"{took_s:.1f} s" for took_s in phases["took_s"]]


def _interactive(phases: pl.DataFrame) -> go.Figure:
    chart = go.Figure()
    chart.add_bar(
        orientation="h",
        y=phases["phase"].to_list(),
        base=phases["t_s"].to_numpy(),
        x=phases["took_s"].to_numpy(),
        marker={"color": _hues(phases)},
        text=_labels(phases),
        textposition="outside",
        customdata=phases["part"].to_list(),
        hovertemplate="%{y} (%{customdata}): %{text}<extra></extra>",
        cliponaxis=False,
    )
    plain_layout(chart, 120 + 34 * phases.height)
    chart.update_xaxes(title=_TIME, range=[0, _end_s(phases) * 1.1], gridcolor=GRID, zeroline=False)
    chart.update_yaxes(autorange="reversed", automargin=True)
    return chart


def _png(phases: pl.DataFrame, note: str) -> bytes:
    picture = Picture(figsize=(8, 1.2 + 0.34 * phases.height), dpi=110, layout="constrained")
    axis = picture.subplots()
    bars = axis.barh(phases["phase"], phases["took_s"], left=phases["t_s"], color=_hues(phases))
    axis.bar_label(bars, _labels(phases), padding=3, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, _end_s(phases) * 1.1)
    axis.set_xlabel(_TIME)
    axis.grid(axis="x", alpha=0.3)
    there = [part for part in HUES if part in phases["part"]]
    axis.legend([Patch(color=HUES[part]) for part in there], there, frameon=False, fontsize=8)
    return picture_png(picture, note)


def _end_s(phases: pl.DataFrame) -> float:
    """When the last phase ended; a second at least, so that there is an axis."""
    return max(1.0, float(phases.select((pl.col("t_s") + pl.col("took_s")).max()).item()))


def _alt(log: Transcript, phases: pl.DataFrame) -> str:
    told = ", ".join(f"{name} {took_s:.1f} s" for name, took_s in phases.select("phase", "took_s").rows())
    return f"Bars, one phase below the other, of a {log.kind} start of {_end_s(phases):.0f} s: {told}."


def _caption(log: Transcript) -> str:
    kind, _, rest = log.title.partition(":")
    return markdown(
        [
            f"**{kind}** ·{rest}",
            "- Read from the server's log, whose time stamps are whole seconds: a bar is right to a second",
        ]
    )
