"""A real ``ollama pull`` into an Ollama of its own with an empty folder, told line by line."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import ollama
from aiohttp import web

from labkit.demos.apart import about, ollama_apart
from labkit.engines import mirror, models
from labkit.engines.base import Progress, quiet
from labkit.engines.install_steps import gigabytes
from labkit.engines.model_files import work_folder
from labkit.engines.model_table import Registry
from labkit.engines.ollama import Ollama, models_folder
from labkit.errors import ModelError
from labkit.sim import profile as profiles
from labkit.sim.server.ollama_library import Library, tagged
from labkit.transcript import Event, Transcript

MODEL = "smollm2:135m"
REGISTRY = "https://registry.ollama.ai"
REGISTRY_WAIT_S = 5.0
CHUNK = 2**19
MIRROR_BYTES_PER_S = 60e6
"""What labkit's own mirror gives at most, all connections together."""

News = Callable[[Event], None]

KINDS = {"application/vnd.docker.container.image.v1+json": "config"}
"""What a manifest calls the part that is no layer; a layer's kind is the last word of its type."""


@dataclass(frozen=True)
class Source:
    """Where a pull takes the model from.

    Attributes:
        name: "registry", "LABKIT_MIRROR", "mirror" (labkit's own, on this machine) or "simulated".
        model: as it is asked for there.
        why: why this source, for people.
        insecure: plain HTTP.
        bytes: of the download, about; 0 if there is none.
    """

    name: str
    model: str
    why: str
    insecure: bool = False
    bytes: int = 0


async def pull(kind: str, news: News, say: Progress = quiet) -> Transcript:
    """Pull the course's model into an empty folder, which is removed at the end.

    From the mirror that ``LABKIT_MIRROR`` names, else from Ollama's registry, else, where that cannot be
    reached, from a mirror of the model files on this machine.

    Args:
        kind: "live" or "simulated".
        news: given each event as it comes.

    Raises:
        ModelError: there is not enough space, or the download broke off; quotes Ollama.
        NotInstalled, StartFailed: see :func:`labkit.demos.apart.ollama_apart`.
    """
    log = _Log(news)
    with work_folder() as folder:
        async with _source(kind, say) as source:
            _check_space(source, folder)
            own = folder if kind == "live" else None
            async with ollama_apart(kind, "pull", say, folder=own) as engine:
                log.note("source", source=source.name, model=source.model, says=source.why)
                await _download(engine, source, log)
                for layer in _manifest(folder) if kind == "live" else _simulated(source.model):
                    log.note("layer", **layer)
                facts = await engine.facts()
                seen_on = about(engine, facts.version, model=MODEL, source=source.name)
    layers = [event for event in log.events if event["what"] == "layer"]
    log.note("done", took_s=log.seconds(), bytes=sum(layer["bytes"] for layer in layers))
    return Transcript("pull", kind, seen_on, tuple(log.events))


async def replay(recorded: Transcript, speed: float, news: News) -> Transcript:
    """Tell a recorded pull again, at ``speed`` times its pace."""
    now = 0.0
    for event in recorded.events:
        wait_s = 0.0 if math.isinf(speed) else max(0.0, event["t_s"] - now) / speed
        await asyncio.sleep(wait_s)
        now = event["t_s"]
        news(event)
    return recorded


class _Log:
    """Events with the time at which they came."""

    def __init__(self, news: News) -> None:
        self.events: list[Event] = []
        self._news = news
        self._began = time.monotonic()

    def seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def note(self, what: str, **more: Any) -> None:
        if not self.events:
            self._began = time.monotonic()  # what was prepared before is no part of the pull
        event = {"t_s": self.seconds(), "what": what, **more}
        self.events.append(event)
        self._news(event)


def _check_space(source: Source, folder: Path) -> None:
    free, needed = shutil.disk_usage(folder).free, 2 * source.bytes
    if free < needed:
        raise ModelError(
            f"pull {source.model}",
            f"{gigabytes(free / 1e6)} free, {gigabytes(needed / 1e6)} needed",
            "free some space, or set LABKIT_HOME to a larger disk",
        )


async def _download(engine: Ollama, source: Source, log: _Log) -> None:
    told = None
    try:
        async with ollama.AsyncClient(engine.url, trust_env=False) as client:
            if engine.simulated:  # it begins with its models as if pulled before
                for row in (await client.list()).models:
                    await client.delete(str(row.model))
            async for line in await client.pull(source.model, insecure=source.insecure, stream=True):
                if line.digest is not None and line.total:
                    log.note("progress", digest=line.digest, completed=line.completed or 0, total=line.total)
                elif line.status != told:
                    log.note("status", status=line.status)
                told = line.status
    except (ollama.ResponseError, httpx.HTTPError) as error:
        raise broken(source.model, str(error)) from None
    if told != "success":
        raise broken(source.model, f"the last line was {told!r}")


