from __future__ import annotations

import polars as pl
import pytest

from labkit import metrics


def requests(**columns: list[object]) -> pl.DataFrame:
    n = len(next(iter(columns.values())))
    base: dict[str, list[object]] = {
        "id": list(range(n)),
        "arm": ["a"] * n,
        "warmup": [False] * n,
        "outcome": ["ok"] * n,
        "intended_s": [0.0] * n,
        "sent_s": [0.0] * n,
        "first_token_s": [0.2] * n,
        "end_s": [1.2] * n,
        "output_tokens": [11] * n,
        "queue_s": [None] * n,
        "queue_basis": ["unknown"] * n,
    }
    frame = pl.DataFrame({**base, **columns}, strict=False)
    return frame.with_columns(pl.col("queue_s").cast(pl.Float64))


def test_ttft_starts_at_the_send_and_ttft_intended_at_the_plan() -> None:
    row = requests(intended_s=[1.0], sent_s=[1.5], first_token_s=[2.0])
    found = row.select(metrics.TTFT, metrics.TTFT_INTENDED).to_dicts()[0]
    assert found == {"ttft_s": 0.5, "ttft_intended_s": 1.0}


def test_tpot_leaves_ttft_out_and_needs_two_tokens() -> None:
    rows = requests(output_tokens=[11, 1, 0])
    assert rows.select(metrics.TPOT).to_series().to_list() == [pytest.approx(0.1), None, None]


def test_a_stall_in_one_answer_stays_visible_in_pooled_gaps() -> None:
    tokens = pl.DataFrame(
        {
            "request_id": [1, 2, 1, 2, 1, 2],
            "t_s": [0.0, 0.0, 0.1, 0.1, 5.1, 0.2],
            "tokens": [1] * 6,
            "coalesced": [False] * 6,
        }
    )
    gaps = metrics.gaps(tokens)
    assert len(gaps) == 4
    assert gaps["itl_s"].max() == pytest.approx(5.0)


def test_gaps_keep_the_order_of_chunks_that_share_one_clock_reading() -> None:
    tokens = pl.DataFrame(
        {"request_id": [1, 1], "t_s": [0.5, 0.5], "tokens": [1, 1], "coalesced": [False, True]}
    )
    assert metrics.gaps(tokens).to_dicts() == [{"request_id": 1, "t_s": 0.5, "itl_s": 0.0, "coalesced": True}]


def test_stats_of_nothing_are_none_and_never_zero() -> None:
    empty = metrics.stats(pl.Series([None, None], dtype=pl.Float64))
    assert empty == metrics.Stats(0, None, None, None, None)
    assert empty.scaled(1000) == {"mean": None, "p50": None, "p95": None, "p99": None}


def test_stats_interpolate_between_order_statistics() -> None:
    found = metrics.stats(pl.Series([0.0, 1.0, 2.0, 3.0]))
    assert (found.n, found.mean, found.p50) == (4, 1.5, 1.5)


def test_goodput_counts_only_whole_answers_within_every_limit() -> None:
    rows = requests(outcome=["ok", "failed", "ok"], first_token_s=[0.2, 0.2, 0.9])
    assert metrics.goodput(rows, 2.0) == 1.0
    assert metrics.goodput(rows, 2.0, ttft_s=0.5) == 0.5
    assert metrics.goodput(rows, 2.0, ttft_s=0.5, e2e_s=1.0) == 0.0
    assert metrics.goodput(rows.clear(), 0.0) == 0.0


def test_queue_is_estimated_from_the_idle_probe_and_never_below_zero() -> None:
    rows = requests(warmup=[True, False, False], first_token_s=[0.2, 0.7, 0.1], queue_basis=["unknown"] * 3)
    found = metrics.estimate_queue(rows)
    assert found["queue_s"].to_list() == [pytest.approx(0.0), pytest.approx(0.5), 0.0]
    assert set(found["queue_basis"]) == {"estimated"}


def test_a_reported_queue_is_left_alone_and_without_a_probe_it_stays_unknown() -> None:
    reported = requests(queue_s=[0.4], queue_basis=["reported"])
    assert metrics.estimate_queue(reported)["queue_s"].to_list() == [0.4]
    unknown = metrics.estimate_queue(requests(warmup=[False]))
    assert unknown["queue_basis"].to_list() == ["unknown"]
    assert unknown["queue_s"].to_list() == [None]


def test_spread_needs_two_repeats() -> None:
    assert metrics.spread([1.0]) is None
    assert metrics.spread([9.0, 10.0, 11.0]) == pytest.approx(0.1)
