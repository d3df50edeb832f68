"""vLLM's HTTP API: OpenAI's chat and completions, tokenize, models, health, version, metrics."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from labkit.sim.profile import Profile
from labkit.sim.server import tokens
from labkit.sim.server.clock import Pump
from labkit.sim.server.replies import Counts, Handler, Job, Refusal, body, finish, stream, whole
from labkit.sim.server.script import write
from labkit.sim.server.vllm_asked import Asked, chat_asked, completion_asked, invalid
from labkit.sim.server.vllm_metrics import Metrics
from labkit.sim.server.vllm_replies import ChatReply, CompletionReply, Reply
from labkit.sim.vllm import VLLM

BUSY = (
    "The engine is currently busy and cannot accept new requests. "
    "Please try again later or on a different instance."
)

SSE = "text/event-stream; charset=utf-8"


class VLLMServer:
    """One model on one engine core."""

    def __init__(
        self, engine: VLLM, profile: Profile, settings: Mapping[str, Any], scale: float, model: str | None
    ) -> None:
        """``model`` is the name that a client sends (default: the profile's)."""
        self.model = model or profile.model.name
        self._engine = engine
        self._version = profile.engines["vllm"].version
        self._context = int(settings["max_model_len"])
        self._most = settings.get("max_num_queued_reqs")
        self.metrics = Metrics(engine, self.model, _cache_config(engine, settings, self._context))
        self.pump = Pump(engine, scale, self.metrics.step)

    def routes(self) -> list[web.RouteDef]:
        """What it answers."""
        return [
            web.get("/health", self._health),
            web.get("/version", self._tell_version),
            web.get("/metrics", self._tell_metrics),
            web.get("/v1/models", self._models),
            web.post("/tokenize", self._tokenize),
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/completions", self._completion),
        ]

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors in vLLM's words."""
        try:
            return await handler(request)
        except Refusal as error:
            said = {
                "message": error.message,
                "type": error.kind,
                "param": error.param,
                "code": error.status,
            }
            return whole({"error": said}, error.status)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
            return whole({"detail": error.reason}, error.status)

    async def _health(self, _http: web.Request) -> web.Response:
        return web.Response()

    async def _tell_version(self, _http: web.Request) -> web.Response:
        return whole({"version": self._version})

    async def _tell_metrics(self, _http: web.Request) -> web.Response:
        return web.Response(
            body=self.metrics.text().encode(),
            headers={"Content-Type": "text/plain; version=1.0.0; charset=utf-8"},
        )

    async def _models(self, _http: web.Request) -> web.Response:
        card = {
            "id": self.model,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "vllm",
            "root": self.model,
            "parent": None,
            "max_model_len": self._context,
        }
        return whole({"object": "list", "data": [card]})

    async def _tokenize(self, http: web.Request) -> web.Response:
        asked = await self._asked(http)
        if "messages" in asked:
            numbers = tokens.encode(asked["messages"])
        elif isinstance(asked.get("prompt"), str):
            numbers = tokens.encode_text(asked["prompt"])
        else:
            raise invalid("prompt", "Field required")
        return whole(
            {"count": len(numbers), "max_model_len": self._context, "tokens": numbers, "token_strs": None}
        )

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        raw = await self._asked(http)
        asked = chat_asked(raw)
        self._admit(asked.choices)
        prompt = tokens.encode(raw["messages"])
        jobs = self._jobs(asked, [prompt], [""])
        return await self._answer(http, asked, jobs, ChatReply(_id("chatcmpl"), self.model, asked))

    async def _completion(self, http: web.Request) -> web.StreamResponse:
        asked, prompts = completion_asked(await self._asked(http))
        self._admit(asked.choices)
        numbers = [tokens.encode_text(one) if isinstance(one, str) else tuple(one) for one in prompts]
        echoes = [str(one) if asked.echo else "" for one in prompts]
        jobs = self._jobs(asked, numbers, echoes)
        return await self._answer(http, asked, jobs, CompletionReply(_id("cmpl"), self.model, asked))

    async def _asked(self, http: web.Request) -> dict[str, Any]:
        try:
            asked = await body(http)
        except ValueError as error:
            raise invalid("", f"JSON decode error: {error}") from error
        if not isinstance(asked, dict):
            raise invalid("", "Input should be a valid dictionary")
        name = asked.get("model")
        if name and name != self.model:
            raise Refusal(
                404,
                f"The model `{name}` does not exist. Valid aliases: {self.model}.",
                "NotFoundError",
                "model",
            )
        return asked

    def _admit(self, choices: int) -> None:
        """Its queue is bounded by all that is unfinished, those that are worked on included."""
        unfinished = len(self._engine.waiting) + len(self._engine.running)
        if self._most is not None and unfinished + choices > self._most:
            self.metrics.rejected["max_num_queued_reqs"] += 1
            raise Refusal(503, BUSY, "Service Unavailable")

    def _jobs(self, asked: Asked, prompts: Sequence[tuple[int, ...]], echoes: Sequence[str]) -> list[Job]:
        jobs: list[Job] = []
        for prompt, echo in zip(prompts, echoes, strict=True):
            limit = asked.limit(len(prompt), self._context)
            for choice in range(asked.choices):
                script = write(
                    prompt,
                    limit,
                    choice=choice,
                    ignore_eos=asked.ignore_eos,
                    stops=asked.stops,
                    schema=asked.schema,
                )
                jobs.append(Job.of(prompt, script, index=len(jobs), prefix=echo))
        return jobs

    async def _answer(
        self, http: web.Request, asked: Asked, jobs: Sequence[Job], reply: Reply
    ) -> web.StreamResponse:
        def ended() -> Counts:
            self.metrics.finished.update(job.script.finish for job in jobs)
            return Counts(jobs, asked.choices)

        if asked.stream:
            return await stream(
                http, self.pump, jobs, media=SSE, frame=reply.frame, end=lambda: reply.end(ended())
            )
        await finish(self.pump, jobs)
        return whole(reply.whole(jobs, ended()))


def _cache_config(engine: VLLM, settings: Mapping[str, Any], context: int) -> dict[str, object]:
    size, blocks = engine.pool.size, engine.pool.total + 1  # with the one that is never given out
    gib = settings.get("kv_cache_gib")
    return {
        "block_size": size,
        "cache_dtype": "auto",
        "enable_prefix_caching": settings["prefix_caching"],
        "engine": 0,
        "gpu_memory_utilization": settings.get("gpu_memory_utilization"),
        "kv_cache_max_concurrency": blocks * size / context,
        "kv_cache_memory_bytes": int(gib * 2**30) if gib else None,
        "kv_cache_size_tokens": blocks * size,
        "num_gpu_blocks": blocks,
    }


def _id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"
