"""Requests over https, with aiohttp: two to four times the CPU of the plain connection, and the same stamps.

The certificate is checked against the system's authorities (``SSL_CERT_FILE`` names others).
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from types import SimpleNamespace
from typing import cast

import aiohttp

from labkit.load.connection import Target
from labkit.load.exchange import SERVED_BY, SERVED_BY_LITELLM, USER, Exchange
from labkit.load.wire import body


class TlsPool:
    """The same surface as :class:`labkit.load.connection.Pool`."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.retries = 0
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(self._connected)
        trace.on_connection_reuseconn.append(self._reused)
        trace.on_request_chunk_sent.append(self._written)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            trace_configs=[trace],
            read_bufsize=2**20,
        )

    async def warm(self, count: int) -> None:
        """Nothing: aiohttp cannot open connections ahead. ``connect_s`` shows what that costs."""

    async def _connected(self, _session: object, context: object, _params: object) -> None:
        self.connections += 1
        self._exchange_of(context).connect_s = perf_counter()

    async def _reused(self, _session: object, context: object, _params: object) -> None:
        self._exchange_of(context).connect_s = perf_counter()

    async def _written(self, _session: object, context: object, _params: object) -> None:
        self._exchange_of(context).written(perf_counter())

    @staticmethod
    def _exchange_of(context: object) -> Exchange:
        return cast("Exchange", cast("SimpleNamespace", context).trace_request_ctx)

    def send(self, exchange: Exchange) -> None:
        """Send in a task of its own."""
        task = asyncio.get_running_loop().create_task(self._talk(exchange))
        exchange.abort = task.cancel
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _talk(self, exchange: Exchange) -> None:
        plan = self._target.plan
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "labkit"}
        if plan.api_key:
            headers["Authorization"] = f"Bearer {plan.api_key}"
        if plan.name_users and exchange.user is not None:
            headers[USER] = str(exchange.user)
        url = f"https://{self._target.authority}{self._target.path}"
        try:
            async with self._session.post(
                url,
                data=body(plan, exchange.prompt),
                headers=headers,
                allow_redirects=False,
                trace_request_ctx=exchange,
            ) as reply:
                now = perf_counter()
                exchange.received(0, now)
                served_by = reply.headers.get(SERVED_BY) or reply.headers.get(SERVED_BY_LITELLM)
                exchange.status(reply.status, reply.headers.get("Content-Type", ""), now, served_by)
                async for data in reply.content.iter_any():
                    now = perf_counter()
                    exchange.received(len(data), now)
                    exchange.body(data, now)
        except (aiohttp.ClientError, OSError) as error:
            cut = f"{type(error).__name__}: {error}"
            if exchange.headers_s is None:
                exchange.fail(cut, perf_counter())
            else:
                exchange.close(perf_counter(), cut)
        else:
            exchange.close(perf_counter())

    async def close(self) -> None:
        """Cancel what runs and close the session."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()
