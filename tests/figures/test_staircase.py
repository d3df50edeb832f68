"""The staircase: steps by order of sending, who came first, and who was turned away."""

from __future__ import annotations

from pathlib import Path

import pytest
from queue_runs import Asked, burst, queue_run
from synthetic import make_run

from labkit import figures
from labkit.bundle import Run
from labkit.figures.staircase import staircase_data

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return queue_run(tmp_path / "run", {2: burst([0.8] * 2), 4: burst([0.8] * 4)})


def test_the_highest_level_is_drawn_unless_one_is_named(run: Run) -> None:
    assert staircase_data(run)["place"].to_list() == [1, 2, 3, 4]
    assert staircase_data(run, 2)["place"].to_list() == [1, 2]


def test_each_request_is_a_step_higher_than_the_one_before(run: Run) -> None:
    figure = figures.staircase(run)
    assert figure.png.startswith(PNG)
    assert figure.data["ttft_s"].to_list() == pytest.approx([0.5, 1.3, 2.1, 2.9])
    assert list(figure.plotly.data[0].y) == pytest.approx([0.5, 1.3, 2.1, 2.9])
    assert (
        "of 4 requests the one served first had its first token after 0.5 s, the one served last after 2.9 s"
        in figure.alt
    )
    assert "came in the order of sending" in figure.alt
    assert figure.caption.startswith("**live**")
    assert "Burst of 4" in figure.caption


def test_a_request_that_jumps_the_line_is_told(tmp_path: Path) -> None:
    run = queue_run(tmp_path / "run", {3: [Asked(waits=0.0), Asked(waits=2.0), Asked(waits=1.0)]})
    figure = figures.staircase(run)
    assert figure.data["place"].to_list() == [1, 3, 2]
    assert figure.data["ttft_s"].is_sorted()
    assert "2 of 3 first tokens came at another place" in figure.alt


def test_requests_turned_away_are_crosses_and_no_steps(tmp_path: Path) -> None:
    run = queue_run(tmp_path / "run", {5: burst([0.8] * 2, refused=3)})
    figure = figures.staircase(run)
    crosses = [trace for trace in figure.plotly.data if trace.marker.symbol == "x"]
    assert [list(trace.x) for trace in crosses] == [[3, 4, 5]]
    assert set(crosses[0].text) == {"failed, status 503"}
    assert "3 of 5 requests got no answer" in figure.alt
    assert "cross" in figure.caption


def test_repeats_are_markers_and_their_median_the_line(tmp_path: Path) -> None:
    run = queue_run(tmp_path / "run", {2: [burst([0.8] * 2), burst([1.0] * 2), burst([0.9] * 2)]})
    figure = figures.staircase(run)
    assert list(figure.plotly.data[0].y) == pytest.approx([0.6, 1.5])
    assert len(figure.plotly.data[1].x) == 6
    assert "medians of 3 repeats" in figure.caption


def test_a_burst_without_an_answer_and_a_run_without_a_level_still_draw(tmp_path: Path) -> None:
    refused = figures.staircase(queue_run(tmp_path / "refused", {2: burst([], refused=2)}))
    empty = figures.staircase(queue_run(tmp_path / "empty", {}))
    assert refused.png.startswith(PNG)
    assert "none of 2 requests got a token" in refused.alt
    assert empty.png.startswith(PNG)
    assert "Nothing was measured" in empty.alt


def test_both_engines_stand_on_stairs_of_their_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates={"ollama": {4: 40}, "vllm": {4: 48}})
    figure = figures.staircase(run)
    assert {t.name for t in figure.plotly.data if t.mode == "lines"} == {
        "ollama",
        "vllm",
        "in the order sent",
    }
    assert all(f"{arm}: of 8 requests" in figure.alt for arm in ("ollama", "vllm"))
