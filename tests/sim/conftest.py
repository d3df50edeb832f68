"""Simulated servers for tests: real HTTP on loopback, ten times real time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from labkit.sim import profile as profiles
from labkit.sim.server.serving import Serving, serving

PROFILE = "cpu-2core-roofline"

Start = Callable[..., Awaitable[Serving]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts servers, ``await start("vllm", max_num_seqs=2)``; they end with the test."""
    async with AsyncExitStack() as stack:

        async def begin(engine: str, **settings: Any) -> Serving:
            profile = profiles.load(PROFILE)
            return await stack.enter_async_context(serving(engine, profile, settings, scale=10.0))

        yield begin
