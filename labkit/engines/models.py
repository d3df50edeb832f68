"""Models on both engines: get them from the first source that has them, and check that a pair is fair.

Sources in order: what is already here, the mirror named by ``LABKIT_MIRROR`` (`labkit models mirror`), the
engines' registries, a Python package with conversion. ``data/models.toml`` says what is to be had where.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from labkit.engines import model_files
from labkit.engines.base import Engine, Progress, quiet
from labkit.engines.install_steps import gigabytes
from labkit.engines.model_files import Record, Unavailable, models_home, read_record
from labkit.engines.model_table import Model, Package, Registry, Source, find, load_table
from labkit.engines.ollama_store import OllamaStore, Stored, ollama_store
from labkit.errors import EngineError, ModelError, UnfairPair, UsageError

__all__ = [
    "SOURCES",
    "ModelSide",
    "assert_same_prompt",
    "assert_same_weights",
    "ensure",
    "find",
    "load_table",
    "prompt_tokens",
    "vllm_folder",
]

SOURCES = ("mirror", "registry", "package")
ASK_BYTES = 1_000_000_000
"""Above this size a download has to be agreed to."""


@dataclass(frozen=True)
class ModelSide:
    """One model on one engine, ready to be served.

    Attributes:
        name: labkit's name, a row of ``data/models.toml``.
        served_name: the name a client sends.
        path: the folder for vLLM; None for Ollama, which keeps its own store.
        digest: SHA-256 of the weights file that is served.
        source: where it came from; its first word is the kind of source (registry, package).
    """

    name: str
    engine: str
    served_name: str
    path: Path | None
    digest: str
    quantisation: str
    source: str

    @property
    def origin(self) -> str:
        """The kind of source: two sides of one origin hold the same weights."""
        return self.source.split()[0]


Step = tuple[str, int, Callable[[], Awaitable[ModelSide]]]
"""A source to try: its name, the bytes it would download, how."""


def vllm_folder(name: str) -> Path | None:
    """Folder that vLLM serves this model from; None if it is not here.

    Raises:
        UsageError: unknown model.
        ModelError: the folder is damaged.
    """
    folder = models_home() / find(name).vllm.folder
    return None if read_record(folder) is None else folder


async def ensure(
    name: str,
    *,
    engine: Engine | None = None,
    source: str | None = None,
    progress: Progress = quiet,
    yes: bool = False,
) -> ModelSide:
    """Make sure that one side of a model is here and is what the table says; quick when it is.

    Args:
        engine: a running Ollama for its side; None or a vLLM for the folder that vLLM serves.
        source: take this source only, one of :data:`SOURCES`.
        yes: a download of more than 1 GB is agreed to.

    Raises:
        UsageError: unknown model or source, or a large download that nobody agreed to.
        ModelError: no source could give it, or what came is not what is pinned.
    """
    if source not in (None, *SOURCES):
        raise UsageError(f"get {name} from {source!r}", f"sources are {', '.join(SOURCES)}")
    model = find(name)
    if engine is not None and engine.name == "ollama":
        async with ollama_store(engine) as store:
            return await _OllamaSide(model, store, progress).ensure(source, yes)
    if model.vllm_from:
        model = find(model.vllm_from)
    return await _VllmSide(model, progress).ensure(source, yes)


class _VllmSide:
    """Gets the folder that vLLM serves."""

    def __init__(self, model: Model, progress: Progress) -> None:
        self.model = model
        self.progress = progress
        self.folder = models_home() / model.vllm.folder

    async def ensure(self, source: str | None, yes: bool) -> ModelSide:
        record = read_record(self.folder)
        if record is None:
            return await _first(self.model.name, "vllm", self._steps(source), yes, self.progress)
        side = self._side(record)
        old = model_files.differing(record, self._pins().get(record.source, {}))
        if old:
            seen = (
                f"{', '.join(old)} in {self.folder} is not what data/models.toml pins: made by another labkit"
            )
            raise ModelError(f"use {self.model.name}", seen, "remove that folder and get the model again")
        if source in ("registry", "package") and source != side.origin:
            seen = f"{self.folder} came from {side.source}"
            raise UsageError(f"get {self.model.name} from the {source}", seen, "remove that folder first")
        return side

    def _steps(self, wanted: str | None) -> Iterator[Step]:
        mirror = _mirror()
        if mirror and wanted in (None, "mirror"):
            size = _dearest(self.model, "vllm")
            yield "mirror", size, partial(self._hub, f"labkit/{self.model.vllm.folder}", size, mirror)
        for source in _offers(self.model, "vllm", wanted):
            yield source.kind, _size(source, "vllm"), partial(self._from, source)

    async def _from(self, source: Source) -> ModelSide:
        if isinstance(source, Registry):
            return await self._hub(str(source.repo), source.repo_bytes, None)
        return self._side(await model_files.folder_from_package(source, self.folder, self.progress))

    async def _hub(self, repo: str, size: int, endpoint: str | None) -> ModelSide:
        pins = self._pins()
        return self._side(
            await model_files.folder_from_hub(
                repo, size, self.folder, self.progress, endpoint=endpoint, pins=pins
            )
        )

    def _pins(self) -> dict[str, dict[str, str]]:
        """Digests of files by source; those of a repository are not pinned."""
        pins: dict[str, dict[str, str]] = {}
        for source in self.model.sources:
            if isinstance(source, Package):
                pins[f"package {source.package}"] = source.converted or {}
            elif source.repo:
                pins[f"registry {source.repo}"] = {}
        return pins

    def _side(self, record: Record) -> ModelSide:
        side = self.model.vllm
        return ModelSide(
            self.model.name, "vllm", side.name, self.folder, record.digest, side.quantisation, record.source
        )


class _OllamaSide:
    """Gets a model into a running Ollama.

    Where a model came from is read from Ollama itself: its manifest has a pinned digest, or labkit wrote the
    source into its licence text when it made the model.
    """

    def __init__(self, model: Model, store: OllamaStore, progress: Progress) -> None:
        self.model = model
        self.store = store
        self.progress = progress

    async def ensure(self, source: str | None, yes: bool) -> ModelSide:
        wanted = source if source in ("registry", "package") else self._origin_of_vllm_side()
        here = await self._here()
        if here is not None and wanted in (None, here.origin):
            return here
        return await _first(self.model.name, "ollama", self._steps(source, wanted), yes, self.progress)

    def _origin_of_vllm_side(self) -> str | None:
        """What a fair pair needs: the origin of the other side, if that one is here already."""
        record = read_record(models_home() / self.model.vllm.folder)
        return record.source.split()[0] if record is not None and self.model.pair == "fair" else None

    def _steps(self, source: str | None, wanted: str | None) -> Iterator[Step]:
        mirror = _mirror()
        if mirror and source in (None, "mirror"):
            size = _dearest(self.model, "ollama")
            yield "mirror", size, partial(self._pull, self.model.ollama.name, mirror, wanted)
        for offer in _offers(self.model, "ollama", wanted if source != "mirror" else source):
            yield offer.kind, _size(offer, "ollama"), partial(self._from, offer)

    async def _from(self, source: Source) -> ModelSide:
        if isinstance(source, Registry):
            return await self._pull(str(source.tag), None, "registry")
        async with model_files.gguf_for_ollama(source, self.progress) as gguf:
            await self.store.create(
                self.model.ollama.name,
                gguf,
                system=source.system,
                licence=_licence(self.model, source),
                progress=self.progress,
            )
        here = await self._checked("package")
        if here.digest != source.ollama_blob:
            self.progress("this Ollama makes another file of it than the tested one: runs record the digest")
        return here

    async def _pull(self, name: str, mirror: str | None, wanted: str | None) -> ModelSide:
        await self.store.pull(name, self.progress, mirror=urlsplit(mirror).netloc if mirror else None)
        if name != self.model.ollama.name:
            await self.store.copy(name, self.model.ollama.name)
        return await self._checked(wanted)

    async def _checked(self, wanted: str | None) -> ModelSide:
        here = await self._here()
        if here is None:
            raise Unavailable(f"check {self.model.ollama.name}", "not the digest that data/models.toml pins")
        if wanted not in (None, here.origin):
            raise Unavailable(f"check {self.model.ollama.name}", f"from {here.source}, not from the {wanted}")
        return here

    async def _here(self) -> ModelSide | None:
        stored = await self.store.stored(self.model.ollama.name)
        source = None if stored is None else _source_of(self.model, stored)
        if stored is None or source is None:
            return None
        name = self.model.ollama.name
        return ModelSide(self.model.name, "ollama", name, None, stored.blob, stored.quantisation, source)


def _source_of(model: Model, stored: Stored) -> str | None:
    for source in model.sources:
        if isinstance(source, Package) and stored.licence == _licence(model, source):
            return f"package {source.package}"
        if isinstance(source, Registry) and source.tag_digest == stored.manifest[:12]:
            return f"registry {source.tag}@{source.tag_digest}"
    return None


def _licence(model: Model, source: Package) -> str:
    weights = source.f16_sha256 or source.sha256
    return f"{model.licence}\nMade by labkit from {source.package}, GGUF sha256:{weights}"


def _offers(model: Model, engine: str, wanted: str | None) -> Iterator[Source]:
    """The sources of the table that have this side."""
    for source in model.sources:
        if wanted in (None, source.kind) and _size(source, engine):
            yield source


def _size(source: Source, engine: str) -> int:
    """Bytes of the download; 0 where the source does not have this side."""
    if isinstance(source, Registry):
        return source.tag_bytes if engine == "ollama" else source.repo_bytes
    return source.package_bytes


def _dearest(model: Model, engine: str) -> int:
    return max(_size(source, engine) for source in model.sources)


def _mirror() -> str | None:
    return os.environ.get("LABKIT_MIRROR", "").rstrip("/") or None


async def _first(name: str, engine: str, steps: Iterator[Step], yes: bool, progress: Progress) -> ModelSide:
    """The side from the first source that can give it."""
    reasons = []
    for source, size, get in steps:
        _agree(name, size, yes)
        progress(f"{name} for {engine}: trying the {source}")
        try:
            side = await get()
        except Unavailable as error:
            reasons.append(f"{source}: {error.tried}: {error.seen}")
            progress(f"{name} for {engine}: the {source} cannot give it")
            continue
        progress(f"{name} for {engine}: here, from {side.source}, sha256 {side.digest[:12]}")
        return side
    raise ModelError(
        f"get {name} for {engine}",
        "\n".join(reasons) or "no source in data/models.toml, and LABKIT_MIRROR is not set",
        "check the network, or copy LABKIT_HOME/models from a machine that has it",
    )


def _agree(name: str, size: int, yes: bool) -> None:
    free = shutil.disk_usage(models_home()).free
    if free < 3 * size:  # the download, what is made of it, and Ollama's own copy
        seen = f"{gigabytes(free / 1e6)} free, {gigabytes(3 * size / 1e6)} needed"
        raise ModelError(f"get {name}", seen, "free some space, or set LABKIT_HOME to a larger disk")
    if size > ASK_BYTES and not yes:
        raise UsageError(
            f"get {name}", f"the download is {gigabytes(size / 1e6)}", "add --yes (Python: yes=True)"
        )


def assert_same_weights(sides: Sequence[ModelSide]) -> None:
    """Refuse a fair pair whose sides come from different files.

    Raises:
        UnfairPair: names both sources.
    """
    for side in sides[1:]:
        if side.origin != sides[0].origin:
            raise UnfairPair(
                f"compare {side.name} on {sides[0].engine} and {side.engine}",
                f"{sides[0].engine} has it from {sides[0].source}, {side.engine} from {side.source}",
                f"labkit models get {side.name} --from {side.origin}",
            )


async def prompt_tokens(engine: Engine, model: str, messages: Sequence[dict[str, str]]) -> int:
    """Tokens that the engine makes of a chat prompt, template and default system prompt included.

    Asks for one token of an answer, so it takes a moment and loads the model.

    Raises:
        EngineError: the engine does not answer with a token count.
    """
    order = {"model": model, "messages": list(messages), "max_tokens": 1, "temperature": 0}
    headers = {"Authorization": f"Bearer {engine.api_key}"} if engine.api_key else {}
    async with httpx.AsyncClient(headers=headers, trust_env=False, timeout=120) as client:
        try:
            answer = await client.post(f"{engine.url}/v1/chat/completions", json=order)
            return int(answer.raise_for_status().json()["usage"]["prompt_tokens"])
        except httpx.HTTPStatusError as error:
            seen = f"{error.response.status_code} {error.response.text[:300]}"
            raise EngineError(f"count the prompt tokens of {model} on {engine.name}", seen) from error
        except (httpx.TransportError, KeyError, ValueError) as error:
            raise EngineError(f"count the prompt tokens of {model} on {engine.name}", repr(error)) from error


async def assert_same_prompt(sides: Sequence[tuple[Engine, str]], messages: Sequence[dict[str, str]]) -> int:
    """Refuse a comparison in which the same messages are prompts of different length; returns the length.

    Args:
        sides: engines, each with the name of the model that a client sends.

    Raises:
        UnfairPair: the counts differ; names them.
        EngineError: an engine does not answer with a token count.
    """
    counts = {
        f"{engine.name} ({model})": await prompt_tokens(engine, model, messages) for engine, model in sides
    }
    if len(set(counts.values())) > 1:
        raise UnfairPair(
            "compare engines on the same prompt",
            "; ".join(f"{side} makes {count} tokens of it" for side, count in counts.items()),
            "the chat templates, default system prompts or tokenizers differ: use the models that"
            " `labkit models get` makes, and send a system message of your own",
        )
    return next(iter(counts.values()))
