"""Which model goes when one too many is loaded: four quantisations of one model, loaded in turn."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

import ollama

from labkit.demos.apart import about, ollama_apart
from labkit.engines import models
from labkit.engines.base import Progress, quiet
from labkit.engines.ollama import Ollama
from labkit.engines.ollama_store import ollama_store
from labkit.errors import UsageError
from labkit.transcript import Event, Transcript

MODEL = "smollm2:135m"
QUANTISATIONS = ("f16", "q8_0", "q4_K_M", "q4_K_S")
"""As ``ollama create`` names them; the first is the file that the others are made from."""

STEPS = (
    ("f16", "40m"),
    ("q8_0", "30m"),
    ("q4_K_M", "10m"),
    ("q4_K_S", "20m"),
    ("f16", "40m"),
    ("q4_K_M", "10m"),
)
"""Which quantisation is asked for in turn, and for how long it is to stay. The first that came is the least
recently used when the fourth comes, the third the one with the shortest keep-alive."""


async def evictions(
    kind: str, say: Progress, *, steps: Sequence[tuple[str, str]] = STEPS, max_loaded_models: int | None = 3
) -> Transcript:
    """Load models one after the other and look after each what is still in memory.

    The files are made the first time and stay in labkit's Ollama folder.

    Args:
        kind: "live" or "simulated".
        steps: quantisation, one of :data:`QUANTISATIONS`, and keep-alive of each load.
        max_loaded_models: models that may be in memory at a time; None: as many as Ollama itself thinks fit.

    Raises:
        UsageError: an unknown quantisation.
        ModelError: a model could not be made or loaded; quotes Ollama.
        NotInstalled, StartFailed: see :func:`labkit.demos.apart.ollama_apart`.
    """
    if unknown := [name for name, _ in steps if name not in QUANTISATIONS]:
        raise UsageError(f"load {unknown[0]!r}", "not made here", f"one of {', '.join(QUANTISATIONS)}")
    async with ollama_apart(kind, "evictions", say, max_loaded_models=max_loaded_models) as engine:
        source = models.find(MODEL).ollama.name
        if kind == "live":
            await models.ensure(MODEL, engine=engine, progress=say)
        await _make(engine, source, say)
        events: list[Event] = [{"t_s": 0.0, "what": "limit", "max_loaded_models": max_loaded_models}]
        async with ollama.AsyncClient(engine.url, trust_env=False) as client:
            events += [event async for event in _loads(client, steps, say)]
        facts = await engine.facts()
        asked = {"max_loaded_models": max_loaded_models}
        seen_on = about(engine, facts.version, model=MODEL, asked=asked)
    return Transcript("evictions", kind, seen_on, tuple(events))


async def _loads(
    client: ollama.AsyncClient, steps: Sequence[tuple[str, str]], say: Progress
) -> AsyncIterator[Event]:
    """Each load, and what is in memory after it."""
    began, before = time.monotonic(), list[str]()
    for quantisation, keep_alive in steps:
        started = time.monotonic()
        await client.generate(model=_name(quantisation), keep_alive=keep_alive)
        took_s = time.monotonic() - started
        loaded = sorted(_quantisation(str(row.model)) for row in (await client.ps()).models)
        say(f"{quantisation}: {took_s:.2f} s; in memory {', '.join(loaded)}")
        yield {
            "t_s": round(started - began, 3),
            "what": "load",
            "model": quantisation,
            "keep_alive": keep_alive,
            "was_loaded": quantisation in before,
            "took_s": round(took_s, 3),
            "loaded": loaded,
            "evicted": sorted(set(before) - set(loaded)),
        }
        before = loaded


async def _make(engine: Ollama, source: str, say: Progress) -> None:
    """The four models, from one file; quick for those that are there."""
    async with ollama_store(engine) as store:
        for quantisation in QUANTISATIONS:
            name = _name(quantisation)
            if name != source and await store.stored(name) is None:
                say(f"ollama: making {name} from {source}")
                await store.quantise(name, source, quantisation, quiet)


def _name(quantisation: str) -> str:
    return f"labkit/smollm2:135m-{quantisation}"


def _quantisation(name: str) -> str:
    return name.removeprefix(_name(""))
