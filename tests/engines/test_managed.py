"""The life cycle that both engines share, on a small real server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from labkit.engines import process
from labkit.engines.base import EngineFacts, Gauges, Progress, Served, quiet
from labkit.engines.managed import ManagedEngine
from labkit.engines.settings import Settings, setting
from labkit.engines.wanted import Command, Wanted
from labkit.errors import EngineDied, EngineError, ModelError, StartFailed, UsageError

ANSWERS = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]


@dataclass(frozen=True)
class ToySettings(Settings):
    title: ClassVar[str] = "Toy"
    slots: int = setting(1, "requests at a time", low=1)


class Toy(ManagedEngine):
    """Serves a folder; "has" the one model "small"."""

    name = "toy"
    title = "Toy"
    protocol = "none"
    default_port = 0
    health = ("/", "Directory listing")
    causes = ()

    memory_gib: float | None = None
    model_wanted: str | None = None

    def _wanted(self, settings: dict[str, Any]) -> Wanted:
        return Wanted(settings, ToySettings.of(settings).as_dict(), self.model_wanted, self._command)

    def _command(self, port: int) -> Command:
        return Command([*ANSWERS, str(port)], {}, 20, self.memory_gib)

    async def load(self, model: str, *, progress: Progress = quiet) -> float:
        if model != "small":
            raise ModelError(f"load {model}")
        return 0

    async def facts(self) -> EngineFacts:
        slots = self._state.settings["slots"] if self._state else None
        return self._described({"slots": (slots, "state file"), "model": (self.model, "asked for")})

    async def gauges(self) -> Gauges:
        async with self._talking("look into Toy", 5) as client:
            (await client.get("/")).raise_for_status()
        return Gauges()

    async def served(self) -> Served:
        return Served()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
async def toy() -> AsyncIterator[Toy]:
    """An engine on a port of its own; whatever runs at the end of the test is stopped."""
    engine = Toy(port=process.free_port(0))
    yield engine
    await engine.stop()
    for state in process.states():
        await process.terminate(state, grace_s=0)


@contextmanager
def stranger(port: int) -> Iterator[Toy]:
    """Somebody else's server; yields an engine that would start where it is."""
    with subprocess.Popen([*ANSWERS, str(port)], stderr=subprocess.DEVNULL) as server:
        try:
            yield Toy(port=port)
        finally:
            server.terminate()


async def until_ready(engine: Toy) -> None:
    async with asyncio.timeout(20):
        while not await engine.ready():  # noqa: ASYNC110  a stranger sets no event
            await asyncio.sleep(0.02)


def pids() -> list[int]:
    return [state.pid for state in process.states("toy")]


async def test_a_server_is_used_again_while_its_settings_fit(toy: Toy) -> None:
    facts = await toy.start(slots=2)
    assert (facts.slots, facts.owner, facts.sources) == (2, "kernel", {"slots": "state file"})
    before = pids()
    again = Toy()
    assert (await again.start(slots=2)).url == toy.url
    assert pids() == before
    await toy.start(slots=3)
    assert pids() != before


async def test_a_cell_that_runs_again_replaces_the_kernels_server() -> None:
    first, second = Toy(), Toy()
    elsewhere = Toy(port=process.free_port(0))
    await elsewhere.start(slots=9)
    await first.start(slots=2)
    try:
        assert (await second.start(slots=3)).slots == 3
        assert not first.alive()
        assert elsewhere.alive()
        assert len(pids()) == 2
    finally:
        await second.stop()
        await elsewhere.stop()
    assert pids() == []


class Held(Toy):
    """Starts when its home has the file "go"."""

    then = "http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"

    def _command(self, port: int) -> Command:
        wait = "while not os.path.exists('go'): time.sleep(0.02)"
        script = f"import http.server, os, sys, time\n{wait}\n{self.then}"
        return Command([sys.executable, "-c", script, str(port)], {}, 20)


