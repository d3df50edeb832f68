"""Faults under load on simulated engines, which need no install: killed servers, full queues, Stop.

The same cases on the real Ollama are in ``test_experiments_live.py``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from labkit.budget import Budget
from labkit.designs import Load, design, sweep
from labkit.engines import process
from labkit.engines.managed import ManagedEngine
from labkit.engines.simulated import SimulatedOllama, SimulatedVLLM
from labkit.experiments import Arm, Experiment
from labkit.schema import OUTCOMES
from labkit.workload import Workload
from tests.under_load import assert_accounted, once_under_load

MODEL = "smollm2:135m"
BUDGET = Budget("test", (2, 4), (2, 4), rounds=2, max_s=60, repeats=1)


@pytest.fixture(params=[SimulatedOllama, SimulatedVLLM])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[ManagedEngine]:
    """Each of the two."""
    made: ManagedEngine = request.param()
    await made.start()
    await made.load(MODEL)
    yield made
    await made.stop()


def experiment(engine: ManagedEngine, folder: Path) -> Experiment:
    arms = [Arm(engine.name, engine, MODEL)]
    return sweep(arms, [2, 4], workload=Workload(), budget=BUDGET, seed=1, folder=folder)


async def test_a_quiet_run_is_accounted_for_and_says_what_it_is(
    engine: ManagedEngine, tmp_path: Path
) -> None:
    run = await experiment(engine, tmp_path / "run").run()
    assert_accounted(run)
    assert len(run.requests) == sum(record["planned"] for record in run.meta["levels"])
    assert run.kind == "simulated"
    assert set(run.requests["outcome"]) == {"ok"}
    assert all(arm["facts"]["simulated"]["profile"] for arm in run.meta["arms"].values())


async def test_a_server_killed_under_load_leaves_its_rows_and_a_reason(
    engine: ManagedEngine, tmp_path: Path
) -> None:
    def kill() -> None:
        (state,) = [s for s in process.states(engine.server_name) if s.url == engine.url]
        os.kill(state.pid, signal.SIGKILL)

    run = await experiment(engine, tmp_path / "run").run(once_under_load(kill))
    assert_accounted(run)
    assert run.verdict.word == "suspect"
    assert any("the engine died" in reason for reason in run.verdict.reasons)
    assert run.requests.filter(warmup=True)["outcome"].to_list() == ["ok"] * 4


async def test_stop_keeps_what_came(engine: ManagedEngine, tmp_path: Path) -> None:
    asked = experiment(engine, tmp_path / "run")
    run = await asked.run(once_under_load(asked.stop))
    assert_accounted(run)
    assert "cancelled" in set(run.requests["outcome"])
    assert any("stopped early" in reason for reason in run.verdict.reasons)


async def test_a_killed_load_process_loses_no_row(engine: ManagedEngine, tmp_path: Path) -> None:
    asked = experiment(engine, tmp_path / "run")

    def kill() -> None:
        assert asked.load_pid is not None
        os.kill(asked.load_pid, signal.SIGKILL)

    run = await asked.run(once_under_load(kill))
    assert run.verdict.word == "suspect"
    assert any("killed" in reason for reason in run.verdict.reasons)
    for record in run.meta["levels"]:
        assert record["planned"] == sum(record[word] for word in OUTCOMES)


async def test_a_burst_on_a_loaded_model_is_never_refused(tmp_path: Path) -> None:
    engine = SimulatedOllama()
    await engine.start(max_queue=1)
    await engine.load(MODEL)
    try:
        arms = [Arm("Ollama", engine, MODEL)]
        burst = design(
            "burst",
            arms,
            Load((20,), "burst"),
            workload=Workload(),
            budget=BUDGET,
            seed=1,
            folder=tmp_path / "run",
        )
        run = await burst.run()
    finally:
        await engine.stop()
    assert_accounted(run)
    assert set(run.requests["outcome"]) == {"ok"}
    served = run.requests.filter(warmup=False).sort("first_token_s")
    one_by_one = served["first_token_s"][1:] > served["end_s"][:-1]
    assert one_by_one.all()  # there is one slot
