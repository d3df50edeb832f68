"""Figures of notebook 08: shares with their intervals, and what a proxy adds."""

from __future__ import annotations

from pathlib import Path

import pytest
from moved import gateway_run, shift_run

from labkit import figures
from labkit.errors import UsageError


def test_a_shift_shows_what_was_asked_for_and_what_came(tmp_path: Path) -> None:
    figure = figures.shift(shift_run(tmp_path / "run", failed=1))
    assert figure.data["wanted"].to_list() == [0, 10, 50, 100, 0]
    assert figure.png.startswith(b"\x89PNG")
    assert "10 % asked for: 11.2 % measured" in figure.alt
    assert "279 ok, 1 failed" in figure.caption
    wanted, measured, ollama, vllm = figure.plotly.data
    assert list(wanted.y)[:4] == [0, 0, 10, 10]
    assert list(measured.y) == pytest.approx([0, 11.25, 52.5, 100, 0])
    assert sum(ollama.y) + sum(vllm.y) == 279


def test_a_phase_that_nobody_answered_has_no_point(tmp_path: Path) -> None:
    figure = figures.shift(shift_run(tmp_path / "run", [(0, 10, 0), (50, 5, 5)], failed=10))
    assert list(figure.plotly.data[1].y) == [50]
    assert "unknown % measured" in figure.alt


def test_a_gateway_shows_differences(tmp_path: Path) -> None:
    figure = figures.gateway(gateway_run(tmp_path / "run"))
    assert list(figure.plotly.data[0].y) == ["vLLM through nginx", "vLLM through LiteLLM"]
    assert list(figure.plotly.data[0].x) == pytest.approx([1.0, 12.0])
    assert "vLLM through LiteLLM: 12.00 ms more than without it" in figure.alt
    assert figure.png.startswith(b"\x89PNG")


def test_a_run_without_shares_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no share was moved"):
        figures.shift(gateway_run(tmp_path / "run"))
