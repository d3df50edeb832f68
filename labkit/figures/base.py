"""What all finished figures share: three forms, colours, and the words on where their numbers come from."""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import polars as pl
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from labkit.bundle import Run
from labkit.summary import LOWER_BOUND_SHARE, caption

COLOURS = {"ollama": "#0072B2", "vllm": "#D55E00"}
"""Okabe and Ito's blue and vermillion, told apart with any colour vision; dashes say the same again."""

INK = "#7a7a7a"
"""Text and axes of interactive charts: readable on JupyterLab's light and on its dark page."""

CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False}
"""Plotly's toolbar without the button that uploads the chart to the vendor's cloud."""

DASHES = {"ollama": ("solid", "-"), "vllm": ("dash", "--")}
OTHER_DASH = ("dot", ":")  # of a server that bench was pointed at, whose engine is not known
MARKERS = (("circle", "o"), ("square", "s"), ("diamond", "D"), ("triangle-up", "^"))
_METRICS = {"tokens_per_s": "tokens/s", "itl": "ITL", "ttft": "TTFT", "queue": "queue wait"}
"""Words for what a simulated arm's band is known for."""
SHADE = "rgba(127,127,127,0.18)"
GRID = "rgba(127,127,127,0.3)"
CLEAR = "rgba(0,0,0,0)"


@dataclass(frozen=True)
class Style:
    """How one arm looks; each pair is plotly's word and matplotlib's."""

    colour: str
    dash: tuple[str, str]
    marker: tuple[str, str]


@dataclass(frozen=True)
class Figure:
    """One figure in all its forms.

    Attributes:
        data: the table behind it.
        plotly: the interactive chart.
        png: the same as a picture; write it to a file as it is.
        alt: in words what is to be seen, with the last values.
        caption: depth, conditions and reservations, in Markdown.
        depth: live | simulated | recorded.
    """

    data: pl.DataFrame
    plotly: go.Figure
    png: bytes
    alt: str
    caption: str
    depth: str

    def _ipython_display_(self) -> None:
        chart = {**json.loads(self.plotly.to_json()), "config": CONFIG}
        words = "An interactive chart; the picture below shows the same."
        self._show({"application/vnd.plotly.v1+json": chart, "text/plain": words})
        picture = base64.b64encode(self.png).decode()
        self._show({"image/png": picture, "text/plain": self.alt}, {"image/png": {"alt": self.alt}})
        self._show({"text/markdown": self.caption, "text/plain": self.caption})

    def _show(self, forms: dict[str, Any], about: dict[str, Any] | None = None) -> None:
        marked = {"labkit": {"depth": self.depth}, **(about or {})}
        display(forms, raw=True, metadata=marked)  # type: ignore[no-untyped-call]


def styles(engines: dict[str, str]) -> dict[str, Style]:
    """A look for each arm (name to engine): engines differ by colour and dashes, their arms by marker."""
    looks: dict[str, Style] = {}
    for arm, engine in engines.items():
        nth = sum(engines[other] == engine for other in looks)
        colour, dash = COLOURS.get(engine, INK), DASHES.get(engine, OTHER_DASH)
        looks[arm] = Style(colour, dash, MARKERS[nth % len(MARKERS)])
    return looks


def plain_layout(chart: go.Figure, height: int) -> None:
    """Colours that suit JupyterLab's light and dark pages, and the legend above: fits a narrow window."""
    chart.update_layout(
        template="none",
        height=height,
        autosize=True,
        margin={"l": 64, "r": 16, "t": 40, "b": 48},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"color": INK},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": CLEAR},
        modebar={"bgcolor": CLEAR, "color": INK, "activecolor": INK},
    )


def repeats_bar(rows: pl.DataFrame, colour: str) -> dict[str, Any]:
    """Plotly's error bars from ``tokens_per_s`` to its range over the repeats."""
    rate = rows["tokens_per_s"]
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows["tokens_per_s_high"] - rate).to_numpy(),
        "arrayminus": (rate - rows["tokens_per_s_low"]).to_numpy(),
        "color": colour,
    }


