"""The staircase: how long each request of a burst waited for its first token, and who came first."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import MaxNLocator
from plotly.subplots import make_subplots

from labkit.bundle import Run
from labkit.figures.base import (
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
from labkit.queueing import in_order, load_words

_SENT = "place in the order of sending"
_TTFT = "TTFT, s"
_SERVED = "place in the order of first tokens"


def staircase(run: Run, level: int | None = None) -> Figure:
    """TTFT against the order of first tokens, and this order against that of sending.

    Requests that are sent at one moment reach a server in an order of chance; only those that were sent apart
    from each other tell whether it keeps the order.

    Args:
        level: of the run (default: the highest that was measured).
    """
    data = staircase_data(run, level)
    engines = dict(data.select("arm", "engine").unique(maintain_order=True).rows())
    arms = [(arm, look, data.filter(arm=arm)) for arm, look in styles(engines).items()]
    return Figure(
        data, _chart(arms), _png(arms, badge_note(run)), _alt(run, arms), _caption(run, data), run.kind
    )


def staircase_data(run: Run, level: int | None = None) -> pl.DataFrame:
    """What the staircase draws, a row for each request.

    Returns:
        arm, engine, level, repeat, place, served, ttft_s (:func:`labkit.queueing.in_order`), outcome,
        http_status; stair, where it stands on the stairs: ``served``, and after those all that got no token.
    """
    rows = in_order(run)
    wanted = pl.col("level").max() if level is None else pl.lit(level)
    columns = ("arm", "engine", "level", "repeat", "place", "served", "ttft_s", "outcome", "http_status")
    line = rows.filter(pl.col("level") == wanted).sort(
        "arm", "repeat", "served", "place", nulls_last=True, maintain_order=True
    )
    return line.select(*columns, stair=pl.int_range(1, pl.len() + 1).over("arm", "repeat"))


Arms = list[tuple[str, Style, pl.DataFrame]]


def _steps(rows: pl.DataFrame) -> pl.DataFrame:
    """The stairs: medians over the repeats."""
    return rows.drop_nulls("ttft_s").group_by("stair").agg(pl.col("ttft_s").median()).sort("stair")


def _answered(rows: pl.DataFrame) -> pl.DataFrame:
    """Those that got a token; ``place`` counts only them."""
    return rows.drop_nulls("ttft_s").with_columns(pl.col("place").rank("ordinal").over("repeat"))


def _chart(arms: Arms) -> go.Figure:
    chart = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for arm, look, rows in arms:
        steps, answered = _steps(rows), _answered(rows)
        line = {"color": look.colour, "dash": look.dash[0], "width": 2}
        dots = {"color": look.colour, "symbol": look.marker[0], "size": 8}
        chart.add_scatter(
            name=arm, legendgroup=arm, x=steps["stair"].to_numpy(), y=steps["ttft_s"].to_numpy(),
            mode="lines", line={**line, "shape": "hvh"}, hoverinfo="skip", row=1, col=1,
        )  # fmt: skip
        for column, row in (("ttft_s", 1), ("place", 2)):
            chart.add_scatter(
                name=arm, legendgroup=arm, showlegend=False, mode="markers", marker=dots,
                x=answered["stair"].to_numpy(), y=answered[column].to_numpy(),
                hovertemplate=f"{arm}<br>served as number %{{x}}: %{{y:.4g}}<extra></extra>", row=row, col=1,
            )  # fmt: skip
        away = rows.filter(pl.col("ttft_s").is_null())
        if len(away):
            chart.add_scatter(
                name=f"{arm}: no answer", x=away["stair"].to_numpy(), y=[0.0] * len(away), mode="markers",
                marker={"color": look.colour, "symbol": "x", "size": 9},
                text=[_why(row) for row in away.to_dicts()],
                hovertemplate="%{text}<extra></extra>", row=1, col=1,
            )  # fmt: skip
    last = max((len(_steps(rows)) for _, _, rows in arms), default=1)
    chart.add_scatter(
        name="in the order sent", x=[1, last], y=[1, last], mode="lines", hoverinfo="skip",
        line={"color": INK, "dash": "dot", "width": 1}, row=2, col=1,
    )  # fmt: skip
    plain_layout(chart, 520)
    chart.update_xaxes(gridcolor=GRID, zeroline=False)
    chart.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)
    chart.update_yaxes(title=_TTFT, rangemode="tozero", row=1)
    chart.update_yaxes(title=_SENT, row=2)
    chart.update_xaxes(title=_SERVED, row=2)
    return chart


def _png(arms: Arms, note: str) -> bytes:
    picture = Picture(figsize=(10, 4.2), dpi=110, layout="constrained")
    stairs, order = picture.subplots(1, 2)
    for arm, look, rows in arms:
        steps, answered = _steps(rows), _answered(rows)
        stairs.step(steps["stair"], steps["ttft_s"], look.dash[1], where="mid", color=look.colour, label=arm)
        for panel, column in ((stairs, "ttft_s"), (order, "place")):
            panel.plot(answered["stair"], answered[column], look.marker[1], color=look.colour)
        away = rows.filter(pl.col("ttft_s").is_null())
        if len(away):
            stairs.plot(away["stair"], [0.0] * len(away), "x", color=look.colour, label=f"{arm}: no answer")
    order.axline((1, 1), slope=1, color="0.5", linestyle=":", linewidth=1, label="in the order sent")
    _dress(stairs, _TTFT)
    _dress(order, _SENT)
    stairs.set_ylim(bottom=0)
    order.set_xlim(stairs.get_xlim())
    order.yaxis.set_major_locator(MaxNLocator(integer=True))
    return picture_png(picture, note)


def _dress(panel: Axes, title: str) -> None:
    panel.set_title(title, fontsize=11)
    panel.set_xlabel(_SERVED)
    panel.grid(alpha=0.3)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False)


def _why(row: dict[str, object]) -> str:
    return f"{row['outcome']}, status {row['http_status']}" if row["http_status"] else str(row["outcome"])


def _alt(run: Run, arms: Arms) -> str:
    parts = []
    for arm, _, rows in arms:
        steps = _steps(rows)
        if steps.is_empty():
            parts.append(f"{arm}: none of {len(rows)} requests got a token.")
            continue
        first, last = steps.row(0), steps.row(-1)
        parts.append(
            f"{arm}: of {last[0]} requests the one served first had its first token after {number(first[1])} "
            f"s, the one served last after {number(last[1])} s; {_order_told(rows)}"
        )
        if refused := rows.filter(pl.col("ttft_s").is_null()).height:
            parts.append(f"{refused} of {len(rows)} requests got no answer.")
    said = " ".join(parts) or "Nothing was measured."
    return (
        f"Two charts of a {run.kind} run, by the order in which first tokens came: time to first token, and "
        f"the order of sending. {said}"
    )


def _order_told(rows: pl.DataFrame) -> str:
    """How far the order of first tokens is that of sending, among those that got one."""
    answered = _answered(rows)
    moved = answered.filter(pl.col("served") != pl.col("place")).height
    if not moved:
        return "first tokens came in the order of sending."
    return f"{moved} of {len(answered)} first tokens came at another place than in the order of sending."


def _caption(run: Run, data: pl.DataFrame) -> str:
    what = load_words(run, data["level"][0]) if len(data) else "nothing was measured"
    repeats = data["repeat"].n_unique()
    middle = f"the line goes through the medians of {repeats} repeats" if repeats > 1 else "measured once"
    lines = [*conditions(run), f"- {what.capitalize()}: a marker is a request; {middle}."]
    if data["ttft_s"].null_count():
        lines.append(
            "- A cross on the ground is a request that got no answer; these stand behind the others."
        )
    return markdown(lines)
