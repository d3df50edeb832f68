"""What Ollama says of itself in its log and on the command line of its child, ``llama-server``.

Read with Ollama 0.34.0. A line that another version words differently gives None, never a guess.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

START = re.compile(r'msg="starting llama-server" cmd="([^"]*)"')
CONFIGURED_SLOTS = re.compile(r"\bOLLAMA_NUM_PARALLEL:(\d+)")
KV_BUFFER = re.compile(r"(\S+) KV buffer size = +([\d.]+) MiB")
THREADS = re.compile(r"n_threads = (\d+)")
COMPUTE = re.compile(r'msg="inference compute".* description=("[^"]*"|\S+)')
SERVED = re.compile(
    r'^\[GIN\] .*\| POST +"/(api/(chat|generate|embed|embeddings)'
    r'|v1/(chat/completions|completions|messages|responses|embeddings))"$'
)
"""An access-log line of a request that makes a model work, whatever its status. Gin logs the query string
too, so labkit's own loading, which carries one, does not count."""


@dataclass(frozen=True)
class Child:
    """What ``llama-server`` was told on its command line."""

    blob: str  # SHA-256 of the weights file
    port: int
    slots: int
    context: int  # of one slot
    threads: int | None

    @classmethod
    def of(cls, argv: Sequence[str]) -> Child | None:
        """From a command line; None if it is not that of a ``llama-server`` with a model."""
        given = dict(itertools.pairwise(argv))
        model = re.search(r"sha256-([0-9a-f]{64})$", given.get("--model", ""))
        if model is None or not {"--port", "-np", "-c"} <= given.keys():
            return None
        slots = int(given["-np"])
        threads = int(given["-t"]) if "-t" in given else None
        return cls(model[1], int(given["--port"]), slots, int(given["-c"]) // slots, threads)


@dataclass(frozen=True)
class Loaded:
    """What the log says of the last time that a model was loaded."""

    child: Child
    kv_bytes: int | None
    threads: int | None
    device: str | None


def last_load(log: Path, blob: str) -> Loaded | None:
    """The last load of the weights file with this SHA-256; None if the log shows none."""
    child: Child | None = None
    lines: list[str] = []  # of that load, up to the start of the next one
    computes: list[str] = []
    reading = False
    for line in _lines(log):
        if (compute := COMPUTE.search(line)) is not None:
            computes.append(compute[1].strip('"'))
        elif (start := START.search(line)) is not None:
            started = Child.of(start[1].split())
            reading = started is not None and started.blob == blob
            if reading:
                child, lines = started, []
        elif reading:
            reading = "srv  update_slots: all slots are idle" not in line
            lines.append(line)
    if child is None:
        return None
    buffers = [(found[1], float(found[2])) for line in lines if (found := KV_BUFFER.search(line))]
    threads = next((int(found[1]) for line in lines if (found := THREADS.search(line))), None)
    return Loaded(
        child,
        kv_bytes=round(sum(size for _, size in buffers) * 2**20) if buffers else None,
        threads=child.threads or threads,
        device=_device([name for name, _ in buffers], computes),
    )


def configured_slots(log: Path) -> int | None:
    """Slots by the server-config line: what a model will get unless its family allows only one."""
    for line in _lines(log):
        if (found := CONFIGURED_SLOTS.search(line)) is not None:
            return int(found[1])
    return None


def count_served(log: Path) -> int:
    """Requests in the access log that made a model work."""
    return sum(SERVED.match(line) is not None for line in _lines(log))


def _lines(log: Path) -> Iterator[str]:
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            yield line.rstrip("\n")


def _device(backends: Sequence[str], computes: Sequence[str]) -> str | None:
    """From the names of the KV buffers: "cpu", or "cuda:0 NVIDIA A100 …" (the first GPU, if several)."""
    for name in backends:
        gpu = re.fullmatch(r"([A-Za-z]+)(\d*)", name)
        if gpu is not None and name != "CPU":
            number = int(gpu[2] or 0)
            title = computes[number] if number < len(computes) else ""
            return f"{gpu[1].lower()}:{number} {title}".rstrip()
    return "cpu" if backends else None
