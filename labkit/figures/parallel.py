"""Tensor parallelism in pictures: its arms beside each other, what the talk costs, and both ways to split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import NullLocator
from plotly.subplots import make_subplots

from labkit import parallel, predict, sharing
from labkit.bundle import Run
from labkit.errors import UsageError
from labkit.figures.base import (
    GRID,
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
    spread_told,
)
from labkit.parallel import Shape
from labkit.sides import people

PANELS = {"tokens_per_s": "total tokens/s", "ttft_ms_p50": "TTFT p50, ms", "itl_ms_p50": "ITL p50, ms"}
"""Columns that are drawn, one panel each."""

LOOKS = (
    Style("#0072B2", ("dot", ":"), ("circle", "o")),
    Style("#009E73", ("solid", "-"), ("square", "s")),
    Style("#D55E00", ("dash", "--"), ("diamond", "D")),
    Style("#7a7a7a", ("dashdot", "-."), ("triangle-up", "^")),
)
"""Of arms in their order: all are vLLM's, so they have colours of their own."""

_USERS = "users at once"
_NOTHING = "the run ended before its first level did."


def ranks(run: Run) -> Figure:
    """Total tokens/s, TTFT p50 and ITL p50 against users, a line for each way to use the devices."""
    data = ranks_data(run)
    lines = [*conditions(run), *spread_told(data, _NOTHING)]
    return Figure(
        data, _draw(data), _picture(data, badge_note(run)), _told(data, run.kind), markdown(lines), run.kind
    )


def ranks_data(run: Run) -> pl.DataFrame:
    """arm (:func:`labkit.parallel.label`), level, the columns of :data:`PANELS`, lower_bound, repeats."""
    names = {arm: parallel.label(about["settings"]) for arm, about in run.meta["arms"].items()}
    return run.summary().select(
        pl.col("arm").replace_strict(names, return_dtype=pl.String),
        "level",
        *PANELS,
        "lower_bound",
        "repeats",
    )


def larger(tables: Sequence[pl.DataFrame], names: Sequence[str]) -> Figure:
    """A machine that nobody measured here: predictions with their bands, a line each.

    Args:
        tables: of :func:`labkit.predict.sweep`.
        names: what to call each.
    """
    columns = [end for column in PANELS for end in (column, f"{column}_low", f"{column}_high")]
    data = pl.concat(
        table.select(pl.lit(name).alias("arm"), "level", *columns, pl.lit(value=False).alias("lower_bound"))
        for table, name in zip(tables, names, strict=True)
    )
    origin = predict.told(pl.concat(tables))
    lines = [
        f"**simulated** · {origin}",
        "- Shaded: nine times of ten a real engine would be in there, if it is like those that were public.",
    ]
    return Figure(
        data,
        _draw(data),
        _picture(data, f"simulated · {origin}"),
        _told(data, "simulated"),
        markdown(lines),
        "simulated",
    )


def _draw(data: pl.DataFrame) -> go.Figure:
    chart = make_subplots(rows=len(PANELS), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for row, column in enumerate(PANELS, start=1):
        for (arm, rows), look in zip(_by_arm(data), LOOKS, strict=False):
            if f"{column}_low" in data.columns:
                edges = pl.concat([rows[f"{column}_low"], rows[f"{column}_high"].reverse()])
                chart.add_scatter(
                    x=pl.concat([rows["level"], rows["level"].reverse()]).to_numpy(), y=edges.to_numpy(),
                    fill="toself", fillcolor=SHADE, line={"width": 0}, hoverinfo="skip", showlegend=False,
                    legendgroup=arm, row=row, col=1,
                )  # fmt: skip
            chart.add_scatter(
                name=arm, legendgroup=arm, showlegend=row == 1, meta=column,
                x=rows["level"].to_numpy(), y=rows[column].to_numpy(), mode="lines+markers",
                line={"color": look.colour, "dash": look.dash[0], "width": 2.5},
                marker={"symbol": look.marker[0], "size": 9, "color": look.colour},
                hovertemplate=f"{arm}<br>%{{x}} users: %{{y:.4g}} ({column})<extra></extra>",
                row=row, col=1,
            )  # fmt: skip
        if data.is_empty():
            chart.add_scatter(showlegend=False, row=row, col=1)  # else the panel would not be drawn at all
    plain_layout(chart, 620)
    levels = data["level"].unique().sort().to_list()
    chart.update_xaxes(
        type="log", tickvals=levels, ticktext=[str(n) for n in levels], gridcolor=GRID, zeroline=False
    )
    chart.update_xaxes(title=_USERS, row=len(PANELS))
    chart.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True, rangemode="tozero")
    for row, title in enumerate(PANELS.values(), start=1):
        chart.update_yaxes(title=title, row=row)
    return chart


