"""The recorded runs that are shipped: found by what was asked, and replayed without losing anything."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal
from synthetic import make_run

from labkit import paths, recorded
from labkit.bundle import Run
from labkit.depths import PAIRS
from labkit.designs import Load
from labkit.errors import ExperimentStopped, UsageError
from labkit.experiments import Progress
from labkit.replay import FRAME_S, Replay
from labkit.schema import OUTCOMES
from labkit.workload import Workload

SHIPPED = sorted(path.parent.name for path in (paths.data() / "runs").glob("*/run.json"))
OWN = {"ollama": {"num_parallel": 4}, "vllm": {}}


def shipped(name: str) -> Run:
    return Run.load(paths.data() / "runs" / name)


def find(settings: dict[str, dict[str, object]] | list[tuple[str, object]], **changed: object) -> Run:
    asked = {"model": PAIRS["fair"], "workload": Workload(), "load": Load((1, 4)), **changed}
    sides = list(settings.items()) if isinstance(settings, dict) else settings
    return recorded.find(sides, **asked)  # type: ignore[arg-type]


async def replayed(run: Run, users: list[int], speed: float = math.inf) -> tuple[Run, list[Progress]]:
    told: list[Progress] = []
    return await Replay(run, users, speed=speed).run(told.append), told


def test_keeping_a_run_changes_its_kind_and_takes_paths_of_this_machine_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates={"ollama": {1: 40}, "vllm": {1: 15}})
    (run.path / "artefacts").mkdir()
    run.artefact("ollama.log").write_text(f"loading {paths.home()}/models/m and {Path.home()}/.x")
    kept = recorded.keep(run, tmp_path / "kept")
    assert (kept.kind, kept.path) == ("recorded", tmp_path / "kept")
    assert_frame_equal(kept.summary(), run.summary())
    text = kept.artefact("ollama.log").read_text()
    assert str(Path.home()) not in text
    assert str(paths.home()) not in text


def test_what_is_shipped_is_recorded_whole_and_says_where_and_when() -> None:
    assert {"the_gap", "the_gap_own"} <= set(SHIPPED)
    for name in SHIPPED:
        run = shipped(name)
        assert (run.kind, run.partial) == ("recorded", None)
        badge = recorded.badge([run.meta])
        assert badge.startswith("recorded: measured on ")
        assert run.meta["host"]["cpu"] in badge
        assert run.meta["started_at"][:10] in badge


def test_a_run_is_found_by_its_settings_with_defaults_understood() -> None:
    assert find(OWN).path.name == "the_gap_own"
    assert find({"ollama": {}, "vllm": {}}).path.name == "the_gap"
    spelt_out = {"ollama": {"num_parallel": 1}, "vllm": {"max_num_seqs": 128, "prefix_caching": True}}
    assert find(spelt_out).path.name == "the_gap"
    by_itself = {"load": Load((8,), "burst"), "workload": Workload(output_tokens=32)}
    assert find({"ollama": {"num_parallel": None}}, **by_itself).path.name == "staircase"


def test_a_run_is_found_by_all_of_its_arms() -> None:
    burst = {"load": Load((16,), "burst"), "workload": Workload(output_tokens=64)}
    both = [("vllm", {"max_num_seqs": 4}), ("vllm", {})]
    assert find(both, **burst).path.name == "seats"
    with pytest.raises(UsageError, match="find a recorded run"):
        find(both[:1], **burst)


def test_a_run_is_found_by_its_questions() -> None:
    asked = {"load": Load((20,), "burst"), "workload": Workload(output_tokens=16)}
    assert find({"ollama": {"max_queue": 1}}, **asked).path.name == "trap_loaded"


@pytest.mark.parametrize(
    "asked",
    [
        {"workload": Workload(output_tokens=65)},
        {"workload": Workload(own_prompts=("Why?",))},
        {"load": Load((3,))},
        {"load": Load((1, 4), "burst")},
        {"load": Load((1, 4), stall_s=3.0)},
        {"model": PAIRS["4bit"]},
    ],
)
def test_what_was_not_recorded_is_answered_with_what_was(asked: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="find a recorded run") as caught:
        find(OWN, **asked)
    assert (
        "the_gap_own: ollama num_parallel=4 + vllm; stories (64 tokens out); closed; levels 1, 2"
        in caught.value.seen
    )
    assert "simulated" in caught.value.fix


def test_settings_that_nobody_recorded_and_settings_that_there_are_not() -> None:
    with pytest.raises(UsageError, match="num_parallel=7"):
        find({"ollama": {"num_parallel": 7}, "vllm": {}})
    with pytest.raises(UsageError, match="no such setting"):
        find({"ollama": {"slots": 4}, "vllm": {}})


@pytest.mark.parametrize("name", SHIPPED)
async def test_a_whole_replay_is_the_recording_and_its_account_holds_at_every_moment(name: str) -> None:
    run = shipped(name)
    again, told = await replayed(run, sorted(recorded.levels_of(run.meta)))
    assert_frame_equal(again.summary(), run.summary())
    assert_frame_equal(again.requests, run.requests)
    assert_frame_equal(again.tokens, run.tokens)
    assert (again.kind, again.partial, again.verdict) == ("recorded", None, run.verdict)
    ends = [progress.frame for progress in told if progress.frame is not None]
    for frame, record in zip(ends, run.meta["levels"], strict=True):  # at once there is one frame a level
        assert {word: getattr(frame.tally, word) for word in ("planned", *OUTCOMES)} == {
            word: record[word] for word in ("planned", *OUTCOMES)
        }
    assert sum(frame.tokens for frame in ends) == run.tokens["tokens"].sum()
    shown = [len(p.run.meta["levels"]) for p in told if p.run and p.frame is None]
    assert shown == [*range(1, len(ends) + 1), len(ends)]


async def test_frames_come_ten_times_a_second_and_lose_no_event() -> None:
    run, speed = shipped("the_gap_own"), 100
    again, told = await replayed(run, [1, 4], speed)
    by_level: dict[str, list[Progress]] = {}
    for progress in told:
        if progress.frame is not None and progress.step is not None:
            by_level.setdefault(f"{progress.step} {progress.step.repeat}", []).append(progress)
    assert len(by_level) == len(again.meta["levels"])
    for progresses in by_level.values():
        frames = [progress.frame for progress in progresses if progress.frame]
        steps = [later.t_s - earlier.t_s for earlier, later in pairwise(frames)]
        assert all(step <= FRAME_S * speed + 1e-9 for step in steps)
        for frame in frames:
            assert frame.in_flight == frame.tally.unfinished  # every request of this run was answered
            assert frame.tally.planned == frame.tally.ok + frame.in_flight
        assert frames[-1].in_flight == 0
        assert sum(frame.tokens for frame in frames) == frames[-1].tally.tokens
    seen = Counter(kind for p in told if p.frame for kind, _, _ in p.frame.events)
    later = again.tokens.height - again.requests.height
    assert seen == {**dict.fromkeys(("sent", "first", "end"), again.requests.height), "token": later}
    assert {progress.step.phase for progress in told if progress.step} == {"warm-up", "measure", "drift"}


async def test_a_slow_replay_counts_requests_in_flight() -> None:
    run = shipped("the_gap_own")
    _, told = await replayed(run, [16], speed=30)
    flying = [p.frame.in_flight for p in told if p.frame and p.step and p.step.level == 16]
    assert max(flying) == 16


async def test_levels_that_were_not_asked_for_or_not_recorded_are_left_out() -> None:
    run, told = await replayed(shipped("the_gap_own"), [1, 3, 4])
    assert set(run.summary()["level"]) == {1, 4}
    assert set(run.requests["level"]) == {1, 4}
    assert run.tokens["request_id"].is_in(run.requests["id"].to_list()).all()
    assert any("left out" in reason and "3 users" in reason for reason in run.verdict.reasons)
    others = [r for r in shipped("the_gap_own").meta["levels"] if r not in run.meta["levels"]]
    assert others
    for level in others:
        assert not run.gauges["t_s"].is_between(level["started_s"], level["ended_s"], closed="none").any()
    assert told[-1].total == len(run.meta["levels"])


async def test_stop_keeps_whole_levels_and_says_so() -> None:
    recording = shipped("the_gap_own")
    replay = Replay(recording, [1, 4], speed=60)

    def stop_later(progress: Progress) -> None:
        if progress.done == 5 and progress.frame is not None:
            replay.stop()
            replay.stop()

    run = await replay.run(stop_later)
    assert len(run.meta["levels"]) == 5
    assert (run.kind, run.verdict.word) == ("recorded", "suspect")
    assert any("stopped early" in reason for reason in run.verdict.reasons)
    assert "stopped early" in str(run.partial)
    assert run.requests.height == sum(record["planned"] for record in run.meta["levels"])


async def test_stop_before_the_first_level_leaves_nothing_to_keep() -> None:
    replay = Replay(shipped("the_gap_own"), [1, 4], speed=1)
    task = asyncio.create_task(replay.run())
    await asyncio.sleep(0)
    replay.stop()
    with pytest.raises(ExperimentStopped, match="before its first level"):
        await task
