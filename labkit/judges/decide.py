"""Claims of notebook 09: which engine for whom."""

from __future__ import annotations

from labkit.evidence import levels, seats
from labkit.judges.base import HELD, NOT_HELD, Case, Finding, Judge, Reader
from labkit.sides import NOISE, Missing, bits, people, ratio, shared
from labkit.slo import NAMES
from labkit.transcript import Transcript

ABOUT_FIVE = (4, 6)
"""Users that count as "about 5"."""


def _from_five_users(promise: Transcript) -> Finding:
    """C38: by the learner's own limits, from how many users on does Ollama break them and vLLM not?"""
    ollama, vllm = (levels(promise, engine) for engine in ("ollama", "vllm"))
    kept = seats(ollama)
    last = 0 if kept is None else int(kept["level"])
    broken = next((row for row in ollama if row["level"] > last), None)
    limits = _promised(promise)
    name = ollama[0]["arm"]
    if broken is None:
        raise Missing(f"{name} keeps {limits} at every measured level, up to {people(last)}")
    many = people(broken["level"])
    told = f"{name} keeps {limits} for {people(last)} and no more for {many}"
    if not last:
        told = f"{name} breaks {limits} with {many} already"
    other = next((row for row in vllm if row["level"] == broken["level"]), None)
    if other is None:
        raise Missing(f"{told}; {vllm[0]['arm']} was not measured there")
    if not other["holds"]:
        return NOT_HELD, f"{told}. {other['arm']} breaks it there too, so neither is the better choice."
    low, high = ABOUT_FIVE
    word = HELD if last < high and broken["level"] >= low else NOT_HELD
    return word, f"{told}. {other['arm']} keeps it there. With other limits it is another number."


def _promised(promise: Transcript) -> str:
    asked = promise.about["asked"]
    given = [f"{name} within {asked[limit]:g} s" for limit, name in NAMES.items() if asked[limit] is not None]
    return f"{' and '.join(given)} for {asked['share']:.0%}"


def _latency_or_throughput(case: Case) -> Finding:
    """C42: is Ollama's whole answer sooner with one user, and does vLLM write more in all with many?"""
    o, v = case.ollama, case.vllm
    both = shared(o, v)
    if both[0] != 1 or len(both) < 2:
        raise Missing("Both engines have to be measured with 1 user and with more")
    if bits(o.facts) != bits(v.facts):
        raise Missing("The two serve weights of different precision, so the file may be what wins")
    top = both[-1]
    alone = [s.value(1, "e2e_ms_p50") for s in (o, v)]
    many = ratio(v, o, top)
    told = (
        f"A whole answer for 1 user takes {o.ms(1, 'e2e_ms_p50')} at {o.name} and {v.ms(1, 'e2e_ms_p50')} at "
        f"{v.name}; {v.name} / {o.name} in total tokens/s: {many}"
    )
    sooner = alone[0] * (1 + NOISE) < alone[1]
    more = many.low > 1 and many.value > 1 + NOISE
    return HELD if sooner and more else NOT_HELD, f"{told}."


JUDGES: dict[str, Judge] = {"C42": _latency_or_throughput}

READERS: dict[str, tuple[str, Reader]] = {"C38": ("promise", _from_five_users)}