def picture_line(
    panel: Axes, style: Style, rows: pl.DataFrame, x: str, y: str, *, width: float, label: str | None = None
) -> None:
    """One line of a picture; markers are hollow where the rows say ``lower_bound``."""
    colour = style.colour
    panel.plot(rows[x], rows[y], style.dash[1], color=colour, linewidth=width)
    size = 3 * width
    panel.plot([], [], style.dash[1], color=colour, marker=style.marker[1], label=label)
    for hollow in (False, True):
        some = rows.filter(pl.col("lower_bound") == hollow)
        face = "none" if hollow else colour
        panel.plot(some[x], some[y], style.marker[1], color=colour, markerfacecolor=face, markersize=size)


def spread_told(data: pl.DataFrame, nothing: str) -> list[str]:
    """Lines of a caption on the repeats behind the points, and on points that are lower bounds.

    Args:
        nothing: why there is no point, if there is none.
    """
    repeats = max(data["repeats"].to_list(), default=0)
    if repeats > 1:
        lines = [f"- Points are medians of {repeats} repeats, bars their range."]
    elif repeats == 1:
        lines = ["- Measured once: the spread between repeats is unknown."]
    else:
        lines = [f"- Nothing to draw: {nothing}"]
    if data["lower_bound"].any():
        lines.append(
            f"- Hollow points: more than {LOWER_BOUND_SHARE:.0%} of the requests failed or did not end in "
            "time, so the latencies are those of the rest, and lower bounds."
        )
    return lines


def picture_png(picture: Picture, note: str) -> bytes:
    """A matplotlib picture with its badge in the corner, as PNG."""
    picture.supxlabel(note, fontsize=8, color="0.4", x=0.99, ha="right")
    out = io.BytesIO()
    picture.savefig(out, format="png")
    return out.getvalue()


def conditions(run: Run) -> list[str]:
    """Lines of a caption: depth, machine, date and verdict first; then each arm, and reservations."""
    host, verdict = run.meta["host"], run.meta["verdict"]
    return [
        f"**{run.kind}** · {host['cpu']}, {host['cores']} cores · {run.meta['started_at']} · "
        f"verdict **{verdict['word']}**",
        *(f"- {name}: {caption(arm)}" for name, arm in run.meta["arms"].items()),
        *origins(run),
        *(f"- {reason}" for reason in verdict["reasons"]),
        *([f"- Not whole: {run.partial}."] if run.partial else []),
    ]


def markdown(lines: list[str]) -> str:
    """A caption from its first line and its list."""
    return "\n".join([lines[0], "", *lines[1:]])


def origins(run: Run) -> list[str]:
    """Where the numbers of simulated arms come from, and how far they may be off."""
    told: dict[str, list[str]] = {}  # arms of one profile have one sentence
    for name, arm in run.meta["arms"].items():
        if said := arm["facts"].get("simulated"):
            band = ", ".join(f"{_METRICS[of]} {1 + half:.2f}" for of, half in said["band"].items())
            where = (
                f"simulated at {said['time_scale']:.3g} times real time from profile {said['profile']}, "
                f"{said['basis']}; nine times of ten the real engine is within these factors of it: {band}"
            )
            told.setdefault(where, []).append(name)
    return [f"- {'; '.join(names)}: {where}" for where, names in told.items()]


def badge_note(run: Run) -> str:
    """The picture's own badge: a picture travels without its caption."""
    origins = [arm["facts"].get("simulated") for arm in run.meta["arms"].values()]
    if profiles := sorted({f"profile {said['profile']}" for said in origins if said}):
        return " · ".join([run.kind, *profiles])
    when = f" {run.meta['started_at'][:10]}" if run.kind == "recorded" else ""
    return f"{run.kind}{when} · {run.meta['host']['cpu']}"


def number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "unknown"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
