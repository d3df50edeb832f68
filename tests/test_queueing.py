"""The line: its order, how many were in it, and when each is taken on."""

from __future__ import annotations

from pathlib import Path

import pytest
from queue_runs import Asked, burst, queue_run

from labkit.queueing import in_order, inside, load_words, taking_turns


def test_requests_are_numbered_by_sending_and_by_first_token(tmp_path: Path) -> None:
    asked = [Asked(waits=1.0), Asked(status=503), Asked(waits=0.0)]
    rows = in_order(queue_run(tmp_path / "run", {3: asked}))
    assert rows["place"].to_list() == [1, 2, 3]
    assert rows["served"].to_list() == [2, None, 1]
    assert rows["at_s"].to_list() == pytest.approx([0, 0, 0])


def test_repeats_are_numbered_apart_and_start_at_nothing(tmp_path: Path) -> None:
    rows = in_order(queue_run(tmp_path / "run", {2: [burst([0.5] * 2), burst([0.5] * 2)]}))
    assert rows["place"].to_list() == [1, 2, 1, 2]
    assert rows["at_s"].to_list() == pytest.approx([0] * 4)


def test_what_is_inside_rises_with_each_request_and_falls_with_each_end(tmp_path: Path) -> None:
    moves = inside(queue_run(tmp_path / "run", {2: burst([0.5, 0.7])}))
    assert moves["inside"].to_list() == [1, 2, 1, 0]
    assert moves["t_s"].to_list() == pytest.approx([0, 0, 0.5, 1.2], abs=1e-3)


@pytest.mark.parametrize(("servers", "begins"), [(1, [0, 2, 4, 10]), (2, [0, 0, 2, 10]), (9, [0, 0, 1, 10])])
def test_each_is_taken_on_when_the_first_server_is_free(servers: int, begins: list[float]) -> None:
    assert taking_turns([0, 0, 1, 10], [2, 2, 2, 2], servers) == begins


@pytest.mark.parametrize(
    ("load", "level", "words"),
    [
        (None, 1, "closed loop, 1 user"),
        ({"arrivals": "closed"}, 4, "closed loop, 4 users"),
        ({"arrivals": "burst"}, 8, "burst of 8"),
        ({"arrivals": "poisson"}, 150, "open loop, 150 % of capacity"),
    ],
)
def test_a_load_in_words(tmp_path: Path, load: dict[str, str] | None, level: int, words: str) -> None:
    run = queue_run(tmp_path / "run", {level: [Asked()]})
    run.meta["workload"]["load"] = load
    assert load_words(run, level) == words
