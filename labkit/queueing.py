"""Who stood in line: requests by their place in the line, and how many of them an engine had at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from labkit import metrics
from labkit.bundle import Run
from labkit.summary import measured_levels

_LEVEL = ["arm", "level", "repeat"]


def in_order(run: Run) -> pl.DataFrame:
    """The measured requests in the order in which they were sent; warm-up and drift check left out.

    Returns:
        the columns of ``requests`` and: at_s, when it was meant to be sent, from the level's first send;
        place, its number in the order of sending within arm, level and repeat, from 1; served, its number in
        the order of first tokens, null if it got none; ttft_s, e2e_s and e2e_intended_s as in
        :mod:`labkit.metrics`.
    """
    levels = measured_levels(run.meta["levels"]).select(_LEVEL)
    rows = run.requests.filter(~pl.col("warmup")).join(levels, on=_LEVEL, how="inner", maintain_order="left")
    return rows.sort(*_LEVEL, "sent_s", "id", nulls_last=True).with_columns(
        (pl.col("intended_s") - pl.col("intended_s").min().over(_LEVEL)).alias("at_s"),
        pl.int_range(1, pl.len() + 1).over(_LEVEL).alias("place"),
        pl.col("first_token_s").rank("ordinal").over(_LEVEL).cast(pl.Int64).alias("served"),
        metrics.TTFT,
        metrics.E2E,
        metrics.E2E_INTENDED,
    )


def inside(run: Run) -> pl.DataFrame:
    """How many requests the engine had at a time: sent, and not ended yet.

    Returns:
        arm, level, repeat, t_s (from the level's first send), inside; one row for each change, in the order
        of time. A request that never ended is inside to the end.
    """
    rows = in_order(run)
    start = pl.col("intended_s").min().over(_LEVEL)
    moves = [
        rows.select(*_LEVEL, t_s=pl.col(column) - start, step=pl.lit(step, pl.Int64))
        for column, step in (("sent_s", 1), ("end_s", -1))
    ]
    return (
        pl.concat(moves)
        .drop_nulls("t_s")
        .sort(*_LEVEL, "t_s", "step", descending=[False, False, False, False, True])
        .with_columns(inside=pl.col("step").cum_sum().over(_LEVEL))
        .drop("step")
    )


def taking_turns(arrivals: Sequence[float], work: Sequence[float], servers: int = 1) -> list[float]:
    """When each is taken on if all are served in the order of arrival: D. V. Lindley's recursion (1952).

    Args:
        arrivals: moments of arrival, ascending, in any unit.
        work: how long each keeps a server busy, in the same unit.
        servers: how many are served at a time.

    Returns:
        the moment at which the work on each begins.
    """
    free = [float("-inf")] * servers
    begins = []
    for arrives, takes in zip(arrivals, work, strict=True):
        begin = max(arrives, min(free))
        free[free.index(min(free))] = begin + takes
        begins.append(begin)
    return begins


def load_words(run: Run, level: int) -> str:
    """A level in words: "closed loop, 4 users", "burst of 8", "open loop, 50 % of capacity"."""
    load = run.arrivals
    if (words := asked_words(load, level)) is not None:
        return f"one user, {words}"
    if load["arrivals"] == "closed":
        return f"closed loop, {level} user{'' if level == 1 else 's'}"
    return f"burst of {level}" if load["arrivals"] == "burst" else f"open loop, {level} % of capacity"


def asked_words(load: Mapping[str, Any], level: int) -> str | None:
    """What is asked at a level whose number says that: "128 tokens shared", or a workload's name.

    Args:
        load: as ``run.json`` describes it (:meth:`labkit.designs.Load.as_dict`).

    Returns:
        None where a level is a number of users or requests.
    """
    if load.get("sharing"):
        return f"{level} tokens shared"
    if workloads := load.get("workloads"):
        return str(workloads[level - 1]["name"])
    return None
