"""Predictions in virtual time: alike for the same seed, with bands, and beside what was measured."""

from __future__ import annotations

import polars as pl
import pytest

from labkit import paths, predict
from labkit.bundle import Run
from labkit.crossover import crossover
from labkit.errors import UsageError
from labkit.predict import Lengths
from labkit.sim import profile
from labkit.sim.calibrate import Source, calibrate
from labkit.sim.rerun import measured
from labkit.summary import summarise
from labkit.workload import Workload
from tests.sim import truth

PROFILE = profile.DEFAULT


def recorded(name: str) -> Run:
    return Run.load(paths.data() / "runs" / name)


def test_a_prediction_has_the_columns_of_a_summary_and_bands_around_them() -> None:
    run = recorded("the_gap")
    table = predict.sweep(PROFILE, "vllm", [4, 1])
    assert set(summarise(run.requests, run.tokens, run.meta["levels"]).columns) <= set(table.columns)
    assert table["level"].to_list() == [1, 4]
    band = profile.load(PROFILE).engines["vllm"].band
    for column, names in predict.BANDED.items():
        factor = [1 + band[name] for name in names if name in band]
        ends = table.select(f"{column}_low", f"{column}_high")
        if len(factor) < len(names):
            assert ends.null_count().row(0) == (2, 2)
        else:
            assert ends[f"{column}_low"].to_list() == pytest.approx((table[column] / max(factor)).to_list())
            assert ends[f"{column}_high"].to_list() == pytest.approx((table[column] * max(factor)).to_list())
    assert PROFILE in predict.told(table)
    assert "measured" in predict.told(table)


def test_the_same_seed_gives_the_same_prediction() -> None:
    one, two, other = (predict.arrivals(PROFILE, "vllm", [2.0], seed=seed) for seed in (1, 1, 2))
    assert one.equals(two)
    assert not one.equals(other)


def test_one_slot_serves_no_more_for_more_users_and_a_batch_does() -> None:
    slot, batch = (predict.sweep(PROFILE, engine, [1, 8])["tokens_per_s"] for engine in ("ollama", "vllm"))
    assert slot[1] == pytest.approx(slot[0], rel=0.05)
    assert batch[1] > 2 * batch[0]


def test_settings_change_the_engine_and_name_the_arm() -> None:
    few, many = (predict.sweep(PROFILE, "ollama", [8], settings={"num_parallel": n}) for n in (1, 4))
    assert (few["arm"][0], many["arm"][0]) == ("Ollama, 1 slot", "Ollama, 4 slots")
    assert many["ttft_ms_p95"][0] < few["ttft_ms_p95"][0]


def test_a_setting_that_the_engine_refuses_is_refused_in_its_words() -> None:
    with pytest.raises(UsageError, match="divisible by tensor parallel size"):
        predict.sweep(PROFILE, "vllm", [1], settings={"tensor_parallel_size": 2})


def test_a_large_model_on_four_devices_says_that_its_profile_was_never_measured() -> None:
    table = predict.sweep(
        "h100-llama-3.1-70b",
        "vllm",
        [1],
        settings={"tensor_parallel_size": 4},
        prompt_tokens=500,
        output_tokens=200,
    )
    assert table["basis"].to_list() == ["from datasheets, not measured"]
    assert table["prompt_tokens"].to_list() == [500]


def test_an_open_loop_waits_longer_the_nearer_it_comes_to_the_capacity() -> None:
    full = predict.sweep(PROFILE, "ollama", [4])["answers_per_s"][0]
    table = predict.arrivals(PROFILE, "ollama", [0.9 * full, 0.2 * full])
    assert table["rate"].to_list() == pytest.approx([0.2 * full, 0.9 * full])
    assert table["ttft_ms_p95"][1] > table["ttft_ms_p95"][0]
    assert table["answers_per_s"][0] == pytest.approx(0.2 * full, rel=0.3)


def test_lengths_come_from_a_workload_from_numbers_or_from_a_run() -> None:
    course = Lengths.of(Workload())
    run = recorded("the_gap")
    seen = Lengths.seen(run, "vLLM")
    assert course.means[0] == pytest.approx(seen.means[0], rel=0.1)
    assert course.means[1] == seen.means[1] == 64
    assert Lengths.of(Workload(shared_words=100)).shared > 100
    assert Lengths.even(10, 5).means == (10, 5)


