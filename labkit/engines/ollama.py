"""Ollama: start it, load a model, read what it really uses, watch it, stop it.

Version, model and quantisation come from Ollama's API. What that does not tell (slots, context of a slot, KV
memory, threads, device) is read from the command line of its child, ``llama-server``, and from the log, which
works for servers that labkit started.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from labkit import paths
from labkit.engines import install, ollama_log, process
from labkit.engines.base import Engine, EngineFacts, Gauges, Progress, Served, quiet
from labkit.engines.causes import evidence
from labkit.engines.ollama_settings import CAUSES, OllamaSettings
from labkit.errors import EngineError, ModelError, NotInstalled, StartFailed, UsageError

__all__ = ["Ollama", "OllamaSettings", "models_folder"]

PORT = 11434
START_DEADLINE_S = 60.0
LOAD_DEADLINE_S = 600.0
"""Ollama itself gives up after five minutes without progress."""

FOREIGN_KEEP_ALIVE = "1h"
"""How long a server that is not ours is asked to keep the model: longer than a run's idle phases."""


def models_folder() -> Path:
    """Where the servers that labkit starts keep their models."""
    return _folder() / "models"


def _folder() -> Path:
    folder = paths.home() / "ollama"
    folder.mkdir(exist_ok=True)
    return folder


