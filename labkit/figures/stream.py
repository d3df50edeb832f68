"""One answer of each engine, piece by piece on an axis of time: where TTFT and ITL can be seen."""

from __future__ import annotations

import statistics

import plotly.graph_objects as go
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from plotly.subplots import make_subplots

from labkit import metrics
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

AXIS_TITLE = "ms since the question was sent"

_NOTHING = "no whole answer came"
_BRACKET_Y, _TOP = 1.25, 1.9  # a tick reaches from 0 to 1
Bracket = tuple[float, float, str]
"""Where it begins and ends on the axis, in ms, and what stands above it."""
_FIRST_TOLD = 5  # pieces whose times the alternative text has


def stream(run: Run, *, values: bool = True) -> Figure:
    """The first answer of each arm: when each piece of it arrived, with TTFT and one ITL as brackets.

    Args:
        values: write what the brackets measure beside them; without, they are there to be read off the axis.
    """
    data = stream_data(run)
    arms = {name: arm["engine"] for name, arm in run.meta["arms"].items()}
    brackets = {arm: _brackets(_of(data, arm), values) for arm in arms}
    caption = [
        *conditions(run),
        "- Each tick is a piece of the answer when it arrived here; most pieces are one token.",
        *(f"- {arm}: {_NOTHING}." for arm in arms if _of(data, arm).is_empty()),
    ]
    return Figure(
        data,
        _draw(data, arms, brackets),
        _png(data, arms, brackets, badge_note(run)),
        " ".join([f"A time axis for each engine, of a {run.kind} run.", *_alt(data, arms, values)]),
        markdown(caption),
        run.kind,
    )


def stream_data(run: Run) -> pl.DataFrame:
    """What the figure draws: the pieces of each arm's first whole answer in the order of arrival.

    Returns:
        arm, engine, at_ms (since the question was sent; the first one is TTFT), gap_ms (since the piece
        before; null for the first).
    """
    asked = drawn_answers(run).select("arm", "engine", "sent_s", request_id="id")
    return (
        run.tokens.join(asked, on="request_id", how="inner")
        .sort("sent_s", "t_s", maintain_order=True)
        .with_columns(at_ms=(pl.col("t_s") - pl.col("sent_s")) * 1000)
        .select("arm", "engine", "at_ms", gap_ms=pl.col("at_ms").diff().over("arm"))
    )


def drawn_answers(run: Run) -> pl.DataFrame:
    """Each arm's first whole answer, as rows of the run's requests."""
    return metrics.answered(run.requests).sort("sent_s").unique("arm", keep="first", maintain_order=True)


def _of(data: pl.DataFrame, arm: str) -> pl.DataFrame:
    return data.filter(pl.col("arm") == arm)