def test_longer_answers_take_longer() -> None:
    short, long = (
        predict.sweep(PROFILE, "vllm", [2], prompt_tokens=60, output_tokens=n)["e2e_ms_p50"][0]
        for n in (20, 80)
    )
    assert long > 3 * short


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        ({"users": []}, "users are"),
        ({"users": [0]}, "users are"),
        ({"prompt_tokens": 5}, "give both"),
        ({"prompt_tokens": 0, "output_tokens": 5}, "0 tokens in"),
        ({"engine": "llama"}, "no such engine"),
        ({"profile": "nope"}, "no such profile"),
        ({"settings": {"slots": 3}}, "no such setting"),
    ],
)
def test_what_cannot_be_predicted_is_refused(asked: dict[str, object], seen: str) -> None:
    given = {"profile": PROFILE, "engine": "vllm", "users": [1], **asked}
    with pytest.raises(UsageError, match=seen):
        predict.sweep(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("rates", [[], [0.0], [-1.0], [float("nan")], [float("inf")]])
def test_a_rate_must_be_one(rates: list[float]) -> None:
    with pytest.raises(UsageError, match="above 0"):
        predict.arrivals(PROFILE, "vllm", rates)


def test_the_line_goes_through_its_points_and_on_from_the_last_two() -> None:
    points = {1: 10.0, 4: 40.0, 16: 52.0}
    assert [predict.line(points, users) for users in (1, 2, 4, 10, 28)] == pytest.approx([10, 20, 40, 46, 64])


def test_errors_of_a_known_truth_are_small_and_inside_the_band() -> None:
    run = truth.run("vllm", "short", users=(1, 2, 4, 8, 16))
    made = calibrate([Source(run, run.arms[0], (1, 4, 16))], profile.load("cpu-2core-roofline"))
    told = predict.sweep(made.profile, "vllm", [2, 8], lengths=Lengths.seen(run, run.arms[0]))
    table = predict.errors(told.with_columns(arm=pl.lit(run.arms[0])), run, run)
    assert set(table["metric"]) == {"tokens_per_s", "itl", "ttft"}
    assert table.select("level", "metric").is_unique().all()
    rates = table.filter(metric="tokens_per_s")
    assert rates["error"].abs().max() < 0.05
    assert rates["inside"].all()
    truth_at_2 = [row["tokens_per_s"] for (users, _), row in measured(run, run.arms[0]).items() if users == 2]
    row = rates.filter(level=2).row(0, named=True)
    assert (row["measured_low"], row["measured_high"]) == (min(truth_at_2), max(truth_at_2))
    assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1)
    assert row["line_error"] == pytest.approx(row["line"] / row["measured"] - 1)


def test_the_line_is_drawn_from_the_levels_of_the_fit_alone() -> None:
    run = recorded("the_gap")
    told = predict.sweep(PROFILE, "vllm", [8])
    rates = run.summary().filter(arm="vLLM")
    at = {users: rates.filter(level=users)["tokens_per_s"][0] for users in (4, 16)}
    row = predict.errors(told, run, run).filter(metric="tokens_per_s").row(0, named=True)
    assert row["line"] == pytest.approx(at[4] + (at[16] - at[4]) / 3)
    alone = predict.errors(told, run, run, seen=(16,))
    assert alone["line"].null_count() == len(alone)


def test_a_queue_is_judged_where_it_was_reported() -> None:
    run = recorded("the_gap")
    told = predict.sweep(PROFILE, "ollama", [8])
    assert "queue" in predict.errors(told, run)["metric"].to_list()


def test_levels_that_nobody_measured_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match="predicted are vLLM: 3 users"):
        predict.errors(predict.sweep(PROFILE, "vllm", [3]), recorded("the_gap"))


def test_predicted_tables_cross_like_measured_ones() -> None:
    table = pl.concat([predict.sweep(PROFILE, engine, [1, 2, 4, 8]) for engine in ("ollama", "vllm")])
    found = crossover(table, "vLLM", "Ollama, 1 slot")
    assert found.users is not None
    assert found.low < found.users
    for metric in ("ttft_ms_p95", "e2e_ms_p95"):
        surely = crossover(table, "vLLM", "Ollama, 1 slot", metric)
        values = crossover(table.drop(f"{metric}_low", f"{metric}_high"), "vLLM", "Ollama, 1 slot", metric)
        assert surely.users == values.users
        assert surely.high >= values.high
