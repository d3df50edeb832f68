"""The lanes of one level: each request a bar from sent to end, in it what happened meanwhile."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import MaxNLocator
from plotly.subplots import make_subplots

from labkit import metrics
from labkit.bundle import Run
from labkit.errors import UsageError
from labkit.figures.base import (
    CLEAR,
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
from labkit.queueing import in_order, load_words

MOST = 64
"""Requests drawn of an arm, the first ones that were sent: more could not be told apart."""

WAITING, READING = "#b0b0b0", "#6a6a6a"
"""Greys that stand out from JupyterLab's light and dark pages, and from each other."""

LOADED_S = 0.1
"""Ollama reports some milliseconds of loading for a model that is there already; they are no part to draw."""

_TIME = "seconds since the level began"
_NOTHING = "no request was sent"
_NOT_WHOLE = "no whole answer"
_OWN = ""  # the engine's colour
_PARTS = (  # column, in words, colour, plotly's pattern, matplotlib's hatch; in the order of time
    ("load_s", "loading the model", "#e4e4e4", "x", "xxx"),
    ("wait_s", "waiting", WAITING, "", ""),
    ("prefill_s", "prefill", READING, "", ""),
    ("unsplit_s", "waiting or prefill", WAITING, "/", "///"),
    ("decode_s", "writing the answer", _OWN, "", ""),
)

Panel = tuple[str, str, pl.DataFrame]
"""An arm, the colour of its engine and its rows."""


def lanes(run: Run, arm: str | None = None, level: int | None = None) -> Figure:
    """A bar for each request: waiting, prefill and writing, with how it ended where it got no whole answer.

    Args:
        arm: draw this one only (default: all that measured the level, one above the other).
        level: of the run (default: the highest that was measured).

    Raises:
        UsageError: the run has no such arm or level; the fix lists those that it has.
    """
    data = lanes_data(run, arm, level)
    panels = [
        (name, COLOURS.get(engine, INK), data.filter(arm=name))
        for name, engine in data.select("arm", "engine").unique(maintain_order=True).rows()
    ]
    what = load_words(run, int(data["level"][0])) if len(data) else _NOTHING
    told = [f"Requests of a {run.kind} run over time, a bar each: {what}.", *map(_alt, panels)]
    return Figure(
        data,
        _chart(panels),
        _png(panels, badge_note(run)),
        " ".join(told),
        markdown([*conditions(run), f"- Drawn: {what}.", *_reservations(run, data)]),
        run.kind,
    )


def lanes_data(run: Run, arm: str | None = None, level: int | None = None) -> pl.DataFrame:
    """What the figure draws: the first repeat of one level, a row for each request in the order of sending.

    Returns:
        arm, engine, level, repeat, place (from 1), sent_s (since the level began); then in seconds, one after
        the other from there, null where there was no such part: load_s (the engine loads the model), wait_s
        with queue_basis, prefill_s, unsplit_s (waiting or prefill: all before the first token, where nothing
        tells them apart), decode_s; ttft_s, end_s (since the level began), ended (:func:`outcome_word`).

    Raises:
        UsageError: see :func:`lanes`.
    """
    rows = in_order(run)
    if arm is not None:
        _check(run, "arm", arm, run.arms)
        rows = rows.filter(pl.col("arm") == arm)
    levels = rows["level"].unique().sort().to_list()
    if level is not None:
        _check(run, "level", level, levels)
    elif levels:
        level = levels[-1]
    rows = rows.filter(pl.col("level") == pl.lit(level, pl.Int64))
    rows = rows.filter(pl.col("repeat") == pl.col("repeat").min().over("arm"), pl.col("place") <= MOST)
    sent = pl.coalesce("sent_s", "intended_s")
    end = pl.coalesce("end_s", pl.max_horizontal("end_s", "last_token_s").max().over("arm"))
    before = pl.coalesce("first_token_s", end) - sent
    began = pl.col("intended_s").min().over("arm")
    split = pl.col("queue_s").is_not_null() & pl.col("first_token_s").is_not_null()
    load = pl.col("load_s").fill_null(0.0)
    return rows.sort(pl.col("arm").cast(pl.Enum(run.arms)), "place").select(
        "arm",
        "engine",
        "level",
        "repeat",
        "place",
        sent_s=sent - began,
        load_s=pl.when(split & (load > 0)).then(load),
        wait_s=pl.when(split).then("queue_s"),
        prefill_s=pl.when(split).then((before - load - pl.col("queue_s")).clip(lower_bound=0)),
        unsplit_s=pl.when(~split).then(before),
        decode_s=end - pl.col("first_token_s"),
        queue_basis=pl.when(split).then("queue_basis"),
        ttft_s=metrics.TTFT,
        end_s=end - began,
        ended=pl.struct("outcome", "http_status").map_elements(
            lambda row: outcome_word(row["outcome"], row["http_status"]), return_dtype=pl.String
        ),
    )


