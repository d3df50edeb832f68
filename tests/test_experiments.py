from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import pytest

from labkit.budget import Budget
from labkit.bundle import Run
from labkit.designs import Load, design, sweep
from labkit.device import DeviceLock
from labkit.errors import ExperimentStopped, UnfairPair, UsageError
from labkit.experiments import Arm, Experiment, Progress
from labkit.schema import OUTCOMES
from labkit.workload import Workload
from tests.small_engine import PACE_S, SmallEngine

QUICK = Budget("quick", (1, 3), (1, 3), rounds=1, max_s=30, repeats=2)
LONG_ANSWERS = Workload(output_tokens=100_000)
WORKLOAD = Workload(output_tokens=10)


@pytest.fixture
async def one_slot() -> AsyncIterator[SmallEngine]:
    engine = SmallEngine("ollama")
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
async def batching() -> AsyncIterator[SmallEngine]:
    engine = SmallEngine("vllm", slots=100)
    await engine.start()
    yield engine
    await engine.stop()


def plan(
    tmp_path: Path, *engines: SmallEngine, workload: Workload = WORKLOAD, budget: Budget = QUICK
) -> Experiment:
    arms = [Arm(engine.name, engine, "m") for engine in engines]
    folder = tmp_path / "run"
    return sweep(arms, list(budget.users_cpu), workload=workload, budget=budget, seed=1, folder=folder)


def assert_accounted(run: Run) -> None:
    """Every planned request is in one bucket, in the table and in each level's own account."""
    assert run.requests["outcome"].is_in(OUTCOMES).all()
    assert len(run.requests) == run.requests["id"].n_unique() == sum(r["planned"] for r in run.meta["levels"])
    for record in run.meta["levels"]:
        assert record["planned"] == sum(record[word] for word in OUTCOMES)


async def test_a_sweep_measures_each_arm_at_each_level_and_shows_who_queues(
    tmp_path: Path, one_slot: SmallEngine, batching: SmallEngine
) -> None:
    seen: list[Progress] = []
    run = await plan(tmp_path, one_slot, batching).run(seen.append)
    assert_accounted(run)
    assert run.partial is None
    table = run.summary()
    assert table.select("arm", "level", "repeats", "ok").rows() == [
        ("ollama", 1, 2, 2), ("ollama", 3, 2, 6), ("vllm", 1, 2, 2), ("vllm", 3, 2, 6),
    ]  # fmt: skip
    assert (one_slot.most_busy, batching.most_busy) == (1, 3)
    ttft = {(row["arm"], row["level"]): row["ttft_ms_p50"] for row in table.iter_rows(named=True)}
    assert ttft["ollama", 3] > ttft["ollama", 1]
    assert set(run.requests["queue_basis"]) == {"estimated"}
    assert run.gauges["name"].unique().to_list() == ["running"]
    assert seen[-1].phase == "done"
    assert any(p.frame for p in seen)
    assert [p.done for p in seen] == sorted(p.done for p in seen)


async def test_engines_take_turns_and_the_first_level_comes_again(
    tmp_path: Path, one_slot: SmallEngine, batching: SmallEngine
) -> None:
    steps = plan(tmp_path, one_slot, batching).steps
    assert [s.phase for s in steps[:2]] == ["warm-up"] * 2
    assert [(s.phase, s.level) for s in steps[-2:]] == [("drift", 1)] * 2
    measured = [(s.repeat, s.level, s.arm.name) for s in steps if s.phase == "measure"]
    assert len(measured) == len(set(measured)) == 8
    assert [name for *_, name in measured[:4]] == ["ollama", "vllm", "vllm", "ollama"]


async def test_both_arms_get_the_same_questions_and_each_level_others(
    tmp_path: Path, one_slot: SmallEngine, batching: SmallEngine
) -> None:
    experiment = plan(tmp_path, one_slot, batching)
    asked: dict[tuple[int, int], list[str]] = {}
    for step in experiment.steps:
        if step.phase == "measure":
            texts = [p.messages[0]["content"] for p in experiment.prompts(step)]
            assert asked.setdefault((step.repeat, step.level), texts) == texts
    everything = [text for texts in asked.values() for text in texts]
    assert len(everything) == len(set(everything))


