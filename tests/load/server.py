"""Scripted HTTP servers on real sockets, and one call that loads them and reads everything back."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.load.plan import ClientHealth, Plan, Tally
from labkit.load.process import Frame, LoadProcess
from labkit.schema import TOKEN
from labkit.workload import Prompt

OK = b"HTTP/1.1 200 OK\r\n"
SSE = b"Content-Type: text/event-stream\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


def event(data: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    return b"data: " + (data if isinstance(data, str) else json.dumps(data)).encode() + b"\n\n"


def content(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """An OpenAI chat chunk."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], **more}


def usage(completion: int, prompt: int = 7) -> dict[str, Any]:
    """The usage chunk at the end of a stream."""
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def stream(*events: dict[str, Any] | str) -> bytes:
    """A whole chunked reply."""
    return OK + SSE + CHUNKED + b"".join(chunk(event(e)) for e in events) + b"0\r\n\r\n"


WHOLE = stream(content("a"), content("b", "stop"), usage(2), "[DONE]")


@dataclass
class Talk:
    """One request on a connection, and the way to answer it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    head: str
    body: dict[str, Any]
    number: int  # of the request on this server
    connection: int

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()


Script = Callable[[Talk], Awaitable[None]]


@dataclass
class Server:
    port: int = 0
    requests: int = 0
    connections: int = 0
    heads: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    listener: asyncio.Server | None = None
    simulated: dict[str, Any] | None = None  # what it declares to whoever asks for anything but tokens

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def die(self) -> None:
        """End as a killed process does: nobody listens, every connection is reset."""
        self.listener.close()
        for writer in self.writers:
            writer.transport.abort()


@asynccontextmanager
async def serving(
    script: Script,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    simulated: dict[str, Any] | None = None,
) -> AsyncIterator[Server]:
    """Answer every request with the script, until it closes the connection."""
    state = Server(simulated=simulated)
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        state.writers.append(writer)
        state.connections += 1
        number = state.connections
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                if head.startswith("GET"):
                    says = f"X-Labkit-Simulated: {json.dumps(state.simulated)}\r\n" if state.simulated else ""
                    writer.write(f"HTTP/1.1 404 Not Found\r\n{says}Content-Length: 0\r\n\r\n".encode())
                    continue
                length = int(head.lower().partition("content-length:")[2].split()[0])
                body = json.loads(await reader.readexactly(length))
                state.requests += 1
                state.heads.append(head)
                state.bodies.append(body)
                await script(Talk(reader, writer, head, body, state.requests, number))
        writer.close()

    state.listener = await asyncio.start_server(connected, host, 0, ssl=tls)
    state.port = state.listener.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        state.die()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def whole(talk: Talk) -> None:
    """The script of a well-behaved server."""
    await talk.send(WHOLE)


def prompts(count: int = 1, tokens: int = 8) -> list[Prompt]:
    return [Prompt([{"role": "user", "content": f"question {i}"}], tokens) for i in range(count)]


def plan(url: str, rows: Path, **fields: Any) -> Plan:
    """A short closed loop of one request, changed by ``fields``."""
    given = {"protocol": "openai-chat", "model": "m", "prompts": prompts(), "timeout_s": 20.0, **fields}
    if not {"requests", "rounds", "seconds"} & set(given):
        given["requests"] = 1
    return Plan(url=url, rows=str(rows), **given)


@dataclass
class Outcome:
    """What a level left behind."""

    tally: Tally
    health: ClientHealth
    broken: str | None
    frames: list[Frame]
    rows: list[dict[str, Any]]  # the last row of each id
    tokens: list[tuple[int, float, int, int]]

    @property
    def row(self) -> dict[str, Any]:
        assert len(self.rows) == 1
        return self.rows[0]


async def load(given: Plan, each: Callable[[LoadProcess, Frame], None] | None = None) -> Outcome:
    """Run the plan in its own process, check the account in every frame, read the rows."""
    frames = []
    async with LoadProcess(given) as process:
        async for frame in process.frames():
            frames.append(frame)
            if each is not None:
                each(process, frame)
    rows, tokens = read(Path(given.rows))
    if process.broken is None:
        account(process.tally, rows)
    return Outcome(process.tally, process.health, process.broken, frames, rows, tokens)


def read(folder: Path) -> tuple[list[dict[str, Any]], list[tuple[int, float, int, int]]]:
    """The rows on disk."""
    last = {}
    for line in (folder / "requests.rows").read_bytes().splitlines():
        row = json.loads(line)
        last[row["id"]] = row
    return list(last.values()), list(TOKEN.iter_unpack((folder / "tokens.rows").read_bytes()))


def account(tally: Tally, rows: list[dict[str, Any]]) -> None:
    """Every planned request is in one bucket, and the rows say the same."""
    assert tally.planned == tally.ok + tally.failed + tally.cancelled + tally.unfinished == len(rows)
    for outcome in ("ok", "failed", "cancelled", "unfinished"):
        assert sum(row["outcome"] == outcome for row in rows) == getattr(tally, outcome)
    assert all("end_s" in row for row in rows)
