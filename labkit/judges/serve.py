"""Claims of notebook 04: how vLLM takes requests on, what its pool of KV blocks does, what it serves."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from labkit import metrics
from labkit.bundle import Run
from labkit.judges.base import HELD, NOT_HELD, Case, Finding, Judge, Reader, beside, capital, source
from labkit.judges.joining import joining
from labkit.judges.under_load import batches
from labkit.sides import Missing, Side, readings, sides
from labkit.transcript import Transcript

SMALL_PAGE = 16
"""Tokens of a block in C26."""

RESERVED_WASTE = 0.6
"""Share that C28 says a reservation for the longest answer wastes at least."""

PORT = 8000
"""Of C51."""

REGISTRY = "registry"
"""How a source begins that brings files as they were published (data/models.toml)."""

STEADY = 3
"""Times that an answer needs a new block which have to be seen before a judgement of C27."""


def _no_limit(case: Case) -> Finding:
    """C07: with more requests than max_num_seqs, how many does it work on?"""
    limits = []
    for s in sides(case.run, "vllm"):
        if s.slots is None:
            continue
        limits.append(f"{s.name} tells a limit of {s.slots}")
        seen = readings(case.run, s.arm)
        running = seen["running"].max()
        if isinstance(running, float) and running > s.slots:
            told = f"{s.name} worked on {running:.0f} requests at once"
            return HELD, f"{told}, above its max_num_seqs of {s.slots}."
        full = seen.filter(pl.col("running") == s.slots, pl.col("waiting") > 0)
        if full.height:
            most = max(full["waiting"])
            told = f"{s.name} never worked on more than {s.slots} requests while up to {most:.0f} waited"
            return NOT_HELD, f"{told}; max_num_seqs is {s.slots}{source(s, 'slots')}."
    if not limits:
        raise Missing("No arm of vLLM tells its max_num_seqs")
    raise Missing(f"{'; '.join(limits)}, which the requests never reached")


def _fills_the_pool(case: Case) -> Finding:
    """C08: is the pool there before the requests, and do more requests fill more of it?"""
    for s in sides(case.run, "vllm"):
        pool, tokens = s.facts.get("kv_bytes"), s.facts.get("kv_tokens")
        seen = readings(case.run, s.arm).filter(pl.col("running") > 0).drop_nulls("kv_use")
        by_running = seen.group_by("running").agg(pl.col("kv_use").mean()).sort("running")
        if not pool or not tokens or by_running.height < 2:
            continue
        few, many = by_running.row(0, named=True), by_running.row(-1, named=True)
        if many["running"] < 2 * few["running"]:  # how far their answers are matters as much then
            continue
        told = (
            f"{s.name}'s pool of {pool / 2**30:.2f} GiB, {tokens:,} tokens, was there before the first "
            f"request; {few['running']:.0f} at work used {few['kv_use']:.1%} of it, "
            f"{many['running']:.0f} used {many['kv_use']:.1%}"
        )
        return HELD if many["kv_use"] > few["kv_use"] else NOT_HELD, f"{told}."
    raise Missing("No arm of vLLM tells its pool and how much of it different numbers of requests used")


def _pages_of_16(case: Case) -> Finding:
    """C26: tokens of a block."""
    s = sides(case.run, "vllm")[0]
    size = s.facts.get("block_size")
    if size is None:
        raise Missing(f"{s.name} does not tell its block size")
    told = f"{s.name} on {s.facts.get('device')} has blocks of {size} tokens{source(s, 'block_size')}"
    return HELD if size == SMALL_PAGE else NOT_HELD, f"{told}."


# C27: between two readings in which no request came or went, only growing answers can take blocks


@dataclass(frozen=True)
class _Growth:
    needed: int
    taken: int


def _growths(run: Run, s: Side) -> Iterator[_Growth]:
    """Blocks that answers grew into between two readings, and blocks that the gauge says were taken."""
    size, pool = s.facts["block_size"], s.facts["kv_tokens"]
    rows = metrics.answered(run.requests).filter(pl.col("arm") == s.arm)
    moves = pl.concat([rows[name] for name in ("sent_s", "first_token_s", "end_s")]).sort()
    crossings = _crossings(run, rows, size)
    for before, after in itertools.pairwise(readings(run, s.arm).drop_nulls("kv_use").to_dicts()):
        start, end = before["t_s"], after["t_s"]
        if before["level"] != after["level"] or before["repeat"] != after["repeat"]:
            continue
        if before["running"] != after["running"] or moves.is_between(start, end).any():
            continue
        needed = int(crossings.is_between(start, end).sum())
        yield _Growth(needed, round((after["kv_use"] - before["kv_use"]) * pool / size))


def _crossings(run: Run, rows: pl.DataFrame, size: int) -> pl.Series:
    """Moments at which an answer outgrew its last block."""
    tokens = run.tokens.join(rows.select("id", "prompt_tokens"), left_on="request_id", right_on="id")
    held = pl.col("prompt_tokens") + pl.col("tokens").cum_sum().over("request_id")
    blocks = ((held - 1) // size).diff().over("request_id")
    return tokens.sort("request_id", "t_s").filter(blocks > 0)["t_s"]


def _on_demand(case: Case) -> Finding:
    """C27: do answers take blocks as they grow into them?"""
    for s in sides(case.run, "vllm"):
        if not s.facts.get("block_size") or not s.facts.get("kv_tokens"):
            continue
        grown = [one for one in _growths(case.run, s) if one.needed]
        needed, taken = (sum(getattr(one, name) for one in grown) for name in ("needed", "taken"))
        if needed < STEADY:
            continue
        size = s.facts["block_size"]
        told = (
            f"While no request came or went, {s.name}'s answers grew past {needed} borders of a block of "
            f"{size} tokens, and its pool in use grew by {taken} blocks"
        )
        return HELD if 2 * taken >= needed else NOT_HELD, f"{told}."
    raise Missing(
        f"Not {STEADY} times did answers of vLLM outgrow a block between two readings in which no "
        "request came or went"
    )


def _little_waste(case: Case) -> Finding:
    """C28: what is left of the last blocks at the end of each answer, and what a reservation would leave."""
    highest = case.published[-1] / 100
    s = sides(case.run, "vllm")[0]
    size, context = s.facts.get("block_size"), s.facts.get("context")
    rows = metrics.answered(case.run.requests).filter(pl.col("arm") == s.arm)
    used = rows.select(pl.col("prompt_tokens") + pl.col("output_tokens")).to_series().drop_nulls()
    if not size or not context or used.is_empty():
        raise Missing(f"{s.name} does not tell block size, context and tokens of its answers")
    held = int((((used + size - 1) // size) * size).sum())
    waste = 1 - int(used.sum()) / held
    reserved = 1 - int(used.sum()) / (context * len(used))
    told = (
        f"At their end {len(used)} answers left {waste:.1%} of their blocks of {size} tokens unused "
        f"({statistics.median(used):.0f} tokens at the median); a reservation of {context:,} tokens each "
        f"would leave {reserved:.1%}"
    )
    return HELD if waste < highest and reserved >= RESERVED_WASTE else NOT_HELD, f"{told}."


# Continuous batching: C29, C30


def _joins_between_steps(case: Case) -> Finding:
    """C29: do new requests get to work while others go on?"""
    reasons = []
    for s in sides(case.run, "vllm"):
        try:
            found = joining(case.run, s)
        except Missing as missing:
            reasons.append(str(missing))
            continue
        return HELD if found.filled > found.left_empty else NOT_HELD, f"{capital(found.sentence)}."
    raise Missing("; ".join(reasons))


def _others_wait(case: Case) -> Finding:
    """C30: does Ollama, too, fill a slot while its others go on? Or does its total rise with slots?"""
    reasons = []
    for s in sides(case.run, "ollama"):
        if s.slots is None or s.slots < 2:
            continue
        try:
            found = joining(case.run, s)
        except Missing as missing:
            reasons.append(str(missing))
            continue
        also = beside(lambda: joining(case.run, sides(case.run, "vllm")[0]).sentence)
        return NOT_HELD if found.filled > found.left_empty else HELD, f"{capital(found.sentence)}{also}."
    more = batches(case.run)
    if more is None:
        raise Missing("; ".join(reasons) or "No arm of Ollama has 2 slots or more")
    rises, numbers = more
    return NOT_HELD if rises else HELD, f"{numbers}."


def _flags(case: Case) -> Finding:
    """C49: does vLLM take the context that it is started with?"""
    for s in sides(case.run, "vllm"):
        asked, context = s.settings.get("max_model_len"), s.facts.get("context")
        if asked is not None and context is not None:
            told = f"Started with --max-model-len={asked}, {s.name} tells a context of {context}"
            return HELD if asked == context else NOT_HELD, f"{told}{source(s, 'context')}."
    raise Missing("No arm of vLLM was started with a max_model_len of its own")


# The files and the address: C15, C51, C84


def _as_published(case: Case) -> Finding:
    """C15: does vLLM answer from the files of the repository, with nothing done to them?"""
    s = sides(case.run, "vllm")[0]
    origin = s.facts.get("model_source")
    if case.run.kind == "simulated" or origin is None:
        raise Missing(f"{s.name} does not tell where its files came from")
    if not origin.startswith(REGISTRY):
        raise Missing(f"{s.name} served files that labkit made, from the {origin}, and not published ones")
    whole = sum(row["ok"] for row in s.rows.values())
    word = HELD if whole else NOT_HELD
    return word, f"{s.name} gave {whole} whole answers from the files of the {origin}."


def _other_files(case: Case) -> Finding:
    """C84: do the two serve files with one digest?"""
    both = [sides(case.run, engine)[0] for engine in ("ollama", "vllm")]
    digests = [s.facts.get("model_digest") for s in both]
    if case.run.kind == "simulated" or not all(digests):
        raise Missing("Not both engines tell the digest of the file that they serve")
    told = ", ".join(f"{s.name} {digest[:12]}" for s, digest in zip(both, digests, strict=True) if digest)
    return HELD if digests[0] != digests[1] else NOT_HELD, f"SHA-256 of the weights file: {told}."


def _port_8000(transcript: Transcript) -> Finding:
    """C51: where does vLLM listen if no port is named? Its log names every option that was."""
    phases = {event["phase"]: event["says"] for event in transcript.of("phase")}
    options, listens = phases.get("imports", ""), phases.get("HTTP server", "")
    port = re.search(r":(\d+)$", listens)
    if port is None or "'host'" not in options:
        raise Missing("Its log tells neither the options nor the address")
    if "'port'" in options:
        raise Missing(f"It was started with a port of its own, {port[1]}")
    word = HELD if port[1] == str(PORT) else NOT_HELD
    return word, f"Among the options that its log lists is no port, and it says: {listens}."


JUDGES: dict[str, Judge] = {
    "C07": _no_limit,
    "C08": _fills_the_pool,
    "C15": _as_published,
    "C26": _pages_of_16,
    "C27": _on_demand,
    "C28": _little_waste,
    "C29": _joins_between_steps,
    "C30": _others_wait,
    "C49": _flags,
    "C84": _other_files,
}
READERS: dict[str, tuple[str, Reader]] = {"C51": ("start_log_vllm", _port_8000)}
