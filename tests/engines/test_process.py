"""Supervision proved on real processes: servers, kernels and supervisors that really get killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from labkit.engines import process
from labkit.engines.process import Cause, ServerState, launch, port_owner, states, terminate
from labkit.engines.supervisor import alive
from labkit.errors import StartFailed

STUBBORN = """
import http.server, os, signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
print("grandchild", child.pid, flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
"""A server that ignores SIGINT, with a child in a session of its own that ignores SIGTERM."""

POLITE = STUBBORN.replace("signal.signal(signal.SIGINT, signal.SIG_IGN)", "")

KERNEL = """
import asyncio, json, sys
from dataclasses import asdict
from tests.engines.test_process import start
async def main():
    state = await start(json.loads(sys.argv[1]), int(sys.argv[2]), owner=sys.argv[3])
    print(json.dumps(asdict(state)), flush=True)
    if sys.argv[3] == "kernel":
        await asyncio.sleep(600)
asyncio.run(main())
"""
"""Plays a Jupyter kernel (or a shell): starts a server in another process than the test."""

PLAIN = ["-m", "http.server", "--bind", "127.0.0.1"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def port() -> int:
    return process.free_port(0)


@pytest.fixture
async def clean() -> AsyncIterator[None]:
    """Ends what a failing test would leave behind."""
    yield
    for state in states():
        await terminate(state, grace_s=0)


def answers(port: int) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        async with httpx.AsyncClient(trust_env=False) as client:
            try:
                return (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200
            except httpx.TransportError:
                return False

    return ready


async def start(
    arguments: list[str], port: int, *, owner: process.Owner = "kernel", **changes: Any
) -> ServerState:
    given: dict[str, Any] = {
        "engine": "toy",
        "argv": [sys.executable, *arguments, str(port)],
        "env": {},
        "port": port,
        "settings": {"slots": 2},
        "owner": owner,
        "log_name": f"toy-{port}.log",
        "ready": answers(port),
        "deadline_s": 20,
    }
    return await launch(**(given | changes))


async def eventually(what: Callable[[], bool], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110  what happens in other processes sets no event here
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def kernel(
    arguments: list[str], port: int, owner: str, *, code: str = KERNEL, **env: str
) -> Iterator[tuple[subprocess.Popen[str], ServerState]]:
    """A process that has started a server; what it forked ends with the test."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(arguments), str(port), owner],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **env},
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        try:
            yield child, ServerState(**json.loads(child.stdout.readline()))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


@contextlib.contextmanager
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any server."""
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    ) as other:
        try:
            yield other
        finally:
            other.kill()


def state_file(home: Path, port: int) -> Path:
    return home / "servers" / f"toy-{port}.json"


@pytest.mark.usefixtures("clean")
async def test_start_and_stop_are_proved(home: Path, port: int) -> None:
    said: list[str] = []
    state = await start(PLAIN, port, progress=said.append)
    assert states() == [state]
    assert states("toy") == [state]
    assert states("ollama") == []
    assert state.settings == {"slots": 2}
    assert port_owner(port) is not None
    assert f"(pid {state.pid})" in str(port_owner(port))
    assert os.getsid(state.pid) == state.pid != os.getsid(0), "Ctrl-C here must not reach the server"

    await terminate(state, progress=said.append)
    assert states() == []
    assert port_owner(port) is None
    assert not psutil.pid_exists(state.pid)
    assert not state_file(home, port).exists()
    assert f"port {port} free, 1 processes gone" in said[-1]


@pytest.mark.usefixtures("clean")
async def test_server_that_ignores_sigint_and_its_grandchild_are_stopped(port: int) -> None:
    state = await start(["-c", STUBBORN], port)
    family = state.family()
    assert len(family) == 2
    await terminate(state, grace_s=0.2)
    assert not any(map(alive, family))
    assert "killed by signal 9 (SIGKILL)" in process.tail(state.log, 1)[0]


async def test_stopping_twice_is_harmless(port: int) -> None:
    state = await start(PLAIN, port)
    await asyncio.gather(terminate(state), terminate(state))
    await terminate(state)


@pytest.mark.usefixtures("clean")
async def test_taken_port_names_its_owner(port: int) -> None:
    await start(PLAIN, port)
    with pytest.raises(StartFailed, match=r"the port is taken by python\S* \(pid \d+\)"):
        await start(PLAIN, port)
    assert len(states()) == 1


async def test_server_that_exits_fails_at_once_with_log_and_cause(port: int) -> None:
    words = "import sys; sys.exit('no kernel image for sm_120')"
    cause = Cause("no kernel image", "the build does not fit this GPU", "install the other build")
    with pytest.raises(StartFailed) as caught:
        await start(["-c", words], port, deadline_s=600, causes=[cause])
    assert "the server ended: the build does not fit this GPU" in caught.value.seen
    assert "no kernel image for sm_120\n" in caught.value.seen
    assert "exited with code 1" in caught.value.seen
    assert caught.value.fix == "install the other build"
    assert states() == []


@pytest.mark.parametrize(
    ("argv", "explanation"),
    [
        (["import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], "not enough memory"),
        (["import os, signal; os.kill(os.getpid(), signal.SIGILL)"], "the CPU lacks instructions"),
        (["raise OSError(98, 'Address already in use')"], "the port was taken"),
    ],
)
async def test_common_causes(port: int, argv: list[str], explanation: str) -> None:
    with pytest.raises(StartFailed, match=explanation):
        await start(["-c", *argv], port)


async def test_missing_program_is_named(port: int) -> None:
    with pytest.raises(StartFailed, match="cannot start /no/such/server"):
        await start([], port, argv=["/no/such/server"])


async def test_deadline_leaves_nothing_running(port: int) -> None:
    with pytest.raises(StartFailed, match=r"not ready after 1 s\nLast lines of .*\n  loading") as caught:
        await start(["-c", "import time; print('loading', flush=True); time.sleep(600)"], port, deadline_s=1)
    assert "memory" not in caught.value.seen
    assert states() == []
    assert process._supervisors == {}


async def test_cancelled_start_leaves_nothing_running(port: int) -> None:
    starting = asyncio.create_task(start(["-c", "import time; time.sleep(600)"], port))
    await eventually(lambda: bool(states()))
    [state] = states()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert state.family() == []
    assert states() == []


async def test_killed_kernel_takes_its_server_along(home: Path, port: int) -> None:
    with kernel(["-c", POLITE], port, "kernel") as (child, state):
        family = state.family()
        assert len(family) == 2
        assert state.owner_pid == child.pid
        child.send_signal(signal.SIGKILL)
        child.wait()
        await eventually(lambda: not any(map(alive, family)))
        await eventually(lambda: not state_file(home, port).exists())
    assert port_owner(port) is None


async def test_killed_kernel_with_a_forked_child_holding_the_pipe(port: int) -> None:
    forking = KERNEL.replace('if sys.argv[3] == "kernel":', "import os\n    if os.fork() >= 0:")
    assert forking != KERNEL
    with kernel(PLAIN, port, "kernel", code=forking) as (child, state):
        await eventually(lambda: len(psutil.Process(child.pid).children()) == 2)
        child.send_signal(signal.SIGKILL)
        child.wait()
        await eventually(lambda: state.process() is None)


async def test_server_of_a_notebook_run_ends_with_the_runner_and_not_with_its_kernel(port: int) -> None:
    with bystander() as runner:
        with kernel(PLAIN, port, "kernel", LABKIT_OWNER_PID=str(runner.pid)) as (child, state):
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert await answers(port)()
        assert state.owner_pid == runner.pid
        runner.kill()
        runner.wait()
        await eventually(lambda: state.process() is None)


async def test_killed_supervisor_takes_its_server_along(port: int) -> None:
    state = await start(PLAIN, port)
    os.kill(state.supervisor_pid, signal.SIGKILL)
    await eventually(lambda: state.process() is None)
    assert states() == []
    await terminate(state)


async def test_killed_server_leaves_no_grandchild(home: Path, port: int) -> None:
    state = await start(["-c", STUBBORN], port)
    [grandchild] = [member for member in state.family() if member.pid != state.pid]
    os.kill(state.pid, signal.SIGKILL)
    await eventually(lambda: not alive(grandchild))
    await eventually(lambda: not state_file(home, port).exists())
    assert "killed by signal 9" in str(process.died(state))
    await terminate(state)


@pytest.mark.usefixtures("clean")
async def test_shell_owned_server_survives_its_starter(port: int) -> None:
    with kernel(PLAIN, port, "shell") as (child, state):
        assert child.wait() == 0
    assert await answers(port)()
    [found] = states("toy")
    assert asdict(found) == asdict(state)
    await terminate(found)
    assert states() == []


@pytest.mark.usefixtures("clean")
async def test_stale_and_damaged_state_files_are_dropped(home: Path, port: int) -> None:
    state = await start(PLAIN, port)
    folder = home / "servers"
    whole = state_file(home, port).read_text()
    (folder / "toy-1.json").write_text(whole[: len(whole) // 2])
    (folder / "toy-2.json").write_text("{}")
    gone = asdict(state) | {"create_time": state.create_time - 3600, "supervisor_pid": 2**22 + 1}
    (folder / "toy-3.json").write_text(json.dumps(gone))
    assert states() == [state], "a later process with the same number is not the server"
    assert [path.name for path in folder.iterdir()] == [f"toy-{port}.json"]


async def test_stopping_by_a_stale_state_spares_the_process_that_has_its_number(port: int) -> None:
    with bystander() as other:
        stale = ServerState(
            engine="toy",
            pid=other.pid,
            create_time=time.time() - 3600,
            supervisor_pid=other.pid,
            port=port,
            url=f"http://127.0.0.1:{port}",
            argv=[],
            settings={},
            model=None,
            owner="kernel",
            owner_pid=0,
            log="",
            started_at=0,
        )
        await terminate(stale)
        assert other.poll() is None


def test_tail_of_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert process.tail(tmp_path / "none.log", 5) == []


def test_tail_gives_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("".join(f"line {n}\n" for n in range(1000)))
    assert process.tail(log, 2) == ["line 998", "line 999"]
