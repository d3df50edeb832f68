"""The models inside an Ollama server, over its HTTP API: what is there, pull, create."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from labkit.engines.base import Engine, Progress
from labkit.engines.model_files import Unavailable, sha256
from labkit.errors import ModelError

CHUNK = 2**20


@dataclass(frozen=True)
class Stored:
    """One model as Ollama has it.

    Attributes:
        manifest: SHA-256 of the manifest; `ollama list` prints its first 12 characters.
        blob: SHA-256 of the weights file that is served.
        licence: the licence text; labkit writes there what it made a model from, so that it travels along.
    """

    manifest: str
    blob: str
    quantisation: str
    licence: str


def weights_blob(modelfile: str) -> str | None:
    """SHA-256 of the weights file that a modelfile of ``/api/show`` names; None if it names none."""
    found = re.search(r"^FROM .*sha256[-:]([0-9a-f]{64})$", modelfile, re.MULTILINE)
    return found[1] if found else None


class OllamaStore:
    """Models of one running Ollama server. Use it with :func:`ollama_store`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def stored(self, name: str) -> Stored | None:
        """The model of this name; None if there is none."""
        tags = (await self._client.get("/api/tags")).raise_for_status().json()["models"]
        manifest = next((tag["digest"] for tag in tags if tag["name"] == name), None)
        if manifest is None:
            return None
        shown = (await self._client.post("/api/show", json={"model": name})).raise_for_status().json()
        blob = weights_blob(shown["modelfile"])
        if blob is None:
            raise ModelError(f"read which file {name} is in Ollama", shown["modelfile"][:300])
        return Stored(manifest, blob, shown["details"]["quantization_level"], shown.get("license", ""))

    async def pull(self, name: str, progress: Progress, *, mirror: str | None = None) -> None:
        """`ollama pull` from Ollama's registry, or through ``mirror`` (HOST:PORT) under the same name.

        Ollama keeps a partial download apart and compares each blob with its digest.

        Raises:
            Unavailable: not reachable, no such tag, or a blob that does not match.
        """
        far = name
        if mirror is not None:
            far = f"{mirror}/{name}" if "/" in name else f"{mirror}/library/{name}"
        order = {"model": far, "insecure": mirror is not None}
        await self._stream("/api/pull", order, f"pull {far}", progress, silence_s=60)
        if mirror is not None:
            await self.copy(far, name)
            deleted = await self._client.request("DELETE", "/api/delete", json={"model": far})
            deleted.raise_for_status()

    async def copy(self, name: str, other: str) -> None:
        """Give a model a second name; the files are shared."""
        answer = await self._client.post("/api/copy", json={"source": name, "destination": other})
        answer.raise_for_status()

    async def alias(self, name: str, other: str) -> None:
        """Give a model a second name, unless a model has that name already."""
        if await self.stored(other) is None:
            await self.copy(name, other)

    async def create(self, name: str, gguf: Path, *, system: str, licence: str, progress: Progress) -> None:
        """`ollama create` from a GGUF file, with a default system prompt.

        Raises:
            Unavailable: Ollama refuses; the sentence is its own.
        """
        digest = f"sha256:{sha256(gguf)}"
        if (await self._client.head(f"/api/blobs/{digest}")).status_code == httpx.codes.NOT_FOUND:
            progress("handing the file to Ollama")
            sent = await self._client.post(f"/api/blobs/{digest}", content=_chunks(gguf))
            sent.raise_for_status()
        order = {"model": name, "files": {gguf.name: digest}, "system": system, "license": licence}
        await self._stream("/api/create", order, f"create {name}", progress)

    async def quantise(self, name: str, source: str, quantisation: str, progress: Progress) -> None:
        """`ollama create` from a model that is there, in fewer bits.

        Raises:
            Unavailable: Ollama refuses; the sentence is its own.
        """
        order = {"model": name, "from": source, "quantize": quantisation}
        await self._stream("/api/create", order, f"create {name}", progress)

    async def _stream(
        self, path: str, order: dict[str, Any], what: str, progress: Progress, silence_s: float | None = None
    ) -> None:
        told = ""
        timeout = httpx.Timeout(5, read=silence_s)
        async with self._client.stream("POST", path, json=order, timeout=timeout) as answer:
            async for line in answer.aiter_lines():
                news = json.loads(line)
                if "error" in news:
                    raise Unavailable(f"{what} in Ollama", news["error"])
                said = _news(news)
                if said != told:
                    progress(said)
                    told = said


def _news(news: dict[str, Any]) -> str:
    status = str(news["status"])
    if news.get("total", 0) < 1e6:
        return status
    tenths = 10 * news.get("completed", 0) // news["total"]
    return f"{status}: {tenths * 10} % of {news['total'] / 1e6:.0f} MB"


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as source:
        while chunk := source.read(CHUNK):
            yield chunk


@asynccontextmanager
async def ollama_store(engine: Engine) -> AsyncIterator[OllamaStore]:
    """The store of a running Ollama.

    Raises:
        ModelError: the server does not answer, or refuses what was asked.
    """
    headers = {"Authorization": f"Bearer {engine.api_key}"} if engine.api_key else {}
    timeout = httpx.Timeout(5, read=60)
    async with httpx.AsyncClient(
        base_url=engine.url, headers=headers, timeout=timeout, trust_env=False
    ) as client:
        try:
            yield OllamaStore(client)
        except httpx.HTTPError as error:
            raise ModelError(
                f"talk to Ollama at {engine.url} about its models", repr(error), "labkit engines status"
            ) from error
