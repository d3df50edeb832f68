"""Designs: bursts, open loops, stalls, cold starts, an arm for each setting, and a reader who steers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from synthetic import make_run

from labkit import designs, metrics
from labkit.arms import Arm, Step
from labkit.budget import Budget
from labkit.bundle import Run
from labkit.designs import Load, design
from labkit.engines.simulated import SimulatedOllama, SimulatedVLLM
from labkit.errors import UsageError
from labkit.experiments import Experiment, Progress
from labkit.workload import Workload
from tests.under_load import assert_accounted

MODEL = "smollm2:135m"
BUDGET = Budget("test", (2, 4), (2, 4), rounds=1, max_s=60, repeats=1)
WORKLOAD = Workload(output_tokens=16)
STALL_S = 2.0


@pytest.fixture
async def ollama() -> AsyncIterator[SimulatedOllama]:
    engine = SimulatedOllama(time_scale=5)
    await engine.start(max_queue=1)
    await engine.load(MODEL)
    yield engine
    await engine.stop()


def plan(arms: list[Arm], load: Load, folder: Path, budget: Budget = BUDGET) -> Experiment:
    return design("test", arms, load, workload=WORKLOAD, budget=budget, seed=1, folder=folder)


async def measured(engine: SimulatedOllama, load: Load, folder: Path) -> Run:
    run = await plan([Arm("Ollama", engine, MODEL)], load, folder).run()
    assert_accounted(run)
    return run


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({"levels": ()}, "a level is 1 at least"),
        ({"levels": (0, 1)}, "a level is 1 at least"),
        ({"levels": (1,), "arrivals": "never"}, "no such arrivals"),
        ({"levels": (1,), "rounds": 0}, "rounds is 0"),
        ({"levels": (1,), "stall_s": -1.0}, "stall_s is -1"),
        ({"levels": (50,), "arrivals": "poisson", "requests": 20}, "capacity None"),
        ({"levels": (50,), "arrivals": "constant", "capacity": 2.0}, "requests is None"),
    ],
)
def test_impossible_load_is_refused(fields: dict[str, Any], seen: str) -> None:
    with pytest.raises(UsageError, match=seen):
        Load(**fields)


def test_runs_have_the_same_load_whatever_their_levels_and_the_machines_capacity() -> None:
    loop = Load((50,), "poisson", requests=20, capacity=3.0)
    assert loop.same_as(replace(loop, levels=(120,), capacity=9.0).as_dict())
    assert not loop.same_as(replace(loop, stall_s=3.0).as_dict())
    assert Load((4,)).same_as(None)  # bundles of before there was anything else
    assert not Load((4,), "burst").same_as(None)


def test_arms_take_turns_unless_they_share_an_engine() -> None:
    one, other = SimulatedOllama(), SimulatedVLLM()

    def order(*arms: Arm) -> list[str]:
        return [str(step) for step in plan(list(arms), Load((2, 4)), Path("unused")).steps]

    assert order(Arm("a", one, MODEL), Arm("b", other, MODEL)) == [
        "a: warm-up", "b: warm-up", "a: 2 users", "b: 2 users", "b: 4 users", "a: 4 users",
        "a: 2 users again, to see drift", "b: 2 users again, to see drift",
    ]  # fmt: skip
    assert order(Arm("a", one, MODEL), Arm("b", one, MODEL)) == [
        "a: warm-up", "a: 2 users", "a: 4 users", "b: warm-up", "b: 2 users", "b: 4 users",
    ]  # fmt: skip


def test_a_step_says_what_its_level_counts() -> None:
    arm = Arm("a", SimulatedOllama(), MODEL)
    loads = [Load((1,)), Load((8,), "burst"), Load((120,), "poisson", requests=3, capacity=1.0)]
    said = [str(Step(arm, load.levels[0], 0, load.plan(load.levels[0], BUDGET))) for load in loads]
    assert said == ["a: 1 user", "a: 8 requests at once", "a: 120 % of the capacity"]


def test_a_level_may_say_what_is_asked_instead_of_how_many_ask() -> None:
    two = (Workload("a", system_words=20), Workload("b"))
    loads = [Load((64, 128), sharing=True), Load((1, 2), workloads=two)]
    arm = Arm("a", SimulatedVLLM(), MODEL)
    base = Workload("p", total_tokens=200)
    for load, said in zip(loads, (["64 tokens shared", "128 tokens shared"], ["a", "b"]), strict=True):
        steps = design("t", [arm], load, workload=base, budget=BUDGET, seed=1, folder=Path("r")).steps
        assert [str(step) for step in steps] == ["a: warm-up", *(f"a: {words}" for words in said)]
        assert {step.load["users"] for step in steps} == {1}
        assert all(step.workload is not None for step in steps)
    with pytest.raises(UsageError, match="there are 2 workloads"):
        Load((3,), workloads=two)


def test_texts_that_a_cache_must_not_know_are_new_in_every_run() -> None:
    def asked(load: Load, folder: str) -> list[Any]:
        made = plan([Arm("a", SimulatedVLLM(), MODEL)], load, Path(folder))
        return [made.prompts(step) for step in made.steps]

    workloads = Load((1,), workloads=(Workload("a", system_words=20),))
    assert asked(workloads, "first") != asked(workloads, "second")
    assert asked(workloads, "first") == asked(workloads, "first")
    assert asked(Load((1,)), "first") == asked(Load((1,)), "second")


def test_loads_differ_by_what_they_ask() -> None:
    two = (Workload("a", system_words=20), Workload("b"))
    loads = [Load((1,)), Load((64,), sharing=True), Load((1,), workloads=two), Load((1,), workloads=two[1:])]
    told = [load.as_dict() for load in loads]
    assert [[load.same_as(one) for one in told] for load in loads] == [
        [at == row for at in range(4)] for row in range(4)
    ]
    before = {name: value for name, value in told[0].items() if name not in ("sharing", "workloads")}
    assert [load.same_as(before) for load in loads] == [True, False, False, False]


async def test_a_loaded_model_queues_without_bound_and_an_unloaded_one_refuses(
    ollama: SimulatedOllama, tmp_path: Path
) -> None:
    """The same burst on the same server; the bound is on the requests that wait for a load."""
    warm = await measured(ollama, Load((12,), "burst"), tmp_path / "warm")
    cold = await measured(ollama, Load((12,), "burst", cold=True), tmp_path / "cold")
    asked = [run.requests.filter(~pl.col("warmup")) for run in (warm, cold)]
    assert set(asked[0]["http_status"]) == {200}
    assert set(asked[1]["http_status"]) == {200, 503}
    assert cold.meta["workload"]["load"]["cold"]


async def test_an_open_loop_sends_by_the_clock_and_a_closed_one_waits(
    ollama: SimulatedOllama, tmp_path: Path
) -> None:
    closed = await measured(ollama, Load((2,)), tmp_path / "closed")
    capacity = designs.capacity(closed, "ollama")
    load = Load((50, 200), "constant", requests=10, capacity=capacity)
    open_ = await measured(ollama, load, tmp_path / "open")
    sent = open_.requests.filter(~pl.col("warmup"), level=200)["intended_s"].diff().drop_nulls()
    assert sent.to_list() == pytest.approx([1 / (2 * capacity)] * 9)
    waits = dict(open_.summary().select("level", "queue_ms_p50").iter_rows())
    assert waits[200] > waits[50]


async def test_a_stall_is_seen_by_one_user_once_and_by_all_who_come_meanwhile(
    ollama: SimulatedOllama, tmp_path: Path
) -> None:
    closed = await measured(ollama, Load((1,), rounds=12, stall_s=STALL_S), tmp_path / "closed")
    load = Load((50,), "constant", requests=12, capacity=designs.capacity(closed, "ollama"), stall_s=STALL_S)
    open_ = await measured(ollama, load, tmp_path / "open")
    late = []
    for run in (closed, open_):
        answers = run.requests.filter(~pl.col("warmup"))
        assert answers.select((pl.col("end_s") - pl.col("intended_s")).max()).item() > STALL_S / 2
        late.append(answers.filter(metrics.TTFT_INTENDED > STALL_S / 8).height)
    assert late[0] <= 1 < late[1]
    assert await ollama.ready()


async def test_a_stall_that_never_came_is_said(ollama: SimulatedOllama, tmp_path: Path) -> None:
    run = await measured(ollama, Load((1,), rounds=2, stall_s=STALL_S), tmp_path / "run")
    assert run.verdict.word == "suspect"
    assert any("did not stand still" in reason for reason in run.verdict.reasons)


async def test_an_engine_is_started_anew_for_each_arm_that_shares_it(
    ollama: SimulatedOllama, tmp_path: Path
) -> None:
    def arm(slots: int) -> Arm:
        async def start(_say: Any) -> None:
            await ollama.start(num_parallel=slots)

        return Arm(f"{slots} slots", ollama, MODEL, settings={"num_parallel": slots}, start=start)

    ollama.time_scale = 1  # both starts must have one pace, and this one any machine can keep
    heard: list[Progress] = []
    run = await plan([arm(2), arm(4)], Load((4,)), tmp_path / "run").run(heard.append)
    assert {name: described["facts"]["slots"] for name, described in run.meta["arms"].items()} == {
        "2 slots": 2,
        "4 slots": 4,
    }
    assert not any("served" in reason or "counted" in reason for reason in run.verdict.reasons)
    assert {path.name for path in (run.path / "artefacts").iterdir()} == {"2-slots.log", "4-slots.log"}
    assert [progress.done for progress in heard] == sorted(progress.done for progress in heard)


async def test_an_arm_that_does_not_start_costs_the_others_nothing(
    ollama: SimulatedOllama, tmp_path: Path
) -> None:
    async def start(_say: Any) -> None:
        raise UsageError("start it", "no memory", "make room")

    arms = [Arm("good", ollama, MODEL), Arm("bad", ollama, MODEL, start=start)]
    run = await plan(arms, Load((2,)), tmp_path / "run").run()
    assert run.arms == ["good"]
    assert run.verdict.word == "suspect"
    assert any("bad could not be measured" in reason for reason in run.verdict.reasons)


async def test_a_reader_who_steers_gets_a_level_with_that_many_users(
    ollama: SimulatedOllama, tmp_path: Path
) -> None:
    asked = plan([Arm("Ollama", ollama, MODEL)], Load((1, 2), rounds=50), tmp_path / "run")
    seen: set[int] = set()

    def steer(progress: Progress) -> None:
        if progress.step is None or progress.frame is None or progress.step.phase != "measure":
            return
        level = progress.step.level
        if level in seen or not progress.frame.tally.ok:
            return
        seen.add(level)
        if level == 1:
            asked.steer(5)
        else:
            asked.stop()

    run = await asked.run(steer)
    assert_accounted(run)
    assert seen == {1, 5}
    assert run.requests.filter(level=5)["user"].n_unique() == 5
    assert run.requests["id"].is_unique().all()


def test_capacity_is_read_off_the_best_level_of_the_engine(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates={"ollama": {1: 40, 4: 44}, "vllm": {1: 15, 4: 90}})
    best = max(
        record["ok"] / (record["ended_s"] - record["started_s"])
        for record in run.meta["levels"]
        if record["engine"] == "vllm" and not record["warmup"]
    )
    assert designs.capacity(run, "vllm") == best
    with pytest.raises(UsageError, match="no whole answer"):
        designs.capacity(run, "llama.cpp")
