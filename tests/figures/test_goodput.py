"""Answers that keep a promise, counted beside all answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import make_run

from labkit import figures
from labkit.bundle import Run

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Ollama's median TTFT passes a second between 4 and 8 users, vLLM's never."""
    return make_run(
        tmp_path / "run",
        rates={"ollama": {1: 16, 4: 16, 8: 16}, "vllm": {1: 8, 4: 32, 8: 48}},
        ttft={"ollama": {1: 0.1, 4: 0.5, 8: 1.5}, "vllm": {1: 0.1, 4: 0.2, 8: 0.3}},
        unfinished={"vllm": {8: 0.5}},
    )


def test_an_answer_counts_only_if_it_keeps_the_promise(run: Run) -> None:
    data = figures.goodput(run, ttft_s=1.0).data
    good = {
        row["level"]: (row["good_per_s"], row["all_per_s"]) for row in data.filter(arm="ollama").to_dicts()
    }
    assert good[4][0] == good[4][1] == pytest.approx(1)  # 16 tokens/s, answers of 16
    assert good[8] == (0, pytest.approx(1))


def test_what_never_came_is_neither_good_nor_an_answer(run: Run) -> None:
    data = figures.goodput(run, ttft_s=1.0).data
    (row,) = data.filter(arm="vllm", level=8).to_dicts()
    assert row["good_per_s"] == row["all_per_s"] == pytest.approx(48 / 16)


def test_without_a_promise_every_whole_answer_is_good(run: Run) -> None:
    figure = figures.goodput(run)
    assert figure.data["good_per_s"].to_list() == figure.data["all_per_s"].to_list()
    assert "Good answers are all whole ones." in figure.caption


def test_it_says_which_promise_was_meant_and_what_came_of_it(run: Run) -> None:
    figure = figures.goodput(run, ttft_s=1.0, tpot_s=0.5)
    assert figure.png.startswith(PNG)
    assert "TTFT within 1 s and TPOT within 0.5 s" in figure.caption
    assert "ollama, good answers of all answers a second: 1 of 1 at 1 user" in figure.alt
    assert {trace.line.color for trace in figure.plotly.data} == {"#0072B2", "#D55E00"}


def test_a_run_that_ended_before_its_first_level_draws_nothing(tmp_path: Path) -> None:
    figure = figures.goodput(
        make_run(tmp_path / "x", rates={"ollama": {}, "vllm": {}}, stopped=True), ttft_s=1
    )
    assert figure.png.startswith(PNG)
    assert "It is empty" in figure.alt
