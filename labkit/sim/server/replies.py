"""Answers on their way: written from the pump as the engine runs, with no switch of tasks for a token."""

from __future__ import annotations

import asyncio
from asyncio import Transport
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import orjson
from aiohttp import HttpVersion11, web

from labkit.sim.request import Request
from labkit.sim.server.clock import Pump
from labkit.sim.server.script import Script

DONE = b"data: [DONE]\n\n"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_numbers = count()


class Refusal(Exception):
    """A request that the real server answers with an error.

    Attributes:
        kind: what an OpenAI-style body calls it.
        param: the field that it is about.
    """

    def __init__(self, status: int, message: str, kind: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param = status, message, kind, param


@dataclass(eq=False)
class Job:
    """One answer that is being written.

    Attributes:
        index: which choice of its reply it is.
        prefix: text that comes before it (echo).
    """

    request: Request
    script: Script
    index: int = 0
    prefix: str = ""

    @classmethod
    def of(
        cls, prompt: Sequence[int], script: Script, *, index: int = 0, prefix: str = "", **more: Any
    ) -> Job:
        """A job for the core; what is given more are fields of its request."""
        return cls(Request(next(_numbers), tuple(prompt), script.tokens, **more), script, index, prefix)

    @property
    def text(self) -> str:
        """All that its reply says."""
        return self.prefix + self.script.text


Frame = Callable[[Job, int], bytes]
"""What to send when a job got the token of this index; nothing where that adds no text."""


async def finish(pump: Pump, jobs: Sequence[Job]) -> None:
    """Let the engine do these jobs; returns when all are done.

    Raises:
        Refused: its queue is full.
    """
    await _follow(pump, jobs, lambda _job, _tokens, _last: None)


async def stream(
    http: web.Request,
    pump: Pump,
    jobs: Sequence[Job],
    *,
    media: str,
    frame: Frame,
    end: Callable[[], bytes],
) -> web.StreamResponse:
    """Let the engine do these jobs and send each token as it is written, and ``end`` after all of them.

    Raises:
        Refused: its queue is full; nothing was sent.
    """
    transport = cast("Transport", http.transport)
    response = web.StreamResponse(headers={"Content-Type": media})
    if chunked := http.version >= HttpVersion11:
        response.enable_chunked_encoding()

    def write(job: Job, tokens: range, last: bool) -> None:
        data = b"".join(frame(job, token) for token in tokens) + (end() if last else b"")
        # not by response.write(), which may wait for this client while all others wait for the pump
        if data and not transport.is_closing():  # the client may have gone in this very moment
            transport.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)

    async def open_reply() -> None:
        await response.prepare(http)

    await _follow(pump, jobs, write, open_reply)
    await response.write_eof()
    return response


async def _follow(
    pump: Pump,
    jobs: Sequence[Job],
    write: Callable[[Job, range, bool], None],
    open_reply: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Call ``write`` with new tokens of a job, once the reply is open, and whether these are the last of all.

    A client that goes away frees what its jobs hold.
    """
    over = asyncio.get_running_loop().create_future()
    of = {job.request: job for job in jobs}
    written = dict.fromkeys(of, 0)
    ready = open_reply is None

    def tell(request: Request) -> None:
        new = range(written[request], len(request.token_s))
        written[request] = new.stop
        last = all(other.ended_s is not None and written[other] == len(other.token_s) for other in of)
        write(of[request], new, last)
        if last and not over.done():
            over.set_result(None)

    def heard(request: Request) -> None:
        try:
            if ready:
                tell(request)
        except Exception as error:
            if not over.done():
                over.set_exception(error)
            raise

    pump.submit(list(of), heard)
    try:
        if open_reply is not None:
            await open_reply()
            ready = True
            for request in of:
                if request.token_s:
                    tell(request)
        await over
    finally:
        for request in of:
            pump.cancel(request)


class Counts:
    """Tokens of a reply: of its prompts, each ``choices`` times answered, found in a cache, and written."""

    def __init__(self, jobs: Sequence[Job], choices: int = 1) -> None:
        self.prompt = sum(len(job.request.prompt) for job in jobs[::choices])
        self.cached = jobs[0].request.cached
        self.written = sum(len(job.request.token_s) for job in jobs)

    def usage(self) -> dict[str, Any]:
        """The same as OpenAI's APIs tell it."""
        return {
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.written,
            "completion_tokens": self.written,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


async def body(http: web.Request) -> Any:
    """The request's JSON, whatever its media type; None if it has no body.

    Raises:
        ValueError: it is not JSON.
    """
    sent = await http.read()
    return orjson.loads(sent) if sent else None


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % orjson.dumps(data)


def whole(data: Mapping[str, Any], status: int = 200) -> web.Response:
    """A reply in one piece."""
    return web.Response(body=orjson.dumps(data), status=status, content_type="application/json")


def texts(given: Any) -> list[str]:
    """Stop words, which come as one text or as a list."""
    return [given] if isinstance(given, str) else [text for text in given or [] if isinstance(text, str)]
