"""What all proxies share: one address in front of engines, a process of its own, and the facts of both."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import httpx

from labkit.engines import install, process
from labkit.engines.base import Engine, EngineFacts, Gauges, Progress, Served, quiet
from labkit.engines.causes import Cause
from labkit.engines.ports import free_port
from labkit.engines.wanted import Command
from labkit.errors import NotInstalled, PortTaken, UsageError


class Front(Engine):
    """A proxy. It speaks OpenAI's protocol, since both engines do.

    Attributes:
        title: its name in sentences.
        behind: the engines that it hands requests to, by name. They are started and stopped by others.
        share: per cent of the requests, or of the users if it is sticky, that go to vLLM.
    """

    title: ClassVar[str]
    default_port: ClassVar[int]
    health: ClassVar[str]
    causes: ClassVar[tuple[Cause, ...]] = ()
    protocol = "openai-chat"

    def __init__(
        self,
        behind: Mapping[str, Engine],
        *,
        share: float = 0.0,
        sticky: bool = False,
        port: int | None = None,
    ) -> None:
        self.behind = behind
        self.share = share
        self.sticky = sticky
        self.url = ""
        # a client's key is handed on
        self.api_key = next((engine.api_key for engine in behind.values() if engine.api_key), None)
        self._port = port
        self._state: process.ServerState | None = None

    @property
    def server(self) -> process.ServerState | None:
        """Its process, as labkit's state file describes it; None while it does not run."""
        return self._state

    async def start(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        """Start it on 127.0.0.1; it ends with this process.

        Raises:
            UsageError: settings, which a proxy has none of.
            NotInstalled: it is not on this machine.
            StartFailed: see :func:`labkit.engines.process.launch`.
        """
        if settings:
            tried = f"start {self.title} with {', '.join(settings)}"
            raise UsageError(tried, "it has no settings", "start it without")
        try:
            await self._start_on(self._port or free_port(self.default_port), progress)
        except PortTaken:
            if self._port is not None:
                raise
            await self._start_on(free_port(0), progress)  # two programs chose the same free one
        return await self.facts()

    async def _start_on(self, port: int, progress: Progress) -> None:
        process.check_port(self.name, port)  # its files may be those of another that runs there
        self.url = f"http://127.0.0.1:{port}"
        command = self._command(port)
        self._state = await process.launch(
            engine=self.name,
            argv=command.argv,
            env=command.env,
            port=port,
            settings={"sticky": self.sticky},
            owner="kernel",
            log_name=f"{self.name}-{port}.log",
            ready=self.ready,
            deadline_s=command.deadline_s,
            causes=self.causes,
            progress=progress,
        )

    async def stop(self, *, progress: Progress = quiet) -> None:
        """See :meth:`Engine.stop`."""
        state, self._state = self._state, None
        if state is not None:
            await process.terminate(state, progress=progress)

    async def restart(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        """See :meth:`Engine.restart`."""
        await self.stop(progress=progress)
        return await self.start(progress=progress, **settings)

    async def ready(self) -> bool:
        """See :meth:`Engine.ready`."""
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
                return (await client.get(self.url + self.health)).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    async def load(self, model: str, *, progress: Progress = quiet) -> float:
        """See :meth:`Engine.load`, for each engine behind it."""
        return sum([await engine.load(model, progress=progress) for engine in self.behind.values()])

    async def facts(self) -> EngineFacts:
        """Its version, and the facts of the engines behind it.

        Raises:
            UsageError: one is live and another simulated, or they are simulated at unlike pace.
        """
        behind = {name: await engine.facts() for name, engine in self.behind.items()}
        kinds = {(facts.kind, facts.time_scale) for facts in behind.values()}
        if len(kinds) > 1:
            seen = "; ".join(f"{f.engine} is {f.kind}, {f.time_scale:g} × real time" for f in behind.values())
            raise UsageError(f"put {self.title} in front of both", seen, "use engines of one kind and pace")
        any_of_them = next(iter(behind.values()))
        return EngineFacts(
            engine=self.name,
            kind=any_of_them.kind,
            url=self.url,
            version=self.version(),
            owner="kernel",
            simulated=any_of_them.simulated,
            behind={name: facts.as_dict() for name, facts in behind.items()},
        )

    @abstractmethod
    def version(self) -> str:
        """Its own version."""

    async def gauges(self) -> Gauges:
        """It has none."""
        return Gauges()

    async def served(self) -> Served:
        """Requests that the engines behind it have served."""
        counts = [(await engine.served()).requests for engine in self.behind.values()]
        return Served(requests=None if None in counts else sum(filter(None, counts)))

    def cpu_s(self) -> float | None:
        """CPU seconds of the proxy and of the engines behind it, which work when it does."""
        own = self._state.cpu_s() if self._state else None
        used = [own, *(engine.cpu_s() for engine in self.behind.values())]
        return None if None in used else sum(filter(None, used))

    def log_tail(self, n: int = 20) -> list[str]:
        """See :meth:`Engine.log_tail`."""
        return process.tail(self._state.log, n) if self._state else []

    def alive(self) -> bool:
        """Whether it and all engines behind it are there."""
        here = self._state is None or self._state.process() is not None
        return here and all(engine.alive() for engine in self.behind.values())

    @abstractmethod
    def _command(self, port: int) -> Command:
        """How to start it."""


def program(name: str, title: str) -> str:
    """The installed program of a proxy.

    Raises:
        NotInstalled: there is none.
    """
    found = install.FINDERS[name]()
    if found is None:
        raise NotInstalled(f"start {title}", "it is not installed", f"labkit engines install {name}")
    return str(found)