def _brackets(pieces: pl.DataFrame, values: bool) -> list[Bracket]:
    """Beginning, end and label of TTFT and of the gap in the answer's second half nearest to the median."""
    if pieces.is_empty():
        return []
    ttft = pieces["at_ms"][0]
    found = [(0.0, ttft, f"TTFT {number(ttft)} ms" if values else "TTFT")]
    median = _median_gap(pieces)
    if median is not None:
        later = pieces.drop_nulls("gap_ms").tail(len(pieces) // 2).rows(named=True)
        chosen = min(later, key=lambda piece: abs(piece["gap_ms"] - median))
        label = f"ITL, median {number(median)} ms" if values else "one gap"
        found.append((chosen["at_ms"] - chosen["gap_ms"], chosen["at_ms"], label))
    return found


def _median_gap(pieces: pl.DataFrame) -> float | None:
    gaps = pieces["gap_ms"].drop_nulls()
    return statistics.median(gaps) if len(gaps) else None


def _draw(data: pl.DataFrame, arms: dict[str, str], brackets: dict[str, list[Bracket]]) -> go.Figure:
    chart = make_subplots(
        rows=len(arms), cols=1, shared_xaxes=True, vertical_spacing=0.12, subplot_titles=list(arms)
    )
    for row, (arm, engine) in enumerate(arms.items(), start=1):
        for trace in _traces(_of(data, arm), COLOURS.get(engine, INK), brackets[arm]):
            chart.add_trace(trace, row=row, col=1)
    plain_layout(chart, 100 + 150 * len(arms))
    chart.update_layout(showlegend=False)
    chart.update_annotations(x=0, xanchor="left", font={"color": INK})
    end = max(data["at_ms"].to_list(), default=1.0)
    chart.update_xaxes(
        gridcolor=GRID, zeroline=False, nticks=12, showticklabels=True, range=[-0.03 * end, 1.03 * end]
    )
    chart.update_xaxes(title=AXIS_TITLE, row=len(arms))
    chart.update_yaxes(visible=False, range=[-0.1, _TOP], fixedrange=True)
    return chart


def _traces(pieces: pl.DataFrame, colour: str, brackets: list[Bracket]) -> list[go.Scatter]:
    sent = go.Scatter(
        x=[0],
        y=[0.5],
        mode="markers",
        marker={"symbol": "triangle-right", "size": 14, "color": INK},
        hovertemplate="the question is sent<extra></extra>",
    )
    xs = [x for at in pieces["at_ms"] for x in (at, at, None)]  # a line from 0 to 1, then a break
    ticks = go.Scatter(
        x=xs,
        y=[0, 1, None] * len(pieces),
        mode="lines",
        line={"color": colour, "width": 2},
        text=[word for nth in range(1, len(pieces) + 1) for word in (f"piece {nth}",) * 3],
        hovertemplate="%{text}: %{x:.1f} ms<extra></extra>",
    )
    return [sent, ticks, *(_bracket(*bracket) for bracket in brackets)]


def _bracket(begin: float, end: float, label: str) -> go.Scatter:
    # the middle has a marker that is not seen: the label keeps its distance to it
    ends = {"symbol": "line-ns-open", "size": 8, "opacity": [1, 0, 1]}
    return go.Scatter(
        x=[begin, (begin + end) / 2, end],
        y=[_BRACKET_Y] * 3,
        mode="lines+markers+text",
        line={"color": INK, "width": 2},
        marker={**ends, "color": INK, "line": {"width": 2}},
        text=["", label, ""] if begin else [label, "", ""],
        textposition="top center" if begin else "top right",
        textfont={"color": INK},
        hoverinfo="skip",
        cliponaxis=False,
    )


def _png(
    data: pl.DataFrame,
    arms: dict[str, str],
    brackets: dict[str, list[Bracket]],
    note: str,
) -> bytes:
    picture = Picture(figsize=(10, 0.9 + 1.4 * len(arms)), dpi=110, layout="constrained")
    panels = picture.subplots(len(arms), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (arm, engine) in zip(panels, arms.items(), strict=True):
        _panel(panel, _of(data, arm)["at_ms"].to_list(), COLOURS.get(engine, INK), brackets[arm])
        panel.set_title(arm, fontsize=11, loc="left")
    panels[-1].set_xlabel(AXIS_TITLE)
    return picture_png(picture, note)


def _panel(panel: Axes, times: list[float], colour: str, brackets: list[Bracket]) -> None:
    panel.plot([0], [0.5], ">", color="0.35", markersize=9, clip_on=False)
    panel.vlines(times, 0, 1, color=colour, linewidth=1.6)
    for begin, end, label in brackets:
        panel.annotate(
            "",
            (begin, _BRACKET_Y),
            (end, _BRACKET_Y),
            arrowprops={"arrowstyle": "|-|,widthA=.3,widthB=.3", "shrinkA": 0, "shrinkB": 0},
        )
        side = ("center", (begin + end) / 2) if begin else ("left", 0)
        panel.text(side[1], _BRACKET_Y + 0.14, label, ha=side[0], fontsize=9)
    panel.set_ylim(-0.1, _TOP)
    panel.set_yticks([])
    panel.tick_params(labelbottom=True)
    panel.minorticks_on()
    panel.grid(axis="x", alpha=0.5)
    panel.grid(axis="x", which="minor", alpha=0.2)


def _alt(data: pl.DataFrame, arms: dict[str, str], values: bool) -> list[str]:
    """A sentence for each arm; without values the times themselves, so that they can be read off here too."""
    said = []
    for arm in arms:
        pieces = _of(data, arm)
        if pieces.is_empty():
            said.append(f"{arm}: {_NOTHING}.")
            continue
        times = pieces["at_ms"].to_list()
        first, last, many = times[0], times[-1], f"{len(times)} pieces"
        if values:
            gap = number(_median_gap(pieces))
            said.append(
                f"{arm}: the first of {many} comes {number(first)} ms after the question was sent (TTFT), "
                f"the median gap between two (ITL) is {gap} ms, and the last comes at {number(last)} ms."
            )
        else:
            begin = ", ".join(map(number, times[:_FIRST_TOLD]))
            said.append(f"{arm}: of {many}, the first come at {begin} ms, and the last at {number(last)} ms.")
    return said
