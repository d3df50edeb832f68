from __future__ import annotations

import math

import polars as pl
import pytest

from labkit.crossover import crossover


def table(a: list[float], b: list[float], half_range: float = 0.0) -> pl.DataFrame:
    levels = [2**i for i in range(len(a))]
    rows = [
        {
            "arm": arm,
            "level": level,
            "tokens_per_s": value,
            "tokens_per_s_low": value - half_range,
            "tokens_per_s_high": value + half_range,
            "ttft_ms_p50": 1000 / value,
        }
        for arm, values in (("a", a), ("b", b))
        for level, value in zip(levels, values, strict=True)
    ]
    return pl.DataFrame(rows)


def test_the_crossover_lies_between_the_levels_where_the_lead_changes() -> None:
    found = crossover(table([10, 20, 40, 80], [30, 30, 30, 30]), "a", "b")
    assert found.users is not None
    assert 2 < found.users < 4
    assert (found.low, found.high) == (2, 4)


def test_it_is_interpolated_as_the_charts_draw_it() -> None:
    tokens = crossover(table([10, 30], [20, 20]), "a", "b")
    assert tokens.users == pytest.approx(math.sqrt(2))  # linear in tokens/s, logarithmic in users
    ttft = crossover(table([10, 40], [20, 20]), "a", "b", "ttft_ms_p50")
    assert ttft.users == pytest.approx(math.sqrt(2))  # logarithmic in both


def test_a_lead_from_the_first_level_on() -> None:
    found = crossover(table([40, 50], [30, 30]), "a", "b")
    assert (found.users, found.low, found.high) == (1.0, 0, 1)
    assert "from 1 user on" in found.sentence


def test_a_lead_that_does_not_last_is_no_crossover() -> None:
    found = crossover(table([10, 50, 20], [30, 30, 30]), "a", "b")
    assert found.users is None
    assert "no lasting lead" in found.sentence


def test_overlapping_repeats_widen_the_interval() -> None:
    values = ([10, 29, 32, 80], [30, 30, 30, 30])
    assert crossover(table(*values), "a", "b").high == 4
    assert crossover(table(*values, half_range=3), "a", "b").high == 8
    unsure = crossover(table([10, 31], [30, 30], half_range=3), "a", "b")
    assert unsure.high == math.inf
    assert "not sure" in unsure.sentence


def test_for_a_latency_less_is_better() -> None:
    found = crossover(table([10, 20, 40], [30, 30, 30]), "a", "b", "ttft_ms_p50")
    assert (found.low, found.high) == (2, 4)
    assert found.sentence.startswith("a has the shorter median TTFT than b from about 3.")
    assert found.sentence.endswith("users on, between 2 and 4.")
    never = crossover(table([10, 20], [30, 30]), "a", "b", "ttft_ms_p50")
    assert "no lastingly shorter median TTFT" in never.sentence


def test_arms_without_a_common_level_have_no_crossover() -> None:
    found = crossover(table([1], [2]), "a", "c")
    assert found.users is None
    assert "share no measured level" in found.sentence
