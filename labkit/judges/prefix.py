"""Claims of notebook 06: what vLLM and Ollama reuse of what they have read before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from labkit import prefixes
from labkit.judges.base import HELD, NOT_HELD, Case, Finding, Judge, Reader
from labkit.sides import NOISE, Missing
from labkit.transcript import Event, Transcript

SECONDS_MS = 1000.0
"""A TTFT "of seconds" begins here."""

MILLISECONDS_MS = 100.0
"""A TTFT "of milliseconds" ends here; above, a person begins to notice a wait."""


def _measured(case: Case, *, caching: tuple[bool | None, ...]) -> list[dict[str, Any]]:
    """Rows of vLLM's arms that were started so, at levels where at least one whole block is shared.

    Raises:
        Missing: it is another run, or there is no such level.
    """
    table = prefixes.table(case.run)
    rows = table.filter(
        pl.col("engine") == "vllm", pl.col("shared_tokens") >= pl.col("block_size")
    ).to_dicts()
    found = [row for row in rows if row["caching"] in caching and row["warm"]]
    if not found:
        raise Missing("No arm of vLLM was asked questions that share a whole block")
    # vLLM leaves the count out of answers that took nothing, and its counter then says so
    if all(row["cached_tokens"] is None and row["hits"] != 0 for row in found):
        raise Missing("No answer of vLLM says what came from the cache")
    return found


def _by_a_flag(case: Case) -> Finding:
    """C69: is anything reused by a vLLM that nobody told to do so?"""
    if not any(row["caching"] is None for row in prefixes.table(case.run).to_dicts()):
        raise Missing("No vLLM was started without a word on prefix caching")
    rows = _measured(case, caching=(None,))
    best = max(rows, key=lambda row: row["cached_tokens"] or 0)
    told = (
        f"{best['arm']} was started without that flag, and took {best['cached_tokens'] or 0} of the "
        f"{best['shared_tokens']} tokens that its questions shared from the cache"
    )
    off = [row["cached_tokens"] or 0 for row in prefixes.table(case.run).filter(caching=False).to_dicts()]
    told += f"; with --no-enable-prefix-caching it was {max(off)}" if off else ""
    return NOT_HELD if best["cached_tokens"] else HELD, f"{told}."


def _whole_blocks(case: Case) -> Finding:
    """C70: is each whole block that is shared taken from the cache, by every later question?"""
    rows = _measured(case, caching=(None, True))
    short = [row for row in rows if (row["cached_min"] or 0) < _blocks(row)]
    if short:
        row = short[0]
        return NOT_HELD, (
            f"With {row['shared_tokens']} tokens shared, whole blocks of {row['block_size']} are "
            f"{_blocks(row)}, and a question took only {row['cached_min'] or 0} from the cache."
        )
    part = max(rows, key=lambda row: row["shared_tokens"] - row["cached_tokens"])
    read_again = part["shared_tokens"] - part["cached_tokens"]
    more = (
        f"; with {part['shared_tokens']} shared, the last {read_again} were read again" if read_again else ""
    )
    return HELD, (
        f"At all {len(rows)} lengths every later question took each whole block of {part['block_size']} "
        f"tokens from the cache{more}."
    )


def _blocks(row: Mapping[str, Any]) -> int:
    """Tokens in whole blocks of what a level's questions share."""
    return prefixes.whole_blocks(row["shared_tokens"], row["block_size"], row["prompt_tokens"])


def _to_milliseconds(case: Case) -> Finding:
    """C71: from how much to how little does TTFT go, at the length with the most from the cache?"""
    rows = [row for row in _measured(case, caching=(None, True)) if row["ttft_cold_ms_p50"] is not None]
    if not rows:
        raise Missing("No first question was answered")
    best = max(rows, key=lambda row: row["cached_tokens"] or 0)
    told = f"With {best['cached_tokens'] or 0} of {best['prompt_tokens']} tokens from the cache"
    return _shortened(told, best["ttft_cold_ms_p50"], best["ttft_warm_ms_p50"])


def _asked_again(transcript: Transcript) -> Finding:
    """C71, on one long beginning: from how much to how little does TTFT go when it has been read before?"""
    cases = _cases(transcript)
    first, again = (cases.get(name) for name in ("busy: first", "idle: same prefix"))
    if first is None or again is None:
        raise Missing("No long beginning was asked twice in it")
    told = f"With {_reused(again)} from the cache of {transcript.about['engine']}"
    return _shortened(told, 1000 * first["ttft_s"], 1000 * again["ttft_s"])


def _shortened(told: str, cold_ms: float, warm_ms: float) -> Finding:
    """From seconds to milliseconds, or less of a gain; only a wait of seconds can become one."""
    told += f", TTFT went from {cold_ms:,.0f} to {warm_ms:,.0f} ms, {cold_ms / warm_ms:.1f} times as fast"
    if cold_ms < warm_ms * (1 + NOISE):
        return NOT_HELD, f"{told}: no gain beyond the noise."
    if cold_ms < SECONDS_MS:
        raise Missing(f"{told}. It was no second to begin with; longer questions are needed")
    return HELD if warm_ms < MILLISECONDS_MS else NOT_HELD, f"{told}."


def _nothing_like_it(transcript: Transcript) -> Finding:
    """C72: what does Ollama take from a slot that is idle, and from one that is busy?"""
    if transcript.about.get("engine") != "ollama":
        raise Missing(f"This is {transcript.about.get('engine')}'s transcript, not Ollama's")
    cases = _cases(transcript)
    idle = cases.get("idle: same prefix")
    if idle is None or idle["cached_tokens"] is None:
        raise Missing("Ollama was not asked one beginning twice, or does not say what it reused")
    told = f"From an idle slot Ollama took {_reused(idle)}"
    busy = cases.get("busy: same prefix meanwhile")
    if busy is not None and busy.get("busy", True):  # else the first answer had ended before
        told += f"; while the slot that had read it was busy, {_reused(busy)}"
    return NOT_HELD if idle["cached_tokens"] > prefixes.FEW * idle["prompt_tokens"] else HELD, f"{told}."


def _cases(transcript: Transcript) -> dict[str, Event]:
    """The first answer of each case."""
    return {event["case"]: event for event in reversed(transcript.of("ask"))}


def _reused(event: Event) -> str:
    return f"{event['cached_tokens'] or 0} of {event['prompt_tokens']} tokens"


JUDGES: dict[str, Judge] = {"C69": _by_a_flag, "C70": _whole_blocks, "C71": _to_milliseconds}
READERS: dict[str, tuple[str, Reader]] = {
    "C71": ("reuse", _asked_again),
    "C72": ("reuse", _nothing_like_it),
}
