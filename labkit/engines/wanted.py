"""A server as somebody wants it, and how to start it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """How to start a server, and the GiB of memory that it takes at least (None: next to nothing)."""

    argv: Sequence[str]
    env: Mapping[str, str]
    deadline_s: float
    memory_gib: float | None = None


@dataclass(frozen=True)
class Wanted:
    """A server as the caller wants it.

    Attributes:
        given: the settings that the caller named.
        settings: all of them, as a state file holds them.
        model: the name under which it must serve a model from its start; None if it loads models on demand.
        command: tells how to start it on a port; raises NotInstalled or ModelError if something is missing.
    """

    given: Mapping[str, Any]
    settings: Mapping[str, Any]
    model: str | None
    command: Callable[[int], Command]
