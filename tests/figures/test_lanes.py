"""The lanes figure: its bars, what it says of them, and what it refuses to draw."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from synthetic import make_run

from labkit import figures
from labkit.bundle import Run
from labkit.errors import UsageError
from labkit.figures.lanes import MOST, lanes_data, outcome_word

PNG = b"\x89PNG\r\n\x1a\n"
PARTS = ["load_s", "wait_s", "prefill_s", "unsplit_s", "decode_s"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", rates={"ollama": {1: 40, 4: 42}, "vllm": {1: 15, 4: 60}})


def changed(run: Run, **columns: pl.Expr) -> Run:
    return Run(run.meta, run.requests.with_columns(**columns), run.tokens, run.gauges, run.path)


def names(figure: figures.Figure) -> set[str]:
    return {trace.name for trace in figure.plotly.data}


def test_the_highest_level_is_drawn_a_panel_an_arm_a_bar_a_request(run: Run) -> None:
    figure = figures.lanes(run)
    assert figure.data.select("arm", "level", "place").rows() == [
        (arm, 4, place) for arm in ("ollama", "vllm") for place in range(1, 9)
    ]
    assert figure.png.startswith(PNG)
    assert [title.text for title in figure.plotly.layout.annotations] == ["ollama", "vllm"]
    assert {"waiting", "prefill", "writing the answer: ollama", "writing the answer: vllm"} == names(figure)


def test_the_parts_of_a_bar_add_up_to_its_length(run: Run) -> None:
    data = lanes_data(run)
    length = data.select(pl.sum_horizontal(PARTS)).to_series()
    assert length.to_list() == pytest.approx((data["end_s"] - data["sent_s"]).to_list())
    assert data["unsplit_s"].null_count() == len(data)


def test_where_nothing_tells_waiting_from_prefill_it_is_one_hatched_piece(run: Run) -> None:
    figure = figures.lanes(changed(run, queue_s=pl.lit(None, pl.Float64)), arm="vllm")
    assert names(figure) == {"waiting or prefill", "writing the answer: vllm"}
    (hatched,) = (trace for trace in figure.plotly.data if trace.name == "waiting or prefill")
    assert hatched.marker.pattern.shape == "/"
    assert "waiting (" not in figure.alt


def test_loading_the_model_is_a_part_only_where_it_took_time(run: Run) -> None:
    loaded = changed(run, load_s=pl.lit(0.004), queue_s=pl.lit(0.0))
    assert "loading the model" not in names(figures.lanes(loaded))
    cold = changed(run, load_s=pl.col("first_token_s") - pl.col("sent_s") - 0.02, queue_s=pl.lit(0.0))
    assert "loading the model" in names(figures.lanes(cold, arm="ollama"))
    data = lanes_data(cold, arm="ollama")
    assert data["prefill_s"].to_list() == pytest.approx([0.02] * len(data))


def test_what_got_no_whole_answer_is_marked_by_shape_and_word(run: Run) -> None:
    refused = pl.col("id") == pl.col("id").max()
    lost = changed(
        run,
        outcome=pl.when(refused).then(pl.lit("failed")).otherwise("outcome"),
        http_status=pl.when(refused).then(503).otherwise(200),
        first_token_s=pl.when(refused).then(None).otherwise("first_token_s"),
    )
    figure = figures.lanes(lost)
    (marks,) = (trace for trace in figure.plotly.data if trace.name == "no whole answer")
    assert (marks.marker.symbol, list(marks.text)) == ("x", ["503"])
    assert "vllm: 8 requests" in figure.alt
    assert "1 of them: 503" in figure.alt


def test_requests_that_were_cut_off_are_drawn_to_the_end_of_what_is_known(tmp_path: Path) -> None:
    rates = {"ollama": {4: 40}}
    run = make_run(tmp_path / "run", rates=rates, unfinished={"ollama": {4: 0.5}})
    data = lanes_data(run)
    assert data["ended"].value_counts().sort("ended").rows() == [("cut off", 4), ("ok", 4)]
    assert data["end_s"].null_count() == 0
    assert "4 of them: cut off" in figures.lanes(run).alt


def test_alt_and_caption_say_values_load_and_where_the_split_is_from(run: Run) -> None:
    figure = figures.lanes(run)
    assert figure.alt.startswith("Requests of a live run over time, a bar each: closed loop, 4 users.")
    assert "waiting (reported)" in figure.alt
    assert "all got a whole answer" in figure.alt
    assert "as the engine reports it" in figure.caption
    assert "an upper limit" in figure.caption


def test_one_arm_and_one_level_can_be_chosen_and_unknown_ones_are_refused(run: Run) -> None:
    data = lanes_data(run, "vllm", 1)
    assert data.select("arm", "level").unique().rows() == [("vllm", 1)]
    with pytest.raises(UsageError, match="one of: ollama, vllm"):
        figures.lanes(run, arm="sglang")
    with pytest.raises(UsageError, match="one of: 1, 4"):
        figures.lanes(run, level=2)


def test_a_crowd_is_cut_and_the_caption_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates={"vllm": {64: [100, 100]}})
    figure = figures.lanes(run)
    assert len(figure.data) == MOST
    assert f"{MOST} of 256 requests" in figure.caption


def test_a_run_without_a_level_draws_an_empty_axis_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates={"ollama": {}}, stopped=True)
    figure = figures.lanes(run)
    assert figure.png.startswith(PNG)
    assert "no request was sent" in figure.alt
    assert "no request was sent" in figure.caption


def test_how_a_request_ended_in_a_word() -> None:
    words = [outcome_word(*ended) for ended in (("ok", 200), ("failed", 503), ("failed", None))]
    assert words == ["ok", "503", "failed"]
    assert outcome_word("unfinished", 200) == "cut off"
