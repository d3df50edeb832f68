"""Ollama's HTTP API: its own for chat, generate and models, and the OpenAI-style one on top of it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson
from aiohttp import web

from labkit.sim.ollama import Ollama, Runner
from labkit.sim.profile import Profile
from labkit.sim.request import Refused
from labkit.sim.server.clock import Pump
from labkit.sim.server.ollama_asked import Asked, chat_asked, from_openai, generate_asked
from labkit.sim.server.ollama_library import Entry, Library, full, stamp, tagged
from labkit.sim.server.ollama_replies import NDJSON, Native, OpenAIChat, OpenAICompletion, Reply
from labkit.sim.server.replies import Handler, Job, Refusal, body, finish, stream, whole
from labkit.sim.server.script import Script, write

BUSY = "server busy, please try again.  maximum pending requests exceeded"
PULL_S, PULL_LINES = 2.0, 20
"""How long a simulated download takes, in simulated seconds, and how often it tells of its progress."""

FOR_EVER_S = 292 * 365 * 86400.0
"""How far away the end of what is kept for ever is: Go counts nanoseconds in 64 bits."""

GONE = 499
"""What is logged of a request whose client went away."""

KINDS = {400: "invalid_request_error", 404: "not_found_error"}
LOCAL = (".localhost", ".local", ".internal")

log = logging.getLogger(__name__)


class OllamaServer:
    """One server with the models of its library."""

    def __init__(self, engine: Ollama, profile: Profile, scale: float) -> None:
        self._engine = engine
        self._profile = profile
        self._library = Library(profile)
        self._called: dict[str, Entry] = {}  # by blob: the name by which it was loaded
        self.pump = Pump(engine, scale, lambda _wrote: None)

    def routes(self) -> list[web.RouteDef]:
        """What it answers."""
        return [
            web.get("/", self._root),
            web.get("/api/version", self._version),
            web.get("/api/tags", self._tags),
            web.get("/api/ps", self._ps),
            web.post("/api/show", self._show),
            web.post("/api/pull", self._pull),
            web.post("/api/create", self._create),
            web.post("/api/copy", self._copy),
            web.delete("/api/delete", self._delete),
            web.post("/api/chat", self._chat),
            web.post("/api/generate", self._generate),
            web.get("/v1/models", self._models),
            web.get("/v1/models/{model}", self._model),
            web.post("/v1/chat/completions", self._openai_chat),
            web.post("/v1/completions", self._openai_completion),
            web.post("/v1/embeddings", self._embeddings),
        ]

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Gin's access log, only local names for the host, errors in Ollama's words."""
        started, status = self.pump.now, GONE
        try:
            answered = await self._answered(request, handler)
            status = answered.status
            return answered
        finally:
            log.info(
                '[GIN] %s | %d | %12.6fs | %15s | %-7s  "%s"',
                f"{datetime.now().astimezone():%Y/%m/%d - %H:%M:%S}",
                *(status, self.pump.now - started, request.remote, request.method, request.path_qs),
            )

    async def _answered(self, http: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_local(http.host):
            return web.Response(status=403)
        try:
            return await handler(http)
        except Refusal as error:
            return _error(http, error.status, error.message)
        except Refused:
            return _error(http, 503, BUSY)
        except web.HTTPNotFound:
            return web.Response(text="404 page not found", status=404)

    # models

    async def _root(self, _http: web.Request) -> web.Response:
        return web.Response(text="Ollama is running")

    async def _version(self, _http: web.Request) -> web.Response:
        return whole({"version": self._profile.engines["ollama"].version})

    async def _tags(self, _http: web.Request) -> web.Response:
        return whole({"models": self._library.rows()})

    async def _ps(self, _http: web.Request) -> web.Response:
        self._engine.unload_expired(self.pump.now)
        loaded = sorted(self._engine.runners.items(), key=lambda item: -item[1].expires_s)
        return whole({"models": [self._loaded(blob, runner) for blob, runner in loaded]})

    def _loaded(self, blob: str, runner: Runner) -> dict[str, Any]:
        entry, model = self._called[blob], self._profile.model
        size = self._library.bytes + len(runner.slots) * runner.context * model.kv_bytes
        left = min((runner.expires_s - self.pump.now) / self.pump.scale, FOR_EVER_S)
        return {
            "name": entry.name,
            "model": entry.name,
            "size": size,
            "digest": entry.manifest,
            "details": self._library.details(entry),
            "expires_at": stamp(time.time() + left),
            "size_vram": 0 if self._profile.kind == "cpu" else size,
            "context_length": runner.context,
        }

    async def _show(self, http: web.Request) -> web.Response:
        given = await _given(http)
        return whole(self._library.shown(self._entry(tagged(_name(given)))))

    async def _create(self, http: web.Request) -> web.StreamResponse:
        """Another quantisation of a model that is there: the one way to make a model that is imitated."""
        given = await _given(http)
        name, source, quantisation = _name(given), str(given.get("from") or ""), given.get("quantize")
        if not (name and source and quantisation):
            raise Refusal(400, "neither 'from' or 'files' was specified")
        if not self._library.quantise(source, name, str(quantisation)):
            raise Refusal(404, f"model '{source}' not found")
        return web.Response(body=_line(status="success"), content_type=NDJSON)

    async def _copy(self, http: web.Request) -> web.Response:
        given = await _given(http)
        source, destination = str(given.get("source") or ""), str(given.get("destination") or "")
        for role, name in (("source", source), ("destination", destination)):
            if not name:
                raise Refusal(400, f'{role} "" is invalid')
        if not self._library.copy(source, destination):
            raise Refusal(404, f'model "{source}" not found')
        return web.Response()

    async def _delete(self, http: web.Request) -> web.Response:
        name = _name(await _given(http))
        if not self._library.delete(name):
            raise Refusal(404, f"model '{name}' not found")
        return web.Response()

    async def _pull(self, http: web.Request) -> web.StreamResponse:
        given = await _given(http)
        name = _name(given)
        if not name:
            raise Refusal(400, "invalid model name")
        offered = self._library.offers(name)
        if given.get("stream") is False:
            if offered is None:
                raise Refusal(500, "pull model manifest: file does not exist")
            self._library.add(offered)
            return whole({"status": "success"})
        response = web.StreamResponse(headers={"Content-Type": NDJSON})
        await response.prepare(http)
        await response.write(_line(status="pulling manifest"))
        if offered is None:
            await response.write(_line(error="pull model manifest: file does not exist"))
        else:
            await self._download(response, offered)
        await response.write_eof()
        return response

    async def _download(self, response: web.StreamResponse, entry: Entry) -> None:
        there = self._library.find(entry.name) is not None
        for layer in self._library.layers(entry):
            name = {"status": f"pulling {layer.digest[:12]}", "digest": f"sha256:{layer.digest}"}
            lines = PULL_LINES if layer.kind == "model" else 1
            for part in range(lines if there else 0, lines + 1):
                await response.write(_line(**name, total=layer.bytes, completed=layer.bytes * part // lines))
                if not there and layer.kind == "model":
                    await asyncio.sleep(PULL_S / PULL_LINES / self.pump.scale)
        self._library.add(entry)
        for status in ("verifying sha256 digest", "writing manifest", "success"):
            await response.write(_line(status=status))

    async def _models(self, _http: web.Request) -> web.Response:
        return whole({"object": "list", "data": [_card(row["name"]) for row in self._library.rows()]})

    async def _model(self, http: web.Request) -> web.Response:
        name = http.match_info["model"]
        self._entry(tagged(name))
        return whole(_card(name))

    async def _embeddings(self, _http: web.Request) -> web.Response:
        raise Refusal(501, "This server does not support embeddings. Start it with `--embeddings`")

    # answers

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        given = await _given(http)
        return await self._native(http, given, chat_asked(given), chat=True)

    async def _generate(self, http: web.Request) -> web.StreamResponse:
        given = await _given(http)
        return await self._native(http, given, generate_asked(given), chat=False)

    async def _openai_chat(self, http: web.Request) -> web.StreamResponse:
        given = await _given(http)
        if not given.get("messages"):
            raise Refusal(400, "[] is too short - 'messages'")
        native = from_openai(given)
        asked = chat_asked(native)
        reply = OpenAIChat(asked.model, others=asked.others, usage=_wants_usage(given))
        return await self._answer(http, asked, self._checked(native, asked), reply)

    async def _openai_completion(self, http: web.Request) -> web.StreamResponse:
        given = await _given(http)
        native = from_openai(given)
        asked = generate_asked(native)
        reply = OpenAICompletion(asked.model, usage=_wants_usage(given))
        return await self._answer(http, asked, self._checked(native, asked), reply)

    async def _native(
        self, http: web.Request, given: Mapping[str, Any], asked: Asked, *, chat: bool
    ) -> web.StreamResponse:
        entry = self._checked(given, asked)
        reply = Native(asked.model, chat=chat, others=asked.others)
        if not asked.empty:
            return await self._answer(http, asked, entry, reply)
        if asked.keep_alive_s == 0:
            self._unload(entry)
            return whole(reply.bare("unload"))
        await self._load(asked, entry)
        return whole(reply.bare("load"))

    async def _answer(
        self, http: web.Request, asked: Asked, entry: Entry, reply: Reply
    ) -> web.StreamResponse:
        prompt = asked.prompt(self._context(asked))
        script = write(prompt, asked.limit, stops=asked.stops, schema=asked.schema)
        job = Job.of(prompt, script, **self._wish(asked, entry))
        if asked.stream:
            return await stream(
                http, self.pump, [job], media=reply.media, frame=reply.frame, end=lambda: reply.end(job)
            )
        await finish(self.pump, [job])
        return whole(reply.whole(job))

    async def _load(self, asked: Asked, entry: Entry) -> None:
        """Have the model in memory, and keep it for as long as is asked now."""
        wish = self._wish(asked, entry)
        now = self.pump.now
        self._engine.unload_expired(now)
        runner = self._engine.runners.get(entry.blob)
        if runner is None or runner.context != wish["context"]:
            await finish(self.pump, [Job.of((), Script((), (), "load"), **wish)])
            return
        if asked.keep_alive_s is not None:
            runner.keep_alive_s = asked.keep_alive_s
        runner.expires_s = now + runner.keep_alive_s

    def _unload(self, entry: Entry) -> None:
        """Forget the model, once nobody uses it any more."""
        if (runner := self._engine.runners.get(entry.blob)) is not None:
            now = self.pump.now
            runner.keep_alive_s, runner.expires_s = 0.0, now
            self._engine.unload_expired(now)

    def _wish(self, asked: Asked, entry: Entry) -> dict[str, Any]:
        """What the core has to know of the model; in memory with another context it has to be loaded anew."""
        if entry.blob not in self._engine.runners:
            self._called[entry.blob] = entry
        return {
            "model": entry.blob,
            "context": self._context(asked),
            "keep_alive_s": asked.keep_alive_s,
        }

    def _context(self, asked: Asked) -> int:
        return min(asked.context or self._engine.context, self._profile.model.context)

    def _checked(self, given: Mapping[str, Any], asked: Asked) -> Entry:
        if not asked.model:
            raise Refusal(400, "model is required")
        entry = self._entry(asked.model)
        if given.get("tools") and not asked.empty:
            raise Refusal(400, f"{full(asked.model)} does not support tools")
        if given.get("think") not in (None, False):
            raise Refusal(400, f'"{asked.model}" does not support thinking')
        return entry

    def _entry(self, name: str) -> Entry:
        if (entry := self._library.find(name)) is None:
            raise Refusal(404, f"model '{name}' not found")
        return entry


async def _given(http: web.Request) -> dict[str, Any]:
    try:
        given = await body(http)
    except ValueError as error:
        raise Refusal(400, f"invalid JSON: {error}") from error
    if given is None:
        raise Refusal(400, "missing request body")
    if not isinstance(given, dict):
        raise Refusal(400, "json: cannot unmarshal value into Go value")
    return given


def _name(given: Mapping[str, Any]) -> str:
    return str(given.get("model") or given.get("name") or "")


def _wants_usage(given: Mapping[str, Any]) -> bool:
    return bool((given.get("stream_options") or {}).get("include_usage"))


def _card(name: str) -> dict[str, Any]:
    namespace, _, model = tagged(name).rpartition("/")
    owner = namespace or "library"
    return {"id": name if model else "", "object": "model", "created": int(time.time()), "owned_by": owner}


def _error(http: web.Request, status: int, message: str) -> web.Response:
    if not http.path.startswith("/v1/"):
        return whole({"error": message}, status)
    kind = KINDS.get(status, "api_error")
    return whole({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)


def _is_local(host: str) -> bool:
    """Whether a request names this machine, as Ollama wants it from clients of a server on loopback."""
    name = re.sub(r":\d+$", "", host).strip("[]").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost", socket.gethostname().lower()) or name.endswith(LOCAL)
    return address.is_private or address.is_unspecified


def _line(**said: Any) -> bytes:
    return orjson.dumps(said) + b"\n"