async def test_stop_keeps_what_came_and_twice_is_harmless(tmp_path: Path, one_slot: SmallEngine) -> None:
    experiment = plan(tmp_path, one_slot, workload=LONG_ANSWERS)

    def stop_at_the_first_tokens(progress: Progress) -> None:
        if "user" in progress.phase and progress.frame and progress.frame.tokens:
            experiment.stop()
            experiment.stop()

    run = await experiment.run(stop_at_the_first_tokens)
    assert_accounted(run)
    assert run.verdict.word == "suspect"
    assert run.partial is not None
    assert "stopped early" in run.partial
    assert run.requests["outcome"].to_list()[-1] == "cancelled"
    assert len(run.tokens) > 0


async def test_stop_between_two_levels_leaves_no_level_without_requests(
    tmp_path: Path, one_slot: SmallEngine
) -> None:
    experiment = plan(tmp_path, one_slot)

    def stop_as_the_next_level_starts(progress: Progress) -> None:
        if (
            progress.run is not None and progress.done == 2
        ):  # its load process is told before its first request
            asyncio.get_running_loop().call_soon(experiment.stop)

    run = await experiment.run(stop_as_the_next_level_starts)
    assert_accounted(run)
    assert all(record["planned"] > 0 for record in run.meta["levels"])


async def test_stop_before_anything_came(tmp_path: Path, one_slot: SmallEngine) -> None:
    experiment = plan(tmp_path, one_slot)
    experiment.stop()
    with pytest.raises(ExperimentStopped):
        await experiment.run()


async def test_an_engine_that_dies_is_reported_and_the_other_arm_goes_on(
    tmp_path: Path, one_slot: SmallEngine, batching: SmallEngine
) -> None:
    one_slot.dies_after = 6
    run = await plan(tmp_path, one_slot, batching).run()
    assert_accounted(run)
    assert run.verdict.word == "suspect"
    assert any("died" in reason and "the plug was pulled" in reason for reason in run.verdict.reasons)
    table = run.summary()
    assert table.filter(arm="vllm")["ok"].to_list() == [2, 6]


async def test_what_was_measured_stays_when_somebody_elses_server_goes_away(
    tmp_path: Path, one_slot: SmallEngine, batching: SmallEngine
) -> None:
    one_slot.ours = False
    one_slot.dies_after = 6
    run = await plan(tmp_path, one_slot, batching).run()
    assert_accounted(run)
    assert run.meta["state"] == "complete"
    assert any("no longer answers at the end" in reason for reason in run.verdict.reasons)
    assert run.summary().filter(arm="vllm")["ok"].to_list() == [2, 6]


async def test_foreign_load_is_seen(tmp_path: Path, batching: SmallEngine) -> None:
    def somebody_else(progress: Progress) -> None:
        if progress.frame:
            batching.foreign += 100

    run = await plan(tmp_path, batching).run(somebody_else)
    assert run.verdict.word == "contaminated"


async def test_prompts_of_unequal_length_are_refused(tmp_path: Path, one_slot: SmallEngine) -> None:
    other = SmallEngine("vllm", extra_prompt_tokens=21)
    await other.start()
    with pytest.raises(UnfairPair, match="31"):
        await plan(tmp_path, one_slot, other).run()
    await other.stop()


async def test_live_and_simulated_never_stand_in_one_run(tmp_path: Path, one_slot: SmallEngine) -> None:
    other = SmallEngine("vllm", time_scale=1)
    await other.start()
    with pytest.raises(UsageError, match="live and simulated"):
        await plan(tmp_path, one_slot, other).run()
    await other.stop()


