"""An Ollama of its own for what is shown beside the measurements, which find theirs as they left it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labkit import host
from labkit.device import holding
from labkit.engines.base import Progress, quiet
from labkit.engines.managed import ManagedEngine
from labkit.engines.ollama import Ollama
from labkit.engines.ports import free_port
from labkit.engines.simulated import Simulated, SimulatedOllama
from labkit.sim import profile as profiles

PORTS = {"live": 11534, "simulated": 21534}
"""Where they are started if these are free."""


@asynccontextmanager
async def ollama_apart(
    kind: str, owner: str, say: Progress, *, folder: Path | None = None, **settings: Any
) -> AsyncIterator[Ollama]:
    """An Ollama that runs while the block lasts and holds the device.

    A simulated one goes at the pace of the real one, so that its times are those of the clock.

    Args:
        kind: "live" or "simulated".
        owner: what others that wait for the device are told.
        say: is told for whom one waits.
        folder: for models and key (default: where labkit's other servers have theirs).

    Raises:
        NotInstalled: Ollama is not on this machine.
        StartFailed: it did not start.
    """
    port = free_port(PORTS[kind])
    engine = Ollama.beside(port)
    if kind == "simulated":
        engine = simulated = SimulatedOllama.beside(port)
        simulated.time_scale = 1.0
    engine.folder = folder
    async with holding([engine.url], owner=owner, on_wait=say):
        try:
            await engine.start(progress=quiet, **settings)
            yield engine
        finally:
            await engine.stop(progress=quiet)


def about(engine: ManagedEngine, version: str | None, **more: Any) -> dict[str, Any]:
    """What a transcript says of the engine and of the machine that it was seen on."""
    machine = f"{host.cpu_model()}, {host.cores()} cores"
    if isinstance(engine, Simulated):
        profile = profiles.load(engine.profile)
        machine = f"profile {profile.name}, {profile.basis}"
        version = version or profile.engines[engine.name].version
    said = {"engine": engine.name, "version": version, "machine": machine}
    return {**said, "date": datetime.now(UTC).date().isoformat(), **more}
