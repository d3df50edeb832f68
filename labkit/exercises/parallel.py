"""Right answers and known mistakes of the exercises in notebook 07, from runs and transcripts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from labkit import parallel, sharing
from labkit.bundle import Run
from labkit.exercises.base import Answer, Evidence, Solver, always
from labkit.exercises.runs import trusted
from labkit.parallel import Shape
from labkit.sides import NOISE, Missing, people
from labkit.transcript import Transcript

CLOSE = 0.05
"""How near a ratio of two pools has to be, as a share: a pool is rounded down to whole blocks."""


# tp-fastest


def _rates(runs: Evidence) -> tuple[int, dict[str, float]]:
    """The most users that all arms were measured with, and their total tokens/s there, by kind of arm.

    Raises:
        Missing: there is no such level, or the run lacks the arm of one device or that of the ranks.
    """
    run = trusted(runs[0])
    found, summary = sharing.arms_of(run), run.summary()
    arms = {"one": found.one, "ranks": found.split, **({"both": found.whole} if found.whole else {})}
    tables = {
        kind: dict(summary.filter(arm=arm).select("level", "tokens_per_s").iter_rows())
        for kind, arm in arms.items()
    }
    levels = set.intersection(*(set(table) for table in tables.values()))
    if not levels:
        raise Missing("There is no number of users with which all arms were measured")
    top = max(levels)
    return top, {kind: table[top] for kind, table in tables.items()}


def _solve_fastest(runs: Evidence) -> Answer:
    _, rates = _rates(runs)
    return max(rates, key=lambda kind: rates[kind])


def _judge_fastest(runs: Evidence, answer: Answer) -> tuple[bool, str]:
    top, rates = _rates(runs)
    words = {"one": "one device", "both": "both cores in one rank", "ranks": "the ranks"}
    told = ", ".join(f"{words[kind]} {rate:,.0f}" for kind, rate in rates.items())
    near = answer in rates and rates[str(answer)] >= max(rates.values()) * (1 - NOISE)
    return near, f"With {people(top)}, total tokens/s: {told}."


# tp-room


def _pools(runs: Evidence) -> tuple[int, int, int]:
    """Tokens of the KV pool of one device and of the ranks, and the ranks.

    Raises:
        Missing: an arm does not tell.
    """
    run: Run = runs[0]
    found = sharing.arms_of(run)
    one, split = (run.meta["arms"][arm] for arm in (found.one, found.split))
    pools = [arm["facts"].get("kv_tokens") for arm in (one, split)]
    if not all(pools):
        raise Missing("Not every arm tells how many tokens its KV pool holds")
    return pools[0], pools[1], parallel.ranks_of(split["settings"])


def _solve_room(runs: Evidence) -> Answer:
    one, split, _ = _pools(runs)
    return split / one


def _judge_room(runs: Evidence, answer: Answer) -> tuple[bool, str]:
    one, split, ranks = _pools(runs)
    told = f"One device holds {one:,} tokens, the {ranks} ranks {split:,}: {split / one:.2f} times as many."
    return math.isclose(float(answer), split / one, rel_tol=CLOSE), told


def _room(rule: Callable[[int], float]) -> Callable[[Evidence], Answer | None]:
    """A mistake that depends on the number of ranks alone."""
    return lambda runs: rule(_pools(runs)[2])


# tp-reduces


def _shape(runs: Evidence) -> Shape:
    return Shape.told(runs[0])


def _judge_reduces(runs: Evidence, answer: Answer) -> tuple[bool, str]:
    shape = _shape(runs)
    each = parallel.REDUCES_A_LAYER
    return answer == shape.reduces, f"{shape.layers} layers with {each} each are {shape.reduces} in a step."


def _reduces(rule: Callable[[Shape], float]) -> Callable[[Evidence], Answer | None]:
    return lambda runs: rule(_shape(runs))


# tp-own


def _devices(runs: Evidence) -> int:
    """Of one host.

    Raises:
        Missing: it is another transcript.
    """
    devices = runs[0].one("model").get("devices")
    if devices is None:
        raise Missing("This takes the result of parallel.shares, with your model and your GPUs")
    return int(devices)


def _solve_own(runs: Evidence) -> Answer:
    return parallel.largest(_shape(runs), _devices(runs))


def _judge_own(runs: Evidence, answer: Answer) -> tuple[bool, str]:
    shape, devices = _shape(runs), _devices(runs)
    right = parallel.largest(shape, devices)
    told = (
        f"{right} ranks fit {shape.heads} attention heads and {shape.kv_heads} KV heads on {devices} devices"
    )
    if answer == right or answer != int(answer) or not 1 <= answer <= devices:
        return answer == right, f"{told}."
    why = parallel.share(shape, int(answer)).why or f"{int(answer)} fit as well, and are fewer"
    return False, f"{told}; {why}."


def _by_heads(runs: Evidence) -> Answer:
    """The most that divide the attention heads, whatever becomes of the KV heads."""
    shape, devices = _shape(runs), _devices(runs)
    return max(n for n in range(1, devices + 1) if shape.heads % n == 0)


def _by_kv_heads(runs: Evidence) -> Answer:
    """The most that divide the KV heads, as if they could not be copied."""
    shape, devices = _shape(runs), _devices(runs)
    return max(
        n for n in range(1, devices + 1) if not shape.kv_heads % n and not parallel.share(shape, n).why
    )


def _doubling(runs: Evidence) -> Answer:
    """The largest power of two."""
    return float(2 ** int(math.log2(_devices(runs))))


def _constant(value: Any) -> Callable[[Evidence], Answer | None]:
    return always(float(value))


SOLVERS = {
    "tp-fastest": Solver(
        _solve_fastest,
        _judge_fastest,
        {
            "more_is_faster": always("ranks"),
            "no_talk": always("one"),
            "same_cores": always("both"),
        },
    ),
    "tp-room": Solver(
        _solve_room,
        _judge_room,
        {
            "copied": _constant(1),
            "halved": _room(lambda ranks: 1 / ranks),
            "squared": _room(lambda ranks: ranks**2),
        },
    ),
    "tp-reduces": Solver(
        lambda runs: _shape(runs).reduces,
        _judge_reduces,
        {
            "once": _constant(1),
            "once_a_layer": _reduces(lambda shape: shape.layers),
            "each_head": _reduces(lambda shape: shape.layers * shape.heads),
            "each_matrix": _reduces(lambda shape: 7 * shape.layers),
        },
        takes=Transcript,
    ),
    "tp-own": Solver(
        _solve_own,
        _judge_own,
        {
            "all_devices": _devices,
            "by_heads": _by_heads,
            "by_kv_heads": _by_kv_heads,
            "doubling": _doubling,
        },
        takes=Transcript,
    ),
}
