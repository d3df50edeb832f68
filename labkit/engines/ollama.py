"""Ollama: start it, load a model, read what it really uses, watch it, stop it.

Version, model and quantisation come from Ollama's API. What that does not tell (slots, context of a slot, KV
memory, threads, device) is read from the command line of its child, ``llama-server``, and from the log, which
works for servers that labkit started.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from labkit import paths
from labkit.engines import ollama_log, supervisor
from labkit.engines.base import EngineFacts, Gauges, Progress, Served, quiet
from labkit.engines.causes import evidence
from labkit.engines.declared import declared
from labkit.engines.managed import ManagedEngine
from labkit.engines.ollama_settings import CAUSES, OllamaSettings
from labkit.engines.ollama_store import weights_blob
from labkit.engines.wanted import Command, Wanted
from labkit.errors import EngineError, ModelError

__all__ = ["Ollama", "OllamaSettings", "models_folder"]

START_DEADLINE_S = 60.0
LOAD_DEADLINE_S = 600.0
"""Ollama itself gives up after five minutes without progress."""

UNLOAD_TRIES, UNLOAD_POLL_S = 100, 0.1

FOREIGN_KEEP_ALIVE = "1h"
"""How long a server that is not ours is asked to keep the model: longer than a run's idle phases."""


def models_folder() -> Path:
    """Where the servers that labkit starts keep their models."""
    return paths.folder("ollama") / "models"


class Ollama(ManagedEngine):
    """An Ollama server; models are loaded by :meth:`load`, not at its start.

    Attributes:
        folder: where the servers that it starts keep their models and their key, if not where labkit's
            others do; a server with another folder is never taken for one of those.
    """

    folder: Path | None = None

    name = "ollama"
    title = OllamaSettings.title
    protocol = "ollama-chat"
    default_port = 11434
    health = ("/api/version", "version")
    causes = CAUSES

    _seen: tuple[tuple[psutil.Process, ollama_log.Child], ...] = ()
    """The children as :meth:`facts` or :meth:`gauges` found them; :meth:`load` has them looked for again."""

    def _wanted(self, settings: dict[str, Any]) -> Wanted:
        wanted = OllamaSettings.of(settings)
        where = {} if self.folder is None else {"folder": str(self.folder)}
        return Wanted(settings, wanted.as_dict() | where, None, partial(self._command, wanted))

    def _command(self, settings: OllamaSettings, port: int) -> Command:
        # No figure for memory: it is taken by loading, which Ollama checks itself.
        return Command(
            [str(self._program()), "serve"],
            settings.environment(port, self.folder or paths.folder("ollama")),
            START_DEADLINE_S,
        )

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
        async with self._talking(f"load {model} into Ollama", LOAD_DEADLINE_S) as client:
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
        self._seen = ()
        took = time.monotonic() - started
        progress(f"ollama: {model} loaded in {took:.1f} s")
        return took

    async def unload(self, model: str) -> None:
        """Take a model out of memory, and see that it is gone.

        Raises:
            EngineError: it is still there after a while, since somebody else asks for it.
        """
        async with self._talking(f"unload {model} from Ollama", LOAD_DEADLINE_S) as client:
            await client.post("/api/generate?labkit=unload", json={"model": model, "keep_alive": 0})
            for _ in range(UNLOAD_TRIES):
                rows = (await client.get("/api/ps")).raise_for_status().json()["models"]
                if not any(_same(row["name"], model) for row in rows):
                    self._seen = ()
                    return
                await asyncio.sleep(UNLOAD_POLL_S)
        raise EngineError(f"unload {model} from Ollama at {self.url}", "it is still loaded", "try again")

    async def facts(self) -> EngineFacts:
        """What the server uses for the model that :meth:`load` loaded last, else for any that is loaded.

        ``model_digest`` is the SHA-256 of the weights file; the digest that ``ollama list`` prints is that of
        the manifest, another number.
        """
        async with self._talking("read the facts of Ollama", 10) as client:
            answer = (await client.get("/api/version")).raise_for_status()
            running = (await client.get("/api/ps")).raise_for_status().json()["models"]
            name = self.model or (running[0]["name"] if running else None)
            shown = (await client.post("/api/show", json={"model": name})) if name else None
        said = declared(answer)
        read: dict[str, tuple[Any, str]] = {"version": (answer.json()["version"], "/api/version")}
        if name is not None and shown is not None and shown.is_success:
            blob = weights_blob(shown.json()["modelfile"])
            details = shown.json()["details"]
            read |= {
                "model": (name, "the name it was loaded by" if self.model else "/api/ps"),
                "model_digest": (blob, "/api/show: the weights file (not the manifest)"),
                "quantisation": (details.get("quantization_level"), "/api/show"),
            }
            read |= _loaded_facts(next((row for row in running if _same(row["name"], name)), None))
            read |= self._own_facts(blob) if said is None else {}
        elif self._state is not None and said is None:
            read["slots"] = (ollama_log.configured_slots(Path(self._state.log)), "log, server config")
        return self._described(read, said)

    async def gauges(self) -> Gauges:
        """Slots at work, from the child's ``/slots``; Ollama counts neither its queue nor its cache."""
        if not self._seen or not all(supervisor.alive(member) for member, _ in self._seen):
            self._children()  # walks over all processes: once a child, not once a reading
        children = [child for _, child in self._seen]
        slots: list[dict[str, Any]] = []
        try:
            async with self._client(2) as client:
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
                found.append((member, child))
        self._seen = tuple(found)
        return [child for _, child in found]


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
