"""Claims of notebook 03: what the number of slots does, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

from labkit.judges.base import HELD, NOT_HELD, Case, Finding, Judge, Reader, capital, slots_of, source
from labkit.judges.under_load import by_default
from labkit.sides import Missing, sides
from labkit.transcript import Event, Transcript

SAME_SIZE = 0.02
"""Sizes of memory within this share are the same: an engine rounds them up to whole buffers."""

SHORT = 0.5
"""Memory is not "short" where what is asked for is less than this share of all there is."""


def _obeys(case: Case) -> Finding:
    """C05: does every arm have the slots it was asked to have? One slot proves nothing: it is the default."""
    asked = [s for s in sides(case.run, "ollama") if (s.settings.get("num_parallel") or 1) > 1 and s.slots]
    if not asked:
        raise Missing("No arm of Ollama was started with 2 slots or more")
    told = "; ".join(f"asked for {s.settings['num_parallel']}, got {s.slots}" for s in asked)
    obeyed = all(s.slots == s.settings["num_parallel"] for s in asked)
    return HELD if obeyed else NOT_HELD, f"{capital(told)}{source(asked[0], 'slots')}."


def _four_or_one(case: Case) -> Finding:
    """C64: 4 slots, or 1 where memory is short. With 1 slot: was it short?"""
    s = by_default(case)
    told = f"Started without a number, Ollama {s.facts.get('version')} took {slots_of(s)}"
    if s.slots == 4:
        return HELD, f"{told}."
    if s.slots != 1:
        return NOT_HELD, f"{told}, neither 4 nor 1."
    kv_bytes, memory = s.facts.get("kv_bytes"), case.run.meta["host"].get("memory_gib")
    if kv_bytes is None or memory is None or s.facts.get("device") != "cpu":
        raise Missing(f"{told}, and it is not known whether memory was short")
    four = 4 * kv_bytes / 2**30
    if four > SHORT * memory:
        raise Missing(f"{told}, and the KV memory of 4 would be {four:.1f} GiB of {memory:.0f}")
    return (
        NOT_HELD,
        f"{told}, although the KV memory of 4 is {four:.2f} GiB and this machine has {memory:.0f}.",
    )


@dataclass(frozen=True)
class _Cache:
    """KV memory of one arm, with what it is for."""

    slots: int
    context: int
    kv_bytes: int

    @property
    def tokens(self) -> int:
        return self.slots * self.context

    def __str__(self) -> str:
        return f"{self.slots} × {self.context:,} tokens: {self.kv_bytes / 2**20:,.0f} MiB"


def _caches(case: Case) -> Iterator[tuple[str, _Cache]]:
    """Of each arm of Ollama that tells all of it, with the digest of its model."""
    for _, s in case.arms("ollama"):
        slots, context, kv_bytes = (s.facts.get(name) for name in ("slots", "context", "kv_bytes"))
        if slots and context and kv_bytes:
            yield str(s.facts.get("model_digest")), _Cache(slots, context, kv_bytes)


def _only_the_product(case: Case) -> Finding:
    """C67: does KV memory depend on slots × context alone?"""
    found = set(_caches(case))
    pairs = [
        (a, b)
        for (model, a), (other, b) in combinations(sorted(found, key=lambda pair: pair[1].slots), 2)
        if model == other and a.slots != b.slots
    ]
    equal = [(a, b) for a, b in pairs if a.tokens == b.tokens]
    if equal:
        same = all(abs(b.kv_bytes / a.kv_bytes - 1) <= SAME_SIZE for a, b in equal)
        return HELD if same else NOT_HELD, f"{'; '.join(f'{a}, {b}' for a, b in equal)}."
    if not pairs:
        raise Missing("No two arms of Ollama tell the KV memory of one model with different numbers of slots")
    each = {cache: cache.kv_bytes / cache.tokens for pair in pairs for cache in pair}
    same = max(each.values()) / min(each.values()) - 1 <= SAME_SIZE
    told = "; ".join(f"{cache}, {size / 1024:.2f} KiB a token" for cache, size in each.items())
    return HELD if same else NOT_HELD, f"{told}. No two arms have the same product."


def _takes_memory(case: Case) -> Finding:
    """C86: does each step up in slots, with the same context, take more memory?"""
    found = sorted(set(_caches(case)), key=lambda pair: (pair[0], pair[1].context, pair[1].slots))
    steps = [
        (a, b)
        for (model, a), (other, b) in pairwise(found)
        if (model, a.context) == (other, b.context) and a.slots < b.slots
    ]
    if not steps:
        raise Missing("No two arms of Ollama tell the KV memory of one model and context")
    grows = all(b.kv_bytes > a.kv_bytes * (1 + SAME_SIZE) for a, b in steps)
    told = "; ".join(dict.fromkeys(str(cache) for step in steps for cache in step))
    return HELD if grows else NOT_HELD, f"KV memory, reserved at the load: {told}. Nothing ran out of it."


def _from_the_environment(case: Case) -> Finding:
    """C68: does a server that was started with the variable have what it says?"""
    if any(s.facts.get("owner", "foreign") == "foreign" for s in sides(case.run, "ollama")):
        raise Missing("labkit did not start this Ollama, and does not know its environment")
    word, told = _obeys(case)
    return word, f"OLLAMA_NUM_PARALLEL before `ollama serve`. {told} The other two were not read back."


# Models in memory: C22, C23, C65, on the transcript of :mod:`labkit.demos.evictions`


def _loads(transcript: Transcript) -> tuple[list[Event], int | None]:
    """Each load, and how many models were allowed."""
    loads = transcript.of("load")
    if not loads:
        raise Missing("Nothing was loaded in it")
    return loads, transcript.one("limit")["max_loaded_models"]


def _together(loads: list[Event]) -> str:
    most = max(loads, key=lambda load: len(load["loaded"]))
    return f"{len(most['loaded'])} models were in memory at once ({', '.join(most['loaded'])})"


def _one_at_a_time(transcript: Transcript) -> Finding:
    """C22: with no number given, how many stay?"""
    loads, limit = _loads(transcript)
    if limit is not None:
        raise Missing(f"{_together(loads)}, but the number was set to {limit} here, and is not Ollama's own")
    if len({load["model"] for load in loads}) < 2:
        raise Missing("Only one model was asked for")
    alone = max(len(load["loaded"]) for load in loads) == 1
    return HELD if alone else NOT_HELD, f"{_together(loads)}; no number was set."


def _swapped(transcript: Transcript) -> Finding:
    """C23: does one go when another comes, and come back when it is asked for?"""
    loads, _ = _loads(transcript)
    if refused := [load["model"] for load in loads if load["model"] not in load["loaded"]]:
        return NOT_HELD, f"{refused[0]} was asked for and is not in memory."
    gone = next((load for load in loads if load["evicted"]), None)
    if gone is None:
        raise Missing(f"Nothing had to go: {_together(loads)}")
    told = (
        f"{gone['model']} took {gone['took_s']:.2f} s to load, and {', '.join(gone['evicted'])} went for it"
    )
    there = [load["took_s"] for load in loads if load["was_loaded"]]
    return HELD, told + (f"; one that was there took {there[0]:.2f} s." if there else ".")


def _at_most(transcript: Transcript) -> Finding:
    """C65: are there never more than the number that was set?"""
    loads, limit = _loads(transcript)
    if limit is None:
        raise Missing(f"{_together(loads)}, and no number was set")
    if len({load["model"] for load in loads}) <= limit:
        raise Missing(f"No more than the {limit} models that were allowed were asked for")
    most = max(len(load["loaded"]) for load in loads)
    return HELD if most <= limit else NOT_HELD, f"{capital(_together(loads))}; {limit} were allowed."


JUDGES: dict[str, Judge] = {
    "C05": _obeys,
    "C64": _four_or_one,
    "C67": _only_the_product,
    "C68": _from_the_environment,
    "C86": _takes_memory,
}
READERS: dict[str, tuple[str, Reader]] = {
    "C22": ("evictions", _one_at_a_time),
    "C23": ("evictions", _swapped),
    "C65": ("evictions", _at_most),
}
