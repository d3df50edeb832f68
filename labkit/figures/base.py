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
from matplotlib.figure import Figure as Picture

from labkit.bundle import Run
from labkit.summary import caption

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
    lines = []
    for name, arm in run.meta["arms"].items():
        if said := arm["facts"].get("simulated"):
            band = ", ".join(f"{_METRICS[of]} {1 + half:.2f}" for of, half in said["band"].items())
            lines.append(
                f"- {name}: simulated at {said['time_scale']:.3g} times real time from profile "
                f"{said['profile']}, {said['basis']}; nine times of ten the real engine is within these "
                f"factors of it: {band}"
            )
    return lines


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
