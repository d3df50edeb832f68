"""Server processes: start one under a supervising parent, wait until it answers, stop it and prove that.

Each server has a state file ``LABKIT_HOME/servers/<engine>-<port>.json``, written and removed by its
supervisor (:mod:`labkit.engines.supervisor`). Servers owned by a kernel end with it, whatever kills it;
servers owned by a shell live until :func:`terminate`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, Literal, cast

import psutil

from labkit import paths
from labkit.engines import supervisor
from labkit.engines.base import Progress, quiet
from labkit.engines.causes import Cause, evidence, tail
from labkit.engines.ports import free_port, is_free, listeners, port_owner
from labkit.errors import EngineDied, PortTaken, StartFailed, StopFailed

__all__ = [
    "OWNER_PID",
    "Cause",
    "Owner",
    "ServerState",
    "check_port",
    "died",
    "free_port",
    "inherited",
    "launch",
    "owner_pid",
    "port_owner",
    "states",
    "tail",
    "terminate",
]

Owner = Literal["kernel", "shell"]

OWNER_PID = "LABKIT_OWNER_PID"
"""Environment variable by which a runner of notebooks becomes the owner of what their kernels start."""

POLL_S = 0.1
SPEAK_EVERY_S = 5.0
GRACE_S = 20.0
PORT_WAIT_S = 5.0
SUPERVISOR_WAIT_S = 10.0
SAME_START_S = 2.0
"""Two start times closer than this are the same process; clock corrections shift what psutil reads."""

_supervisors: dict[int, subprocess.Popen[bytes]] = {}
"""Supervisors that this process started. Holding one keeps the pipe open that tells it we are alive."""


@dataclass(frozen=True)
class ServerState:
    """One running server as its state file describes it. Times in seconds since the epoch."""

    engine: str
    pid: int
    create_time: float  # with the pid, tells this process from a later one with the same number
    supervisor_pid: int
    port: int
    url: str
    argv: list[str]
    settings: dict[str, Any]
    model: str | None
    owner: Owner
    owner_pid: int
    log: str
    started_at: float

    def process(self) -> psutil.Process | None:
        """The server's process, None once it is gone."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) < SAME_START_S
        except psutil.NoSuchProcess:
            return None
        return process if same and supervisor.alive(process) else None

    def family(self) -> list[psutil.Process]:
        """The server and everything it started, also what changed its group or lost its parent."""
        root = self._supervisor() or self.process()
        if root is None:
            return []
        return supervisor.family(root, self.pid)

    def cpu_s(self) -> float:
        """CPU seconds that its family has used so far, ended children included."""
        used = 0.0
        for member in self.family():
            try:
                times = member.cpu_times()
            except psutil.NoSuchProcess:
                continue
            ended = (getattr(times, f"children_{name}", 0.0) for name in ("user", "system"))
            used += times.user + times.system + sum(ended)
        return used

    def _supervisor(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.supervisor_pid)
            ours = process.create_time() <= self.create_time + SAME_START_S
        except psutil.NoSuchProcess:
            return None
        return process if ours and supervisor.alive(process) else None

    def supervised(self) -> bool:
        """Whether its supervisor still watches it."""
        return self._supervisor() is not None


def owner_pid() -> int:
    """The process with which a kernel's server started here ends: the notebooks' runner, else this one."""
    return int(os.environ.get(OWNER_PID, os.getpid()))


def states(engine: str | None = None) -> list[ServerState]:
    """Servers that labkit started and that still run, oldest first; removes the files of dead ones."""
    found = []
    for path in paths.folder("servers").glob(f"{engine or '*'}-*.json"):
        state = _read(path)
        if state is None:
            path.unlink(missing_ok=True)
        elif state.process() is not None:
            found.append(state)
        elif not state.supervised():
            path.unlink(missing_ok=True)
    return sorted(found, key=lambda state: state.started_at)


def inherited(engine: str, ports: Container[int] | None = None) -> ServerState | None:
    """A kernel's server that ends with the same process as this one's: started by this process itself, or by
    an earlier notebook of the same runner.

    Args:
        ports: look at the servers on these ports only.
    """
    for state in states(engine):
        ours = state.owner == "kernel" and state.owner_pid == owner_pid()
        if ours and (ports is None or state.port in ports):
            return state
    return None


