"""How far off predictions were, and for how many users a promise is kept."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from synthetic import make_run

from labkit import figures, predict
from labkit.bundle import Run
from labkit.sim import profile
from labkit.slo import Slo

PNG = b"\x89PNG\r\n\x1a\n"
OLLAMA, VLLM = "Ollama, 1 slot", "vLLM"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Ollama breaks a limit of two seconds between 2 and 4 users, vLLM never."""
    return make_run(
        tmp_path / "run",
        rates={"ollama": {1: 60.0, 2: 60.0, 4: 60.0}, "vllm": {1: 30.0, 2: 50.0, 4: 80.0}},
        ttft={"ollama": {1: 0.1, 2: 1.0, 4: 3.0}, "vllm": {1: 0.1, 2: 0.2, 4: 0.3}},
        itl={"ollama": dict.fromkeys((1, 2, 4), 0.01), "vllm": dict.fromkeys((1, 2, 4), 0.02)},
    )


@pytest.fixture
def predicted() -> pl.DataFrame:
    return predict.sweep(profile.DEFAULT, "ollama", [1, 2, 4], settings={"num_parallel": 4})


def errors(run: Run, predicted: pl.DataFrame) -> pl.DataFrame:
    """As if the run's Ollama had been predicted."""
    return predict.errors(predicted.with_columns(arm=pl.lit("ollama")), run, run, seen=(1, 4))


def test_a_forecast_draws_both_errors_with_their_signs(run: Run, predicted: pl.DataFrame) -> None:
    found = errors(run, predicted)
    figure = figures.forecast(found, run, predicted)
    simulator, line = figure.plotly.data
    assert simulator.x.tolist() == pytest.approx((100 * found["error"]).to_list())
    assert line.x.tolist() == pytest.approx((100 * found["line_error"]).to_list())
    assert figure.png.startswith(PNG)
    assert f"profile {profile.DEFAULT}, measured" in figure.caption


def test_a_measurement_outside_the_band_is_hollow_and_told(run: Run, predicted: pl.DataFrame) -> None:
    found = errors(run, predicted).with_columns(inside=pl.int_range(pl.len()) > 0)
    figure = figures.forecast(found, run, predicted)
    assert figure.plotly.data[0].marker.symbol[:2] == ("diamond-open", "diamond")
    assert "Hollow" in figure.caption
    every = found.with_columns(inside=True)
    assert "Hollow" not in figures.forecast(every, run, predicted).caption


def test_where_there_is_no_line_the_simulator_stands_alone(run: Run, predicted: pl.DataFrame) -> None:
    found = errors(run, predicted).with_columns(line_error=pl.lit(None, pl.Float64))
    figure = figures.forecast(found, run, predicted)
    assert figure.png.startswith(PNG)
    assert "simulator" in figure.alt
    assert "line" not in figure.alt


def test_a_promise_has_a_panel_for_each_limit(run: Run) -> None:
    figure = figures.promise(run, Slo(ttft_s=2.0, tpot_s=0.5))
    assert len(figure.plotly.data) == 4
    assert {shape.y0 for shape in figure.plotly.layout.shapes} == {2.0, 0.5}
    assert figure.png.startswith(PNG)
    assert (
        "ollama keeps it (p95 of TTFT at most 2 s and p95 of TPOT at most 0.5 s) up to 2 users" in figure.alt
    )
    assert "vllm keeps it" in figure.caption


def test_a_prediction_is_told_apart_from_a_measurement(run: Run, predicted: pl.DataFrame) -> None:
    figure = figures.promise(run, Slo(ttft_s=2.0), predicted)
    dashes = {trace.name: (trace.line.dash, trace.error_y.array is not None) for trace in figure.plotly.data}
    assert dashes == {
        "ollama, measured": ("solid", False),
        "vllm, measured": ("dash", False),
        "Ollama, 4 slots, predicted": ("dot", True),
    }
    assert "Dotted: predicted from profile" in figure.caption


def test_what_a_line_shows_is_the_promised_share(run: Run) -> None:
    data = figures.promise(run, Slo(ttft_s=2.0, share=0.5)).data.filter(arm="ollama", level=4)
    assert data["ttft_s"].item() == pytest.approx(3.0)
    assert figures.promise(run, Slo(ttft_s=2.0)).data.filter(arm="ollama", level=4)["ttft_s"].item() > 3.0


def test_a_run_that_ended_before_its_first_level_draws_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x", rates={"ollama": {}, "vllm": {}}, stopped=True)
    figure = figures.promise(run, Slo(ttft_s=2.0))
    assert figure.png.startswith(PNG)
    assert "They are empty" in figure.alt
