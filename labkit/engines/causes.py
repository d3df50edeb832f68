"""Why a server ended: the end of its log, and the first known cause found in it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cause:
    """A known reason for a server's end: a regular expression over its log, what it means, what helps."""

    pattern: str
    explanation: str
    fix: str


COMMON_CAUSES: tuple[Cause, ...] = (
    Cause(
        r"address already in use|Errno (98|48)|bind: Only one usage",
        "the port was taken by another process while the server started",
        "start it again; labkit looks for a free port when none is named",
    ),
    Cause(
        r"illegal instruction|SIGILL|killed by signal 4\b",
        "the CPU lacks instructions that this build uses",
        "install the engine again on this machine: labkit engines remove, then labkit engines install",
    ),
    Cause(
        r"out of memory|cannot allocate memory|std::bad_alloc|MemoryError|OutOfMemoryError"
        r"|unable to allocate|killed by signal 9\b",
        "not enough memory (or somebody killed it with signal 9)",
        "free memory, or ask for less: fewer slots, a shorter context, a smaller model",
    ),
    Cause(
        r"error while loading shared libraries|cannot open shared object file|Library not loaded",
        "a shared library that the server needs is missing",
        "run: labkit doctor",
    ),
)
"""Causes that both engines share; an engine's own go before them."""


def tail(path: str | Path, n: int) -> list[str]:
    """Last ``n`` lines of a text file; empty if there is none."""
    try:
        with Path(path).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 400 * n))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return lines[-n:]


def evidence(log: str | Path, causes: Sequence[Cause] = ()) -> tuple[str, str]:
    """The first known cause and the last lines of a log as text to append, and the cause's fix."""
    lines = tail(log, 200)
    text = "\n".join(lines)
    quoted = f"\nLast lines of {log}:\n" + "\n".join(f"  {line}" for line in lines[-12:]) if lines else ""
    for cause in (*causes, *COMMON_CAUSES):
        if re.search(cause.pattern, text, re.IGNORECASE):
            return f": {cause.explanation}{quoted}", cause.fix
    return quoted, f"read {log}"