def check_port(engine: str, port: int) -> None:
    """Raise PortTaken if somebody else has a port, before anything is written for a server on it."""
    if (taken_by := port_owner(port) or _starting_on(port)) is not None:
        raise PortTaken(
            f"start {engine} on port {port}",
            f"the port is taken by {taken_by}",
            "stop that process, or start on another port",
        )


async def launch(
    *,
    engine: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    port: int,
    settings: Mapping[str, Any],
    owner: Owner,
    log_name: str,
    ready: Callable[[], Awaitable[bool]],
    deadline_s: float,
    causes: Sequence[Cause] = (),
    progress: Progress = quiet,
    model: str | None = None,
) -> ServerState:
    """Start a server on a loopback port and wait until ``ready`` says yes.

    Args:
        env: what the server's environment has beside this process's own.
        log_name: file under ``LABKIT_HOME/logs``; an earlier one is replaced.
        ready: asked again and again; must not raise when nobody answers.
        causes: the engine's own known causes, looked for before the common ones.

    Raises:
        PortTaken: somebody else has the port.
        StartFailed: server ended, or not ready within ``deadline_s``; quotes the log. Nothing is
            left running then, nor when the coroutine is cancelled.
    """
    check_port(engine, port)
    url = f"http://127.0.0.1:{port}"
    log = paths.folder("logs") / log_name
    described: dict[str, Any] = {
        "engine": engine,
        "port": port,
        "url": url,
        "argv": list(argv),
        "settings": dict(settings),
        "model": model,
        "owner": owner,
        "owner_pid": owner_pid(),
        "log": str(log),
    }
    progress(f"{engine}: starting on port {port}, log {log}")
    started = time.monotonic()
    child = _start_supervisor(described, env)
    start = _Start(child, _state_file(engine, port), log, tuple(causes), f"start {engine} on port {port}")
    try:
        async with asyncio.timeout(deadline_s):
            state = await start.wait_for_state()
            await start.wait_until(ready, progress)
        start.check_alone_on(port, state)
    except TimeoutError:
        # Read before our own stop is in the log.
        failure = start.failure(f"not ready after {deadline_s:.0f} s")
        await start.undo()
        raise failure from None
    except BaseException:
        await start.undo()
        raise
    progress(f"{engine}: ready after {time.monotonic() - started:.1f} s")
    return state


async def terminate(state: ServerState, *, grace_s: float = GRACE_S, progress: Progress = quiet) -> None:
    """Stop a server and everything it started, and prove it: port free, processes gone.

    Cancelling the wait does not call off the stop.

    Raises:
        StopFailed: a process survived SIGKILL, or somebody listens on the port.
    """
    progress(await asyncio.to_thread(_terminate, state, grace_s))


def died(state: ServerState, causes: Sequence[Cause] = ()) -> EngineDied:
    """The error for a server that was ready and is gone, with its log's last lines and the known cause."""
    seen, fix = evidence(state.log, causes)
    tried = f"use {state.engine} on port {state.port} (pid {state.pid})"
    return EngineDied(tried, f"the server is gone{seen}", fix)


@dataclass(frozen=True)
class _Start:
    """A start under way: what to wait for, how to undo it, how to tell that it failed."""

    supervisor: subprocess.Popen[bytes]
    state_file: Path
    log: Path
    causes: tuple[Cause, ...]
    tried: str

    async def wait_for_state(self) -> ServerState:
        while (state := self.state()) is None:
            self._check_running()
            await asyncio.sleep(POLL_S / 5)
        return state

    async def wait_until(self, ready: Callable[[], Awaitable[bool]], progress: Progress) -> None:
        started = spoken = time.monotonic()
        while True:
            self._check_running()
            if await ready():
                return
            now = time.monotonic()
            if now - spoken > SPEAK_EVERY_S:
                spoken = now
                progress(f"  {now - started:.0f} s: {''.join(tail(self.log, 1))[:120]}")
            await asyncio.sleep(POLL_S)

    def check_alone_on(self, port: int, state: ServerState) -> None:
        """A server may share its port with another (vLLM does); then it is not known who answers."""
        strangers = set(listeners(port)) - {process.pid for process in state.family()}
        if strangers:
            pids = ", ".join(map(str, sorted(strangers)))
            fix = "stop that process, or start on another port"
            raise PortTaken(self.tried, f"process {pids} listens on the same port", fix)

    def state(self) -> ServerState | None:
        state = _read(self.state_file)
        return state if state and state.supervisor_pid == self.supervisor.pid else None

    def _check_running(self) -> None:
        if self.supervisor.poll() is not None:
            raise self.failure("the server ended")

    def failure(self, what: str) -> StartFailed:
        seen, fix = evidence(self.log, self.causes)
        return StartFailed(self.tried, what + seen, fix)

    async def undo(self) -> None:
        """Leave nothing running. The supervisor does it; a second cancellation only stops our waiting."""
        if self.supervisor.poll() is None:
            self.supervisor.terminate()
            await asyncio.to_thread(self.supervisor.wait)
        _forget(self.supervisor)


