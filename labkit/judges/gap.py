"""Claims of notebook 05: how the two compare under the same load."""

from __future__ import annotations

import itertools
from functools import partial

from labkit import metrics
from labkit.bundle import Run
from labkit.judges.base import HELD, NOT_HELD, NOT_HERE, SIMILAR, Case, Finding, Judge, slots_of
from labkit.sides import NOISE, Missing, Ratio, Side, answers, bits, people, ratio, shared

NARROW = 0.25
"""A lead of up to this share is a narrow one."""

TOP_USERS = 128
"""Users of C34 and C81."""

EXTREME, CAREFUL = (3.0, 19.5), (3.0, 5.0)
"""Ratios of C34, whose upper end is a rounded 19, and of C81."""


def _published_peak(case: Case) -> Finding:
    """C12: peak against peak, judged only under the published conditions."""
    o, v = case.ollama, case.vllm
    peaks = {s.arm: max(row["tokens_per_s"] or 0.0 for row in s.rows.values()) for s in (o, v)}
    if not all(peaks.values()):
        raise Missing("An engine delivered no tokens, so there is no ratio of peaks")
    vllm, ollama = case.published
    theirs, ours = vllm / ollama, peaks[v.arm] / peaks[o.arm]
    where = ", ".join(f"{s.name} {s.facts.get('quantisation')} on {s.facts.get('device')}" for s in (o, v))
    rates = f"{peaks[v.arm]:.1f} / {peaks[o.arm]:.1f} tokens/s"
    own = f"{v.name}'s peak is {ours:.2f} times {o.name}'s ({rates}; {where})"
    same = case.run.kind != "simulated" and all(_as_published(s) for s in (o, v))
    if not same:
        return (
            NOT_HERE,
            f"{own}. The published ratio is for an 8B model in 16 bit on one A100, which this is not.",
        )
    word = HELD if 1 / (1 + SIMILAR) <= ours / theirs <= 1 + SIMILAR else NOT_HELD
    return word, f"{own}; published {theirs:.1f}, on the same kind of card and model."


def _as_published(s: Side) -> bool:
    model = str(s.facts.get("model")).lower().replace("-", "").replace(":", "")
    return "A100" in str(s.facts.get("device")) and "llama3.18b" in model and bits(s.facts) == 16


def _gap_widens(case: Case) -> Finding:
    """C13: does the ratio rise from level to level to the top?"""
    o, v = case.ollama, case.vllm
    ratios = [ratio(v, o, users) for users in shared(o, v)]
    if len(ratios) < 3:
        raise Missing(f"A trend needs 3 levels that both engines share, this run has {len(ratios)}")
    steps = [_step(a, b) for a, b in itertools.pairwise(ratios)]
    curve = f"{v.name} / {o.name} in total tokens/s: " + ", ".join(str(r) for r in ratios)
    for step, (before, after) in zip(steps, itertools.pairwise(ratios), strict=True):
        if step < 0:
            return NOT_HELD, f"{curve}. It narrows between {before.users} and {people(after.users)}."
    if steps[-1] == 0:
        rising = [index for index, step in enumerate(steps) if step > 0]
        start = ratios[rising[-1] + 1 if rising else 0]
        limit = f"steps below {NOISE:.0%}, or within the repeats' range, count as flat"
        return NOT_HELD, f"{curve}. It stays flat from {people(start.users)} on ({limit})."
    below = " While the ratio is below 1 a rise makes the gap smaller." if ratios[0].value < 1 else ""
    return HELD, f"{curve}. That is up to {people(ratios[-1].users)}; a plateau may lie above.{below}"


def _step(before: Ratio, after: Ratio) -> int:
    """1 wider, -1 narrower, 0 not told apart."""
    if after.low > before.high and after.value > before.value * (1 + NOISE):
        return 1
    if after.high < before.low and after.value < before.value * (1 - NOISE):
        return -1
    return 0


