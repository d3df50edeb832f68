"""What both engines share: whose a server is, when it is used again, how it is started, stopped and asked."""

from __future__ import annotations

import asyncio
import os
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit
from weakref import WeakSet

import httpx

from labkit.engines import install, memory, process
from labkit.engines.base import Engine, EngineFacts, Progress, quiet
from labkit.engines.causes import Cause
from labkit.engines.declared import ask, origin, told_facts
from labkit.engines.ports import LOOPBACK
from labkit.engines.stall import stand_still
from labkit.engines.wanted import Wanted
from labkit.errors import EngineError, ModelError, NotInstalled, PortTaken, StartFailed, UsageError

PORT_TRIES = 2


class ManagedEngine(Engine):
    """A server that labkit starts and stops, or one that it found and uses as it is.

    Args:
        url: a server that labkit does not manage (default: ``LABKIT_OLLAMA_URL``, ``LABKIT_VLLM_URL``, which
            mean real ones); used as it is.
        owner: "kernel" servers end with this process, "shell" servers stay until they are stopped.
        port: where to start one (default: ``default_port``, or any free port if that is taken).
        api_key: bearer token (default: ``LABKIT_API_KEY``), for vLLM's own check or a server behind a proxy.

    Attributes:
        title: the engine's name in sentences.
        health: path that answers with status 200 as soon as the server can be used, and a word in the answer.
        causes: why its servers die, by what their logs say.
        simulated: whether its servers only behave like the engine's. They and real ones never stand in for
            each other.
        model: the one asked for last, None before the first.
        say: where progress goes that no receiver was named for; a notebook shows it.
    """

    title: ClassVar[str]
    default_port: ClassVar[int]
    health: ClassVar[tuple[str, str]]
    causes: ClassVar[Sequence[Cause]]
    simulated: ClassVar[bool] = False

    _on_ports: ClassVar[WeakSet[ManagedEngine]] = WeakSet()  # objects with a port of their own

    def __init__(
        self,
        url: str | None = None,
        *,
        owner: process.Owner = "kernel",
        port: int | None = None,
        api_key: str | None = None,
    ) -> None:
        given = url or (None if self.simulated else os.environ.get(self._url_variable()))
        self.url = (given or _loopback(port or self.default_port)).rstrip("/").removesuffix("/v1")
        self.api_key = api_key or os.environ.get("LABKIT_API_KEY")
        self.owner = owner
        self.model: str | None = None
        self.say: Progress = quiet
        self._pinned = given is not None
        self._port = port
        self._asked: dict[str, Any] = {}
        self._state: process.ServerState | None = None
        if port is not None:
            self._on_ports.add(self)

    @classmethod
    def attached(cls, state: process.ServerState) -> Self:
        """The engine of a server that labkit started earlier."""
        engine = cls(owner=state.owner, port=state.port)
        engine._pinned, engine._asked = False, dict(state.settings)
        engine._adopt(state)
        return engine

    @classmethod
    def beside(cls, port: int) -> Self:
        """An engine on a port of its own beside those in use, also where the environment names a server."""
        engine = cls(port=port)
        engine._pinned, engine.url = False, _loopback(port)
        return engine

    async def start(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        """Use a server with these settings, or start one.

        In this order: the server of the given URL; one of labkit's with the same settings; if no settings are
        asked for, any that answers on the port; else a new one, in place of this kernel's earlier one, on a
        free port if that one is taken.

        Raises:
            UsageError: unknown setting, impossible value, or a setting that the given URL's server has not.
            NotInstalled: the engine is not on this machine.
            StartFailed: see :func:`labkit.engines.process.launch`; or nothing answers at the given URL; or
                there is not enough memory beside what runs already.
            EngineDied: the server with these settings was still starting, and ended.
        """
        progress = self.say if progress is quiet else progress
        wanted = self._wanted(settings)
        if self._pinned:
            await self._use_pinned(wanted, progress)
            return await self.facts()
        self._asked, self.model = settings, wanted.model or self.model
        state = self._fitting(wanted)
        if state is not None:
            progress(f"{self.server_name}: using the server on port {state.port}, its settings fit")
            self._adopt(state)
            await self._until_ready(state, wanted)
        elif await self._stranger_fits(wanted):
            progress(f"{self.name}: using {self.url} as it is, labkit did not start it")
            return await self.facts()
        else:
            self._state = self._state or self._inherited()
            await self.stop(progress=progress)
            self._adopt(await self._launch(wanted, progress))
        return await self.facts()

    async def restart(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        """Start with the present settings, changed by these; a server of ours is stopped first."""
        progress = self.say if progress is quiet else progress
        changed = {**self._asked, **settings}
        self._wanted(changed)  # a typing error must not cost the running server
        await self.stop(progress=progress)
        return await self.start(progress=progress, **changed)

    async def stop(self, *, progress: Progress = quiet) -> None:
        """See :meth:`Engine.stop`. A kernel never stops a server that a shell owns."""
        progress = self.say if progress is quiet else progress
        if self._state is None:
            return
        state, self._state = self._state, None
        if state.owner == self.owner and not self._pinned:
            await process.terminate(state, progress=progress)
        else:
            progress(
                f"{self.server_name}: the server on port {state.port} is not this engine's own; left running"
            )

    async def ready(self) -> bool:
        """See :meth:`Engine.ready`."""
        path, word = self.health
        try:
            async with self._client(5) as client:
                answer = await client.get(path)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK and word in answer.text

    @property
    def server_name(self) -> str:
        """What state files, logs and progress call its servers; figures and rows say :attr:`name`."""
        return f"simulated-{self.name}" if self.simulated else self.name

    @property
    def asked(self) -> dict[str, Any]:
        """Settings that the present or next server was asked to have; what it has is in its facts."""
        return {name: value for name, value in self._asked.items() if name != "model"}

    @property
    def server(self) -> process.ServerState | None:
        """The server in use, as labkit's state file describes it; None if labkit did not start it."""
        return self._state

    def log_tail(self, n: int = 20) -> list[str]:
        """See :meth:`Engine.log_tail`."""
        return process.tail(self._state.log, n) if self._state else []

    def alive(self) -> bool:
        """See :meth:`Engine.alive`."""
        return self._state is None or self._state.process() is not None

    async def stall(self, seconds: float) -> None:
        """See :meth:`Engine.stall`. Its supervisor goes on, so the server still ends with the kernel."""
        if self._state is None or self._pinned:
            await super().stall(seconds)
            return
        watching = self._state.supervisor_pid
        await stand_still([member for member in self._state.family() if member.pid != watching], seconds)

    def cpu_s(self) -> float | None:
        """See :meth:`Engine.cpu_s`."""
        return None if self._state is None else self._state.cpu_s()

    @abstractmethod
    def _wanted(self, settings: dict[str, Any]) -> Wanted:
        """What :meth:`start` is asked for, checked.

        Raises:
            UsageError: unknown setting or model, or an impossible value.
        """

    def _program(self) -> Path:
        """The installed program that starts this engine's servers."""
        found = install.FINDERS[self.name]()
        if found is None:
            raise NotInstalled(
                f"start {self.title}", "it is not installed", f"labkit engines install {self.name}"
            )
        return found

    @classmethod
    def _url_variable(cls) -> str:
        return f"LABKIT_{cls.name.upper()}_URL"

    def _adopt(self, state: process.ServerState) -> None:
        if self._state is None or self._state.pid != state.pid:
            self.model = state.model
        self._state, self.url = state, state.url

    async def _use_pinned(self, wanted: Wanted, progress: Progress) -> None:
        """Use the server of the given URL. If labkit started it, its settings are known; else none is."""
        if not await self.ready():
            raise StartFailed(
                f"use the {self.title} at {self.url}",
                f"it does not answer on {self.health[0]}",
                f"start it, or unset {self._url_variable()} to let labkit start one",
            )
        state = next((state for state in process.states(self.server_name) if state.url == self.url), None)
        has = state.settings if state else {}
        for name, value in wanted.given.items():
            if state is None or has.get(name) != value:
                seen = f"it has {name}={has.get(name)!r}" if state else "what it has cannot be read from it"
                raise UsageError(
                    f"use the {self.title} at {self.url} with {name}={value!r}",
                    f"{seen}, and it is not restarted from here",
                    f"unset {self._url_variable()}, and labkit starts one with these settings beside it",
                )
        if wanted.model is not None:
            await self.load(wanted.model)
        if state is not None:
            self._adopt(state)
        progress(f"{self.name}: using {self.url} as it is")

    def _fitting(self, wanted: Wanted) -> process.ServerState | None:
        """A running server, the shell's or started by this process, with this model and these settings."""
        for state in process.states(self.server_name):
            ours = state.owner == "shell" or state.owner_pid == process.owner_pid()
            there = self._port in {None, state.port}
            same = (state.model, state.settings) == (wanted.model, wanted.settings)
            if ours and there and same:
                return state
        return None

    async def _until_ready(self, state: process.ServerState, wanted: Wanted) -> None:
        """Wait for a server that another program, or another cell, may still be starting."""
        if await self.ready():
            return
        deadline_s = wanted.command(state.port).deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                while not await self.ready():
                    if not self.alive():
                        raise process.died(state, self.causes)
                    await asyncio.sleep(process.POLL_S)
        except TimeoutError:
            raise StartFailed(
                f"use the {self.title} that was started on port {state.port}",
                f"not ready after {deadline_s:.0f} s, see {state.log}",
                f"labkit engines stop {self.name}{' --simulated' if self.simulated else ''}",
            ) from None

    def _inherited(self) -> process.ServerState | None:
        """The kernel's server that this object replaces: of an earlier notebook or an earlier cell.

        Not one that another object was asked to have on a port of its own.
        """
        if self.owner != "kernel":
            return None
        others = {engine._state.port for engine in self._on_ports if engine is not self and engine._state}
        running = {state.port for state in process.states(self.server_name)}
        return process.inherited(self.server_name, (running if self._port is None else {self._port}) - others)

    async def _stranger_fits(self, wanted: Wanted) -> bool:
        """Whether somebody else's server is up where ours would go, real and all that is asked for."""
        port = self._port or self.default_port
        mine = self._state is not None or any(state.port == port for state in process.states(self.name))
        if wanted.given or mine or self.simulated:
            return False
        self.url = _loopback(port)
        if not await self.ready() or await ask(self.url) is not None:
            return False
        try:
            if wanted.model is not None:
                await self.load(wanted.model)
        except (EngineError, ModelError, ValueError, LookupError):
            return False  # another model, or something that is no such engine
        return True

    async def _launch(self, wanted: Wanted, progress: Progress) -> process.ServerState:
        """Start one; on another port if two programs chose the same free one at the same moment."""
        for _ in range(PORT_TRIES if self._port is None else 0):
            try:
                return await self._launch_on(process.free_port(self.default_port), wanted, progress)
            except PortTaken as error:
                progress(f"{self.server_name}: {error.seen}; trying another port")
        return await self._launch_on(self._port or process.free_port(0), wanted, progress)

    async def _launch_on(self, port: int, wanted: Wanted, progress: Progress) -> process.ServerState:
        command = wanted.command(port)
        memory.check(self.title, command.memory_gib)
        self.url = _loopback(port)
        return await process.launch(
            engine=self.server_name,
            argv=command.argv,
            env=command.env,
            port=port,
            settings=wanted.settings,
            owner=self.owner,
            log_name=f"{self.server_name}-{port}.log",
            ready=self.ready,
            deadline_s=command.deadline_s,
            causes=self.causes,
            progress=progress,
            model=wanted.model,
        )

    def _described(
        self, read: Mapping[str, tuple[Any, str]], said: dict[str, Any] | None = None
    ) -> EngineFacts:
        """Facts from values and where each was read; None is not known.

        Args:
            said: what a simulated server declares; fills what was not read from its API.
        """
        known = told_facts(said) | {name: found for name, found in read.items() if found[0] is not None}
        return EngineFacts(
            engine=self.name,
            kind="live" if said is None else "simulated",
            url=self.url,
            owner=self._state.owner if self._state else "foreign",
            simulated=origin(said),
            sources={name: source for name, (_, source) in known.items()},
            **{name: value for name, (value, _) in known.items()},
        )

    def _client(self, timeout_s: float) -> httpx.AsyncClient:
        url = urlsplit(self.url)
        return httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(5, read=timeout_s),
            trust_env=url.hostname not in LOOPBACK,  # no proxy for loopback
            verify=url.scheme == "https",  # loading the certificates takes longer than a gauge reading
            headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else None,
        )

    @asynccontextmanager
    async def _talking(self, tried: str, timeout_s: float) -> AsyncIterator[httpx.AsyncClient]:
        """A client; when it fails, the error says whether the server is gone.

        Raises:
            EngineDied: a server of ours is gone; quotes the end of its log and the known cause.
            EngineError: anything else that HTTP can end in.
        """
        try:
            async with self._client(timeout_s) as client:
                yield client
        except httpx.HTTPError as error:
            if self._state is not None:
                for _ in range(10):  # a dying process closes its connections some milliseconds before it ends
                    if not self.alive():
                        raise process.died(self._state, self.causes) from error
                    await asyncio.sleep(0.05)
            raise EngineError(f"{tried} at {self.url}", repr(error), "labkit engines status") from error


def _loopback(port: int) -> str:
    return f"http://127.0.0.1:{port}"