def broken(model: str, said: str) -> ModelError:
    """The error for a pull that Ollama broke off, by what it said."""
    fix = "try again; what has come is kept only by an Ollama of your own"
    if "no space left" in said:
        fix = "free some space, or set LABKIT_HOME to a larger disk"
    elif "digest mismatch" in said:
        fix = "try again; if it stays so, something on the way changes the file"
    elif "file does not exist" in said:
        fix = "no such model at this source: check its name"
    return ModelError(f"pull {model}", said, fix)


@asynccontextmanager
async def _source(kind: str, say: Progress) -> AsyncIterator[Source]:
    """Where to pull from; a mirror of labkit's own serves while the block lasts."""
    row = models.find(MODEL)
    given = os.environ.get("LABKIT_MIRROR")
    tag = next(source for source in row.sources if isinstance(source, Registry) and source.tag)
    if kind == "simulated":
        yield Source("simulated", row.ollama.name, "a simulated registry, with a simulated file")
    elif given:
        name = f"{urlsplit(given).netloc}/{_spaced(row.ollama.name)}"
        yield Source("LABKIT_MIRROR", name, f"LABKIT_MIRROR names {given}", True, tag.tag_bytes)
    elif (seen := await _registry()) is None:
        yield Source("registry", str(tag.tag), "Ollama's own registry can be reached", bytes=tag.tag_bytes)
    else:
        async with ollama_apart(kind, "pull", quiet) as engine:
            await models.ensure(MODEL, engine=engine, progress=say)
        async with _mirror() as address:
            why = f"Ollama's registry cannot be reached ({seen}): labkit's own mirror, slowed down to be seen"
            yield Source("mirror", f"{address}/{_spaced(row.ollama.name)}", why, True, tag.tag_bytes)


async def _registry() -> str | None:
    """Why Ollama's registry cannot be reached; None if it can. Proxies of the environment are used."""
    try:
        async with httpx.AsyncClient(timeout=REGISTRY_WAIT_S) as client:
            answer = await client.get(f"{REGISTRY}/v2/")
    except httpx.HTTPError as error:
        return type(error).__name__
    return f"status {answer.status_code}" if answer.is_server_error else None


@asynccontextmanager
async def _mirror() -> AsyncIterator[str]:
    """Labkit's mirror in this process, on any free port, slowed down; its address."""
    runner = web.AppRunner(_slowed(mirror.app(models_folder())))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _slowed(app: web.Application) -> web.Application:
    """The same, no faster than a good line: bars that jump to their end show nothing."""
    turn = asyncio.Lock()

    @web.middleware
    async def slow(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        answer = await handler(request)
        if not isinstance(answer, web.FileResponse) or request.method != "GET" or "blobs" not in request.path:
            return answer
        path = models_folder() / "blobs" / request.match_info["digest"].replace(":", "-")
        length, part = path.stat().st_size, request.http_range
        start, stop = part.start or 0, min(part.stop or length, length)
        sent = web.StreamResponse(status=206 if "Range" in request.headers else 200, headers=answer.headers)
        sent.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{length}"
        sent.content_length = stop - start
        await sent.prepare(request)
        with path.open("rb") as file, suppress(ConnectionResetError):  # Ollama asks first where a blob is
            file.seek(start)
            for left in range(stop - start, 0, -CHUNK):
                async with turn:
                    await asyncio.sleep(CHUNK / MIRROR_BYTES_PER_S)
                await sent.write(file.read(min(CHUNK, left)))
        return sent

    app.middlewares.append(slow)
    return app


def _spaced(name: str) -> str:
    """A model's name with its namespace."""
    return name if "/" in name else f"library/{name}"


def _manifest(folder: Path) -> Iterator[dict[str, Any]]:
    """The parts of the one model in a folder, by its manifest."""
    (path,) = (path for path in (folder / "models" / "manifests").rglob("*") if path.is_file())
    manifest = json.loads(path.read_text())
    for part in (*manifest["layers"], manifest["config"]):
        media = part["mediaType"]
        kind = KINDS.get(media, media.rpartition(".")[2])
        yield {"kind": kind, "digest": part["digest"], "bytes": part["size"], "media_type": media}


def _simulated(model: str) -> Iterator[dict[str, Any]]:
    """The same of a simulated model."""
    library = Library(profiles.load(profiles.DEFAULT))
    if (entry := library.find(tagged(model))) is not None:
        for layer in library.layers(entry):
            yield {"kind": layer.kind, "digest": f"sha256:{layer.digest}", "bytes": layer.bytes}
