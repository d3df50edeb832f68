"""The parent's side of the load process: start it, hear from it, stop it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

import orjson

from labkit import paths
from labkit.errors import LoadError
from labkit.load.plan import ClientHealth, Plan, Tally

_END_S = 6.0  # a load process that was told to stop needs at most four seconds
_LONGEST_FRAME = 2**24
_LOG_LINES = 20


@dataclass(frozen=True)
class Frame:
    """What happened since the frame before, ten times a second.

    Attributes:
        t_s: when it was made, in time of the run as all times here.
        tally: the account so far; requests in flight count as unfinished.
        tokens: tokens since the last frame.
        events: ("sent" | "first" | "token" | "end", request id, time), in order; incomplete if the reader was
            too slow, or if there were more than some hundred tokens.
    """

    t_s: float
    tally: Tally
    in_flight: int
    tokens: int
    events: list[tuple[str, int, float]]


class LoadProcess:
    """One level of load, kept by a process of its own::

        async with LoadProcess(plan) as load:
            async for frame in load.frames():
                ...
        load.tally, load.health

    Leaving the block stops the level, hears the process out and ends it.

    If the process is killed, frames end, ``broken`` says so, ``tally`` is that of the last frame (what was in
    flight counts as unfinished) and the rows written so far are on disk.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._ended = False
        self._log: list[str] = []
        self.tally = Tally()
        self.health = ClientHealth()
        self.broken: str | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the reader's own json.py in the working directory must not be imported
            "-m",
            "labkit.load",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths.import_path()},
            start_new_session=True,  # Ctrl-C is for the parent, which then stops the level in good order
            limit=_LONGEST_FRAME,
        )
        self._logging = asyncio.create_task(self._read_log())
        self._tell(orjson.dumps(self._plan.as_dict()) + b"\n")
        return self

    @property
    def pid(self) -> int:
        """Of the load process."""
        return self._process.pid

    async def frames(self) -> AsyncIterator[Frame]:
        """What the process says, until the level is over.

        Raises:
            LoadError: the process could not start its work; quotes what it said.
        """
        while not self._ended:
            line = await cast("asyncio.StreamReader", self._process.stdout).readline()
            if not line.endswith(b"\n"):
                await self._broke_off()
                return
            yield self._take(line)

    def _take(self, line: bytes) -> Frame:
        said = orjson.loads(line)
        before, self.tally = self.tally, Tally(**said["tally"])
        if health := said.get("health"):
            self.health = ClientHealth(**health)
            self._ended = True
        events = [(kind, request, at) for kind, request, at in said["events"]]
        new = self.tally.tokens - before.tokens
        return Frame(said["t_s"], self.tally, said["in_flight"], new, events)

    async def _broke_off(self) -> None:
        """The process is gone without a last word."""
        self._ended = True
        code = await self._process.wait()
        await self._logging
        log = "\n".join(self._log)
        if self.tally.planned == 0 and code > 0:
            raise LoadError("start the load process", f"it ended with exit code {code}: {log}")
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self.broken = f"the load process {how}" + (f": {log}" if log else "")

    async def _read_log(self) -> None:
        async for line in cast("asyncio.StreamReader", self._process.stderr):
            self._log = [*self._log, line.decode("utf-8", "replace").rstrip()][-_LOG_LINES:]

    def stop(self) -> None:
        """End the level: requests in flight become cancelled. Again is harmless."""
        self._tell(b"stop\n")

    def _tell(self, words: bytes) -> None:
        pipe = cast("asyncio.StreamWriter", self._process.stdin)
        if not pipe.is_closing():
            pipe.write(words)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    async for _ in self.frames():
                        pass
                    await self._process.wait()
        finally:
            if self._process.returncode is None:
                self._process.kill()
                self.broken = self.broken or "the load process did not stop and was killed"
                await self._process.wait()
            await self._logging
