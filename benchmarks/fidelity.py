"""How close the simulated engines come to the real ones, on runs that the fit has never seen.

    python benchmarks/fidelity.py measure [FOLDER]   measure on both real engines (45 minutes on 2 cores)

The split below is fixed before anything is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit import experiments, paths, recorded
from labkit.budget import BUDGETS
from labkit.engines import models
from labkit.engines.managed import ManagedEngine
from labkit.engines.ollama import Ollama
from labkit.engines.vllm import VLLM
from labkit.experiments import Arm, Progress
from labkit.workload import Workload

MODEL = "smollm2:135m"
LONG_OUT = Workload()
"""Shape of the course's own questions: about 60 tokens in, 64 out."""
LONG_IN = Workload("long in", output_tokens=16, prompt_words=220)
"""About 256 tokens in, 16 out."""
UNSEEN_SHAPE = Workload("middle", output_tokens=32, prompt_words=110)
"""About 150 tokens in, 32 out: never in a fit."""
SHARED = Workload("shared prefix", output_tokens=16, shared_words=256)

FIT_USERS = (1, 4, 16)
HELD_OUT_USERS = (2, 8, 32)
"""Users of the two shapes above whose levels no fit may see."""

OLLAMA = {"num_parallel": 4}
UNSEEN_OLLAMA: dict[str, Any] = {"num_parallel": 1}
UNSEEN_VLLM = {"max_num_seqs": 4}
"""Settings of which no level may be in a fit."""


@dataclass(frozen=True)
class Recording:
    """One run to measure: a folder of ``data/runs``."""

    name: str
    users: Sequence[int]
    workload: Workload = LONG_OUT
    ollama: dict[str, Any] | None = None
    vllm: dict[str, Any] | None = None


ALL_USERS = tuple(sorted((*FIT_USERS, *HELD_OUT_USERS)))
RECORDINGS = (
    Recording("the_gap_own", ALL_USERS, ollama=OLLAMA, vllm={}),
    Recording("long_in", ALL_USERS, LONG_IN, ollama=OLLAMA, vllm={}),
    Recording("shared_prefix", (4,), SHARED, ollama=OLLAMA, vllm={}),
    Recording("unseen_shape", FIT_USERS, UNSEEN_SHAPE, ollama=OLLAMA, vllm={}),
    Recording("the_gap", ALL_USERS, ollama=UNSEEN_OLLAMA, vllm={}),
    Recording("unseen_setting", (8, 32), vllm=UNSEEN_VLLM),
)
"""Both engines, all at 16 bit, three repeats and two rounds a level (budget normal)."""


async def measure(folder: Path, names: Sequence[str]) -> None:
    """Measure what ``folder`` does not have yet, and keep it there as recorded runs."""
    for recording in RECORDINGS:
        if (folder / recording.name).exists() or (names and recording.name not in names):
            continue
        say(f"{recording.name}: starting")
        arms = []
        if recording.ollama is not None:
            arms.append(await _arm(Ollama(), recording.ollama))
        if recording.vllm is not None:
            arms.append(await _arm(VLLM(), recording.vllm))
        experiment = experiments.sweep(
            arms,
            recording.users,
            workload=recording.workload,
            budget=BUDGETS["normal"],
            seed=0,
            folder=paths.runs() / f"{recording.name}-{datetime.now():%Y%m%d-%H%M%S-%f}",
        )
        run = await experiment.run(_tell)
        say(f"{run.verdict.word} {run.verdict.reasons}\n{run.summary()}")
        recorded.keep(run, folder / recording.name)


async def _arm(engine: ManagedEngine, settings: dict[str, Any]) -> Arm:
    if engine.name == "ollama":
        await engine.start(progress=say, **settings)
        side = await models.ensure(MODEL, engine=engine, progress=say)
        await engine.load(side.served_name, progress=say)
        slots = (await engine.facts()).slots
        name = f"Ollama, {slots} slot{'' if slots == 1 else 's'}"
        return Arm(name, engine, side.served_name, side.source, settings)
    side = await models.ensure(MODEL, progress=say)
    await engine.start(model=MODEL, progress=say, **settings)
    return Arm("vLLM", engine, models.find(MODEL).vllm.name, side.source, settings)


def _tell(progress: Progress) -> None:
    if progress.frame is None:
        say(f"{progress.done}/{progress.total} {progress.phase}")


def say(line: str) -> None:
    """Progress, beside the results."""
    print(f"{datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description="Compare the simulated engines with the real ones.")
    actions = parser.add_subparsers(required=True, dest="action")
    measuring = actions.add_parser("measure")
    measuring.add_argument("folder", nargs="?", type=Path, default=paths.data() / "runs")
    measuring.add_argument("--only", nargs="*", default=(), metavar="NAME")
    given = parser.parse_args()
    asyncio.run(measure(given.folder, given.only))


if __name__ == "__main__":
    main()
