"""One answer drawn piece by piece."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from synthetic import make_run

from labkit import figures
from labkit.bundle import Run
from labkit.figures.stream import stream_data

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """TTFT 100 ms and ITL 20 ms in Ollama, 200 and 40 in vLLM."""
    return make_run(
        tmp_path / "run",
        rates={"ollama": {1: 40.0}, "vllm": {1: 20.0}},
        ttft={"ollama": {1: 0.1}, "vllm": {1: 0.2}},
        itl={"ollama": {1: 0.02}, "vllm": {1: 0.04}},
    )


def test_data_are_the_pieces_of_each_arms_first_measured_answer(run: Run) -> None:
    data = stream_data(run)
    assert data.group_by("arm", maintain_order=True).len().rows() == [("ollama", 16), ("vllm", 16)]
    first = data.group_by("arm", maintain_order=True).agg(pl.col("at_ms").first(), pl.col("gap_ms").median())
    assert [value for row in first.rows() for value in row[1:]] == pytest.approx([100, 20, 200, 40], rel=0.01)
    assert data["gap_ms"].null_count() == 2  # the first piece of each has none before it


def test_ticks_stand_where_the_pieces_came(run: Run) -> None:
    figure = figures.stream(run)
    assert figure.png.startswith(PNG)
    for engine, colour in (("ollama", "#0072B2"), ("vllm", "#D55E00")):
        (ticks,) = [trace for trace in figure.plotly.data if trace.line.color == colour]
        assert list(ticks.x[::3]) == figure.data.filter(arm=engine)["at_ms"].to_list()


def test_brackets_measure_the_wait_and_one_usual_gap(run: Run) -> None:
    traces = [trace for trace in figures.stream(run).plotly.data if trace.text and len(trace.x) == 3]
    brackets = {"".join(trace.text): trace.x for trace in traces}
    assert len(brackets) == 4
    assert {"TTFT 99.8 ms", "ITL, median 20 ms", "ITL, median 40 ms"} < brackets.keys()
    begin, _, end = brackets["ITL, median 20 ms"]
    assert end - begin == pytest.approx(20)
    assert brackets["TTFT 99.8 ms"][0] == 0


def test_without_values_they_can_be_read_off_but_are_not_told(run: Run) -> None:
    figure = figures.stream(run, values=False)
    labels = {word for trace in figure.plotly.data if trace.text for word in trace.text if "ms" in word}
    assert not labels
    assert "TTFT" not in figure.alt
    assert "the first come at 99.8, 120, 140, 160, 180 ms" in figure.alt


def test_an_arm_without_a_whole_answer_is_said_to_have_none(run: Run) -> None:
    failed = pl.when(pl.col("arm") == "vllm").then(pl.lit("failed")).otherwise(pl.col("outcome"))
    figure = figures.stream(replace(run, requests=run.requests.with_columns(outcome=failed)))
    assert figure.png.startswith(PNG)
    assert "vllm: no whole answer came." in figure.alt
    assert "vllm: no whole answer came." in figure.caption


def test_an_answer_of_one_piece_has_no_gap(run: Run) -> None:
    figure = figures.stream(
        replace(run, tokens=run.tokens.group_by("request_id").head(1).select(run.tokens.columns))
    )
    assert "median gap between two (ITL) is unknown" in figure.alt


def test_caption_and_alternative_text_name_the_depth(run: Run) -> None:
    figure = figures.stream(run)
    assert figure.caption.startswith("**live**")
    assert "live run" in figure.alt
    assert "the first of 16 pieces comes 99.8 ms after the question was sent (TTFT)" in figure.alt
