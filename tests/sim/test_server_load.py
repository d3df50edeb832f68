"""The load generator, and labkit's simulated engines, against simulated servers."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.engines.simulated import SimulatedOllama, SimulatedVLLM
from labkit.engines.vllm_settings import CAUSES
from labkit.load.plan import Plan
from labkit.load.process import LoadProcess
from labkit.workload import Workload

from .conftest import PROFILE, Start

MODEL = "smollm2:135m"


@pytest.mark.parametrize(
    ("engine", "protocol"),
    [
        ("ollama", "ollama-chat"),
        ("ollama", "ollama-generate"),
        ("ollama", "openai-chat"),
        ("ollama", "openai-completions"),
        ("vllm", "openai-chat"),
        ("vllm", "openai-completions"),
    ],
)
async def test_the_load_generator_has_every_token_of_every_answer(
    start: Start, tmp_path: Path, engine: str, protocol: str
) -> None:
    here = await start(engine, **({"num_parallel": 2} if engine == "ollama" else {}))
    plan = Plan(
        url=here.url,
        protocol=protocol,
        model=MODEL,
        prompts=Workload(output_tokens=8).prompts(6, "test"),
        users=3,
        rounds=2,
        rows=str(tmp_path),
        time_scale=10.0,
    )
    async with LoadProcess(plan) as load:
        async for _ in load.frames():
            pass
    assert (load.tally.ok, load.tally.planned, load.tally.tokens, load.tally.unmetered) == (6, 6, 48, 0)
    rows = [json.loads(line) for line in (tmp_path / "requests.rows").read_text().splitlines()]
    ended = [row for row in rows if row["outcome"] == "ok"]
    assert {(row["output_tokens"], row["finish_reason"]) for row in ended} == {(8, "length")}
    assert all(row["prompt_tokens"] > 20 for row in ended)
    reported = protocol.startswith("ollama")
    assert {row["queue_basis"] for row in ended} == {"reported" if reported else "unknown"}


async def test_labkit_starts_uses_and_stops_them() -> None:
    ollama, vllm = (engine(profile=PROFILE, time_scale=1.0) for engine in (SimulatedOllama, SimulatedVLLM))
    try:
        await asyncio.gather(ollama.start(num_parallel=3), vllm.start(max_num_seqs=5))
        await ollama.load("labkit/smollm2:135m-f16")
        facts = [await ollama.facts(), await vllm.facts()]
    finally:
        await ollama.stop()
        await vllm.stop()
    assert [fact.kind for fact in facts] == ["simulated", "simulated"]
    assert [fact.slots for fact in facts] == [3, 5]
    assert [fact.time_scale for fact in facts] == [1.0, 1.0]


def serve(*options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "labkit.sim.server", "--port=0", f"--profile={PROFILE}", *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_settings_that_cannot_be_end_it_in_the_real_engines_words() -> None:
    ended = serve("--engine=vllm", '--settings={"max_model_len": 2000000}')
    assert ended.returncode == 1
    assert any(re.search(cause.pattern, ended.stderr) for cause in CAUSES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--time-scale=0.5"], "never below 1"),
        (["--settings={"], "JSON"),
        (['--settings={"num_parallels": 1}'], "no such setting"),
        (["--profile=nope"], "no such profile"),
    ],
)
def test_what_cannot_be_is_said(options: list[str], words: str) -> None:
    ended = serve("--engine=ollama", *options)
    assert ended.returncode == 1
    assert words in ended.stderr
