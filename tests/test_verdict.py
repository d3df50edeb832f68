from __future__ import annotations

from typing import Any

import pytest

from labkit import verdict
from labkit.verdict import Verdict


def level(**changes: Any) -> dict[str, Any]:
    client = {"loop_lag_p99_ms": 1.0, "coalesced_share": 0.0, "missed_ticks": 0, "rows_lost": 0}
    record = {
        "arm": "a", "level": 1, "warmup": False, "drift": False, "ok": 5, "tokens": 100,
        "started_s": 0.0, "ended_s": 1.0, "broken": None, "others_cpu": 0.1,
        "planned": 5, "failed": 0, "unmetered": 0,
    }  # fmt: skip
    return {**record, "client": {**client, **changes.pop("client", {})}, **changes}


def test_the_worst_word_wins_and_every_reason_is_kept() -> None:
    found = verdict.combine(
        [Verdict("unknown", ["x"]), Verdict("contaminated", ["y"]), Verdict("suspect", ["z"])]
    )
    assert found == Verdict("contaminated", ["x", "y", "z"])


@pytest.mark.parametrize(
    "trouble",
    [
        {"client": {"loop_lag_p99_ms": 1000.0, "missed_ticks": 7}},
        {"client": {"coalesced_share": 0.5}},
        {"client": {"rows_lost": 3}},
        {"broken": "the load process was killed"},
        {"others_cpu": 0.8},
        {"planned": 20, "failed": 15},
        {"unmetered": 1},
    ],
)
def test_a_client_in_trouble_makes_the_run_suspect(trouble: dict[str, Any]) -> None:
    assert verdict.judge_clients([level()]).word == "clean"
    found = verdict.judge_clients([level(), level(level=4, **trouble)])
    assert found.word == "suspect"
    assert "a, level 4" in found.reasons[0]


def test_an_engine_that_is_not_ours_says_nothing_of_the_cpu() -> None:
    assert verdict.judge_clients([level(others_cpu=None)]).word == "clean"


def test_failures_are_counted_in_the_reason() -> None:
    assert verdict.judge_clients([level(planned=20, failed=2)]).word == "clean"
    (reason,) = verdict.judge_clients([level(planned=20, failed=3)]).reasons
    assert "3 of 20 requests failed" in reason


def test_a_few_answers_without_a_token_count_are_told_and_leave_the_word() -> None:
    found = verdict.judge_clients([level(ok=200, unmetered=1)])
    assert found.word == "clean"
    assert "1 of 200 answers carried no token count" in found.reasons[0]


def test_an_engine_that_served_less_than_was_sent_counts_something_else() -> None:
    found = verdict.judge_foreign("a", "requests", 900, 1000)
    assert found.word == "unknown"
    assert "900" in found.reasons[0]
    assert verdict.judge_foreign("a", "requests", 900, 1000, slack=100).word == "clean"


def test_foreign_load_above_one_percent_contaminates() -> None:
    assert verdict.judge_foreign("a", "requests", 1000, 1000).word == "clean"
    assert verdict.judge_foreign("a", "requests", 1009, 1000).word == "clean"
    assert verdict.judge_foreign("a", "requests", 1050, 1000).word == "contaminated"
    assert verdict.judge_foreign("a", "output tokens", 1050, 1000, slack=64).word == "clean"
    assert verdict.judge_foreign("a", "requests", None, 1000).word == "unknown"


def test_drift_is_judged_against_what_the_repeats_show() -> None:
    once = [level()]
    assert verdict.judge_drift("a", [*once, level(drift=True, tokens=80)]).word == "suspect"
    assert verdict.judge_drift("a", [*once, level(drift=True, tokens=90)]).word == "clean"
    calm = [level(), level(tokens=101, repeat=1), level(tokens=99, repeat=2)]
    assert verdict.judge_drift("a", [*calm, level(drift=True, tokens=90)]).word == "suspect"
    noisy = [level(), level(tokens=88, repeat=1), level(tokens=112, repeat=2)]
    assert verdict.judge_drift("a", [*noisy, level(drift=True, tokens=80)]).word == "clean"


def test_drift_without_a_second_look_is_unknown_and_without_a_plan_for_one_is_no_matter() -> None:
    assert verdict.judge_drift("a", [level(), level(drift=True, ok=0)]).word == "unknown"
    assert verdict.judge_drift("a", [level()]).word == "clean"
