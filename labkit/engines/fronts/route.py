"""One engine, asked directly or through a proxy: an arm for each way, and never two ways at once."""

from __future__ import annotations

from typing import Any

from labkit.engines.base import Engine, EngineFacts, Gauges, Progress, Served, quiet
from labkit.engines.fronts.front import Front
from labkit.errors import UsageError


class Route(Engine):
    """Stands for an engine; name and address are of the way taken last, what was served is the engine's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._front: Front | None = None
        self.name = engine.name
        self.url = engine.url
        self.protocol = "openai-chat"
        self.api_key = engine.api_key

    async def take(self, front: Front | None, progress: Progress) -> None:
        """Go through this proxy from now on, which is started; None: ask the engine itself.

        Raises:
            NotInstalled, StartFailed: see :meth:`Front.start`.
        """
        await self.stop(progress=progress)
        self._front = front
        if front is not None:
            await front.start(progress=progress)
        way = front or self._engine
        self.name, self.url, self.api_key = way.name, way.url, way.api_key

    async def start(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        """Refused: the engine is started by others, and :meth:`take` starts the proxies."""
        raise UsageError(f"start {self.name} through a proxy", "it runs already", "take a way to it")

    async def restart(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        """Refused as well."""
        return await self.start(progress=progress, **settings)

    async def stop(self, *, progress: Progress = quiet) -> None:
        """Stop the proxy, if there is one; the engine goes on."""
        front, self._front = self._front, None
        if front is not None:
            await front.stop(progress=progress)

    async def ready(self) -> bool:
        """Whether the present way answers."""
        return await (self._front or self._engine).ready()

    async def load(self, model: str, *, progress: Progress = quiet) -> float:
        """See :meth:`Engine.load`, by the present way."""
        return await (self._front or self._engine).load(model, progress=progress)

    async def facts(self) -> EngineFacts:
        """The engine's, or the proxy's, which has those of the engine in it."""
        return await (self._front or self._engine).facts()

    async def gauges(self) -> Gauges:
        """The engine's."""
        return await self._engine.gauges()

    async def served(self) -> Served:
        """The engine's."""
        return await self._engine.served()

    def cpu_s(self) -> float | None:
        """Of the engine and of the proxy."""
        return (self._front or self._engine).cpu_s()

    def log_tail(self, n: int = 20) -> list[str]:
        """The proxy's, else the engine's."""
        return (self._front or self._engine).log_tail(n)

    def alive(self) -> bool:
        """Whether all of the present way is there."""
        return (self._front or self._engine).alive()
