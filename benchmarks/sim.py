"""How fast the simulated engines compute, and what their servers add to a token.

python benchmarks/sim.py core      simulated seconds in a second, on one core
python benchmarks/sim.py server    a client's token times against the engine's own, scale 1, 64 users
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from time import perf_counter

from labkit.load.plan import Plan
from labkit.load.process import LoadProcess
from labkit.schema import TOKEN
from labkit.sim import profile as profiles
from labkit.sim.drive import TURN_S, drive
from labkit.sim.request import Request
from labkit.sim.server import tokens
from labkit.sim.server.__main__ import loop_factory
from labkit.sim.server.serving import resolved, serving
from labkit.workload import Workload

GPU, CPU = "a100-40gb-llama-3.1-8b", profiles.DEFAULT
PROMPT, ANSWER, SECONDS = 512, 128, 60.0
AIMS = {64: 50, 1000: 20}
"""Simulated seconds in a second that there should be at least, by users."""

USERS, MOST_MS = 64, 2.0
"""Of the server's part: users, and what it may add to a token."""


def core() -> None:
    """A closed loop on vLLM, 512 tokens in and 128 out, as fast as one core computes it."""
    profile = profiles.load(GPU)
    settings = resolved(profile, "vllm", {})
    for users, aim in AIMS.items():
        engine = profiles.build(profile, "vllm", settings)
        questions = _questions()
        first = [(user * TURN_S, next(questions)) for user in range(users)]
        began = perf_counter()
        done = drive(engine, first, lambda _r, now: (now + TURN_S, next(questions)), stop_s=SECONDS)  # noqa: B023
        took = perf_counter() - began
        written = sum(len(request.token_s) for request in done)
        print(
            f"{users:5} users: {SECONDS / took:6.1f} simulated seconds a second (aim {aim}), "
            f"{written / SECONDS:.0f} simulated tokens/s, {len(done)} requests"
        )


def _questions() -> Iterator[Request]:
    for number in count():
        own = number * 1000
        yield Request(
            number, tuple(range(own, own + PROMPT)), tuple(range(own + PROMPT, own + PROMPT + ANSWER))
        )


async def server() -> None:
    """Each token's arrival at the load generator against its time in the core, real time, 64 users."""
    for name in (CPU, GPU):
        for engine, protocol, settings in (
            ("vllm", "openai-chat", {}),
            ("ollama", "ollama-chat", {"num_parallel": USERS}),
        ):
            late = await _late(name, engine, protocol, settings)
            p50, p99 = statistics.median(late), statistics.quantiles(late, n=100)[-1]
            print(
                f"{engine:6} {name:24} {len(late):6} tokens later by p50 {p50:.2f} ms, p99 {p99:.2f} ms, "
                f"max {max(late):.1f} ms (aim {MOST_MS:g} ms)"
            )


async def _late(name: str, engine: str, protocol: str, settings: dict[str, int]) -> list[float]:
    profile = profiles.load(name)
    prompts = Workload(output_tokens=64).prompts(USERS * 50, "benchmark")
    heard: dict[tuple[int, ...], Request] = {}
    async with serving(engine, profile, settings, scale=1.0) as here:
        submit = here.core.submit

        def noting(request: Request, now: float) -> None:
            heard[request.prompt] = request
            submit(request, now)

        here.core.submit = noting  # type: ignore[method-assign]
        with tempfile.TemporaryDirectory() as folder:
            plan = Plan(
                url=here.url,
                protocol=protocol,
                model=profile.model.name,
                prompts=prompts,
                users=USERS,
                seconds=20.0,
                rows=folder,
                t0=here.server.pump.started,
            )
            async with LoadProcess(plan) as load:
                async for _ in load.frames():
                    pass
            arrived: dict[int, list[float]] = {}
            for row in TOKEN.iter_unpack((Path(folder) / "tokens.rows").read_bytes()):
                arrived.setdefault(row[0], []).append(row[1])
    late = []
    for number, times in arrived.items():
        request = heard[tokens.encode(prompts[number].messages)]
        late += [(seen - written) * 1e3 for seen, written in zip(times, request.token_s, strict=False)]
    return late


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description="Measure the simulator.")
    parser.add_argument("part", choices=("core", "server"))
    if parser.parse_args().part == "core":
        core()
        return
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(server())


if __name__ == "__main__":
    main()
