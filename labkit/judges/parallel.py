"""Claims of notebook 07: one endpoint for several devices, and room for a model that one does not hold."""

from __future__ import annotations

from labkit import parallel
from labkit.judges.base import HELD, NOT_HELD, Case, Finding, Judge, source
from labkit.sides import Missing, Side, sides

GROWS = 0.8
"""Room for tokens grows with the ranks if it grows by this share of their number at least: a pool is rounded
down to whole blocks, and a rank keeps some memory for itself."""


def _split(case: Case) -> Side:
    """The first arm of vLLM with several ranks."""
    for s in sides(case.run, "vllm"):
        if parallel.ranks_of(s.settings) > 1:
            return s
    raise Missing("No vLLM with several ranks was measured")


def _one_endpoint(case: Case) -> Finding:
    """C73: was one command enough, and did one address answer for all ranks?"""
    s = _split(case)
    ranks = parallel.ranks_of(s.settings)
    if not s.rows:
        return NOT_HELD, f"vLLM with {ranks} ranks gave no level at all."
    answered, failed = (sum(row[name] for row in s.rows.values()) for name in ("ok", "failed"))
    # what Stop or the level's end cut off says nothing
    asked = answered + failed
    told = f"{ranks} ranks, started by one command, answered {answered} of {asked} questions at one address"
    return HELD if answered and not failed else NOT_HELD, f"{told}."


def _more_room(case: Case) -> Finding:
    """C74: do the ranks split what one device would have to hold? Keys and values show it as weights do."""
    s = _split(case)
    ranks, tokens = parallel.ranks_of(s.settings), s.facts.get("kv_tokens")
    alone = [one for one in sides(case.run, "vllm") if parallel.ranks_of(one.settings) == 1]
    memory = s.facts.get("kv_bytes")
    same = [one for one in alone if memory and one.facts.get("kv_bytes") == memory]
    if not tokens or not same or not same[0].facts.get("kv_tokens"):
        raise Missing("There is no arm of one rank with as much KV memory as each rank has")
    room = tokens / same[0].facts["kv_tokens"]
    told = (
        f"In as much memory each, {ranks} ranks hold {tokens:,} tokens of keys and values and one holds "
        f"{same[0].facts['kv_tokens']:,}{source(s, 'kv_tokens')}: {room:.2f} times as many"
    )
    return HELD if room >= 1 + GROWS * (ranks - 1) else NOT_HELD, f"{told}."


JUDGES: dict[str, Judge] = {"C73": _one_endpoint, "C74": _more_room}
