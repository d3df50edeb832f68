"""Make processes stand still for a while, and let them go on whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import psutil


async def stand_still(members: Sequence[psutil.Process], seconds: float) -> None:
    """Stop these processes (SIGSTOP) for so long by the wall clock, then let them go on."""
    try:
        for member in members:
            with contextlib.suppress(psutil.Error):
                member.suspend()
        await asyncio.sleep(seconds)
    finally:
        for member in members:
            with contextlib.suppress(psutil.Error):
                member.resume()
