"""Claims of notebook 02: who waits for Ollama, where, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from labkit import metrics
from labkit.bundle import Run
from labkit.judges.base import (
    HELD,
    NOT_HELD,
    SIMILAR,
    Case,
    Finding,
    Judge,
    beside,
    by_users,
    capital,
    measured_wait,
    slots_of,
    source,
)
from labkit.queueing import in_order
from labkit.sides import NOISE, Missing, Side, people, ratio, shared, sides, waiting

CROWD = 16
"""Users from which C33 speaks of a queue."""

APART_S = 0.05
"""Requests sent this long after each other reach the queue in that order. Those sent within a moment do not:
a server reads them in parallel, and which of them gets in line first is chance."""

PAIRS = 3
"""Pairs of requests that have to wait together before an order means something."""

BUSY = 503

DEFAULT_QUEUE = 512
"""Of OLLAMA_MAX_QUEUE; the number that C21 names."""


# How many at once: C04, C06


def by_default(case: Case) -> Side:
    """Ollama started without a number of slots."""
    for s in sides(case.run, "ollama"):
        if "num_parallel" in s.settings and s.settings["num_parallel"] is None:
            if s.slots is None:
                raise Missing(f"{s.name} does not tell how many slots it took")
            return s
    raise Missing("No arm of Ollama was started with its own default (num_parallel=None)")


def _four_by_default(case: Case) -> Finding:
    """C04: the slots that Ollama takes when no number is given."""
    s = by_default(case)
    told = f"Started without a number, Ollama {s.facts.get('version')} took {slots_of(s)}"
    return HELD if s.slots == 4 else NOT_HELD, f"{told}{source(s, 'slots')}."


def _rest_queues(case: Case) -> Finding:
    """C06: with more requests than slots, do the others wait, and is none refused?"""
    by_users(case.run)
    crowded = [s for s in sides(case.run, "ollama") if s.slots and s.rows and max(s.rows) > s.slots]
    if not crowded:
        raise Missing("No arm of Ollama had more requests at once than slots")
    s = crowded[0]
    users = max(s.rows)
    found = measured_wait(case, s, users)
    refused = _refused(case.run, s.arm, users)
    turned = f"; {refused} were refused with {BUSY}" if refused else ""
    word = HELD if found.queued and not refused else NOT_HELD
    return word, f"{found.sentence} ({slots_of(s)}){turned}."


def _refused(run: Run, arm: str, level: int) -> int:
    return in_order(run).filter(arm=arm, level=level, http_status=BUSY).height


# Order: C20


def _first_come(case: Case) -> Finding:
    """C20: of two requests that waited together, was the one sent first served first?"""
    for s in sides(case.run, "ollama"):
        if s.slots is None:
            continue
        pairs = _in_line(case.run, s)
        if pairs.height < PAIRS:
            continue
        # requests that are in slots at the same time may finish reading their prompts in any order
        passed = pairs.filter("passed").group_by("id").len().filter(pl.col("len") >= s.slots)
        allowed = f" by more than the {s.slots - 1} it shares the slots with" if s.slots > 1 else ""
        numbers = (
            f"Of {pairs['id'].n_unique()} requests to {s.name} that stood in line before one that was sent "
            f"at least {APART_S * 1000:.0f} ms later, {passed.height} were overtaken{allowed}"
        )
        return NOT_HELD if passed.height else HELD, f"{numbers}."
    raise Missing(
        f"No {PAIRS} pairs of requests to Ollama were sent at least {APART_S * 1000:.0f} ms apart and waited "
        "at the same time; in a burst all are sent in one moment"
    )


def _in_line(run: Run, s: Side) -> pl.DataFrame:
    """Pairs that were in line together: ``id`` of the one sent first, and whether the other ``passed`` it."""
    rows = metrics.answered(run.requests).filter(pl.col("arm") == s.arm)
    rows = rows.select("id", "level", "repeat", "sent_s", "first_token_s")
    apart = (pl.col("sent_s_right") >= pl.col("sent_s") + APART_S) & (
        pl.col("sent_s_right") < pl.col("first_token_s")
    )
    pairs = rows.join(rows, on=["level", "repeat"], how="inner").filter(apart)
    return pairs.with_columns(passed=pl.col("first_token_s_right") < pl.col("first_token_s"))


# Refusals: C21, C66


@dataclass(frozen=True)
class _Trap:
    """More requests in line than ``max_queue`` allows, and what came of it."""

    limit: int
    standard: bool  # nobody chose the limit
    cold: bool
    at_once: int
    sent: int
    refused: int

    def __str__(self) -> str:
        state = "not loaded" if self.cold else "loaded"
        return (
            f"with max_queue={self.limit} and the model {state}, {self.refused} of {self.sent} requests, "
            f"{self.at_once} at once, were refused with {BUSY}"
        )


def _traps(case: Case) -> Iterator[_Trap]:
    for run, s in case.arms("ollama"):
        load = run.arrivals
        asked = s.settings.get("max_queue")
        limit = DEFAULT_QUEUE if asked is None else asked
        for level, row in s.rows.items():
            # in an open loop nobody knows how many were in line at once
            if load["arrivals"] in {"closed", "burst"} and level > limit + (s.slots or 0):
                refused = _refused(run, s.arm, level)
                yield _Trap(limit, asked is None, bool(load.get("cold")), level, row["planned"], refused)


def _bounded(case: Case) -> tuple[list[_Trap], bool]:
    traps = list(_traps(case))
    if not traps:
        raise Missing("In no run were there more requests in line than OLLAMA_MAX_QUEUE allows")
    return traps, all(trap.refused for trap in traps)


def _refuses(case: Case) -> Finding:
    """C66: are requests beyond the limit refused, whether or not the model is loaded?"""
    traps, bounded = _bounded(case)
    return HELD if bounded else NOT_HELD, f"{capital('; '.join(map(str, traps)))}."


def _holds_512(case: Case) -> Finding:
    """C21: does the queue end at 512?"""
    traps, bounded = _bounded(case)
    told = capital("; ".join(map(str, traps)))
    if not bounded:
        return NOT_HELD, f"{told}. A queue that ignores its limit does not end at {DEFAULT_QUEUE} either."
    if not any(trap.standard for trap in traps):
        raise Missing(f"{told}. That the limit counts does not tell what it is by default")
    return HELD, f"{told}."


# What waiting looks like: C33, C35, C36


def _queue_builds(case: Case) -> Finding:
    """C33: a queue at 16 users, or already below, and from how many users on."""
    o = case.ollama
    crowded = [n for n in o.rows if n >= CROWD]
    above = [n for n in o.rows if o.slots is not None and n > o.slots]
    if not crowded and not above:
        raise Missing(f"{o.name} was measured neither with {CROWD} users nor with more users than slots")
    users = min(crowded) if crowded else max(above)
    wait = measured_wait(case, o, users)
    told = "" if crowded else f"{CROWD} users were not measured; judged at {people(users)}. "
    rise = f"{told}{wait.sentence}; TTFT p50 is {o.ms(users, 'ttft_ms_p50')}"
    if 1 in o.rows:
        rise += f" against {o.ms(1, 'ttft_ms_p50')} at 1 user"
    slots = f" ({slots_of(o)})" if o.slots else ""
    if wait.queued:
        onset = next(n for n in o.rows if n == users or _queued(case, o, n))
        return HELD, f"{rise}. The queue shows from {people(onset)} on{slots}."
    if not crowded or o.cut_short(users):
        raise Missing(f"{rise}: no queue yet{slots}, and this does not tell what {CROWD} users would see")
    return NOT_HELD, f"{rise}{slots}: no queue."


def _queued(case: Case, s: Side, users: int) -> bool:
    try:
        return measured_wait(case, s, users).queued
    except Missing:
        return False


def _even_stream(case: Case) -> Finding:
    """C35: ITL at the top level against one user."""
    o = case.ollama
    whole = [n for n in o.rows if n > 1 and not o.cut_short(n)]
    if not whole:
        raise Missing(f"No level above 1 user came whole on {o.name}")
    users = max(whole)
    if o.slots is not None and users <= o.slots:
        raise Missing(f"{o.name} has {slots_of(o)} for {people(users)}, so nothing was held back")
    growth = o.value(users, "itl_ms_p50") / o.value(1, "itl_ms_p50")
    slots = f" ({slots_of(o)})" if o.slots else ""
    numbers = f"{_growth(o, users)}{slots}{beside(lambda: _growth(case.vllm, users))}"
    if users < max(o.rows):
        numbers += f"; above {people(users)} too many answers failed or were cut off"
    return HELD if growth <= 1 + SIMILAR else NOT_HELD, f"{numbers} (even means: up to {SIMILAR:.0%} more)."


def _growth(s: Side, users: int) -> str:
    one, many = s.value(1, "itl_ms_p50"), s.value(users, "itl_ms_p50")
    return (
        f"{s.name}'s ITL p50 is {one:.1f} ms at 1 user and {many:.1f} ms at {users}, {many / one:.2f} times"
    )


def _wait_to_get_in(case: Case) -> Finding:
    """C36: how much of TTFT is waiting at the top level."""
    o = case.ollama
    users = max(o.rows)
    if o.slots is not None and users <= o.slots:
        raise Missing(f"{o.name} has {slots_of(o)} for {people(users)}, so nobody had to wait")
    found = measured_wait(case, o, users)
    other = beside(lambda: waiting(case.run, case.vllm, users).sentence)
    numbers = f"{found.sentence}; TTFT p50 {o.ms(users, 'ttft_ms_p50')}{other}"
    if not found.queued and o.cut_short(users):
        raise Missing(f"{numbers}; too many answers failed or were cut off to say that it is no more")
    return HELD if found.queued else NOT_HELD, f"{numbers}."


# Batching: C80


def batches(run: Run) -> tuple[bool, str] | None:
    """Whether Ollama's total rises with its slots; None if the run has not both one slot and more."""
    by_users(run)
    arms = [s for s in sides(run, "ollama") if s.slots and s.rows]
    single = next((s for s in arms if s.slots == 1), None)
    several = [s for s in arms if s.slots and s.slots > 1]
    if single is None or not several:
        return None
    most = max(several, key=lambda s: s.slots or 0)
    users = max(shared(most, single))
    gain = ratio(most, single, users)
    rises = gain.low > 1 and gain.value > 1 + NOISE
    return rises, f"{most.name} / {single.name} in total tokens/s: {gain}"


def _lines_up(case: Case) -> Finding:
    """C80: does Ollama serve more in total when more ask, or with more slots?"""
    found = batches(case.run)
    if found is not None:
        rises, numbers = found
        return NOT_HELD if rises else HELD, f"{numbers}."
    o = case.ollama
    users = max(o.rows)
    if users == 1:
        raise Missing(f"{o.name} was measured with 1 user only")
    one, many = o.value(1, "tokens_per_s"), o.value(users, "tokens_per_s")
    if not one:
        raise Missing(f"{o.name} delivered no tokens to 1 user")
    told = f"{o.name} delivered {many / one:.2f} times as many tokens/s at {people(users)} as at 1"
    slots = f" ({slots_of(o)})" if o.slots else ""
    limit = f"up to {SIMILAR:.0%} more is what saves the pauses between one user's requests"
    return NOT_HELD if many / one > 1 + SIMILAR else HELD, f"{told}{slots}; {limit}."


JUDGES: dict[str, Judge] = {
    "C04": _four_by_default,
    "C06": _rest_queues,
    "C20": _first_come,
    "C21": _holds_512,
    "C33": _queue_builds,
    "C35": _even_stream,
    "C36": _wait_to_get_in,
    "C66": _refuses,
    "C80": _lines_up,
}
