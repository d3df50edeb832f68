"""What a decision rests on: how far off predictions were, and for how many users a promise is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import NullLocator
from plotly.subplots import make_subplots

from labkit import predict
from labkit.bundle import Run
from labkit.figures.base import (
    COLOURS,
    GRID,
    INK,
    Figure,
    Style,
    badge_note,
    conditions,
    markdown,
    number,
    picture_png,
    plain_layout,
    styles,
)
from labkit.sides import people
from labkit.slo import NAMES, Slo, kept, seats

_ERROR = "signed error, %: left too low, right too high"
_USERS = "users at once"
_LINE = "#009E73"
"""The plain line's marks; with the engines' two, three colours that are told apart with any vision."""


def forecast(errors: pl.DataFrame, run: Run, predicted: pl.DataFrame) -> Figure:
    """How far a prediction and a plain line were off what was measured then, each as a signed error.

    Args:
        errors: of :func:`labkit.predict.errors`.
        run: the measurement.
        predicted: the prediction.
    """
    data = errors.select(
        "arm", "engine", "level", "metric", "measured", "predicted", "inside", "error", "line", "line_error"
    )
    lines = [
        *conditions(run),
        f"- Simulator: {predict.told(predicted)}.",
        "- Line: straight between the two nearest levels of the earlier run that a fit may see, or on from "
        "the last two.",
        *(
            ["- Hollow: the measurement lies outside the prediction's 90 % band."]
            if _outside(data).any()
            else []
        ),
    ]
    return Figure(
        data,
        _draw_forecast(data),
        _forecast_png(data, badge_note(run)),
        _forecast_alt(run, data),
        markdown(lines),
        run.kind,
    )


def _outside(data: pl.DataFrame) -> pl.Series:
    return data["inside"].fill_null(value=True).not_()


def _labels(data: pl.DataFrame) -> list[str]:
    return [
        f"{row['engine']}, {people(row['level'])}: {predict.WORDS[row['metric']]}"
        for row in data.iter_rows(named=True)
    ]


def _draw_forecast(data: pl.DataFrame) -> go.Figure:
    chart = go.Figure()
    labels = _labels(data)
    symbols = ["diamond-open" if out else "diamond" for out in _outside(data)]
    for name, column, colour, symbol in (
        ("simulator", "error", COLOURS["vllm"], symbols),
        ("line", "line_error", _LINE, ["line-ns-open"] * len(labels)),
    ):
        chart.add_scatter(
            name=name,
            meta=column,
            x=(100 * data[column]).to_numpy(),
            y=labels,
            mode="markers",
            marker={"symbol": symbol, "size": 12, "color": colour, "line": {"width": 2, "color": colour}},
            hovertemplate=f"%{{y}}, {name}: %{{x:+.0f}} %<extra></extra>",
        )
    plain_layout(chart, 130 + 26 * len(labels))
    chart.add_vline(x=0, line={"color": INK, "width": 1.5})
    chart.update_xaxes(title=_ERROR, gridcolor=GRID, zeroline=False)
    chart.update_yaxes(autorange="reversed", gridcolor=GRID, automargin=True)
    return chart


def _forecast_png(data: pl.DataFrame, note: str) -> bytes:
    labels = _labels(data)
    picture = Picture(figsize=(8, 1.4 + 0.26 * len(labels)), dpi=110, layout="constrained")
    panel = picture.subplots()
    at = range(len(labels))
    out = _outside(data).to_list()
    faces = ["none" if one else COLOURS["vllm"] for one in out]
    panel.scatter(
        100 * data["error"], at, marker="D", facecolors=faces, edgecolors=COLOURS["vllm"], label="simulator"
    )
    panel.scatter(100 * data["line_error"].cast(pl.Float64), at, marker="|", s=120, color=_LINE, label="line")
    panel.axvline(0, color="0.35", linewidth=1.2)
    panel.set_yticks(list(at), labels, fontsize=8)
    panel.invert_yaxis()
    panel.set_xlabel(_ERROR)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize=8)
    return picture_png(picture, note)


def _forecast_alt(run: Run, data: pl.DataFrame) -> str:
    told = []
    for label, row in zip(_labels(data), data.iter_rows(named=True), strict=True):
        plain = "" if row["line_error"] is None else f", line {row['line_error']:+.0%}"
        told.append(f"{label}: simulator {row['error']:+.0%}{plain}")
    return f"Signed errors of predictions of a {run.kind} run, one row each. {'; '.join(told)}."


def promise(run: Run, slo: Slo, predicted: pl.DataFrame | None = None) -> Figure:
    """What the promised share of users saw at most, against the number of users, with the promised limit.

    Args:
        slo: the promise; one panel for each of its limits.
        predicted: of other settings or numbers of users (:func:`labkit.predict.sweep`), drawn dotted with its
            band.
    """
    data = promise_data(run, slo, predicted)
    told = [sentence for given in _sources(run, predicted) for sentence in seats(given, slo)["sentence"]]
    basis = [] if predicted is None else [f"- Dotted: {predict.told(predicted)}; bars are its 90 % band."]
    return Figure(
        data,
        _draw_promise(data, slo),
        _promise_png(data, slo, badge_note(run)),
        " ".join([_promise_alt(run, data, slo), *told]),
        markdown([*conditions(run), *basis, *(f"- {sentence}" for sentence in told)]),
        run.kind,
    )


def promise_data(run: Run, slo: Slo, predicted: pl.DataFrame | None = None) -> pl.DataFrame:
    """What the figure draws, one row per arm, basis and level.

    Returns:
        arm, engine, level, basis ("measured" or "predicted"); ttft_s, tpot_s and e2e_s, each at the promised
        share of the answers, with _low and _high; holds.
    """
    columns = [f"{limit}{end}" for limit in NAMES for end in ("", "_low", "_high")]
    return pl.concat(
        kept(given, slo).select("arm", "engine", "level", "basis", *columns, "holds")
        for given in _sources(run, predicted)
    )


def _sources(run: Run, predicted: pl.DataFrame | None) -> list[Run | pl.DataFrame]:
    return [run] if predicted is None else [run, predicted]


def _title(slo: Slo, column: str) -> str:
    return f"{slo.percentile} of {NAMES[column]}, s"


def _lines(data: pl.DataFrame) -> Iterator[tuple[str, str, Style, pl.DataFrame]]:
    """Arm, basis, look and rows of each line; predicted ones are dotted."""
    looks = styles(dict(data.select("arm", "engine").unique(maintain_order=True).rows()))
    for arm, basis in data.select("arm", "basis").unique(maintain_order=True).rows():
        yield arm, basis, looks[arm], data.filter(arm=arm, basis=basis).sort("level")


def _draw_promise(data: pl.DataFrame, slo: Slo) -> go.Figure:
    limits = slo.limits
    chart = make_subplots(rows=len(limits), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for row, (column, limit) in enumerate(limits.items(), start=1):
        for arm, basis, style, rows in _lines(data):
            chart.add_trace(_trace(arm, basis, style, rows, column, legend=row == 1), row=row, col=1)
        if data.is_empty():
            chart.add_scatter(showlegend=False, row=row, col=1)
        chart.add_hline(y=limit, line={"color": INK, "width": 2}, row=row, col=1)
        chart.update_yaxes(title=_title(slo, column), type="log", dtick=1, row=row)
    plain_layout(chart, 120 + 260 * len(limits))
    levels = data["level"].unique().sort().to_list()
    ticks = {"tickvals": levels, "ticktext": [str(n) for n in levels]}
    chart.update_xaxes(type="log", gridcolor=GRID, zeroline=False, **ticks)
    chart.update_xaxes(title=_USERS, row=len(limits))
    chart.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)
    return chart


def _trace(
    arm: str, basis: str, style: Style, rows: pl.DataFrame, column: str, *, legend: bool
) -> go.Scatter:
    guessed = basis == "predicted"
    return go.Scatter(
        name=f"{arm}, {basis}",
        meta=column,
        legendgroup=f"{arm}, {basis}",
        showlegend=legend,
        x=rows["level"].to_numpy(),
        y=rows[column].to_numpy(),
        mode="lines+markers",
        line={
            "color": style.colour,
            "dash": "dot" if guessed else style.dash[0],
            "width": 1.2 + (not guessed),
        },
        marker={
            "symbol": f"{style.marker[0]}-open" if guessed else style.marker[0],
            "size": 8,
            "color": style.colour,
        },
        error_y=_band(rows, column, style.colour) if guessed else None,
        hovertemplate=f"{arm}, {basis}<br>%{{x}} users: %{{y:.3g}} s<extra></extra>",
    )


def _band(rows: pl.DataFrame, column: str, colour: str) -> dict[str, Any]:
    low, high = _arms_of_band(rows, column)
    return {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "color": colour}


def _arms_of_band(rows: pl.DataFrame, column: str) -> tuple[list[float], list[float]]:
    """How far the band reaches below and above each value; 0 where there is none."""
    below = (rows[column] - rows[f"{column}_low"]).fill_null(0.0)
    above = (rows[f"{column}_high"] - rows[column]).fill_null(0.0)
    return below.to_list(), above.to_list()


def _promise_png(data: pl.DataFrame, slo: Slo, note: str) -> bytes:
    limits = slo.limits
    picture = Picture(figsize=(2 + 4 * len(limits), 4), dpi=110, layout="constrained")
    panels = picture.subplots(1, len(limits), squeeze=False)[0]
    for panel, (column, limit) in zip(panels, limits.items(), strict=True):
        for arm, basis, style, rows in _lines(data):
            _draw_line(panel, f"{arm}, {basis}", style, rows, column, guessed=basis == "predicted")
        panel.axhline(limit, color="0.35", linewidth=1.5)
        panel.set_title(_title(slo, column), fontsize=11)
        panel.set_yscale("log")
        _users_axis(panel, data["level"].unique().sort().to_list())
    if not data.is_empty():
        panels[0].legend(frameon=False, fontsize=7)
    return picture_png(picture, note)


def _draw_line(
    panel: Axes, label: str, style: Style, rows: pl.DataFrame, column: str, *, guessed: bool
) -> None:
    panel.errorbar(
        rows["level"],
        rows[column],
        _arms_of_band(rows, column) if guessed else None,
        linestyle=":" if guessed else style.dash[1],
        color=style.colour,
        marker=style.marker[1],
        markerfacecolor="none" if guessed else style.colour,
        linewidth=1.2 if guessed else 2.2,
        capsize=2,
        elinewidth=1,
        label=label,
    )


def _users_axis(panel: Axes, levels: list[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(levels, [str(level) for level in levels])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel(_USERS)
    panel.grid(alpha=0.3)


def _promise_alt(run: Run, data: pl.DataFrame, slo: Slo) -> str:
    limits = slo.limits
    said = []
    for arm, basis, _, rows in _lines(data):
        parts = [
            f"{NAMES[column]} {number(rows[column][0])} to {number(rows[column][-1])} s" for column in limits
        ]
        ends = f"from {rows['level'][0]} to {people(rows['level'][-1])}"
        said.append(f"{arm}, {basis}, {ends}: {', '.join(parts)}.")
    chart = f"Line charts of a {run.kind} run over the number of users at once; promised is {slo}."
    return " ".join([chart, *(said or ["They are empty: the run ended before its first level did."])])
