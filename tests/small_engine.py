"""A small engine over real HTTP, for tests: slots, a steady pace, and a plug to pull."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from labkit.engines.base import Engine, EngineFacts, Gauges, Progress, Served, quiet
from labkit.errors import EngineError

PACE_S = 0.002


class SmallEngine(Engine):
    """Serves ``slots`` answers at a time, as an OpenAI-style server would.

    Attributes:
        foreign: output tokens that somebody else seems to have had from it.
        extra_prompt_tokens: makes its prompts longer than another engine's.
        dies_after: answers after which it drops all connections.
        ours: whether its death can be seen; of a server that somebody else started it cannot.
        time_scale: how much faster than real time it says to be; makes it a simulated one.
    """

    protocol = "openai-chat"

    def __init__(
        self, name: str, *, slots: int = 1, extra_prompt_tokens: int = 0, time_scale: float | None = None
    ) -> None:
        self.name = name
        self.url = ""
        self.slots = asyncio.Semaphore(slots)
        self.extra_prompt_tokens = extra_prompt_tokens
        self.time_scale = time_scale
        self.foreign = 0
        self.dies_after: int | None = None
        self.ours = True
        self.busy = 0
        self.most_busy = 0
        self._served = Served(0, 0, 0)
        self._runner: web.AppRunner | None = None

    async def start(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return await self.facts()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        n, prompt = asked["max_tokens"], 10 + self.extra_prompt_tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": n, "total_tokens": prompt + n}
        if not asked.get("stream"):
            return web.json_response({"choices": [{"message": {"content": "a"}}], "usage": usage})
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        async with self.slots:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            for _ in range(n):
                await asyncio.sleep(PACE_S)
                await self._event(reply, {"choices": [{"index": 0, "delta": {"content": "a "}}]})
            self.busy -= 1
        await self._event(reply, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        await self._event(reply, {"choices": [], "usage": usage})
        await reply.write(b"data: [DONE]\n\n")
        served = self._served
        self._served = Served((served.requests or 0) + 1, 0, (served.output_tokens or 0) + n)
        if self.dies_after is not None and (self._served.requests or 0) >= self.dies_after:
            asyncio.get_running_loop().create_task(self.stop())
        return reply

    @staticmethod
    async def _event(reply: web.StreamResponse, chunk: dict[str, Any]) -> None:
        await reply.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    async def stop(self, *, progress: Progress = quiet) -> None:
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def restart(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        await self.stop()
        return await self.start()

    async def ready(self) -> bool:
        return self._runner is not None

    async def load(self, model: str, *, progress: Progress = quiet) -> float:
        return 0.0

    async def facts(self) -> EngineFacts:
        kind, origin = "live", None
        if self.time_scale is not None:
            kind = "simulated"
            origin = {"profile": "small", "basis": "measured", "time_scale": self.time_scale, "band": {}}
        return EngineFacts(
            self.name, kind, self.url, model_digest="d", slots=1, device="cpu", simulated=origin
        )

    async def gauges(self) -> Gauges:
        return Gauges(running=float(self.busy))

    async def served(self) -> Served:
        if self._runner is None and not self.ours:
            raise EngineError(f"ask {self.name}", "connection refused")
        served = self._served
        return Served(served.requests, served.prompt_tokens, (served.output_tokens or 0) + self.foreign)

    def cpu_s(self) -> float | None:
        return 0.0  # it lives in the test's own process

    def log_tail(self, n: int = 20) -> list[str]:
        return ["the plug was pulled"]

    def alive(self) -> bool:
        return self._runner is not None or not self.ours
