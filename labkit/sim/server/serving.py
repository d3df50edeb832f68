"""A simulated server as a whole: an engine's API, its core and its pump behind one port."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web

from labkit.engines.declared import HEADER
from labkit.engines.ollama_settings import OllamaSettings
from labkit.engines.vllm_settings import VLLMSettings
from labkit.sim.ollama import Ollama
from labkit.sim.profile import Profile, build
from labkit.sim.server.ollama_api import OllamaServer
from labkit.sim.server.replies import Handler
from labkit.sim.server.vllm_api import VLLMServer
from labkit.sim.vllm import VLLM

UNLISTED = ("max_num_queued_reqs",)
"""Settings of the engines that the course shows but labkit's own tables of settings do not have."""

LONGEST_BODY = 2**26
BACKLOG = 4096
"""Connections that may wait to be accepted: all users of a level may come at once."""

SHUTDOWN_S = 0.5


@dataclass(frozen=True)
class Serving:
    """A server that runs."""

    url: str
    server: OllamaServer | VLLMServer
    core: Ollama | VLLM


@web.middleware
async def _gone(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Nobody need hear of a client that went away while it was answered."""
    try:
        return await handler(request)
    except ConnectionResetError:
        return web.Response(status=499)


def resolved(profile: Profile, engine: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of an engine from those that are given.

    Raises:
        UsageError: an unknown one, or an impossible value.
    """
    own = {name: value for name, value in given.items() if name not in UNLISTED}
    others = {name: given[name] for name in UNLISTED if name in given}
    if engine == "ollama":
        return OllamaSettings.of(own).as_dict()
    settings = VLLMSettings.of(own).resolved("cpu" if profile.kind == "cpu" else "cuda")
    return settings.as_dict() | others


@asynccontextmanager
async def serving(
    engine: str,
    profile: Profile,
    given: Mapping[str, Any],
    *,
    scale: float,
    port: int = 0,
    model: str | None = None,
) -> AsyncIterator[Serving]:
    """Serve on 127.0.0.1 while the block lasts.

    Args:
        given: settings; defaults are filled in.
        port: 0 takes any free one.
        model: the name that vLLM serves its model by.

    Raises:
        UsageError: settings with which the real engine would not start.
        OSError: the port is taken.
    """
    settings = resolved(profile, engine, given)
    core = build(profile, engine, settings)
    server: OllamaServer | VLLMServer
    if engine == "ollama":
        server = OllamaServer(cast("Ollama", core), profile, scale)
    else:
        server = VLLMServer(cast("VLLM", core), profile, settings, scale, model)
    facts = json.dumps({**profile.facts(engine, settings), "time_scale": scale})

    async def declare(_http: web.Request, response: web.StreamResponse) -> None:
        response.headers[HEADER] = facts

    app = web.Application(middlewares=[_gone, server.middleware], client_max_size=LONGEST_BODY)
    app.on_response_prepare.append(declare)
    app.add_routes(server.routes())
    # a client that goes away ends its handler, which frees what the request holds
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=BACKLOG)
        await site.start()
        yield Serving(f"http://127.0.0.1:{runner.addresses[0][1]}", server, core)
    finally:
        await runner.cleanup()
        server.pump.close()
