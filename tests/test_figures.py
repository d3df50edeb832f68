"""The figures: what they hold, say and hide."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from IPython.testing.globalipapp import start_ipython
from IPython.utils.capture import capture_output
from synthetic import make_run

from labkit import figures
from labkit.bundle import Run
from labkit.figures.base import INK, styles
from labkit.figures.gap import gap_data

RATES = {"ollama": {1: 41, 4: 42, 16: 40}, "vllm": {1: 15, 4: 48, 16: 160}}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", rates=RATES, unfinished={"ollama": {16: 0.5}})


@pytest.fixture
def shown() -> Callable[[figures.Figure], list[Any]]:
    """What a notebook gets to see of a figure."""
    start_ipython()

    def show(figure: figures.Figure) -> list[Any]:
        with capture_output() as captured:
            figure._ipython_display_()
        return list(captured.outputs)

    return show


def test_data_are_the_summary_one_row_per_arm_and_level(run: Run) -> None:
    data = gap_data(run)
    assert data.select("arm", "engine", "level").rows() == [
        (arm, arm, level) for arm in ("ollama", "vllm") for level in (1, 4, 16)
    ]
    assert data["tokens_per_s"].to_list() == run.summary()["tokens_per_s"].to_list()


def test_both_forms_draw_each_arm_in_its_engines_colour(run: Run) -> None:
    figure = figures.gap(run)
    assert figure.png.startswith(PNG)
    looks = {(t.name, t.line.color, t.line.dash) for t in figure.plotly.data}
    assert looks == {("ollama", "#0072B2", "solid"), ("vllm", "#D55E00", "dash")}


def test_arms_of_one_engine_differ_by_marker() -> None:
    looks = styles({"Ollama, 1 slot": "ollama", "Ollama, 4 slots": "ollama", "vLLM": "vllm"})
    one, four, vllm = looks.values()
    assert one.colour == four.colour != vllm.colour
    assert one.marker != four.marker


def test_servers_of_no_known_engine_as_bench_records_them_are_drawn_in_grey(run: Run) -> None:
    for arm in run.meta["arms"].values():
        arm["engine"] = ""
    figure = figures.gap(run)
    assert {t.line.color for t in figure.plotly.data} == {INK}


def test_lower_bounds_are_hollow_and_the_caption_says_so(run: Run) -> None:
    figure = figures.gap(run)
    ollama, vllm = (next(t for t in figure.plotly.data if t.name == name) for name in ("ollama", "vllm"))
    assert ollama.marker.symbol == ("circle", "circle", "circle-open")
    assert vllm.marker.symbol == ("circle", "circle", "circle")
    assert "lower bounds" in figure.caption


def test_crossover_is_marked_and_said(run: Run) -> None:
    figure = figures.gap(run)
    band, line = figure.plotly.layout.shapes[0], figure.plotly.layout.shapes[2]
    assert (band.x0, band.x1) == (1, 4)
    assert 1 < line.x0 < 4
    assert "vllm passes ollama" in figure.caption
    assert "vllm passes ollama" in figure.alt


def test_nothing_is_marked_where_nothing_crosses(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates={"ollama": {1: 40, 4: 41}, "vllm": {1: 15, 4: 20}})
    figure = figures.gap(run)
    assert not figure.plotly.layout.shapes
    assert "no lasting lead" in figure.caption


def test_a_run_stopped_after_one_level_still_draws(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates={"ollama": {1: 40}, "vllm": {}}, stopped=True)
    figure = figures.gap(run)
    assert {t.name for t in figure.plotly.data} == {"ollama"}
    assert "stopped early" in figure.caption


def test_a_level_without_an_answer_leaves_a_gap(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates=RATES, unfinished={"ollama": {16: 1.0}})
    figure = figures.gap(run)
    assert figure.png.startswith(PNG)
    assert "median time to first token from 100 to unknown ms" in figure.alt


def test_a_run_stopped_before_its_first_level_draws_empty_axes_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates={"ollama": {}, "vllm": {}}, stopped=True)
    figure = figures.gap(run)
    assert figure.png.startswith(PNG)
    assert not any(line.x for line in figure.plotly.data)
    assert "ended before its first level" in figure.alt
    assert "ended before its first level" in figure.caption


def test_caption_names_depth_machine_verdict_and_each_arms_conditions(run: Run) -> None:
    caption = figures.gap(run).caption
    assert caption.startswith("**live**")
    assert run.meta["host"]["cpu"] in caption
    assert "verdict **clean**" in caption
    assert "vllm 0.32.0" in caption
    assert "Measured once" in caption


def test_caption_of_a_simulated_run_names_profile_basis_and_band(tmp_path: Path) -> None:
    said = {"profile": "cpu-x", "basis": "measured", "time_scale": 8.0, "band": {"tokens_per_s": 0.05}}
    facts = {arm: {"simulated": said} for arm in RATES}
    figure = figures.gap(make_run(tmp_path / "run", rates=RATES, facts=facts, kind="simulated"))
    assert figure.caption.startswith("**simulated**")
    assert "vllm: simulated at 8 times real time from profile cpu-x, measured" in figure.caption
    assert "tokens/s 1.05" in figure.caption
    assert "simulated run" in figure.alt


def test_a_notebook_gets_chart_picture_and_caption_apart(
    run: Run, shown: Callable[[figures.Figure], list[Any]]
) -> None:
    figure = figures.gap(run)
    chart, picture, caption = shown(figure)
    assert "image/png" not in chart.data
    assert base64.b64decode(picture.data["image/png"]) == figure.png
    assert picture.metadata["image/png"]["alt"] == picture.data["text/plain"] == figure.alt
    assert caption.data["text/markdown"] == figure.caption
    assert {output.metadata["labkit"]["depth"] for output in (chart, picture, caption)} == {"live"}


def test_the_chart_has_no_button_to_the_vendors_cloud(
    run: Run, shown: Callable[[figures.Figure], list[Any]]
) -> None:
    chart = shown(figures.gap(run))[0].data["application/vnd.plotly.v1+json"]
    assert chart["config"]["showSendToCloud"] is False
    json.dumps(chart)  # plain data: the notebook file can hold it


def test_the_chart_is_transparent_so_that_it_suits_both_themes(run: Run) -> None:
    layout = figures.gap(run).plotly.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
