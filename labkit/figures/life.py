"""Where the time of an answer goes in the life of a model: loading, reading the prompt, writing."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl
from matplotlib.figure import Figure as Picture

from labkit.errors import UsageError
from labkit.figures.base import GRID, INK, Figure, markdown, picture_png, plain_layout
from labkit.transcript import Transcript

HUES = {"loading": "#D55E00", "prompt": "#009E73", "other": INK, "writing": "#0072B2"}
HATCHES = {"loading": "//", "prompt": "..", "other": "", "writing": ""}
"""The parts of an answer in their order, told apart by hatching too."""

_TIME = "seconds since the question was sent"


def life(transcript: Transcript) -> Figure:
    """The answers of a model's life, each a bar from the question to the last word.

    Args:
        transcript: what ``await lab.lifecycle()`` returns.

    Raises:
        UsageError: the transcript has no answers.
    """
    data = life_data(transcript)
    return Figure(
        data,
        _interactive(data),
        _png(data, transcript.title),
        _alt(transcript, data),
        _caption(transcript),
        transcript.kind,
    )


def life_data(transcript: Transcript) -> pl.DataFrame:
    """answer, and seconds of each part (the keys of :data:`HUES`); one row an answer.

    Loading and prompt are what the engine says; "other" is what it does not explain of the wait for the first
    word; writing is what was seen from outside from the first word to the last.
    """
    if not (events := transcript.of("answer")):
        raise UsageError(
            f"draw the answers in {transcript.name}", "it has none", "give the result of lab.lifecycle()"
        )
    rows = []
    for event in events:
        load_s, prompt_s = event["load_s"] or 0.0, event["prompt_s"] or 0.0
        other_s = max(0.0, event["ttft_s"] - load_s - prompt_s)
        rows.append((event["turn"], load_s, prompt_s, other_s, event["took_s"] - event["ttft_s"]))
    return pl.DataFrame(rows, schema=["answer", *HUES], orient="row")


def _interactive(data: pl.DataFrame) -> go.Figure:
    chart = go.Figure()
    for part, hue in HUES.items():
        chart.add_bar(
            name=part,
            orientation="h",
            y=data["answer"].to_list(),
            x=data[part].to_numpy(),
            marker={"color": hue},
            hovertemplate=f"%{{y}} answer, {part}: %{{x:.3f}} s<extra></extra>",
        )
    plain_layout(chart, 130 + 44 * data.height)
    chart.update_layout(barmode="stack")
    chart.update_xaxes(title=_TIME, gridcolor=GRID, zeroline=False)
    chart.update_yaxes(autorange="reversed", automargin=True)
    return chart


def _png(data: pl.DataFrame, note: str) -> bytes:
    picture = Picture(figsize=(8, 1.3 + 0.45 * data.height), dpi=110, layout="constrained")
    axis = picture.subplots()
    left = pl.Series([0.0] * data.height)
    for part, hue in HUES.items():
        axis.barh(
            data["answer"],
            data[part],
            left=left,
            color=hue,
            label=part,
            hatch=HATCHES[part],
            edgecolor="white",
        )
        left += data[part]
    axis.invert_yaxis()
    axis.set_xlabel(_TIME)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(frameon=False, fontsize=8, ncols=len(HUES), loc="lower right")
    return picture_png(picture, note)


def _alt(transcript: Transcript, data: pl.DataFrame) -> str:
    told = []
    for row in data.rows(named=True):
        parts = ", ".join(f"{part} {row[part]:.2f} s" for part in HUES)
        told.append(f"{row['answer']} answer: {parts}.")
    return " ".join([f"Bars of {data.height} answers of a {transcript.kind} model's life.", *told])


def _caption(transcript: Transcript) -> str:
    kind, _, rest = transcript.title.partition(":")
    return markdown(
        [
            f"**{kind}** ·{rest}",
            "- Loading and prompt are what Ollama says in its reply; the rest was seen from outside",
        ]
    )
