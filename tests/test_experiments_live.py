"""Experiments on a real Ollama that is killed, in part or whole, while it is measured."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from labkit.budget import Budget
from labkit.bundle import Run
from labkit.designs import sweep
from labkit.engines import models, process
from labkit.engines.ollama import Ollama
from labkit.experiments import Arm, Progress
from labkit.schema import OUTCOMES
from labkit.workload import Workload
from tests.under_load import assert_accounted, once_under_load

pytestmark = pytest.mark.engines

MODEL = "labkit/smollm2:135m-q4_1"
SETTINGS = {"num_parallel": 2, "context_length": 2048, "max_queue": 78}
"""``max_queue`` is one that nobody else starts a server with, so that none is shared with these tests."""

BUDGET = Budget("test", (2,), (2,), rounds=3, max_s=60, repeats=1)
WORKLOAD = Workload(output_tokens=48)

KERNEL = """
import asyncio, sys
from pathlib import Path
from tests.test_experiments_live import measured

asyncio.run(measured(Path(sys.argv[1]), lambda progress: progress.frame and print("sample", flush=True)))
"""


@pytest.fixture
async def ollama() -> AsyncIterator[Ollama]:
    engine = Ollama()
    await engine.start(**SETTINGS)
    await models.ensure(MODEL, engine=engine)
    yield engine
    await engine.stop()


async def measured(folder: Path, hear: Callable[[Progress], object], engine: Ollama | None = None) -> Run:
    """A sweep over one level on an Ollama, by default on one that this process starts and owns."""
    if engine is None:
        engine = Ollama()
        await engine.start(**SETTINGS)
        await models.ensure(MODEL, engine=engine)
    arms = [Arm("Ollama", engine, MODEL)]
    experiment = sweep(arms, [2], workload=WORKLOAD, budget=BUDGET, seed=1, folder=folder)
    return await experiment.run(hear)


async def test_the_child_killed_under_load_fails_its_answers_and_no_others(
    tmp_path: Path, ollama: Ollama
) -> None:
    def kill_child() -> None:
        (state,) = [s for s in process.states("ollama") if s.url == ollama.url]
        (child,) = [p for p in state.family() if "llama-server" in p.name()]
        child.kill()

    run = await measured(tmp_path / "run", once_under_load(kill_child), ollama)
    assert_accounted(run)
    failed = run.requests.filter(outcome="failed")
    assert 1 <= len(failed) <= 4
    assert failed["error"].is_not_null().all()
    last = run.requests.filter(warmup=False).sort("sent_s").tail(1)
    assert last["outcome"].to_list() == ["ok"]  # Ollama started another child by itself


async def test_a_server_killed_under_load_is_reported_with_its_log(tmp_path: Path, ollama: Ollama) -> None:
    def kill_server() -> None:
        (state,) = [s for s in process.states("ollama") if s.url == ollama.url]
        os.kill(state.pid, signal.SIGKILL)

    run = await measured(tmp_path / "run", once_under_load(kill_server), ollama)
    assert_accounted(run)
    assert run.verdict.word == "suspect"
    assert any("the engine died" in reason for reason in run.verdict.reasons)
    assert run.requests.filter(warmup=True)["outcome"].to_list() == ["ok"] * 4


async def test_a_kernel_killed_under_load_takes_all_along_but_the_rows(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    before = {state.pid for state in process.states("ollama")}
    kernel = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KERNEL, str(folder), stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    assert kernel.stdout is not None
    await kernel.stdout.readline()
    (state,) = [state for state in process.states("ollama") if state.pid not in before]
    family = [*state.family(), *psutil.Process(kernel.pid).children(recursive=True)]
    assert any("labkit.load" in " ".join(member.cmdline()) for member in family)
    kernel.kill()
    await kernel.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, 60)
    assert alive == []
    assert state.pid not in {state.pid for state in process.states("ollama")}
    run = Run.load(folder)
    assert run.partial is not None
    assert "broken off" in run.partial
    assert len(run.requests) > 0
    assert run.requests["outcome"].is_in(OUTCOMES).all()
