"""The figures of notebook 06: the staircase of blocks, three workloads, and busy against idle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefix_runs import OFF, ON, Question, flat, prefix_run, reuse, staircase, workloads_run

from labkit import figures
from labkit.bundle import Run
from labkit.errors import UsageError
from labkit.figures.prefix import block_marks
from labkit.figures.reuse import reuse_data
from labkit.prefixes import EMPTY
from labkit.sides import Missing

PNG = b"\x89PNG\r\n\x1a\n"
SHARED = [64, 127, 128, 192, 255, 256]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return prefix_run(tmp_path / "run", {ON: staircase(), OFF: flat()})


@pytest.fixture
def three(tmp_path: Path) -> Run:
    names = ("system prompt", "documents", "agent")
    asked = {name: [Question(900.0), *[Question(200.0, 256)] * 3] for name in names}
    counted = dict.fromkeys(names, (768, 1792))
    return workloads_run(
        tmp_path / "three", {OFF: dict.fromkeys(names, asked["agent"]), ON: asked}, counted=counted
    )


def lines(figure: figures.Figure, meta: str) -> dict[str, Any]:
    return {line.name: line for line in figure.plotly.data if line.meta == meta}


def test_the_lines_are_cold_and_warm_questions_and_what_was_cached(run: Run) -> None:
    figure = figures.prefix(run)
    warm, cold, cached = (lines(figure, meta) for meta in ("warm", "cold", "cached"))
    assert list(warm) == [f"{ON}: later ones", f"{OFF}: later ones"]
    assert list(warm[f"{ON}: later ones"].x) == SHARED
    assert list(warm[f"{ON}: later ones"].y) == pytest.approx([896, 896, 640, 640, 640, 384])
    assert list(cold[f"{ON}: first question"].y) == pytest.approx([896] * 6)
    assert list(cached[ON].y) == [0, 0, 128, 128, 128, 256]
    assert list(cached[OFF].y) == [0] * 6
    assert figure.png.startswith(PNG)


def test_the_arms_are_told_apart_by_colour_and_marker(run: Run) -> None:
    on, off = lines(figures.prefix(run), "warm").values()
    assert on.line.color != off.line.color
    assert on.marker.symbol != off.marker.symbol


def test_marks_are_at_whole_blocks_as_the_engine_says(run: Run, tmp_path: Path) -> None:
    figure = figures.prefix(run)
    assert [shape.x0 for shape in figure.plotly.layout.shapes if shape.yref == "y domain"] == [128, 256]
    assert "whole blocks of 128 tokens, as the engine says" in figure.caption
    silent = figures.prefix(prefix_run(tmp_path / "silent", {ON: staircase()}, block=None))
    assert block_marks(silent.data) == []
    fine = figures.prefix(prefix_run(tmp_path / "fine", {ON: staircase()}, block=4))
    assert block_marks(fine.data)[:2] == [12, 24]  # 64 blocks: one mark for three of them
    assert "A mark at each 12 tokens" in fine.caption
    assert "does not tell its block size" in silent.caption


def test_the_alternative_text_has_every_point(run: Run) -> None:
    alt = figures.prefix(run).alt
    assert f"{ON}: a first question takes 896 ms at the median" in alt
    assert "255 shared: 640 ms, 128 from the cache" in alt


def test_a_run_without_a_level_is_empty_and_says_so(tmp_path: Path) -> None:
    figure = figures.prefix(prefix_run(tmp_path / "run", {ON: {}}, stopped=True))
    assert figure.data.columns == EMPTY.columns
    assert figure.alt.startswith("Two empty charts")
    assert "Nothing to draw" in figure.caption


def test_another_run_is_refused(run: Run, three: Run) -> None:
    with pytest.raises(Missing, match=r"lab\.prefixes"):
        figures.prefix(three)
    with pytest.raises(Missing, match=r"lab\.workloads"):
        figures.workloads(run)


def test_workloads_have_bars_of_the_answers_and_diamonds_of_the_counters(three: Run) -> None:
    figure = figures.workloads(three)
    bars = [line for line in figure.plotly.data if line.type == "bar"]
    diamonds = [line for line in figure.plotly.data if line.type == "scatter"]
    assert len(bars) == 4
    share = {line.name: list(line.y) for line in bars[:2]}
    assert share[ON] == pytest.approx([100 * 768 / 1792] * 3)
    assert [list(line.y) for line in diamonds] == [pytest.approx([100 * 768 / 1792] * 3)] * 2
    assert f"{ON}, documents: 42.9 % from the cache (42.9 % by the engine's own counters)" in figure.alt
    assert figure.png.startswith(PNG)


def test_counters_that_were_not_read_are_unknown(tmp_path: Path) -> None:
    figure = figures.workloads(workloads_run(tmp_path / "run", {ON: {"agent": [Question(900.0)]}}))
    assert all(line.type == "bar" for line in figure.plotly.data)
    assert "(unknown % by the engine's own counters), TTFT unknown ms" in figure.alt
    assert figure.png.startswith(PNG)


def test_two_by_two_has_a_row_for_each_engine_and_moment() -> None:
    figure = figures.reuse([reuse("vllm", busy=640, idle=640), reuse("ollama")])
    assert figure.data.select("engine", "cached_tokens").rows() == [
        *[("vllm", tokens) for tokens in (0, 640, 640)],
        *[("ollama", tokens) for tokens in (0, 3, 653)],
    ]
    assert "ollama, while A is answered: 3 of 661 tokens from the cache" in figure.alt
    assert figure.caption.count("reuse") == 2
    assert figure.png.startswith(PNG)


def test_one_engine_alone_is_drawn_too() -> None:
    assert figures.reuse(reuse()).data.height == 3


def test_other_transcripts_are_refused() -> None:
    with pytest.raises(UsageError, match=r"lab\.reuse"):
        reuse_data([replace(reuse(), events=())])
    with pytest.raises(UsageError, match="one depth"):
        figures.reuse([reuse(), reuse("vllm", kind="simulated")])
