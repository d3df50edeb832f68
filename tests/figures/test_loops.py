"""Figures of loops beside each other: what an engine had at a time, and answer times as users count them."""

from __future__ import annotations

from pathlib import Path

import pytest
from queue_runs import Asked, burst, queue_run

from labkit import figures
from labkit.bundle import Run
from labkit.errors import UsageError

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def closed(tmp_path: Path) -> Run:
    asked = [Asked(at=float(n)) for n in range(4)]
    return queue_run(tmp_path / "closed", {1: asked}, load={"arrivals": "closed"})


@pytest.fixture
def open_loop(tmp_path: Path) -> Run:
    calm = [Asked(at=float(n)) for n in range(4)]
    rising = [Asked(at=0.2 * n, waits=0.2 * n) for n in range(4)]
    return queue_run(tmp_path / "open", {50: calm, 200: rising}, load={"arrivals": "constant", "requests": 4})


def test_the_backlog_has_a_line_for_each_load_of_each_run(closed: Run, open_loop: Run) -> None:
    figure = figures.backlog(closed, open_loop)
    assert [trace.name for trace in figure.plotly.data] == [
        "closed loop, 1 user",
        "open loop, 50 % of capacity",
        "open loop, 200 % of capacity",
    ]
    assert [max(trace.y) for trace in figure.plotly.data] == [1, 1, 3]
    assert len({trace.line.dash for trace in figure.plotly.data}) == 3
    assert "open loop, 200 % of capacity: at most 3 at a time" in figure.alt
    assert "2 live runs" in figure.alt
    assert figure.png.startswith(PNG)


def test_the_backlog_ends_at_nothing_when_all_were_answered(open_loop: Run) -> None:
    for trace in figures.backlog(open_loop).plotly.data:
        assert trace.y[-1] == 0


def test_only_the_first_repeat_is_drawn_as_a_backlog(tmp_path: Path) -> None:
    run = queue_run(tmp_path / "run", {2: [burst([0.8] * 2), burst([0.8] * 2)]})
    assert list(figures.backlog(run).plotly.data[0].y) == [1, 2, 1, 0]


def test_answer_times_count_from_the_moment_of_asking(tmp_path: Path) -> None:
    late = queue_run(tmp_path / "run", {50: [Asked(late=2.0), Asked(at=1.0)]}, load={"arrivals": "constant"})
    figure = figures.answer_times(late)
    assert sorted(figure.plotly.data[0].y) == pytest.approx([0.4, 2.4], abs=1e-3)
    assert "p50 1.4 s, p95 2.3 s, slowest 2.4 s" in figure.alt
    assert figure.png.startswith(PNG)


def test_answer_times_have_a_panel_and_two_percentiles_for_each_load(closed: Run, open_loop: Run) -> None:
    figure = figures.answer_times(closed, open_loop)
    titles = [note.text for note in figure.plotly.layout.annotations]
    assert titles.count("p50") == titles.count("p95") == 3
    assert "open loop, 200 % of capacity" in titles
    assert figure.caption.count("**live**") == 2


def test_runs_without_an_answer_still_draw(tmp_path: Path) -> None:
    refused = queue_run(tmp_path / "refused", {2: burst([], refused=2)})
    empty = queue_run(tmp_path / "empty", {})
    for draw in (figures.backlog, figures.answer_times):
        assert draw(refused).png.startswith(PNG)
        assert draw(empty).png.startswith(PNG)
        assert "Nothing was measured" in draw(empty).alt


def test_no_run_is_refused() -> None:
    with pytest.raises(UsageError, match="no run was given"):
        figures.backlog()