def _alike_for_few(case: Case) -> Finding:
    """C31: TTFT at one and two users."""
    o, v = case.ollama, case.vllm
    levels = [n for n in (1, 2) if n in o.rows and n in v.rows]
    if not levels:
        raise Missing("Neither 1 nor 2 users were measured on both engines")
    alike, parts = [], []
    for users in levels:
        if o.cut_short(users) or v.cut_short(users):
            raise Missing(f"Too many answers failed or were cut off at {people(users)} to compare medians")
        a, b = (s.value(users, "ttft_ms_p50") for s in (o, v))
        noise = [_ttft_spread(case.run, s, users) for s in (o, v)]
        limit = max([SIMILAR, *(n for n in noise if n is not None)])
        basis = "the repeats spread that far" if limit > SIMILAR else "a level has few answers"
        counts = " and ".join(str(s.rows[users]["ok"]) for s in (o, v))
        queue = f"; with {slots_of(o)} a user waits" if o.slots is not None and users > o.slots else ""
        apart = max(a, b) / min(a, b) - 1
        alike.append(apart <= limit)
        parts.append(
            f"at {people(users)} {o.name} {a:,.0f} ms, {v.name} {b:,.0f} ms, {apart:.0%} apart "
            f"(alike within {limit:.0%}, since {basis}: {counts}{queue})"
        )
    rest = "" if len(levels) == 2 else f". {people(3 - levels[0]).capitalize()} were not measured"
    return HELD if all(alike) else NOT_HELD, f"TTFT p50 {'; '.join(parts)}{rest}."


def _ttft_spread(run: Run, s: Side, users: int) -> float | None:
    """Spread of the repeats' median TTFT."""
    rows = answers(run, s, users)
    return metrics.spread(rows.group_by("repeat").agg(metrics.TTFT.median())["ttft_s"].to_list())


def _one_user(case: Case) -> Finding:
    """C32: total tokens/s at one user, with an eye on who reads the smaller weights."""
    o, v = case.ollama, case.vllm
    if 1 not in shared(o, v):
        raise Missing("1 user was not measured on both engines")
    one = ratio(o, v, 1)
    sure = one.low > 1 or one.high < 1
    numbers = f"{o.name} / {v.name} in total tokens/s: {one}{_decode(o, v)}"
    widths = [bits(s.facts) for s in (o, v)]
    if not sure or abs(one.value - 1) <= NOISE:
        return NOT_HELD, f"{numbers}. Neither is ahead beyond the noise."
    if None in widths:
        raise Missing(f"{numbers}. The precision of a side is unknown, and a smaller file alone can win")
    ahead = one.value > 1
    ours, theirs = widths if ahead else reversed(widths)
    word = f"{widths[0]} against {widths[1]} bit a weight"
    if ours < theirs:  # type: ignore[operator]  # None was refused above
        raise Missing(f"{numbers}. With {word} the smaller file may be what wins, not the engine")
    if not ahead:
        return NOT_HELD, f"{numbers}. {v.name} is ahead ({word})."
    size = "narrowly" if one.value <= 1 + NARROW else "by more than a little"
    return HELD, f"{numbers}. {o.name} is ahead {size}, and not by a smaller file ({word})."


def _decode(o: Side, v: Side) -> str:
    tpot = [s.rows[1]["tpot_ms_p50"] for s in (o, v)]
    if not all(tpot):
        return ""
    return f"; decode (1/TPOT) {1000 / tpot[0]:.1f} against {1000 / tpot[1]:.1f} tokens/s"


def _at_128(expected: tuple[float, float], case: Case) -> Finding:
    """C34, C81: the ratio at 128 users or the first level above."""
    o, v = case.ollama, case.vllm
    levels = shared(o, v)
    enough = [n for n in levels if n >= TOP_USERS]
    found = ratio(v, o, min(enough, default=max(levels)))
    numbers = f"{v.name} / {o.name} in total tokens/s: {found}"
    if not enough:
        raise Missing(f"{numbers}, the most that was measured; {TOP_USERS} were not")
    low, high = expected
    word = HELD if found.high >= low and found.low <= high else NOT_HELD
    return word, f"{numbers}."


JUDGES: dict[str, Judge] = {
    "C12": _published_peak,
    "C13": _gap_widens,
    "C31": _alike_for_few,
    "C32": _one_user,
    "C34": partial(_at_128, EXTREME),
    "C81": partial(_at_128, CAREFUL),
}
