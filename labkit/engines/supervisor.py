"""The small parent of one server: a process of its own that outlives nothing and leaves nothing behind.

Run by :func:`labkit.engines.process.launch` as a script. Reads one JSON line (argv, env, state, state_file,
grace_s) from stdin, starts the server in a session of its own, writes the state file, and waits. When the
server ends, whatever it left running ends too, and the state file goes. A server owned by a kernel is stopped
as soon as the other end of stdin closes, which the operating system does however the kernel dies; one that a
kernel started for the runner of its notebook is stopped when that runner is gone.

Needs only the standard library and psutil, so that it starts fast and stays small.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LINUX = sys.platform == "linux"

LEFTOVER_GRACE_S = 3.0
"""Time that children get to end by themselves once the server itself is gone (vLLM's need 2 to 3 s)."""
KILL_WAIT_S = 5.0
OWNER_CHECK_S = 1.0


def alive(process: psutil.Process) -> bool:
    """Whether this very process (not a later one with its number) still runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(root: psutil.Process, session: int) -> list[psutil.Process]:
    """Everything below ``root``, and every process of ``session`` wherever it hangs in the tree.

    The first finds children that made a group of their own, the second finds orphans.
    """
    try:
        found = {child.pid: child for child in root.children(recursive=True)}
    except psutil.NoSuchProcess:
        found = {}
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session:
                found.setdefault(process.pid, process)
        except (ProcessLookupError, PermissionError):
            continue
    return [process for process in found.values() if alive(process)]


def stop_family(root: psutil.Process, leader: int, grace_s: float) -> list[psutil.Process]:
    """SIGINT to the server, time to leave in order, SIGTERM to what it left behind, then SIGKILL to all.

    Only the server gets SIGINT: both engines end their own children, in the order they need.

    Returns:
        Processes that survived even SIGKILL.
    """
    members = family(root, leader)
    servers = [process for process in members if process.pid == leader]
    for server in servers:
        _send(server, signal.SIGINT)
    deadline = time.monotonic() + grace_s
    leader_gone = False
    while any(map(alive, members)) and time.monotonic() < deadline:
        if not leader_gone and not any(map(alive, servers)):
            leader_gone = True
            deadline = min(deadline, time.monotonic() + LEFTOVER_GRACE_S)
            for process in members:
                _send(process, signal.SIGTERM)
        time.sleep(0.05)
    members = list({*members, *family(root, leader)})  # a server may have started more while it was leaving
    for process in members:
        _send(process, signal.SIGKILL)
    return _wait_gone(members, KILL_WAIT_S)


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)  # psutil compares the start time first, so a reused number is not hit
    except psutil.NoSuchProcess:
        return


def _wait_gone(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    left = [process for process in processes if alive(process)]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [process for process in left if alive(process)]
    return left


def _prctl(option: int, value: int) -> None:
    if LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _in_server() -> None:
    """Between fork and exec: leave in order when the supervisor is killed."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def _start(spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        spec["argv"],
        env=spec["env"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_in_server,  # noqa: PLW1509  this process has one thread
    )


def _write_state(path: Path, state: dict[str, Any]) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(state, indent=1))
    draft.replace(path)


def _drop_state(path: Path) -> None:
    """Remove our state file, unless the next server on this port has replaced it already."""
    if path.exists() and json.loads(path.read_text())["supervisor_pid"] == os.getpid():
        path.unlink()


def _reap(server: subprocess.Popen[bytes]) -> int | None:
    """Collect ended children, adopted ones too; the server's exit code once it has one."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            break
        if pid == server.pid:
            server.returncode = os.waitstatus_to_exitcode(status)
    return server.returncode


def _watch(server: subprocess.Popen[bytes], wakeups: int, owner: psutil.Process | None) -> None:
    """Return when the server ended, its owner is gone, or somebody asked this process to end."""
    piped = owner is not None and owner.pid == os.getppid()
    sources = [wakeups, sys.stdin.fileno()] if piped else [wakeups]
    while _reap(server) is None:
        # The timeout is for an owner that is not our parent, or that forked a child without exec: that child
        # holds our pipe open.
        ready, _, _ = select.select(sources, [], [], OWNER_CHECK_S if owner else None)
        if owner and (sys.stdin.fileno() in ready or not alive(owner)):
            return
        if wakeups in ready and set(os.read(wakeups, 64)) & {signal.SIGTERM, signal.SIGINT}:
            return


def _catch_signals() -> int:
    """Turn SIGCHLD, SIGTERM and SIGINT into bytes on a pipe; its reading end."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    return reading


def _say_end(server: subprocess.Popen[bytes]) -> None:
    code = server.returncode
    if code is None:
        words = "the server did not end"
    elif code < 0:
        words = f"the server was killed by signal {-code} ({signal.Signals(-code).name})"
    else:
        words = f"the server exited with code {code}"
    sys.stderr.write(f"labkit: {words}\n")
    sys.stderr.flush()


def main() -> int:
    """Supervise one server until it is gone. Our stderr is its log: our words and tracebacks belong there."""
    with open(
        sys.stdin.fileno(), "rb", buffering=0, closefd=False
    ) as lifeline:  # unbuffered: reads no further
        spec = json.loads(lifeline.readline())
    state_file = Path(spec["state_file"])
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    wakeups = _catch_signals()
    owner = psutil.Process(spec["state"]["owner_pid"]) if spec["state"]["owner"] == "kernel" else None
    try:
        server = _start(spec)
    except OSError as error:
        sys.stderr.write(f"labkit: cannot start {spec['argv'][0]}: {error}\n")
        return 1
    identity = {
        "pid": server.pid,
        "create_time": psutil.Process(server.pid).create_time(),
        "supervisor_pid": os.getpid(),
        "started_at": time.time(),
    }
    _write_state(state_file, spec["state"] | identity)
    _watch(server, wakeups, owner)
    died = server.returncode is not None
    if died:  # said at once: whoever asks why it is gone must not have to wait for what it left behind
        _say_end(server)
    stop_family(psutil.Process(), server.pid, spec["grace_s"])
    if not died:
        _reap(server)
        _say_end(server)
    _drop_state(state_file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