def _by_arm(data: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    arms = data["arm"].unique(maintain_order=True).to_list()
    return [(arm, data.filter(arm=arm).sort("level")) for arm in arms]


def _picture(data: pl.DataFrame, note: str) -> bytes:
    picture = Picture(figsize=(11, 3.8), dpi=110, layout="constrained")
    panels = dict(zip(PANELS, picture.subplots(1, len(PANELS)), strict=True))
    for (arm, rows), look in zip(_by_arm(data), LOOKS, strict=False):
        for column, panel in panels.items():
            if f"{column}_low" in data.columns:
                low, high = rows[f"{column}_low"], rows[f"{column}_high"]
                panel.fill_between(rows["level"], low, high, color=look.colour, alpha=0.12, linewidth=0)
            picture_line(panel, look, rows, "level", column, width=2.2, label=arm)
    for column, panel in panels.items():
        panel.set_title(PANELS[column], fontsize=11)
        panel.set_ylim(bottom=0)
        _users_axis(panel, data)
    if not data.is_empty():
        panels["tokens_per_s"].legend(frameon=False)
    return picture_png(picture, note)


def _users_axis(panel: Axes, data: pl.DataFrame) -> None:
    levels = data["level"].unique().sort().to_list()
    panel.set_xscale("log", base=2)
    panel.set_xticks(levels, [str(n) for n in levels])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel(_USERS)
    panel.grid(alpha=0.3)


def _told(data: pl.DataFrame, kind: str) -> str:
    if data.is_empty():
        return f"Three empty charts of a {kind} run: {_NOTHING}"
    parts = []
    for arm, rows in _by_arm(data):
        last = rows.row(-1, named=True)
        values = ", ".join(f"{title} {number(last[column])}" for column, title in PANELS.items())
        parts.append(f"{arm}: with {people(last['level'])} {values}.")
    return " ".join([f"Three line charts, {kind}, over the number of users at once.", *parts])


def all_reduce(run: Run, shape: Shape) -> Figure:
    """The time of a step with and without the talk between ranks, a pair of bars for each number of users.

    Args:
        shape: of the model, for the number and the size of its all-reduces.

    Raises:
        Missing: the run has no arms to compare.
    """
    data = sharing.price(run, shape)
    last = data.row(-1, named=True) if data.height else None
    each = (
        f"with {people(last['level'])} {last['each_kib']:.3g} KiB and {last['each_us']:,.0f} µs for each"
        if last
        else "no level has both"
    )
    lines = [
        *conditions(run),
        f"- The layers of this model take {shape.reduces} all-reduces a step: {each}.",
        "- The difference of two medians: where it is below zero, noise or the cost of threads is larger.",
    ]
    told = "; ".join(
        f"{people(row['level'])}: {row['quiet_ms']:.3g} ms without talk, {row['split_ms']:.3g} ms with it"
        for row in data.iter_rows(named=True)
    )
    alt = f"Pairs of bars of a {run.kind} run, the median time of a step. {told}."
    return Figure(data, _bars(data), _bars_png(data, badge_note(run)), alt, markdown(lines), run.kind)


_BARS = {"quiet_ms": ("the same without talk", LOOKS[1]), "split_ms": ("ranks", LOOKS[2])}
_STEP = "ITL p50, ms: one step"


def _bars(data: pl.DataFrame) -> go.Figure:
    chart = go.Figure()
    names = [people(level) for level in data["level"]]
    for column, (name, look) in _BARS.items():
        chart.add_bar(name=name, x=names, y=data[column].to_numpy(), marker={"color": look.colour})
    plain_layout(chart, 320)
    chart.update_yaxes(title=_STEP, gridcolor=GRID, zeroline=False, rangemode="tozero")
    return chart


def _bars_png(data: pl.DataFrame, note: str) -> bytes:
    picture = Picture(figsize=(8, 3.4), dpi=110, layout="constrained")
    axis = picture.subplots()
    for shift, (column, (name, look)) in zip((-0.2, 0.2), _BARS.items(), strict=True):
        places = [place + shift for place in range(data.height)]
        bars = axis.bar(places, data[column], 0.38, color=look.colour, label=name)
        axis.bar_label(bars, fmt="%.3g", fontsize=8)
    axis.set_xticks(range(data.height), [people(level) for level in data["level"]])
    axis.set_ylabel(_STEP)
    axis.legend(frameon=False)
    return picture_png(picture, note)


def splits(shape: Shape, devices: int = 2, talk: float = 0.1) -> Figure:
    """One token on its way through a model on several devices: split by layers, and split by tensors.

    Computed, not measured: a step of one device is 1, and nothing but the talk stands between tokens.

    Args:
        talk: share of a step that one device would take which all its all-reduces take.

    Raises:
        UsageError: fewer than two devices, or a share below 0.
    """
    if devices < 2 or talk < 0:
        seen = f"{devices} devices and {talk:g} for the talk"
        raise UsageError("draw two ways to split a model", seen, "two devices at least, and no less than 0")
    data = splits_data(devices, talk)
    ends = dict(data.group_by("way", maintain_order=True).agg(pl.col("end").max()).iter_rows())
    told = "; ".join(f"{way}: a token takes {end:.2f} of one device's step" for way, end in ends.items())
    lines = [
        f"**computed, not measured** · {shape.layers} layers on {devices} devices",
        f"- {told}. Each device holds 1/{devices} of the weights either way.",
        f"- All {shape.reduces} all-reduces of a step are taken to cost {talk:.0%} of one device's step.",
    ]
    alt = f"Bars over time, a row a device, for two ways to split a model. {told}."
    note = "computed, not measured"
    return Figure(data, _flight(data), _flight_png(data, note), alt, markdown(lines), "simulated")


def splits_data(devices: int, talk: float) -> pl.DataFrame:
    """way, device, doing ("computes" or "talks"), start, end; in steps of one device."""
    part = 1 / devices
    rows: list[tuple[str, int, str, float, float]] = [
        ("split by layers", device, "computes", device * part, (device + 1) * part)
        for device in range(devices)
    ]
    for device in range(devices):
        rows.append(("split by tensors", device, "computes", 0.0, part))
        rows.append(("split by tensors", device, "talks", part, part + talk))
    return pl.DataFrame(rows, schema=["way", "device", "doing", "start", "end"], orient="row")


_HUES: Mapping[str, str] = {"computes": LOOKS[0].colour, "talks": LOOKS[2].colour}
_TIME = "time, in steps of one device"


def _rows_of(data: pl.DataFrame) -> list[str]:
    return [f"{way}, device {device}" for way, device in data.select("way", "device").rows()]


def _flight(data: pl.DataFrame) -> go.Figure:
    chart = go.Figure()
    for doing, hue in _HUES.items():
        some = data.filter(doing=doing)
        chart.add_bar(
            name=doing, orientation="h", y=_rows_of(some), base=some["start"].to_numpy(),
            x=(some["end"] - some["start"]).to_numpy(), marker={"color": hue},
        )  # fmt: skip
    plain_layout(chart, 300)
    chart.update_layout(barmode="overlay")
    chart.update_xaxes(title=_TIME, gridcolor=GRID, zeroline=False)
    chart.update_yaxes(autorange="reversed", automargin=True)
    return chart


def _flight_png(data: pl.DataFrame, note: str) -> bytes:
    picture = Picture(figsize=(8, 2.6), dpi=110, layout="constrained")
    axis = picture.subplots()
    for doing, hue in _HUES.items():
        some = data.filter(doing=doing)
        axis.barh(_rows_of(some), some["end"] - some["start"], left=some["start"], color=hue, label=doing)
    axis.invert_yaxis()
    axis.set_xlabel(_TIME)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    return picture_png(picture, note)
