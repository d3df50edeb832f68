"""Costs: the arithmetic, which tokens are meant, and prices that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import TOKENS_EACH, make_run

from labkit import costs, predict
from labkit.errors import UsageError
from labkit.sim import profile
from labkit.slo import Slo

ASKED = 24
"""Tokens of a question in a synthetic run."""


def test_a_million_tokens_take_their_time_at_the_price_of_an_hour() -> None:
    assert costs.per_million_tokens(1e6 / 3600, 2.0) == pytest.approx(2.0)
    assert costs.per_million_tokens(1e6 / 3600, 2.0, utilisation=0.25) == pytest.approx(8.0)
    assert costs.per_million_tokens(5.0, 0.0) == 0.0


def test_people_share_a_machine_as_far_as_they_are_not_all_busy() -> None:
    assert costs.per_user_month(1.0, 10, hours=730) == pytest.approx(73.0)
    assert costs.per_user_month(1.0, 10, hours=730, active_share=0.1) == pytest.approx(7.3)


def test_all_tokens_are_those_of_the_questions_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates={"vllm": {1: 20.0, 4: 60.0}})
    for row in costs.table(run, 1.0).iter_rows(named=True):
        assert row["all_tokens_per_s"] == pytest.approx(row["tokens_per_s"] * (1 + ASKED / TOKENS_EACH))
        assert row["per_million_all"] < row["per_million_output"]
        assert row["per_million_output"] == pytest.approx(costs.per_million_tokens(row["tokens_per_s"], 1.0))
        assert row["per_user_month"] == pytest.approx(costs.per_user_month(1.0, row["level"]))


def test_with_a_promise_only_the_largest_load_that_keeps_it_is_priced(tmp_path: Path) -> None:
    ttft = {"ollama": {1: 0.1, 2: 0.9, 4: 3.0}, "vllm": {1: 5.0, 2: 5.0, 4: 5.0}}
    run = make_run(
        tmp_path / "run",
        rates={"ollama": {1: 9.0, 2: 9.0, 4: 9.0}, "vllm": {1: 9.0, 2: 9.0, 4: 9.0}},
        ttft=ttft,
    )
    table = costs.table(run, 1.0, slo=Slo(ttft_s=1.0))
    assert table.select("arm", "level").rows() == [("ollama", 2)]


def test_a_prediction_is_priced_like_a_run() -> None:
    told = predict.sweep(profile.DEFAULT, "vllm", [1, 4], prompt_tokens=100, output_tokens=50)
    table = costs.table(told, 1.0)
    assert table["all_tokens_per_s"].to_list() == pytest.approx((told["tokens_per_s"] * 3).to_list())


@pytest.mark.parametrize("price", [-0.01, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused(price: float) -> None:
    with pytest.raises(UsageError, match="the price is"):
        costs.per_million_tokens(10.0, price)
    with pytest.raises(UsageError, match="the price is"):
        costs.per_user_month(price, 1)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match=f"utilisation is {share}"):
        costs.per_million_tokens(10.0, 1.0, share)
    with pytest.raises(UsageError, match=f"active_share is {share}"):
        costs.per_user_month(1.0, 1, active_share=share)


def test_nothing_has_no_price() -> None:
    with pytest.raises(UsageError, match="0 tokens a second"):
        costs.per_million_tokens(0, 1.0)
    with pytest.raises(UsageError, match="0 users"):
        costs.per_user_month(1.0, 0)