async def two_at_once() -> tuple[Held, asyncio.Task[EngineFacts], asyncio.Task[EngineFacts]]:
    """An engine that is starting, and one that waits for the same server."""
    second = Held()
    async with asyncio.timeout(20):
        starting = asyncio.create_task(Held().start())
        while not pids():  # noqa: ASYNC110  written by another process
            await asyncio.sleep(0.02)
        waiting = asyncio.create_task(second.start())
        while second._state is None:  # noqa: ASYNC110  no event tells it
            await asyncio.sleep(0.02)
    assert not waiting.done()
    return second, starting, waiting


async def test_a_server_that_another_cell_is_still_starting_is_waited_for(home: Path) -> None:
    second, starting, waiting = await two_at_once()
    (home / "go").touch()
    try:
        assert (await waiting).url == (await starting).url
        assert await second.ready()
        assert len(pids()) == 1
    finally:
        await second.stop()


async def test_a_server_that_ends_while_it_is_waited_for_is_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Held, "then", "print('no luck')")
    _, starting, waiting = await two_at_once()
    (home / "go").touch()
    with pytest.raises(EngineDied, match="no luck"):
        await waiting
    with pytest.raises(StartFailed, match="the server ended"):
        await starting


async def test_restart_keeps_the_other_settings_and_a_bad_one_costs_nothing(toy: Toy) -> None:
    await toy.start(slots=2)
    before = pids()
    with pytest.raises(UsageError, match="slots=0"):
        await toy.restart(slots=0)
    assert pids() == before
    assert (await toy.restart()).slots == 2
    assert pids() != before
    assert toy.alive()
    assert "GET / HTTP" in toy.log_tail(1)[0]


async def test_an_attached_engine_is_that_servers_own(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    await toy.start(slots=2)
    monkeypatch.setenv("LABKIT_TOY_URL", "http://127.0.0.1:9")
    attached = Toy.attached(process.states("toy")[0])
    assert attached.url == toy.url
    assert (await attached.restart()).slots == 2
    await attached.stop()
    assert pids() == []
    assert not toy.alive()


async def test_a_given_url_is_used_as_it_is_and_not_stopped(toy: Toy) -> None:
    await toy.start(slots=2)
    given = Toy(f"{toy.url}/v1/")
    assert (await given.start(slots=2)).slots == 2
    with pytest.raises(UsageError, match="it has slots=2, and it is not restarted from here"):
        await given.start(slots=4)
    given.model_wanted = "large"
    with pytest.raises(ModelError):
        await given.start()
    await given.stop()
    assert await toy.ready()


async def test_a_strangers_server_is_used_if_nothing_else_is_asked_for(toy: Toy) -> None:
    with stranger(process.free_port(0)) as engine:
        await until_ready(engine)
        said: list[str] = []
        facts = await engine.start(progress=said.append)
        assert (facts.owner, facts.slots) == ("foreign", None)
        assert "labkit did not start it" in said[0]
        with pytest.raises(StartFailed, match="the port is taken by"):
            await engine.start(slots=1)
        engine.model_wanted = "large"
        with pytest.raises(StartFailed, match="the port is taken by"):
            await engine.start()
        await engine.stop()
        assert await engine.ready()
        with pytest.raises(EngineError, match="404"):
            async with engine._talking("ask for nothing", 5) as client:
                (await client.get("/nothing")).raise_for_status()


async def test_a_killed_server_is_told_from_one_that_does_not_answer(toy: Toy) -> None:
    with pytest.raises(EngineError, match="look into Toy at http://127") as silent:
        await toy.gauges()
    assert not isinstance(silent.value, EngineDied)
    await toy.start()
    [state] = process.states("toy")
    server = state.process()
    assert server is not None
    server.kill()
    with pytest.raises(EngineDied, match="Last lines"):
        await toy.gauges()
    assert not toy.alive()


async def test_memory_is_compared_before_a_second_server_starts(toy: Toy) -> None:
    toy.memory_gib = 1e6
    await toy.start()  # alone, it is the system that judges
    second = Toy(port=process.free_port(0))
    second.memory_gib = 1e6
    with pytest.raises(StartFailed, match=r"beside toy on port \d+\n.*1000000\.0 GiB of memory, \d+\.\d GiB"):
        await second.start(slots=2)
    assert await toy.ready()
    assert len(pids()) == 1
