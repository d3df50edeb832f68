"""Bars that tell what was taken from a cache: three workloads, and busy against idle on both engines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import polars as pl
from matplotlib.figure import Figure as Picture
from plotly.subplots import make_subplots

from labkit import prefixes
from labkit.bundle import Run
from labkit.errors import UsageError
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
from labkit.transcript import Transcript

MOMENTS = {
    "busy: first": "nobody has read it",
    "busy: same prefix meanwhile": "while A is answered",
    "idle: same prefix": "after A's answer",
}
"""Cases of a "reuse" transcript that the 2 × 2 is made of, as the figure calls them."""

_COUNTED = "by the engine's own counters"
_DARK = "#404040"
_HATCHES = ("", "//")


@dataclass(frozen=True)
class _Panel:
    """What the bars of one panel show: columns of the data, ``beside`` from a second source."""

    column: str
    title: str
    beside: str | None = None

    def second(self, rows: pl.DataFrame) -> pl.Series | None:
        """What the second source says of these bars, if it says anything."""
        told = None if self.beside is None else rows[self.beside]
        return None if told is None or told.is_null().all() else told


@dataclass(frozen=True)
class _Bars:
    """Bars for each value of the column ``x``, one for each value of ``series``, as many times as panels."""

    data: pl.DataFrame
    x: str
    series: str
    hues: Mapping[str, str]
    panels: Sequence[_Panel]

    def interactive(self) -> go.Figure:
        """A panel below the other, so that it fits a narrow window."""
        chart = make_subplots(rows=len(self.panels), cols=1, shared_xaxes=True, vertical_spacing=0.08)
        for at, panel in enumerate(self.panels, start=1):
            for name, rows in self._rows():
                placed = {"x": rows[self.x].to_list(), "legendgroup": name, "offsetgroup": name}
                chart.add_bar(
                    name=name,
                    showlegend=at == 1,
                    y=rows[panel.column].to_numpy(),
                    marker={"color": self.hues[name]},
                    hovertemplate=f"{name}<br>%{{x}}: %{{y:.3g}}<extra>{panel.title}</extra>",
                    row=at,
                    col=1,
                    **placed,
                )
                if (counted := panel.second(rows)) is not None:
                    chart.add_scatter(
                        name=f"{name}, {_COUNTED}",
                        mode="markers",
                        y=counted.to_numpy(),
                        marker={"symbol": "diamond", "size": 10, "color": _DARK},
                        hovertemplate=f"{name}<br>%{{x}}: %{{y:.3g}}<extra>{_COUNTED}</extra>",
                        row=at,
                        col=1,
                        **placed,
                    )
            chart.update_yaxes(title=panel.title, row=at)
        plain_layout(chart, 520)
        chart.update_layout(barmode="group", scattermode="group")
        chart.update_xaxes(showticklabels=True)
        chart.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True, rangemode="tozero")
        return chart

    def png(self, note: str) -> bytes:
        """The same, the panels beside each other."""
        picture = Picture(figsize=(11, 3.8), dpi=110, layout="constrained")
        places = self.data[self.x].unique(maintain_order=True).to_list()
        width = 0.8 / max(len(self.hues), 1)
        for panel, axis in zip(self.panels, picture.subplots(1, len(self.panels)), strict=True):
            for nth, (name, rows) in enumerate(self._rows()):
                at = [places.index(one) + (nth - (len(self.hues) - 1) / 2) * width for one in rows[self.x]]
                values = [math.nan if value is None else value for value in rows[panel.column]]
                look = {"color": self.hues[name], "edgecolor": "white", "hatch": _HATCHES[nth % 2]}
                bars = axis.bar(at, values, width, label=name, **look)
                axis.bar_label(bars, map(number, values), padding=4, fontsize=8)
                if (counted := panel.second(rows)) is not None:
                    told = _COUNTED in axis.get_legend_handles_labels()[1]
                    label = None if told else _COUNTED
                    axis.plot(at, counted, "D", color=_DARK, markeredgecolor="white", label=label)
            axis.set_xticks(range(len(places)), places)
            axis.set_title(panel.title, fontsize=11)
            axis.margins(y=0.3)  # room for the legend
            axis.set_ylim(bottom=0)
            axis.grid(axis="y", alpha=0.3)
            if self.hues:
                axis.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
        return picture_png(picture, note)

    def _rows(self) -> Iterator[tuple[str, pl.DataFrame]]:
        for name in self.hues:
            yield name, self.data.filter(pl.col(self.series) == name)


def workloads(run: Run) -> Figure:
    """Share of the questions' tokens that came from the cache, and TTFT, of each workload and arm.

    Bars are what the answers say of themselves (usage); diamonds what the engine's own counters say.

    Args:
        run: what ``lab.workloads()`` measures.

    Raises:
        Missing: it is another run.
    """
    data = prefixes.workloads(run).with_columns(
        cached_percent=100 * pl.col("cached_share"), counted_percent=100 * pl.col("hit_rate")
    )
    engines = dict(data.select("arm", "engine").unique(maintain_order=True).rows())
    off = {
        arm for arm in engines if run.meta["arms"][arm]["settings"].get("prefix_caching") is False
    }  # grey, as in the other figures of this lesson
    hues = {arm: INK if arm in off else COLOURS.get(engine, INK) for arm, engine in engines.items()}
    bars = _Bars(
        data,
        "workload",
        "arm",
        hues,
        (
            _Panel("cached_percent", "% of prompt tokens from the cache", "counted_percent"),
            _Panel("ttft_ms_p50", "TTFT p50, ms"),
        ),
    )
    told = [
        f"{row['arm']}, {row['workload']}: {number(row['cached_percent'])} % from the cache "
        f"({number(row['counted_percent'])} % {_COUNTED}), TTFT {number(row['ttft_ms_p50'])} ms"
        for row in data.to_dicts()
    ]
    caption = [
        *conditions(run),
        "- Bars: as each answer says of itself. Diamonds: the engine's own counters.",
    ]
    return Figure(
        data,
        bars.interactive(),
        bars.png(badge_note(run)),
        f"Bar charts of a {run.kind} run. {'; '.join(told) or 'Nothing was measured'}.",
        markdown(caption),
        run.kind,
    )


def reuse(transcripts: Transcript | Sequence[Transcript]) -> Figure:
    """One long beginning: asked by A when nobody has read it, by B while A is answered, and after that.

    Args:
        transcripts: what ``await lab.reuse("vllm")`` and ``await lab.reuse("ollama")`` return.

    Raises:
        UsageError: they have no such answers, or are of unlike depth.
    """
    given = [transcripts] if isinstance(transcripts, Transcript) else list(transcripts)
    data = reuse_data(given)
    kinds = {one.kind for one in given}
    if len(kinds) != 1:
        raise UsageError(
            "draw two engines in one figure",
            f"they are {' and '.join(sorted(kinds)) or 'none'}",
            "give two of one depth",
        )
    hues = {engine: COLOURS.get(engine, INK) for engine in data["engine"].unique(maintain_order=True)}
    panels = (
        _Panel("cached_percent", "% of the question from the cache"),
        _Panel("ttft_s", "TTFT, s"),
    )
    bars = _Bars(data, "when", "engine", hues, panels)
    told = [
        f"{row['engine']}, {row['when']}: {row['cached_tokens']} of {row['prompt_tokens']} tokens from the "
        f"cache, first token after {row['ttft_s']:.2f} s"
        for row in data.to_dicts()
    ]
    titles = [one.title.partition(":") for one in given]
    lines = [f"**{titles[0][0]}** ·{titles[0][2]}", *(f"- and{rest}" for _, _, rest in titles[1:])]
    lines += [
        f"- {one.about['engine']}: A's answer had ended before B's first token came."
        for one in given
        if any(event.get("busy") is False for event in one.of("ask"))
    ]
    return Figure(
        data,
        bars.interactive(),
        bars.png(given[0].title),
        f"Bar charts of {given[0].kind} answers. {'; '.join(told)}.",
        markdown(lines),
        given[0].kind,
    )


def reuse_data(transcripts: Sequence[Transcript]) -> pl.DataFrame:
    """engine, when, prompt_tokens, cached_tokens, cached_percent, ttft_s; one row an answer.

    Raises:
        UsageError: a transcript has no such answer.
    """
    rows = []
    for one in transcripts:
        asked = {event["case"]: event for event in one.of("ask")}
        if not MOMENTS.keys() <= asked.keys():
            raise UsageError(
                f"draw what {one.name} reuses", "it has no such answers", "give the result of lab.reuse()"
            )
        for case, when in MOMENTS.items():
            prompt, cached, ttft_s = (
                asked[case][name] for name in ("prompt_tokens", "cached_tokens", "ttft_s")
            )
            rows.append((one.about["engine"], when, prompt, cached, 100 * (cached or 0) / prompt, ttft_s))
    names = ["engine", "when", "prompt_tokens", "cached_tokens", "cached_percent", "ttft_s"]
    return pl.DataFrame(rows, schema=names, orient="row")