def _start_supervisor(described: Mapping[str, Any], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    spec = {
        "argv": described["argv"],
        "env": {**os.environ, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", **env},
        "state": described,
        "state_file": str(_state_file(described["engine"], described["port"])),
        "grace_s": GRACE_S,
    }
    with Path(described["log"]).open("ab") as log:
        log.truncate(0)
        # A session of its own: Ctrl-C in our terminal, or a kernel's interrupt, must not reach it.
        child = subprocess.Popen(
            [sys.executable, "-P", supervisor.__file__],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=paths.home(),
            start_new_session=True,
        )
    pipe = cast("IO[bytes]", child.stdin)  # not inheritable: no other child of ours holds it open
    pipe.write(json.dumps(spec).encode() + b"\n")
    pipe.flush()
    _supervisors[child.pid] = child
    return child


def _terminate(state: ServerState, grace_s: float) -> str:
    members = state.family()
    before = _available_mib()
    root = state._supervisor() or state.process()
    survivors = supervisor.stop_family(root, state.pid, grace_s) if root else []
    tried = f"stop {state.engine} on port {state.port}"
    if survivors:
        names = ", ".join(f"{process.name()} (pid {process.pid})" for process in survivors)
        raise StopFailed(tried, f"still running: {names}", "end them with: kill -9, as their user or as root")
    _wait_for_supervisor(state)
    owner = _wait_for_port(state.port)
    if owner is not None:
        raise StopFailed(tried, f"its processes are gone, but {owner} listens on the port", f"stop {owner}")
    return (
        f"{state.engine}: stopped, port {state.port} free, {len(members)} processes gone, "
        f"memory available {before:.0f} → {_available_mib():.0f} MiB"
    )


def _wait_for_supervisor(state: ServerState) -> None:
    """The supervisor removes the state file and goes; a server without one leaves its file to us."""
    deadline = time.monotonic() + SUPERVISOR_WAIT_S
    while (process := state._supervisor()) is not None:
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(0.02)
    if (child := _supervisors.get(state.supervisor_pid)) is not None:
        child.wait()
        _forget(child)
    path = _state_file(state.engine, state.port)
    if _read(path) == state:
        path.unlink(missing_ok=True)


def _wait_for_port(port: int) -> str | None:
    deadline = time.monotonic() + PORT_WAIT_S
    while not is_free(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    return port_owner(port)


def _starting_on(port: int) -> str | None:
    """A server of labkit's that was started for this port and does not listen yet."""
    names = [f"{state.engine} (pid {state.pid}), still starting" for state in states() if state.port == port]
    return names[0] if names else None


def _available_mib() -> float:
    """Of the whole machine: other programs move it too."""
    return float(psutil.virtual_memory().available) / 2**20


def _forget(child: subprocess.Popen[bytes]) -> None:
    """Drop a supervisor that has ended."""
    if child.stdin is not None:
        child.stdin.close()
    _supervisors.pop(child.pid, None)


def _state_file(engine: str, port: int) -> Path:
    return paths.folder("servers") / f"{engine}-{port}.json"


def _read(path: Path) -> ServerState | None:
    """A state file's content; None if there is none, or only part of one."""
    try:
        given = json.loads(path.read_text())
        return ServerState(**{field.name: given[field.name] for field in fields(ServerState)})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