def outcome_word(outcome: str, http_status: int | None) -> str:
    """How a request ended, in a word for a bar: "ok", "503", "failed", "cancelled", "cut off"."""
    if outcome == "failed" and http_status is not None and http_status >= 400:
        return str(http_status)
    return "cut off" if outcome == "unfinished" else outcome


def _check(run: Run, what: str, asked: str | int, there: list[str] | list[int]) -> None:
    if asked not in there:
        names = ", ".join(map(str, there)) or "none"
        raise UsageError(f"draw the lanes of {what} {asked}", f"not in {run.path.name}", f"one of: {names}")


def _segments(rows: pl.DataFrame) -> list[tuple[str, str, str, str, pl.DataFrame]]:
    """The parts that these bars have: in words, colour, two patterns, and place, from_s and lasts_s."""
    found = []
    at = pl.col("sent_s")
    for column, words, colour, pattern, hatch in _PARTS:
        part = rows.select("place", from_s=at, lasts_s=column).drop_nulls("lasts_s")
        at = at + pl.col(column).fill_null(0.0)
        if len(part) and (column != "load_s" or part["lasts_s"].max() > LOADED_S):  # type: ignore[operator]
            found.append((words, colour, pattern, hatch, part))
    return found


def _not_whole(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.col("ended") != "ok")


def _chart(panels: list[Panel]) -> go.Figure:
    count = max(len(panels), 1)
    chart = make_subplots(
        rows=count,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.12 / count,
        subplot_titles=[name for name, _, _ in panels],
        row_heights=_heights(panels),
    )
    for row, panel in enumerate(panels, start=1):
        for trace in _traces(panel):
            chart.add_trace(trace, row=row, col=1)
    if not panels:  # a panel without a line would not be drawn at all
        chart.add_bar(showlegend=False)
    named: set[str] = set()
    for trace in chart.data:  # one entry of the legend for what all panels share
        trace.showlegend = trace.legendgroup is not None and trace.legendgroup not in named
        named.add(trace.legendgroup)
    plain_layout(chart, 110 + 50 * count + sum(min(15 * bars, 270 + 3 * bars) for bars in _heights(panels)))
    chart.update_layout(barmode="overlay", bargap=0.25)
    chart.update_annotations(font={"color": INK, "size": 13}, x=0, xanchor="left")
    chart.update_xaxes(gridcolor=GRID, zeroline=False, rangemode="tozero")
    chart.update_xaxes(title=_TIME, row=count)
    chart.update_yaxes(
        title="request",
        autorange="reversed",
        tickformat="d",
        gridcolor=CLEAR,
        zeroline=False,
        automargin=True,
    )
    return chart


def _heights(panels: list[Panel]) -> list[int]:
    """Of the panels, in bars."""
    return [max(len(rows), 4) for _, _, rows in panels] or [4]


def _traces(panel: Panel) -> list[go.Bar | go.Scatter]:
    name, own, rows = panel
    traces = [
        go.Bar(
            name=_label(words, colour, name),
            legendgroup=_label(words, colour, name),
            orientation="h",
            y=part["place"].to_numpy(),
            base=part["from_s"].to_numpy(),
            x=part["lasts_s"].to_numpy(),
            marker={"color": colour or own, "pattern": {"shape": pattern}, "line": {"width": 0}},
            hovertemplate=f"{name}, request %{{y}}<br>{words}: %{{x:.3g}} s<extra></extra>",
        )
        for words, colour, pattern, _, part in _segments(rows)
    ]
    if len(lost := _not_whole(rows)):
        traces.append(
            go.Scatter(
                name=_NOT_WHOLE,
                legendgroup=_NOT_WHOLE,
                mode="markers+text",
                marker={"symbol": "x", "color": INK, "size": 8},
                x=lost["end_s"].to_numpy(),
                y=lost["place"].to_numpy(),
                text=lost["ended"].to_list(),
                textposition="middle right",
                hovertemplate=f"{name}, request %{{y}}: %{{text}}<extra></extra>",
            )
        )
    return traces