async def test_simulated_engines_of_one_run_go_at_one_pace(tmp_path: Path) -> None:
    engines = [SmallEngine("ollama", time_scale=2), SmallEngine("vllm", time_scale=3)]
    for engine in engines:
        await engine.start()
    with pytest.raises(UsageError, match="vllm: 3 times real time, others 2"):
        await plan(tmp_path, *engines).run()
    for engine in engines:
        await engine.stop()


async def test_a_run_of_a_simulated_engine_is_in_its_time(tmp_path: Path) -> None:
    engine = SmallEngine("vllm", time_scale=4)
    await engine.start()
    etas: list[float] = []

    def hear(progress: Progress) -> None:
        if progress.frame is None and progress.eta_s:
            etas.append(progress.eta_s)

    began = perf_counter()
    run = await plan(tmp_path, engine).run(hear)
    took = perf_counter() - began
    await engine.stop()
    assert_accounted(run)
    assert run.kind == "simulated"
    assert run.meta["arms"]["vllm"]["facts"]["simulated"]["time_scale"] == 4
    e2e = run.requests.filter(warmup=False)["end_s"] - run.requests.filter(warmup=False)["sent_s"]
    assert e2e.min() >= 4 * WORKLOAD.output_tokens * PACE_S
    assert run.requests["end_s"].max() <= 4 * took
    starts = [(level["started_s"], level["ended_s"]) for level in run.meta["levels"]]
    assert all(ended <= started for (_, ended), (started, _) in pairwise(starts))
    assert run.gauges["t_s"].is_sorted()
    assert run.gauges["t_s"].max() <= 4 * took
    answers = sum(level["planned"] for level in run.meta["levels"] if not level["warmup"])
    assert max(etas) <= answers * e2e.max() / 4


async def test_a_second_measurement_waits_and_says_for_whom(tmp_path: Path, one_slot: SmallEngine) -> None:
    waiting = asyncio.Event()
    phases: list[str] = []

    def hear(progress: Progress) -> None:
        phases.append(progress.phase)
        if "somebody else" in progress.phase:
            waiting.set()

    async with DeviceLock("cpu", owner="somebody else", on_wait=phases.append):
        task = asyncio.create_task(plan(tmp_path, one_slot).run(hear))
        await waiting.wait()
        assert not (tmp_path / "run").exists()
    assert_accounted(await task)


async def test_a_killed_load_process_costs_its_level_and_no_rows(
    tmp_path: Path, one_slot: SmallEngine
) -> None:
    killed = False

    def kill(progress: Progress) -> None:
        nonlocal killed
        if not killed and progress.frame and progress.frame.tokens and "user" in progress.phase:
            killed = True
            assert experiment.load_pid is not None
            os.kill(experiment.load_pid, signal.SIGKILL)

    experiment = plan(tmp_path, one_slot, workload=Workload(output_tokens=300))
    run = await experiment.run(kill)
    assert run.verdict.word == "suspect"
    assert any("killed by signal 9" in reason for reason in run.verdict.reasons)
    assert "unfinished" in run.requests["outcome"].to_list()
    assert run.requests.filter(level=3)["outcome"].to_list() == ["ok"] * 6


async def test_a_burst_on_one_slot_climbs_in_steps(tmp_path: Path, one_slot: SmallEngine) -> None:
    arms = [Arm("ollama", one_slot, "m")]
    experiment = design(
        "burst", arms, Load((4,), "burst"), workload=WORKLOAD, budget=QUICK, seed=1, folder=tmp_path / "run"
    )
    run = await experiment.run()
    assert_accounted(run)
    first = run.requests.filter(warmup=False, repeat=0).sort("first_token_s")
    gaps = first["first_token_s"].diff().drop_nulls()
    answer = (first["end_s"] - first["first_token_s"]).min()
    assert (gaps >= answer).all()


@pytest.mark.parametrize("users", [[], [0], [4, -1]])
async def test_levels_that_cannot_be_are_refused(
    tmp_path: Path, one_slot: SmallEngine, users: list[int]
) -> None:
    with pytest.raises(UsageError):
        sweep([Arm("a", one_slot, "m")], users, workload=WORKLOAD, budget=QUICK, seed=1, folder=tmp_path)
