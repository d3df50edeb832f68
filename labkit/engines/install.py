"""Get the engines and the proxies onto this machine, and find those that are there.

``data/engines.toml`` pins what is installed. An install is built in a folder of its own and renamed when it
works, so that an interrupted one is never used; one that is there is found in milliseconds.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from labkit import paths
from labkit.engines import install_litellm, install_nginx, install_ollama, install_vllm
from labkit.engines.base import Progress, quiet
from labkit.engines.install_steps import Pins, Plan, gigabytes, log_file, only_one, provide
from labkit.errors import InstallFailed, UsageError

RECORD = "labkit-install.json"
"""Written last; a folder without it is not an install."""

INSTALLERS: dict[str, ModuleType] = {
    "ollama": install_ollama,
    "vllm": install_vllm,
    "nginx": install_nginx,
    "litellm": install_litellm,
}


def pins(name: str) -> Pins:
    """One engine's table of ``data/engines.toml``.

    Raises:
        UsageError: no such engine.
    """
    if name not in INSTALLERS:
        raise UsageError(f"find an engine called {name!r}", f"labkit knows {', '.join(INSTALLERS)}")
    table: Pins = tomllib.loads((paths.data() / "engines.toml").read_text())[name]
    return table


def engines_home() -> Path:
    """The folder with all installs."""
    return paths.folder("engines")


def installed(name: str) -> Path | None:
    """Folder of labkit's own finished install that fits this machine and the pinned version."""
    for folder in INSTALLERS[name].folders(pins(name), engines_home()):
        if (folder / RECORD).is_file():
            return Path(folder)
    return None


def find_ollama() -> Path | None:
    """The ``ollama`` program: labkit's own install, else a complete one on PATH; None if there is none."""
    folder = installed("ollama")
    if folder is not None:
        return install_ollama.executable(folder)
    found = shutil.which("ollama")
    if found is None or not install_ollama.complete(Path(found)) or not _runs([found, "--version"]):
        return None
    return Path(found)


def find_vllm() -> Path | None:
    """A Python that has vLLM: labkit's own install, else this interpreter, else that of ``vllm`` on PATH."""
    folder = installed("vllm")
    if folder is not None:
        return install_vllm.executable(folder)
    if importlib.util.find_spec("vllm") is not None:
        return Path(sys.executable)
    script = shutil.which("vllm")
    if script is None:
        return None
    python = Path(script).resolve().parent / "python"
    look = "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"
    return python if python.is_file() and _runs([str(python), "-c", look]) else None


def _runs(argv: list[str]) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_nginx() -> Path | None:
    """The ``nginx`` program: on PATH, where Debian puts it, or unpacked by labkit; None if there is none."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is not None:
        return Path(found)
    folder = installed("nginx")
    return None if folder is None else install_nginx.executable(folder)


def find_litellm() -> Path | None:
    """The ``litellm`` program of labkit's own install; None if there is none."""
    folder = installed("litellm")
    return None if folder is None else install_litellm.executable(folder)


FINDERS: dict[str, Callable[[], Path | None]] = {
    "ollama": find_ollama,
    "vllm": find_vllm,
    "nginx": find_nginx,
    "litellm": find_litellm,
}


def install(
    name: str,
    *,
    yes: bool = False,
    progress: Progress = quiet,
    ask: Callable[[str], bool] | None = None,
) -> Path:
    """Make sure that an engine or a proxy is on this machine; returns its program, or vLLM's Python.

    Args:
        yes: the download and disk size are agreed to.
        ask: shows a question and returns the answer; None where nobody can be asked.

    Raises:
        UsageError: unknown engine, or a size that nobody agreed to.
        InstallFailed: not enough disk, a missing system package, or a step that failed.
    """
    table = pins(name)
    found = FINDERS[name]()
    if found is not None:
        progress(f"{name}: using {found}")
        return found
    with only_one(name, progress):
        found = FINDERS[name]()  # another install may have ended while this one waited
        if found is None:
            found = _install(name, table, yes, progress, ask)
    return found


def _install(
    name: str, table: Pins, yes: bool, progress: Progress, ask: Callable[[str], bool] | None
) -> Path:
    started = time.monotonic()
    plan: Plan = INSTALLERS[name].plan(table, engines_home(), progress)
    check_disk(plan)
    if not yes and ask is None:
        raise UsageError(
            f"install {plan.price()}",
            "nobody agreed to the download, and there is no terminal to ask at",
            "add --yes (in Python: yes=True)",
        )
    progress(plan.price())
    if not yes and ask is not None and not ask("Go on?"):
        raise UsageError(f"install {plan.engine}", "the answer was no", "nothing was changed")
    provide(plan.needs, log_file(name), progress)
    for left in engines_home().glob(f".building-{name}-*"):
        shutil.rmtree(left)  # of an install that was killed
    work = Path(tempfile.mkdtemp(prefix=f".building-{name}-", dir=engines_home()))
    try:
        built = plan.build(work, progress)
        record = {"engine": name, "version": plan.version, "route": plan.route, "at": _now()}
        (built / RECORD).write_text(json.dumps(record))
        built.rename(plan.folder)
    finally:
        shutil.rmtree(work)
    progress(f"{name} {plan.version} is installed ({time.monotonic() - started:.0f} s)")
    program: Path = INSTALLERS[name].executable(plan.folder)
    return program


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_disk(plan: Plan) -> None:
    """Raise :class:`InstallFailed` unless the disk under ``plan.folder`` has room for it."""
    free_mb = shutil.disk_usage(plan.folder.parent).free / 1e6
    if free_mb < plan.disk_mb:
        raise InstallFailed(
            f"install {plan.engine} into {plan.folder.parent}",
            f"{gigabytes(free_mb)} free, {gigabytes(plan.disk_mb)} needed",
            "free some space, or set LABKIT_HOME to a folder on a larger disk",
        )


def remove(name: str, progress: Progress = quiet) -> int:
    """Delete labkit's own installs of one engine, all versions; returns the bytes freed.

    Raises:
        UsageError: unknown engine.
    """
    pins(name)
    freed = 0
    with only_one(name, progress):
        for folder in engines_home().glob(f"*{name}-*"):
            size = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
            progress(f"removing {folder} ({gigabytes(size / 1e6)})")
            doomed = folder.with_name(f".building-{name}-removed-{os.getpid()}")
            folder.rename(doomed)  # at once: a half-deleted install is never found
            shutil.rmtree(doomed)
            freed += size
    return freed
