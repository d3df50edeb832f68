"""HTTP/1.1 over plain TCP: keep-alive connections that stamp the clock before they look at the bytes."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import httptools

from labkit.load.exchange import SERVED_BY, SERVED_BY_LITELLM, USER, Exchange
from labkit.load.plan import Plan
from labkit.load.wire import body, endpoint
from labkit.workload import Prompt

_SERVED_BY = (SERVED_BY.lower().encode(), SERVED_BY_LITELLM.lower().encode())
_AT_ONCE = 100  # connections opened at the same time before the run: below any server's backlog


@dataclass
class Target:
    """Where requests go, and their bytes."""

    plan: Plan
    host: str
    port: int
    path: str
    authority: str  # for the Host header
    addresses: list[tuple[int, str]] = field(default_factory=list)  # family, numeric address
    _requests: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan) -> Target:
        """Split the plan's url, which :class:`Plan` has checked."""
        url = urlsplit(plan.url)
        host = url.hostname or ""
        port = url.port or (443 if url.scheme == "https" else 80)
        return cls(plan, host, port, endpoint(url.path, plan.protocol), url.netloc.rpartition("@")[2])

    def resolve(self) -> None:
        """Look the host name up. A name that does not resolve leaves no address, and each request says so."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror:
            return
        self.addresses = [(family, str(address[0])) for family, _, _, _, address in found]

    def request(self, exchange: Exchange) -> bytes:
        """The request of an exchange, head and body."""
        whole = self._request(exchange.prompt)
        if not self.plan.name_users or exchange.user is None:
            return whole
        return whole.replace(b"\r\n", f"\r\n{USER}: {exchange.user}\r\n".encode(), 1)

    def _request(self, prompt: Prompt) -> bytes:
        """The same for all users; made once for each prompt."""
        known = self._requests.get(id(prompt))
        if known is None:
            content = body(self.plan, prompt)
            head = [
                f"POST {self.path} HTTP/1.1",
                f"Host: {self.authority}",
                "Content-Type: application/json",
                "Accept: text/event-stream, application/x-ndjson, application/json",
                "Accept-Encoding: identity",
                "User-Agent: labkit",
                f"Content-Length: {len(content)}",
            ]
            if self.plan.api_key:
                head.append(f"Authorization: Bearer {self.plan.api_key}")
            known = "\r\n".join([*head, "", ""]).encode() + content
            self._requests[id(prompt)] = known
        return known


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._reused = False  # was idle before the present exchange
        self._paused = False
        self._keep_alive = False  # the reply is over and another may follow it
        self._to_the_end = True  # neither a length nor chunks: the body ends with the connection
        self._content_type = ""
        self._served_by: str | None = None
        self._now = 0.0
        self.ready_s = 0.0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # With a high-water mark of 0 uvloop writes at once instead of at the end of the loop's turn.
        self._transport.set_write_buffer_limits(0)
        self.ready_s = perf_counter()

    def data_received(self, data: bytes) -> None:
        self._now = perf_counter()
        exchange = self._exchange
        if exchange is None:  # a server that speaks unasked is about to close, or is broken
            self.abort()
            return
        exchange.received(len(data), self._now)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.abort()
            exchange.close(self._now, f"malformed HTTP reply ({error}): {data[:160]!r}")
        else:
            if self._exchange is None:  # the reply is over, and all that came with it was looked at
                self._free()
                exchange.close(self._now)

    def _free(self) -> None:
        if self._keep_alive and self.usable:
            self._pool.free(self)
        else:
            self.abort()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.written(perf_counter())

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.lost(self)
        self.gone.set_result(None)
        exchange, self._exchange = self._exchange, None
        if exchange is None or exchange.end_s is not None:
            return
        if self._reused and exchange.first_byte_s is None and not exchange.retried:
            # The server closed an idle connection just as the request left. Servers do so by right.
            self._pool.retry(exchange)
        elif exchange.headers_s is not None and self._to_the_end:
            exchange.close(perf_counter())
        else:
            exchange.close(perf_counter(), f"connection closed by the server{f' ({exc})' if exc else ''}")

    # httptools

    def on_message_begin(self) -> None:
        self._keep_alive = False  # of a second reply too, which nobody has asked for
        self._to_the_end = True
        self._content_type = ""
        self._served_by = None

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.lower()
        if key == b"content-type":
            self._content_type = value.decode("latin-1")
        elif key in (b"content-length", b"transfer-encoding"):
            self._to_the_end = False
        elif key in _SERVED_BY:
            self._served_by = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        code = self._parser.get_status_code()
        if self._exchange is not None and code >= 200:
            self._exchange.status(code, self._content_type, self._now, self._served_by)

    def on_body(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.body(data, self._now)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:  # 100 Continue: the answer proper follows
            return
        self._keep_alive = self._exchange is not None and self._parser.should_keep_alive()
        self._exchange = None

    # for the pool

    def send(self, exchange: Exchange, request: bytes, *, reused: bool) -> None:
        """Write the request; the exchange is stamped when the socket has all of it."""
        self._exchange = exchange
        exchange.abort = self.abort
        self._reused = reused
        self._paused = False
        exchange.connect_s = self.ready_s
        self._transport.write(request)
        if not self._paused:
            exchange.written(perf_counter())

    @property
    def usable(self) -> bool:
        """Whether a request can be written now."""
        return not self._transport.is_closing()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


class Pool:
    """Connections to one target: opened ahead, kept alive, as many as needed and never a queue for them."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.retries = 0

    async def warm(self, count: int) -> None:
        """Open connections before the run. Those that cannot be opened are left to the requests to report."""
        self._target.resolve()
        for start in range(0, count, _AT_ONCE):
            wanted = range(start, min(start + _AT_ONCE, count))
            await asyncio.gather(*(self._connect_ahead() for _ in wanted), return_exceptions=True)

    async def _connect_ahead(self) -> None:
        self._idle.append(await self._connect())

    def send(self, exchange: Exchange) -> None:
        """Send on an idle connection, or open one for it."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                connection.send(exchange, self._target.request(exchange), reused=True)
                return
        self._send_on_new(exchange)

    def retry(self, exchange: Exchange) -> None:
        """Send once more, on a connection that has never been idle."""
        exchange.retried = True
        self.retries += 1
        self._send_on_new(exchange)

    def _send_on_new(self, exchange: Exchange) -> None:
        task = asyncio.get_running_loop().create_task(self._connect_and_send(exchange))
        exchange.abort = task.cancel
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect_and_send(self, exchange: Exchange) -> None:
        try:
            connection = await self._connect()
        except OSError as error:
            text = error.strerror or str(error)
            exchange.fail(f"connect to {self._target.authority}: {text}", perf_counter())
        else:
            connection.send(exchange, self._target.request(exchange), reused=False)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        failure = OSError(f"host name {self._target.host!r} does not resolve")
        for family, address in self._target.addresses:
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(self), address, self._target.port, family=family
                )
            except OSError as error:
                failure = error
            else:
                # localhost may mean ::1 and 127.0.0.1: try the one that works first from now on
                self._target.addresses.sort(key=lambda known: known != (family, address))
                self._open.add(connection)
                self.connections += 1
                return connection
        raise failure

    def free(self, connection: Connection) -> None:
        """The connection's exchange is over and it can take another."""
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """The connection is closed."""
        self._open.discard(connection)

    async def close(self) -> None:
        """Close all connections."""
        for task in self._opening:
            task.cancel()
        for connection in self._open:
            connection.abort()
        await asyncio.gather(*self._opening, *(c.gone for c in self._open), return_exceptions=True)
