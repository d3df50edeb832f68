"""Whether a server fits into memory beside those that run."""

from __future__ import annotations

import psutil

from labkit.engines import process
from labkit.errors import StartFailed


def check(title: str, needed_gib: float | None) -> None:
    """Refuse a server that would drive those that run already out of memory.

    Args:
        needed_gib: what it takes at least; None is next to nothing.

    Raises:
        StartFailed: too little is free, and servers of labkit's are running.
    """
    free_gib = psutil.virtual_memory().available / 2**30
    running = [f"{state.engine} on port {state.port}" for state in process.states()]
    if running and needed_gib is not None and needed_gib > free_gib:
        raise StartFailed(
            f"start {title} beside {', '.join(running)}",
            f"it takes at least {needed_gib:.1f} GiB of memory, {free_gib:.1f} GiB are free",
            "stop what runs (labkit engines stop --all), or ask for a smaller KV cache or model",
        )
