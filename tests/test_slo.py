"""Promises: when a load keeps one, how the largest such load is found, and what is said if there is none."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from synthetic import make_run

from labkit import paths, predict
from labkit.bundle import Run
from labkit.errors import UsageError
from labkit.sim import profile
from labkit.slo import Slo, kept, seats

RATES = {"ollama": {1: 40.0, 2: 40.0, 4: 40.0, 8: 40.0}, "vllm": {1: 20.0, 2: 35.0, 4: 60.0, 8: 90.0}}
TTFT = {"ollama": {1: 0.1, 2: 0.5, 4: 1.3, 8: 2.9}, "vllm": {1: 0.2, 2: 0.3, 4: 0.4, 8: 0.6}}
ITL = {"ollama": dict.fromkeys((1, 2, 4, 8), 0.02), "vllm": {1: 0.03, 2: 0.04, 4: 0.06, 8: 0.09}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", rates=RATES, ttft=TTFT, itl=ITL)


def found(run: Run, slo: Slo) -> dict[str, tuple[float, float, float | None]]:
    return {row["arm"]: (row["users"], row["low"], row["high"]) for row in seats(run, slo).to_dicts()}


def test_the_largest_load_that_keeps_it_is_between_two_measured_ones(run: Run) -> None:
    assert found(run, Slo(ttft_s=1.0)) == {"ollama": (2, 2, 4), "vllm": (8, 8, None)}
    assert found(run, Slo(tpot_s=0.05)) == {"ollama": (8, 8, None), "vllm": (2, 2, 4)}
    assert found(run, Slo(ttft_s=1.0, tpot_s=0.05)) == {"ollama": (2, 2, 4), "vllm": (2, 2, 4)}


def test_a_promise_that_no_load_keeps_is_told_with_limit_factor_and_load(run: Run) -> None:
    table = seats(run, Slo(ttft_s=0.05))
    assert table["users"].to_list() == [0, 0]
    for sentence, value in zip(table["sentence"], ("0.1", "0.2"), strict=True):
        assert "at no load that was measured: already with 1 user the p95 of TTFT" in sentence
        assert f" {value}" in sentence
        assert "times its limit of 0.05 s" in sentence


def test_a_load_beyond_one_that_breaks_it_does_not_count(tmp_path: Path) -> None:
    ttft = {"vllm": {1: 0.2, 2: 3.0, 4: 0.2}}
    run = make_run(tmp_path / "run", rates={"vllm": {1: 20.0, 2: 30.0, 4: 40.0}}, ttft=ttft)
    assert found(run, Slo(ttft_s=1.0)) == {"vllm": (1, 1, 2)}


def test_requests_without_an_answer_break_every_promise(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates=RATES, ttft=TTFT, unfinished={"vllm": {8: 0.25}})
    assert found(run, Slo(ttft_s=10.0))["vllm"] == (4, 4, 8)
    (row,) = kept(run, Slo(ttft_s=10.0)).filter(arm="vllm", level=8).to_dicts()
    assert (row["planned"], row["ok"], row["kept"]) == (16, 12, 12)
    assert row["ttft_s"] is None
    assert not row["holds_possibly"]
    assert row["broken"] == "only 12 of 16 requests got a whole answer"
    # half of the requests were in time all the same
    assert found(run, Slo(ttft_s=10.0, share=0.5))["vllm"] == (8, 8, None)


def test_it_counts_who_keeps_all_limits_at_once(run: Run) -> None:
    (row,) = kept(run, Slo(ttft_s=0.35, tpot_s=0.03)).filter(arm="vllm", level=2).to_dicts()
    assert row["kept"] == 0
    assert row["share"] == 0.0
    assert "TPOT" in row["broken"]


def test_the_median_is_another_promise_than_the_p95(run: Run) -> None:
    slo = Slo(ttft_s=1.3, share=0.5)
    assert found(run, slo)["ollama"][0] >= found(run, Slo(ttft_s=1.3))["ollama"][0]
    assert "p50 of TTFT" in str(slo)


def test_an_open_loop_is_told_in_requests_a_second() -> None:
    table = seats(Run.load(paths.data() / "runs" / "arrivals"), Slo(ttft_s=100.0))
    assert set(table["unit"]) == {"requests/s"}
    assert (table["users"] > 0).all()


def test_a_burst_has_no_lasting_load() -> None:
    with pytest.raises(UsageError, match="at one moment"):
        seats(Run.load(paths.data() / "runs" / "staircase"), Slo(ttft_s=1.0))


def test_a_prediction_has_an_interval_from_its_band() -> None:
    table = predict.sweep(profile.DEFAULT, "ollama", list(range(1, 9)))
    limit = table["ttft_ms_p95"][3] / 1000 * 1.01
    (row,) = seats(table, Slo(ttft_s=limit)).to_dicts()
    assert row["basis"] == "predicted"
    assert row["users"] == 4
    assert row["low"] < 4 < row["high"]
    assert "By its band it ends between" in row["sentence"]


def test_without_a_band_a_prediction_is_sure_of_nothing() -> None:
    table = predict.sweep(profile.DEFAULT, "ollama", [1, 2]).with_columns(
        ttft_ms_p95_low=pl.lit(None, pl.Float64), ttft_ms_p95_high=pl.lit(None, pl.Float64)
    )
    (row,) = seats(table, Slo(ttft_s=60.0)).to_dicts()
    assert (row["users"], row["low"], row["high"]) == (2, 0, None)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"ttft_s": 0},
        {"ttft_s": -1},
        {"e2e_s": float("nan")},
        {"tpot_s": float("inf")},
        {"ttft_s": 1, "share": 0.9},
    ],
)
def test_a_promise_that_is_none_is_refused(asked: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="promise something"):
        Slo(**asked)