class Ollama(Engine):
    """An Ollama server.

    Args:
        url: a server that labkit does not manage (default: ``LABKIT_OLLAMA_URL``); used as it is.
        owner: "kernel" servers end with this process, "shell" servers stay until they are stopped.
        port: where to start one (default: 11434, or any free port if that is taken).
        api_key: bearer token (default: ``LABKIT_API_KEY``), for a server behind a proxy.
    """

    name = "ollama"
    protocol = "ollama-chat"

    def __init__(
        self,
        url: str | None = None,
        *,
        owner: process.Owner = "kernel",
        port: int | None = None,
        api_key: str | None = None,
    ) -> None:
        given = url or os.environ.get("LABKIT_OLLAMA_URL")
        self.url = (given or f"http://127.0.0.1:{port or PORT}").rstrip("/").removesuffix("/v1")
        self.api_key = api_key or os.environ.get("LABKIT_API_KEY")
        self.owner = owner
        self.model: str | None = None  # the one loaded last
        self._pinned = given is not None
        self._port = port
        self._asked: dict[str, Any] = {}
        self._state: process.ServerState | None = None

    @classmethod
    def attached(cls, state: process.ServerState) -> Ollama:
        """The engine of a server that labkit started earlier."""
        engine = cls(owner=state.owner, port=state.port)
        engine._pinned, engine._asked = False, dict(state.settings)
        engine._adopt(state)
        return engine

    async def start(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        """Use a server with these settings, or start one; models are loaded by :meth:`load`.

        In this order: the server of the given URL; one of labkit's with the same settings; if no settings are
        asked for, any that answers on the port; else a new one, on a free port if that one is taken.

        Raises:
            UsageError: unknown setting, impossible value, or a setting that the given URL's server has not.
            NotInstalled: no Ollama on this machine.
            StartFailed: see :func:`labkit.engines.process.launch`, or nothing answers at the given URL.
        """
        wanted = OllamaSettings.of(settings)
        if self._pinned:
            await self._use_pinned(settings, progress)
            return await self.facts()
        self._asked = settings
        state = self._fitting(wanted)
        if state is not None:
            progress(f"ollama: using the server on port {state.port}, its settings fit")
        elif not settings and await self._foreign_answers():
            progress(f"ollama: using {self.url} as it is, labkit did not start it")
            return await self.facts()
        else:
            self._state = self._state or process.inherited("ollama")
            await self.stop(progress=progress)
            state = await self._launch(wanted, progress)
        self._adopt(state)
        return await self.facts()

    async def restart(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        """Start with the present settings, changed by these; a server of ours is stopped first."""
        changed = {**self._asked, **settings}
        OllamaSettings.of(changed)  # a typing error must not cost the running server
        await self.stop(progress=progress)
        return await self.start(progress=progress, **changed)

    async def stop(self, *, progress: Progress = quiet) -> None:
        """See :meth:`Engine.stop`. A kernel never stops a server that a shell owns."""
        if self._state is None:
            return
        state, self._state = self._state, None
        if state.owner == self.owner and not self._pinned:
            await process.terminate(state, progress=progress)
        else:
            progress(f"ollama: the server on port {state.port} is not this engine's own; left running")

    async def ready(self) -> bool:
        """See :meth:`Engine.ready`."""
        try:
            async with self._client(5) as client:
                answer = await client.get("/api/version")
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK and "version" in answer.text

    async def load(self, model: str, *, progress: Progress = quiet) -> float:
        """Load a model into memory and keep it there; seconds that it took (nearly 0 if it was there).

        Raises:
            ModelError: Ollama has no model of this name; lists those that it has.
            EngineError: the model could not be loaded; quotes Ollama.
            EngineDied: the server is gone.
        """
        keep = self._state.settings["keep_alive"] if self._state else FOREIGN_KEEP_ALIVE
        order = {"model": model, "keep_alive": int(keep) if keep.lstrip("-").isdigit() else keep}
        started = time.monotonic()
        async with self._talking(f"load {model}", LOAD_DEADLINE_S) as client:
            # The query string keeps this request apart in the access log; Ollama does not read it.
            answer = await client.post("/api/generate?labkit=load", json=order)
            if answer.status_code == httpx.codes.NOT_FOUND:
                present = [row["name"] for row in (await client.get("/api/tags")).json()["models"]]
                raise ModelError(
                    f"load {model} into Ollama at {self.url}",
                    f"it has {', '.join(present) or 'no models'}",
                    "labkit models get NAME, or ask for one of these",
                )
        if answer.is_error:
            seen, fix = evidence(self._state.log, CAUSES) if self._state else ("", "look into Ollama's log")
            raise EngineError(f"load {model} into Ollama at {self.url}", answer.text + seen, fix)
        self.model = model
        took = time.monotonic() - started
        progress(f"ollama: {model} loaded in {took:.1f} s")
        return took

    async def facts(self) -> EngineFacts:
        """What the server uses for the model that :meth:`load` loaded last, else for any that is loaded.

        ``model_digest`` is the SHA-256 of the weights file; the digest that ``ollama list`` prints is that of
        the manifest, another number.
        """
        async with self._talking("read the facts", 10) as client:
            version = (await client.get("/api/version")).raise_for_status().json()["version"]
            running = (await client.get("/api/ps")).raise_for_status().json()["models"]
            name = self.model or (running[0]["name"] if running else None)
            shown = (await client.post("/api/show", json={"model": name})) if name else None
        read: dict[str, tuple[Any, str]] = {"version": (version, "/api/version")}
        if name is not None and shown is not None and shown.is_success:
            blob = _blob(shown.json()["modelfile"])
            details = shown.json()["details"]
            read |= {
                "model": (name, "the name it was loaded by" if self.model else "/api/ps"),
                "model_digest": (blob, "/api/show: the weights file (not the manifest)"),
                "quantisation": (details.get("quantization_level"), "/api/show"),
            }
            read |= _loaded_facts(next((row for row in running if _same(row["name"], name)), None))
            read |= self._own_facts(blob)
        elif self._state is not None:
            read["slots"] = (ollama_log.configured_slots(Path(self._state.log)), "log, server config")
        known = {field: value for field, (value, _) in read.items() if value is not None}
        return EngineFacts(
            engine=self.name,
            kind="live",
            url=self.url,
            owner=self._state.owner if self._state else "foreign",
            sources={field: read[field][1] for field in known},
            **known,
        )

    async def gauges(self) -> Gauges:
        """Slots at work, from the child's ``/slots``; Ollama counts neither its queue nor its cache."""
        children = self._children()
        slots: list[dict[str, Any]] = []
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
                for child in children:
                    answer = await client.get(f"http://127.0.0.1:{child.port}/slots")
                    slots += answer.raise_for_status().json()
        except httpx.HTTPError:
            return Gauges()  # one is loading, was just unloaded, or is deep in a long step
        return Gauges(running=float(sum(slot["is_processing"] for slot in slots))) if children else Gauges()

    async def served(self) -> Served:
        """Requests by the access log of a server of labkit's, loads by :meth:`load` left out."""
        if self._state is None:
            return Served()
        return Served(requests=ollama_log.count_served(Path(self._state.log)))

    def log_tail(self, n: int = 20) -> list[str]:
        """See :meth:`Engine.log_tail`."""
        return process.tail(self._state.log, n) if self._state else []

    def alive(self) -> bool:
        """See :meth:`Engine.alive`."""
        return self._state is None or self._state.process() is not None

    def raise_if_dead(self) -> None:
        """Raises EngineDied, with the end of the log and the known cause, if a server of ours is gone."""
        if self._state is not None and self._state.process() is None:
            raise process.died(self._state, CAUSES)

    def _adopt(self, state: process.ServerState) -> None:
        if self._state is None or self._state.pid != state.pid:
            self.model = None
        self._state, self.url = state, state.url

    async def _use_pinned(self, settings: dict[str, Any], progress: Progress) -> None:
        """Use the server of the given URL. If labkit started it, its settings are known; else none is."""
        if not await self.ready():
            raise StartFailed(
                f"use the Ollama at {self.url}",
                "it does not answer on /api/version",
                "start it, or unset LABKIT_OLLAMA_URL to let labkit start one",
            )
        state = next((state for state in process.states("ollama") if state.url == self.url), None)
        if state is not None:
            self._adopt(state)
        has = state.settings if state else {}
        for name, value in settings.items():
            if state is None or has.get(name) != value:
                seen = f"it has {name}={has.get(name)!r}" if state else "what it has cannot be read from it"
                raise UsageError(
                    f"use the Ollama at {self.url} with {name}={value!r}",
                    f"{seen}, and it is not restarted from here",
                    "unset LABKIT_OLLAMA_URL, and labkit starts one with these settings beside it",
                )
        progress(f"ollama: using {self.url} as it is")

    def _fitting(self, wanted: OllamaSettings) -> process.ServerState | None:
        """A running server, the shell's or started by this process, with these settings."""
        for state in process.states("ollama"):
            ours = state.owner == "shell" or state.owner_pid == process.owner_pid()
            there = self._port in {None, state.port}
            if ours and there and state.settings == wanted.as_dict():
                return state
        return None

    async def _foreign_answers(self) -> bool:
        """Whether somebody else's Ollama is up where ours would go."""
        port = self._port or PORT
        if self._state is not None or any(state.port == port for state in process.states("ollama")):
            return False
        self.url = f"http://127.0.0.1:{port}"
        return await self.ready()

    async def _launch(self, settings: OllamaSettings, progress: Progress) -> process.ServerState:
        program = install.find_ollama()
        if program is None:
            raise NotInstalled("start Ollama", "it is not installed", "labkit engines install ollama")
        port = self._port or process.free_port(PORT)
        self.url = f"http://127.0.0.1:{port}"
        return await process.launch(
            engine=self.name,
            argv=[str(program), "serve"],
            env=settings.environment(port, _folder()),
            port=port,
            settings=settings.as_dict(),
            owner=self.owner,
            log_name=f"ollama-{port}.log",
            ready=self.ready,
            deadline_s=START_DEADLINE_S,
            causes=CAUSES,
            progress=progress,
        )

    def _own_facts(self, blob: str | None) -> dict[str, tuple[Any, str]]:
        """What only a server of ours tells: by its child, and by its log while the child is not there."""
        if self._state is None or blob is None:
            return {}
        log = Path(self._state.log)
        load = ollama_log.last_load(log, blob)
        child = next((child for child in self._children() if child.blob == blob), None)
        source = "llama-server's command line"
        if child is None and load is not None:
            child, source = load.child, "log"
        if child is None:
            return {"slots": (ollama_log.configured_slots(log), "log, server config")}
        facts: dict[str, tuple[Any, str]] = {
            "slots": (child.slots, source),
            "context": (child.context, source),
            "kv_tokens": (child.slots * child.context, source),
        }
        if load is not None:
            facts |= {
                "kv_bytes": (load.kv_bytes, "log"),
                "threads": (load.threads, "log"),
                "device": (load.device, "log"),
            }
        return facts

    def _children(self) -> list[ollama_log.Child]:
        """One ``llama-server`` for each model that our server has loaded."""
        found = []
        for member in self._state.family() if self._state else []:
            try:
                child = ollama_log.Child.of(member.cmdline())
            except psutil.NoSuchProcess:
                continue
            if child is not None:
                found.append(child)
        return found

    def _client(self, timeout_s: float) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        timeout = httpx.Timeout(5, read=timeout_s)
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    @asynccontextmanager
    async def _talking(self, what: str, timeout_s: float) -> AsyncIterator[httpx.AsyncClient]:
        """A client; when it fails, the error says whether the server is gone."""
        try:
            async with self._client(timeout_s) as client:
                yield client
        except httpx.HTTPError as error:
            for _ in range(10):  # a dying process closes its connections some milliseconds before it is gone
                self.raise_if_dead()
                await asyncio.sleep(0.05)
            raise EngineError(
                f"{what} of Ollama at {self.url}", repr(error), "labkit engines status"
            ) from error


def _blob(modelfile: str) -> str | None:
    found = re.search(r"^FROM .*sha256[-:]([0-9a-f]{64})$", modelfile, re.MULTILINE)
    return found[1] if found else None


def _same(name: str, other: str) -> bool:
    """Whether two names are one model: a name without a tag means ``latest``."""
    return name.removesuffix(":latest") == other.removesuffix(":latest")


def _loaded_facts(row: dict[str, Any] | None) -> dict[str, tuple[Any, str]]:
    """What ``/api/ps`` says of a loaded model; all that there is for a server that is not ours."""
    if row is None:
        return {}
    return {
        "context": (row.get("context_length"), "/api/ps"),
        "device": ("cpu" if row["size_vram"] == 0 else None, "/api/ps"),
    }
