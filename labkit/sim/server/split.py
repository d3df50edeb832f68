"""``python -m labkit.sim.server.split``: shares requests out between two simulated engines as nginx does.

It imitates nginx's ``split_clients``: a request has a place, the hash of its number or of its user's name,
and those below the share go to vLLM. So a share that grows moves each user once and none back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import secrets
import sys
from collections.abc import AsyncIterator, Mapping

import aiohttp
from aiohttp import web

from labkit.engines.fronts.nginx_config import STATE
from labkit.load.exchange import SERVED_BY, USER
from labkit.sim.server.serving import BACKLOG, LONGEST_BODY, SHUTDOWN_S

_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "date", "server", "host")
"""Headers of one connection alone, or that each server makes itself."""

_WORD = 0xFFFFFFFF

log = logging.getLogger("labkit.sim.server.split")


def murmur2(data: bytes) -> int:
    """MurmurHash2 with seed 0, 32 bits: what nginx's ``split_clients`` hashes with (A. Appleby, 2008)."""
    multiplier = 0x5BD1E995
    whole = len(data) - len(data) % 4
    found = len(data)
    for start in range(0, whole, 4):
        mixed = int.from_bytes(data[start : start + 4], "little") * multiplier & _WORD
        mixed = (mixed ^ mixed >> 24) * multiplier & _WORD
        found = (found * multiplier & _WORD) ^ mixed
    if rest := data[whole:]:
        found = (found ^ int.from_bytes(rest, "little")) * multiplier & _WORD
    found = (found ^ found >> 13) * multiplier & _WORD
    return found ^ found >> 15


def side(key: str, share: float) -> str:
    """Where a key's requests go at this share in per cent."""
    if share == 100:
        return "vllm"
    return "vllm" if murmur2(key.encode()) < round(share * 100) * _WORD // 10_000 else "ollama"


class Splitter:
    """The proxy: one share, and what it hands requests to."""

    def __init__(self, targets: Mapping[str, str], share: float, *, sticky: bool) -> None:
        self._targets = targets
        self._share = share
        self._sticky = sticky
        self._session: aiohttp.ClientSession

    def app(self) -> web.Application:
        """What it answers."""
        app = web.Application(client_max_size=LONGEST_BODY)
        app.cleanup_ctx.append(self._talking)
        app.add_routes(
            [
                web.get(STATE, self._tell),
                web.post(STATE, self._change),
                web.route("*", "/{path:.*}", self._pass_on),
            ]
        )
        return app

    async def _talking(self, _app: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(
            timeout=timeout, connector=connector, auto_decompress=False
        ) as self._session:
            yield

    async def _tell(self, _http: web.Request) -> web.Response:
        return web.json_response({"share": self._share})

    async def _change(self, http: web.Request) -> web.Response:
        self._share = float((await http.json())["share"])
        return await self._tell(http)

    def _chosen(self, http: web.Request) -> str:
        who = http.headers.get(USER) or http.headers.get("Authorization") or http.remote or ""
        return side(who if self._sticky else secrets.token_hex(16), self._share)

    async def _pass_on(self, http: web.Request) -> web.StreamResponse:
        chosen = self._chosen(http)
        kept = {name: value for name, value in http.headers.items() if name.lower() not in _HOP}
        try:
            async with self._session.request(
                http.method,
                self._targets[chosen] + http.path_qs,
                headers=kept,
                data=await http.read(),
                allow_redirects=False,
            ) as answer:
                return await self._hand_back(http, answer, chosen)
        except aiohttp.ClientConnectorError as error:
            said = {"error": {"message": f"{chosen} does not answer: {error}"}}
            return web.json_response(said, status=502, headers={SERVED_BY: chosen})

    async def _hand_back(
        self, http: web.Request, answer: aiohttp.ClientResponse, chosen: str
    ) -> web.StreamResponse:
        """Each piece of an answer as it comes."""
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
        reply = web.StreamResponse(status=answer.status, headers={**kept, SERVED_BY: chosen})
        await reply.prepare(http)
        async for piece in answer.content.iter_any():
            await reply.write(piece)
        await reply.write_eof()
        return reply


async def _serve(given: argparse.Namespace) -> None:
    splitter = Splitter(json.loads(given.targets), given.share, sticky=given.sticky)
    runner = web.AppRunner(
        splitter.app(), access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", given.port, backlog=BACKLOG).start()
        log.info("splitting between %s", given.targets)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main() -> int:
    """Serve until interrupted; 1 if it cannot start, with the reason in the log."""
    parser = argparse.ArgumentParser(prog="python -m labkit.sim.server.split", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--share", type=float, default=0.0, help="per cent for vLLM")
    parser.add_argument("--targets", required=True, help="root URLs of ollama and vllm as JSON")
    parser.add_argument("--sticky", action="store_true", help="one user stays on one side")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from labkit.sim.server.__main__ import loop_factory

    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(given))
    except OSError as error:  # a taken port
        log.critical("%s", error)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