def _label(words: str, colour: str, arm: str) -> str:
    return f"{words}: {arm}" if colour == _OWN else words


def _png(panels: list[Panel], note: str) -> bytes:
    heights = _heights(panels)
    size = (10, 1.3 + 0.4 * len(heights) + sum(min(0.16 * bars, 3 + 0.02 * bars) for bars in heights))
    picture = Picture(figsize=size, dpi=110, layout="constrained")
    axes = picture.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, panel in zip(axes, panels, strict=False):  # without panels one empty axis is left
        _draw(axis, panel)
    axes[-1].set_xlabel(_TIME)
    axes[-1].set_xlim(left=0)
    entries = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if entries:
        picture.legend(
            entries.values(), entries.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=9
        )
    return picture_png(picture, note)


def _draw(axis: Axes, panel: Panel) -> None:
    name, own, rows = panel
    for words, colour, _, hatch, part in _segments(rows):
        axis.barh(
            part["place"],
            part["lasts_s"],
            left=part["from_s"],
            height=0.75,
            color=colour or own,
            hatch=hatch,
            edgecolor="0.35",
            linewidth=0,
            label=_label(words, colour, name),
        )
    lost = _not_whole(rows)
    if len(lost):
        axis.plot(lost["end_s"], lost["place"], "x", color="0.1", label=_NOT_WHOLE, clip_on=False)
        for place, word, at in lost.select("place", "ended", "end_s").rows():
            axis.annotate(word, (at, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_title(name, fontsize=11, loc="left")
    axis.set_ylabel("request")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(_heights([panel])[0] + 0.5, 0.5)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)


def _alt(panel: Panel) -> str:
    name, _, rows = panel
    answered = rows.drop_nulls("ttft_s")
    told = [f"{len(rows)} request{'' if len(rows) == 1 else 's'}"]
    if len(answered):
        told.append(f"the first token came {_range(answered['ttft_s'])} s after sending")
    split = answered.drop_nulls("wait_s")
    if len(split):
        basis = "/".join(split["queue_basis"].unique().sort())
        told.append(f"of which {_range(split['wait_s'])} s waiting ({basis})")
    told.append(f"the last one ended after {number(rows['end_s'].max())} s")  # type: ignore[arg-type]  # of floats
    lost = _not_whole(rows)["ended"].value_counts(sort=True).rows()
    told += [f"{count} of them: {word}" for word, count in lost] or ["all got a whole answer"]
    return f"{name}: {', '.join(told)}."


def _range(values: pl.Series) -> str:
    low, high = number(values.min()), number(values.max())  # type: ignore[arg-type]  # of floats
    return low if low == high else f"{low} to {high}"


def _reservations(run: Run, data: pl.DataFrame) -> list[str]:
    """What a reader should know before believing the parts of a bar."""
    lines = []
    for arm, rows in data.group_by("arm", maintain_order=True):
        bases = set(rows["queue_basis"].drop_nulls())
        if "reported" in bases:
            lines.append(f"- {arm[0]}: prefill as the engine reports it, waiting is the rest of the TTFT.")
        if "estimated" in bases:
            lines.append(
                f"- {arm[0]}: the engine does not report it; prefill is the TTFT of the idle engine, waiting "
                "the rest: an upper limit."
            )
        asked = run.requests.filter(~pl.col("warmup"), arm=arm[0], level=rows["level"][0])
        if asked["repeat"].n_unique() > 1 or len(asked) > len(rows):
            lines.append(
                f"- {arm[0]}: {len(rows)} of {len(asked)} requests at this level are drawn, the first ones."
            )
    return lines
