"""Steps that both installers share: a plan to confirm, one logged command, a download, system packages."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from labkit import paths
from labkit.engines.base import Progress
from labkit.errors import InstallFailed, MissingExtra

Show = Callable[[str], str | None]
"""Turns a line of a command's output into a progress line, or None to keep it in the log only."""


@dataclass(frozen=True)
class SystemPackage:
    """Something the operating system has to provide."""

    apt: str
    why: str
    present: Callable[[], bool]


@dataclass(frozen=True)
class Plan:
    """One way to install one engine, with its price; nothing has moved yet.

    Attributes:
        folder: where the finished install will be.
        download_mb: what the network carries with cold caches, in 10^6 bytes.
        disk_mb: what must be free while it runs, in 10^6 bytes.
        build: makes the install inside an empty folder and returns what is to become ``folder``.
    """

    engine: str
    version: str
    route: str
    folder: Path
    download_mb: int
    disk_mb: int
    minutes: int
    build: Callable[[Path, Progress], Path]
    needs: Sequence[SystemPackage] = field(default=())

    def price(self) -> str:
        """One sentence to agree to."""
        return (
            f"{self.engine} {self.version}, {self.route}: download {gigabytes(self.download_mb)} (less with "
            f"warm caches), disk {gigabytes(self.disk_mb)} while it runs, about {self.minutes} minutes. "
            f"It goes to {self.folder}."
        )


def doubt(way: Pins, where: str) -> str:
    """What a plan's route adds for a way that ``data/engines.toml`` does not call verified."""
    return "" if way["verified"] else f", not yet verified {where}"


def gigabytes(megabytes: float) -> str:
    """``megabytes`` (10^6 bytes) for people."""
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def loads_library(name: str) -> bool:
    """Whether the dynamic loader finds ``name``."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


COMPILER = SystemPackage("g++", "compiles llama-server", lambda: shutil.which("g++") is not None)
GIT = SystemPackage("git", "applies Ollama's patches to llama.cpp", lambda: shutil.which("git") is not None)
NUMA = SystemPackage("libnuma1", "vLLM's CPU build links it", lambda: loads_library("libnuma.so.1"))


def provide(needs: Sequence[SystemPackage], log: Path, progress: Progress) -> None:
    """Install missing system packages when root on a Debian-like system, else say how.

    Raises:
        InstallFailed: not root, or no apt; the fix is the one command.
    """
    missing = [need for need in needs if not need.present()]
    if not missing:
        return
    names = [need.apt for need in missing]
    reasons = "; ".join(f"{need.apt} ({need.why})" for need in missing)
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        command = f"sudo apt-get install -y {' '.join(names)}"
        fix = command if apt else f"install with your package manager what Debian calls {', '.join(names)}"
        raise InstallFailed("install system packages", f"missing: {reasons}", fix)
    progress(f"installing system packages: {reasons}")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    run_step([apt, "update"], log=log, progress=progress, env=env)
    run_step([apt, "install", "-y", "--no-install-recommends", *names], log=log, progress=progress, env=env)


def log_file(name: str) -> Path:
    """The install log of one engine."""
    return paths.folder("logs") / f"install-{name}.log"


def silent(_line: str) -> str | None:
    """Show nothing of a command's output."""
    return None


def run_step(
    argv: Sequence[str],
    *,
    log: Path,
    progress: Progress,
    show: Show = silent,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> list[str]:
    """Run one command, its output into ``log``; returns the last 200 lines.

    Raises:
        InstallFailed: exit status other than 0; quotes the end of the output.
    """
    tail: deque[str] = deque(maxlen=200)
    with log.open("a") as sink:
        sink.write(f"$ {' '.join(argv)}\n")
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=cwd,
            env={**os.environ, **(env or {})},
        )
        with process:
            try:
                for line in process.stdout or ():
                    sink.write(line)
                    tail.append(line.rstrip())
                    shown = show(tail[-1])
                    if shown is not None:
                        progress(shown)
            except BaseException:
                process.terminate()
                raise
    if process.returncode != 0:
        seen = "\n".join(["exit status " + str(process.returncode), *list(tail)[-15:]])
        raise InstallFailed(f"run {' '.join(argv)}", seen, f"the whole output is in {log}")
    return list(tail)


def uv() -> str:
    """Path of the uv program.

    Raises:
        MissingExtra: neither in this environment nor on PATH.
    """
    try:
        from uv import find_uv_bin
    except ImportError:
        found = shutil.which("uv")
        if found is None:
            raise MissingExtra(
                "install an engine", "uv is not installed", f"{sys.executable} -m pip install uv"
            ) from None
        return found
    return str(find_uv_bin())


def environment(
    folder: Path,
    packages: Sequence[str],
    *,
    log: Path,
    progress: Progress,
    show: Show = silent,
    extra: Sequence[str] = (),
) -> Path:
    """Make a virtual environment with ``packages``; returns its Python.

    It survives a rename of ``folder``, and its Python is this one's version.
    """
    run_step(
        [uv(), "venv", "--quiet", "--relocatable", "--python", sys.executable, str(folder)],
        log=log,
        progress=progress,
    )
    python = folder / "bin" / "python"
    run_step(
        [uv(), "pip", "install", "--python", str(python), *extra, *packages],
        log=log,
        progress=progress,
        show=show,
    )
    return python


def download(url: str, target: Path, sha256: str, progress: Progress) -> None:
    """Stream ``url`` into ``target`` and check it; a file that does not match is deleted.

    Raises:
        InstallFailed: the transfer broke off or the digest differs.
    """
    digest = hashlib.sha256()
    try:
        with (
            httpx.stream("GET", url, follow_redirects=True, timeout=60) as answer,
            target.open("wb") as sink,
        ):
            answer.raise_for_status()
            total = int(answer.headers.get("content-length", 0))
            done, told = 0, 0.0
            for block in answer.iter_bytes(2**20):
                sink.write(block)
                digest.update(block)
                done += len(block)
                if total and done / total >= told + 0.05:
                    told = done / total
                    progress(f"downloaded {told:.0%} of {gigabytes(total / 1e6)}")
    except httpx.HTTPError as error:
        raise InstallFailed(f"download {url}", repr(error), "try again; nothing was installed") from error
    if digest.hexdigest() != sha256:
        target.unlink()
        raise InstallFailed(
            f"check the SHA-256 of {url}",
            f"{digest.hexdigest()}, but the published one is {sha256}; the file was deleted",
            "try again; if it stays so, something on the way changes the file",
        )


@contextmanager
def only_one(name: str, progress: Progress) -> Iterator[None]:
    """Hold the install lock of one engine; waits for another install to end and says so."""
    import fcntl  # POSIX only; labkit itself is imported on Windows too

    with (paths.folder("locks") / f"install-{name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"another install of {name} is going on; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def platform_key() -> str:
    """``Linux-x86_64``, ``Darwin-arm64``, …"""
    return f"{platform.system()}-{platform.machine()}"


Pins = dict[str, Any]
"""One engine's table of ``data/engines.toml``."""
