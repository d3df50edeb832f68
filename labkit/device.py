"""One measurement at a time on each device: a lock that a dead owner cannot keep.

The lock is ``flock`` on ``LABKIT_HOME/locks/<device>.lock``, so the operating system frees it however its
owner ends. The file says, for those who wait, who holds it, since when, and until when it expects to.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import urlsplit

from labkit import paths
from labkit.errors import DeviceBusy

GPU_FILES = ("/dev/nvidiactl", "/dev/dxg")  # Linux, WSL; asking the driver costs 80 ms of CPU
POLL_S = 0.1
PATIENCE_S = 60.0
"""Shortest wait before giving up on an owner that holds the device longer than it announced."""


def device_of(url: str) -> str:
    """What a load on the server at ``url`` occupies: this machine's GPU or CPU, or the other machine."""
    host = urlsplit(url).hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        return urlsplit(url).netloc
    return "cuda:0" if any(Path(file).exists() for file in GPU_FILES) else "cpu"


@dataclass(frozen=True)
class Holder:
    """Who holds a device. Times in seconds since the epoch."""

    owner: str
    pid: int
    since: float
    expires: float

    def sentence(self, device: str) -> str:
        """For whom one waits, since when, and whether it is overdue."""
        clock = datetime.fromtimestamp(self.since).astimezone().strftime("%H:%M:%S")
        late = time.time() - self.expires
        overdue = f", {late:.0f} s longer than it announced" if late > 0 else ""
        return f"waiting for {device}: held by {self.owner} since {clock}{overdue}"


class DeviceLock:
    """Holds a device for one measurement: ``async with DeviceLock("cpu", owner=…, on_wait=print):``.

    A second one on the same device waits, in this process or in another, without blocking the event loop; it
    can be cancelled. Never stolen from a living owner: two loads on one device would spoil both results.

    Args:
        device: "cpu", "cuda:0" …
        owner: what others are told, for example "labkit bench (pid 12)".
        on_wait: called once for each holder that has to be waited for, with a sentence that names it.
        hold_s: how long this measurement expects to take at most, in seconds; others wait that long.

    Raises:
        DeviceBusy: the holder is past the time it announced, and a minute of waiting did not help.
    """

    def __init__(
        self, device: str, *, owner: str, on_wait: Callable[[str], None], hold_s: float = 7200.0
    ) -> None:
        self.device = device
        self._owner = owner
        self._on_wait = on_wait
        self._hold_s = hold_s
        self._file: IO[str] | None = None

    async def __aenter__(self) -> Self:
        path = paths.folder("locks") / (re.sub(r"[^\w.-]", "_", self.device) + ".lock")
        waiting_since = time.time()
        told: Holder | None = None
        while (file := _try_lock(path)) is None:
            holder = _read(path)
            if holder is not None and holder != told:
                told = holder
                self._on_wait(holder.sentence(self.device))
            if holder is not None and time.time() > max(holder.expires, waiting_since + PATIENCE_S):
                raise self._busy(holder)
            await asyncio.sleep(POLL_S)
        now = time.time()
        json.dump(asdict(Holder(self._owner, os.getpid(), now, now + self._hold_s)), file)
        file.flush()
        self._file = file
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def _busy(self, holder: Holder) -> DeviceBusy:
        return DeviceBusy(
            f"measure on {self.device}",
            holder.sentence(self.device),
            f"stop that measurement (process {holder.pid}), then try again",
        )


@contextlib.asynccontextmanager
async def holding(urls: Iterable[str], *, owner: str, on_wait: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold every device that servers at these addresses compute on, always in the same order.

    Args:
        owner: the measurement's name; others are told it together with this process's number.
    """
    async with contextlib.AsyncExitStack() as stack:
        for device in sorted({device_of(url) for url in urls}):
            await stack.enter_async_context(
                DeviceLock(device, owner=f"{owner} (pid {os.getpid()})", on_wait=on_wait)
            )
        yield


def _try_lock(path: Path) -> IO[str] | None:
    """The opened and locked file, emptied; None if somebody else has it."""
    import fcntl  # not on Windows, where nothing is measured live

    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)  # a killed owner leaves its name
    return file


def _read(path: Path) -> Holder | None:
    """Who holds it; None while a new holder is still writing its name."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        return None
