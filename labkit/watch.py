"""What is asked of an engine beside the load: its gauges during a level, what it has served in the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

import httpx

from labkit import verdict
from labkit.bundle import Recorder
from labkit.engines.base import Engine, Gauges, Served
from labkit.errors import EngineError
from labkit.verdict import Verdict

GAUGE_PERIOD_S = 0.5
"""Between two readings, in time of the run."""

LEAST_PERIOD_S = 0.05
"""The same at least, by the wall clock: a reading is work for the engine."""


@contextlib.asynccontextmanager
async def gauges(engine: Engine, arm: str, recorder: Recorder) -> AsyncIterator[Callable[[], Gauges | None]]:
    """Read the engine's gauges again and again while a level goes on, and once more when it is over, for what
    they count; gives what returns the newest."""
    newest: Gauges | None = None
    period_s = max(GAUGE_PERIOD_S / recorder.clock.scale, LEAST_PERIOD_S)

    async def read() -> None:
        nonlocal newest
        # a reading that fails is a missing row; whether the engine lives is judged after the level
        with contextlib.suppress(EngineError, httpx.HTTPError):
            newest = await engine.gauges()
            recorder.gauge(engine.name, arm, asdict(newest))

    async def poll() -> None:
        while True:
            await read()
            await asyncio.sleep(period_s)

    task = asyncio.create_task(poll())
    try:
        yield lambda: newest
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await read()


async def foreign_load(
    engine: Engine, arm: str, levels: list[dict[str, Any]], before: Served, output_tokens: int
) -> Verdict:
    """Compare the engine's own count with what this run sent: tokens where it counts them, else requests.

    Args:
        levels: the arm's level records of ``run.json``.
        before: the engine's count before the first of them.
        output_tokens: what each request asked for.
    """
    planned, ok, tokens = (sum(r[key] for r in levels) for key in ("planned", "ok", "tokens"))
    try:
        after = await engine.served()
    except EngineError as error:  # a server that is not ours went away: what was measured stays
        return Verdict("suspect", [f"{arm}: the engine no longer answers at the end ({error.seen})"])
    if after.output_tokens is not None and before.output_tokens is not None:
        # tokens made for answers that were cut off, and the one of the prompt count, which may come in late
        unseen = (planned - ok) * output_tokens + 1
        made = after.output_tokens - before.output_tokens
        return verdict.judge_foreign(arm, "output tokens", made, tokens, unseen)
    served = None
    if after.requests is not None and before.requests is not None:
        served = after.requests - before.requests
    return verdict.judge_foreign(arm, "requests", served, planned)
