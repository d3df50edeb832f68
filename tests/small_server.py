"""A small server over real HTTP, for tests of what asks servers: what it says at each address is given."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiohttp import web

from labkit import contract


class Server(NamedTuple):
    """A server to ask, and as what."""

    url: str
    engine: str
    model: str


@dataclass
class Reply:
    """What a small server answers: JSON, or a text as it is."""

    body: Any
    status: int = 200
    type: str = "application/json"

    async def answer(self, _request: web.Request) -> web.Response:
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        return web.Response(status=self.status, content_type=self.type, text=text)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RUNNER = web.AppKey("runner", web.AppRunner)


@asynccontextmanager
async def serving(handlers: Mapping[str, Reply | Handler], engine: str = "ollama") -> AsyncIterator[Server]:
    """A server with a model "m" that is this engine as far as one can see, and answers these paths."""
    known: dict[str, Reply | Handler] = {
        contract.VERSIONS.get(engine, "/about"): Reply({"version": "0"}),
        "/v1/models": Reply({"data": [{"id": "m"}]}),
        **handlers,
    }
    app = web.Application()
    for path, handler in known.items():
        app.router.add_route("*", path, handler.answer if isinstance(handler, Reply) else handler)
    runner = app[RUNNER] = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Server(f"http://127.0.0.1:{runner.addresses[0][1]}", engine, "m")
    finally:
        await runner.cleanup()
