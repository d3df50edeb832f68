"""Traffic that moves from one engine to the other, and what a proxy adds to the way."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import polars as pl
from matplotlib.figure import Figure as Picture
from plotly.subplots import make_subplots

from labkit import migration
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

_SHARE, _REQUESTS = "share of vLLM, %", "requests of each phase"
_TIME = "seconds since the run began"
_ADDED = "added to the first token, ms"
TITLES = {"ollama": "Ollama", "vllm": "vLLM"}


def shift(run: Run) -> Figure:
    """The share that was asked for over time, what was measured of it, and who answered how many.

    Raises:
        UsageError: no share was moved in this run.
    """
    data = migration.phases(run)
    return Figure(
        data, _shift_chart(data), _shift_png(data, badge_note(run)), _shift_alt(run, data),
        _shift_caption(run, data), run.kind,
    )  # fmt: skip


def _steps(data: pl.DataFrame) -> tuple[list[float], list[float]]:
    """The wanted share as a line: two points a phase."""
    times = [end for span in data.select("from_s", "to_s").rows() for end in span]
    return times, [share for share in data["wanted"] for _ in range(2)]


def _measured(data: pl.DataFrame) -> pl.DataFrame:
    """The phases with a measured share, each with the middle of its time and the reach of its interval."""
    return data.drop_nulls("measured").with_columns(
        at_s=(pl.col("from_s") + pl.col("to_s")) / 2,
        above=pl.col("high") - pl.col("measured"),
        below=pl.col("measured") - pl.col("low"),
    )


def _shift_chart(data: pl.DataFrame) -> go.Figure:
    chart = make_subplots(rows=2, cols=1, shared_xaxes=False, vertical_spacing=0.16, row_heights=[0.6, 0.4])
    times, shares = _steps(data)
    chart.add_scatter(
        name="asked for", x=times, y=shares, line={"color": INK, "width": 2, "dash": "dot"}, row=1, col=1
    )
    rows = _measured(data)
    chart.add_scatter(
        name="measured, with its 95 % interval",
        x=rows["at_s"].to_numpy(),
        y=rows["measured"].to_numpy(),
        mode="markers",
        marker={"color": COLOURS["vllm"], "size": 10, "symbol": "square"},
        error_y={
            "type": "data", "symmetric": False, "color": COLOURS["vllm"],
            "array": rows["above"].to_numpy(), "arrayminus": rows["below"].to_numpy(),
        },
        hovertemplate="%{y:.1f} % measured<extra></extra>",
        row=1,
        col=1,
    )  # fmt: skip
    for engine, title in TITLES.items():
        chart.add_bar(
            name=title, x=_names(data), y=data[engine].to_numpy(), marker={"color": COLOURS[engine]},
            hovertemplate=f"{title}: %{{y}} requests<extra></extra>", row=2, col=1,
        )  # fmt: skip
    plain_layout(chart, 520)
    chart.update_layout(barmode="stack")
    chart.update_xaxes(title=_TIME, gridcolor=GRID, zeroline=False, row=1)
    chart.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)
    chart.update_yaxes(title=_SHARE, range=[-5, 105], row=1)
    chart.update_yaxes(title=_REQUESTS, row=2)
    return chart


def _names(data: pl.DataFrame) -> list[str]:
    """The phases in words; two of one share are told apart."""
    return [f"{n + 1}: {share:g} %" for n, share in enumerate(data["wanted"])]


def _shift_png(data: pl.DataFrame, note: str) -> bytes:
    picture = Picture(figsize=(11, 4), dpi=110, layout="constrained")
    share, counts = picture.subplots(1, 2, width_ratios=(3, 2))
    share.plot(*_steps(data), ":", color="0.45", linewidth=2, label="asked for")
    rows = _measured(data)
    share.errorbar(
        rows["at_s"], rows["measured"], [rows["below"].to_list(), rows["above"].to_list()],
        fmt="s", color=COLOURS["vllm"], capsize=4, label="measured, with its 95 % interval",
    )  # fmt: skip
    share.set_ylim(-5, 105)
    share.set_xlabel(_TIME)
    share.set_title(_SHARE, fontsize=11)
    below = pl.Series([0] * data.height)
    for engine, title in TITLES.items():
        hatch = "//" if engine == "vllm" else ""
        counts.bar(
            _names(data), data[engine], bottom=below, color=COLOURS[engine], label=title, hatch=hatch,
            edgecolor="white",
        )  # fmt: skip
        below += data[engine]
    counts.set_title(_REQUESTS, fontsize=11)
    for panel in (share, counts):
        panel.grid(axis="y", alpha=0.3)
        panel.legend(frameon=False, fontsize=8)
    return picture_png(picture, note)


def _shift_alt(run: Run, data: pl.DataFrame) -> str:
    told = [
        f"{row['wanted']:g} % asked for: {number(row['measured'])} % measured, between {number(row['low'])} "
        f"and {number(row['high'])} %, of {row['n']}."
        for row in data.rows(named=True)
    ]
    return " ".join([f"Share of vLLM over time in a {run.kind} run, and requests by server.", *told])


def _shift_caption(run: Run, data: pl.DataFrame) -> str:
    total = migration.account(run)
    between = migration.moving(run).height
    lines = [
        f"- {total['planned']} requests: {total['ok']} ok, {total['failed']} failed, {total['cancelled']} "
        f"cancelled, {total['unfinished']} unfinished, {total['lost']} lost.",
        f"- {between} were sent while the share changed and belong to no phase; a request that was under way "
        "belongs to the share of the moment when it was sent.",
        "- Intervals are Wilson's, for a proportion, at 95 %: they say how far chance alone may be off.",
    ]
    return markdown([*conditions(run), *lines])


def gateway(run: Run) -> Figure:
    """What each proxy adds to the time to first token, with the interval of that difference.

    Raises:
        UsageError: there is nothing to compare with; see :func:`labkit.migration.added`.
    """
    data = migration.added(run)
    return Figure(
        data, _gateway_chart(data), _gateway_png(data, badge_note(run)), _gateway_alt(run, data),
        _gateway_caption(run, data), run.kind,
    )  # fmt: skip


def _ways(data: pl.DataFrame) -> pl.DataFrame:
    """The arms through a proxy: the first one is the way without."""
    return data.slice(1).with_columns(
        above=pl.col("added_ttft_ms_high") - pl.col("added_ttft_ms"),
        below=pl.col("added_ttft_ms") - pl.col("added_ttft_ms_low"),
    )


def _gateway_chart(data: pl.DataFrame) -> go.Figure:
    rows = _ways(data)
    reach: dict[str, Any] = {
        "type": "data", "symmetric": False, "color": COLOURS["vllm"],
        "array": rows["above"].to_numpy(), "arrayminus": rows["below"].to_numpy(),
    }  # fmt: skip
    chart = go.Figure()
    chart.add_scatter(
        x=rows["added_ttft_ms"].to_numpy(), y=rows["arm"].to_list(), mode="markers", error_x=reach,
        marker={"color": COLOURS["vllm"], "size": 11, "symbol": "square"},
        hovertemplate="%{y}: %{x:.2f} ms<extra></extra>",
    )  # fmt: skip
    plain_layout(chart, 150 + 60 * rows.height)
    chart.add_vline(x=0, line={"color": INK, "width": 1})
    chart.update_xaxes(title=_ADDED, gridcolor=GRID, zeroline=False, rangemode="tozero")
    chart.update_yaxes(automargin=True, autorange="reversed")
    return chart


def _gateway_png(data: pl.DataFrame, note: str) -> bytes:
    rows = _ways(data)
    picture = Picture(figsize=(8, 1.6 + 0.5 * rows.height), dpi=110, layout="constrained")
    axis = picture.subplots()
    axis.errorbar(
        rows["added_ttft_ms"], rows["arm"], xerr=[rows["below"].to_list(), rows["above"].to_list()],
        fmt="s", color=COLOURS["vllm"], capsize=4,
    )  # fmt: skip
    axis.axvline(0, color="0.4", linewidth=1)
    axis.margins(y=0.5)
    axis.invert_yaxis()
    axis.set_xlabel(_ADDED)
    axis.grid(axis="x", alpha=0.3)
    return picture_png(picture, note)


def _gateway_alt(run: Run, data: pl.DataFrame) -> str:
    told = [
        f"{row['arm']}: {row['added_ttft_ms']:.2f} ms more than without it, between "
        f"{row['added_ttft_ms_low']:.2f} and {row['added_ttft_ms_high']:.2f} ms."
        for row in _ways(data).rows(named=True)
    ]
    return " ".join([f"Points with intervals: what a proxy adds, in a {run.kind} run.", *told])


def _gateway_caption(run: Run, data: pl.DataFrame) -> str:
    lines = [
        f"- {row['arm']}: first token after {number(row['ttft_ms_p50'])} ms (p50), "
        f"{row['cached_tokens']} prompt tokens from a cache."
        for row in data.rows(named=True)
    ]
    pairs = (
        "- Each point is the median difference between answers to the same question, "
        "the bar its 95 % interval."
    )
    return markdown([*conditions(run), *lines, pairs])
