"""The figures of notebook 03: the curve over slots, and KV memory beside its arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic import make_run

from labkit import figures
from labkit.bundle import Run
from labkit.figures.memory import kv_data
from labkit.figures.settings import settings_data

PNG = b"\x89PNG\r\n\x1a\n"
RATES = {4: 80.0, 1: 50.0, 2: 70.0}
BYTES = 1000


def told(slots: int, context: int, **more: Any) -> dict[str, Any]:
    read = {"slots": slots, "context": context, "kv_bytes": slots * context * BYTES}
    return {**read, "sources": {"kv_bytes": "log"}, **more}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    arms = {slots: f"ollama, {slots} slots" for slots in RATES}
    return make_run(
        tmp_path / "run",
        rates={arms[slots]: {2: rate / 2, 8: [rate, rate + 2]} for slots, rate in RATES.items()},
        facts={arms[slots]: told(slots, 4096) for slots in RATES},
        unfinished={arms[4]: {8: 0.5}},
    )


def test_data_have_a_row_for_each_arm_and_level_by_the_slots_that_the_engine_told(run: Run) -> None:
    data = settings_data(run)
    assert data.select("level", "slots").rows() == [(n, s) for n in (2, 8) for s in (1, 2, 4)]
    assert data.filter(level=8)["tokens_per_s"].to_list() == pytest.approx([51, 71, 81])


def test_an_arm_that_does_not_tell_its_slots_is_left_out(run: Run) -> None:
    run.meta["arms"]["ollama, 2 slots"]["facts"]["slots"] = None
    assert settings_data(run)["slots"].unique().sort().to_list() == [1, 4]


def test_both_forms_draw_each_number_of_users(run: Run) -> None:
    figure = figures.settings(run)
    assert figure.png.startswith(PNG)
    assert len(figure.plotly.data) == 2 * 3
    assert {line.name for line in figure.plotly.data} == {"ollama, 2 users", "ollama, 8 users"}
    hollow = next(line for line in figure.plotly.data if line.name == "ollama, 8 users").marker.symbol
    assert [symbol.endswith("-open") for symbol in hollow] == [False, False, True]


def test_alt_and_caption_say_what_is_to_be_seen(run: Run) -> None:
    figure = figures.settings(run)
    assert "ollama, 8 users: from 1 to 4 slots, total tokens per second go from 51 to 81" in figure.alt
    assert "medians of 2 repeats" in figure.caption
    assert "Hollow points" in figure.caption


def test_the_axis_of_vllm_has_its_own_word(tmp_path: Path) -> None:
    names = {4: "vllm, max_num_seqs=4", 8: "vllm"}
    run = make_run(
        tmp_path / "run",
        rates={name: {8: 10.0 * slots} for slots, name in names.items()},
        facts={name: {"slots": slots} for slots, name in names.items()},
    )
    assert figures.settings(run).plotly.layout.xaxis3.title.text == "max_num_seqs"


def test_a_run_without_a_level_is_empty_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates={"ollama": {}}, stopped=True)
    figure = figures.settings(run)
    assert figure.alt.startswith("Three empty charts")
    assert "Nothing to draw" in figure.caption


def test_memory_is_beside_its_arithmetic_and_two_ways_to_one_size_lie_on_one_point(tmp_path: Path) -> None:
    arms = {"ollama, many": told(4, 2048), "ollama, long": told(1, 8192), "ollama, off": told(2, 4096)}
    arms["ollama, off"]["kv_bytes"] += 2**20
    run = make_run(tmp_path / "run", rates={name: {1: 50.0} for name in arms}, facts=arms)
    data = kv_data([run], BYTES)
    rows = {row["arm"]: row for row in data.to_dicts()}
    assert all(row["tokens"] == 8192 for row in rows.values())
    many, long, off = (rows[name] for name in arms)
    assert many["read_mib"] == long["read_mib"] == pytest.approx(many["expected_mib"])
    assert off["read_mib"] - off["expected_mib"] == pytest.approx(1)
    figure = figures.kv_memory(run, BYTES)
    assert figure.png.startswith(PNG)
    assert "as read from log" in figure.caption
    assert "4 × 2048 tokens: 7.81 MiB read, 7.81 by arithmetic" in figure.alt


def test_arms_of_two_runs_stand_in_one_figure(tmp_path: Path, run: Run) -> None:
    other = make_run(
        tmp_path / "other", rates={"ollama, long": {1: 50.0}}, facts={"ollama, long": told(1, 8192)}
    )
    assert figures.kv_memory([run, other], BYTES).data.height == 4


def test_an_engine_that_does_not_tell_its_memory_is_said_so(tmp_path: Path) -> None:
    figure = figures.kv_memory(make_run(tmp_path / "run", rates={"ollama": {1: 50.0}}), BYTES)
    assert "no arm tells" in figure.alt
    assert "Nothing to draw" in figure.caption
