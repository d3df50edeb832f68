"""The figures of notebook 04: gauges over a level, a pool's block table, the phases of a start."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from burst_runs import Burst, burst_run

from labkit import figures
from labkit.engines.vllm_settings import VLLMSettings
from labkit.errors import UsageError
from labkit.figures.blocks import LOST, block_spans
from labkit.figures.gauges import gauge_arms
from labkit.figures.startup import startup_data
from labkit.sim import profile
from labkit.sim.request import Request
from labkit.transcript import Transcript

PNG = b"\x89PNG\r\n\x1a\n"

READ = {
    0.0: {"running": 0.0, "waiting": 0.0, "kv_use": 0.0, "preemptions": 4.0},
    1.0: {"running": 12.0, "waiting": 4.0, "kv_use": 1.0, "preemptions": 4.0},
    2.0: {"running": 7.0, "waiting": 9.0, "kv_use": 0.8, "preemptions": 9.0},
}


def burst(**more: Any) -> Burst:
    return Burst([0.1] * 16, readings=READ, **more)


# gauges


def test_gauges_are_drawn_from_the_levels_start_arm_below_arm(tmp_path: Path) -> None:
    run = burst_run(tmp_path / "run", {"vllm": burst(), "vllm, max_num_seqs=4": burst()})
    figure = figures.gauges(run)
    assert figure.data["arm"].unique(maintain_order=True).to_list() == ["vllm", "vllm, max_num_seqs=4"]
    assert figure.data["t_s"].to_list() == [0.0, 1.0, 2.0] * 2
    assert figure.data["kv_use"].to_list() == [0.0, 100.0, 80.0] * 2
    assert [trace.name for trace in figure.plotly.data] == [
        f"{arm}: {name}" for arm in run.arms for name in ("running", "waiting", "kv_use")
    ]
    assert figure.png.startswith(PNG)
    assert "at most 12 requests running, at most 9 requests waiting, KV use up to 100.0 %" in figure.alt


def test_preemptions_count_from_the_first_reading_and_are_marked(tmp_path: Path) -> None:
    run = burst_run(tmp_path / "run", {"vllm": burst()})
    [arm] = gauge_arms(run)
    assert arm.rows["preemptions"].to_list() == [0.0, 0.0, 5.0]
    assert arm.stolen().select("t_s", "more").rows() == [(2.0, 5.0)]
    figure = figures.gauges(run)
    assert len(figure.plotly.layout.shapes) == 1
    assert "5 preemptions" in figure.alt
    assert "Dotted" in figure.caption


def test_an_arm_without_gauges_is_named_and_left_out(tmp_path: Path) -> None:
    run = burst_run(tmp_path / "run", {"ollama": Burst([0.1] * 16), "vllm": burst()})
    figure = figures.gauges(run)
    assert figure.data["arm"].unique().to_list() == ["vllm"]
    assert "has no such gauges or was not read: ollama" in figure.caption


def test_one_gauge_alone_is_one_panel(tmp_path: Path) -> None:
    only = Burst([0.1] * 2, readings={0.0: {"running": 1.0}})
    figure = figures.gauges(burst_run(tmp_path / "run", {"ollama": only}))
    assert [trace.name for trace in figure.plotly.data] == ["ollama: running"]
    assert "waiting" not in figure.alt


def test_no_gauge_at_all_is_an_empty_chart_that_says_so(tmp_path: Path) -> None:
    figure = figures.gauges(burst_run(tmp_path / "run", {"ollama": Burst([0.1] * 2)}))
    assert figure.data.is_empty()
    assert figure.png.startswith(PNG)
    assert "An empty chart" in figure.alt


def test_a_level_that_was_not_measured_is_refused(tmp_path: Path) -> None:
    run = burst_run(tmp_path / "run", {"vllm": burst()})
    assert figures.gauges(run, level=16).data.height == 3
    with pytest.raises(UsageError, match=r"level 8\n.*\[16\]"):
        figures.gauges(run, level=8)


# blocks


def held(*rows: tuple[int, int, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["step", "block", "request"], orient="row")


def test_consecutive_steps_of_one_holder_are_one_bar() -> None:
    spans = block_spans(held((0, 0, 1), (1, 0, 1), (2, 0, 2), (4, 0, 2), (0, 1, 2)))
    assert spans.select("block", "who", "begin", "end").rows() == [
        (0, "1", 0, 2),
        (0, "2", 2, 3),
        (0, "2", 4, 5),
        (1, "2", 0, 1),
    ]


def test_only_who_comes_back_for_blocks_has_lost_one() -> None:
    spans = block_spans(held((0, 0, 1), (1, 0, 2), (2, 0, 1), (0, 1, 3)))
    assert dict(spans.filter("lost").select("block", "who").rows()) == {0: "1"}
    assert spans["lost"].sum() == 1  # request 3 ended, and 1 ended after its second bar


def test_a_shared_block_names_all_who_hold_it() -> None:
    spans = block_spans(held((0, 0, 5), (0, 0, 3), (1, 0, 3)))
    assert spans.select("who", "first").rows() == [("3+5", 3), ("3", 3)]


def test_the_simulated_scheduler_is_drawn_with_its_preemptions() -> None:
    imitated = profile.load(profile.DEFAULT)
    settings = VLLMSettings.of({"max_model_len": 512, "kv_cache_gib": 0.036}).resolved("cpu").as_dict()
    engine = profile.build(imitated, "vllm", settings)
    for number in range(12):
        prompt = tuple(range(1000 * number, 1000 * number + 60))
        engine.submit(Request(number, prompt, (0,) * 96), 0.0)
    rows, step = [], 0
    engine.begin(0.0)
    while engine.next_s < inf:
        rows += [(step, block, request.id) for request in engine.running for block in request.blocks]
        now, step = engine.next_s, step + 1
        engine.end()
        engine.begin(now)
    figure = figures.blocks(held(*rows), engine.pool.total, "profile x")
    assert engine.preemptions == 6
    assert "Lost their blocks and came back later: 6, 7, 8, 9, 10, 11" in figure.alt
    assert "At most 12 are held at once" in figure.alt
    assert sum(LOST in label for label in figure.plotly.data[0].text) == 6
    assert figure.depth == "simulated"
    assert figure.png.startswith(PNG)


def test_an_empty_table_is_an_empty_grid() -> None:
    empty = pl.DataFrame(schema={"step": pl.Int64, "block": pl.Int64, "request": pl.Int64})
    figure = figures.blocks(empty, 4, "profile x")
    assert "nobody held one" in figure.alt
    assert figure.png.startswith(PNG)


# startup


def log(*phases: tuple[str, float]) -> Transcript:
    events: list[dict[str, Any]] = []
    now = 0.0
    for phase, took_s in phases:
        events.append({"t_s": now, "what": "phase", "phase": phase, "took_s": took_s})
        now += took_s
    return Transcript("start_log_vllm", "recorded", {"engine": "vllm", "date": "2026-11-28"}, tuple(events))


def test_phases_follow_one_another_and_belong_to_a_part() -> None:
    figure = figures.startup(log(("imports", 10.0), ("weights", 2.5), ("KV pool", 0.5), ("a new one", 1.0)))
    assert figure.data["t_s"].to_list() == [0.0, 10.0, 12.5, 13.0]
    assert figure.data["part"].to_list() == ["programs", "weights", "memory", "other"]
    assert "start of 14 s: imports 10.0 s, weights 2.5 s, KV pool 0.5 s" in figure.alt
    assert figure.caption.startswith("**recorded** · start_log_vllm")
    assert figure.depth == "recorded"
    assert figure.png.startswith(PNG)


def test_a_start_in_no_time_still_has_an_axis() -> None:
    assert figures.startup(log(("imports", 0.0))).plotly.layout.xaxis.range == (0, 1.1)


def test_a_transcript_without_phases_is_refused() -> None:
    with pytest.raises(UsageError, match="no phases"):
        startup_data(Transcript("refusal", "live", {}, ()))
