"""Where two curves over users cross: from how many users on does one arm beat the other?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import polars as pl

METRICS = {"tokens_per_s": "total tokens/s", "ttft_ms_p50": "median TTFT", "ttft_ms_p95": "p95 of TTFT"}
"""What the columns of a summary are called in sentences."""


@dataclass(frozen=True)
class Crossover:
    """From where on ``ahead`` leads, at every measured level up to the top.

    Attributes:
        metric: the summary column that was compared.
        ahead, behind: the arms.
        users: best estimate, interpolated between levels; None without a lasting lead.
        low, high: the interval: the last measured level where ``ahead`` does not surely lead and the first
            from which it surely does, where "surely" means that the repeats' ranges, or a prediction's bands,
            do not overlap (without either: that the values differ). ``low`` is 0 if it leads from the first
            level on; ``high`` is infinite if the lead is never sure.
        sentence: the same in words.
    """

    metric: str
    ahead: str
    behind: str
    users: float | None
    low: float
    high: float
    sentence: str


def crossover(table: pl.DataFrame, ahead: str, behind: str, metric: str = "tokens_per_s") -> Crossover:
    """Find it in a run's summary.

    Args:
        metric: "tokens_per_s" (more is better) or a latency column (less is better).

    Returns:
        One without ``users`` if the arms share no measured level, as after an early Stop.
    """
    sides = [_side(table, arm, metric) for arm in (ahead, behind)]
    both = sides[0].join(sides[1], on="level", suffix="_b").drop_nulls().sort("level")
    both = both.filter(pl.col("value") > 0, pl.col("value_b") > 0)  # no token at all is a failure, not a rate
    if both.is_empty():
        nothing = f"{ahead} and {behind} share no measured level: nothing to compare."
        return Crossover(metric, ahead, behind, None, 0, math.inf, nothing)
    rows = both.to_dicts()
    # interpolated as the charts draw it: throughput on a linear axis, latency on a logarithmic one
    if metric == "tokens_per_s":
        leads = [r["value"] - r["value_b"] for r in rows]
    else:
        leads = [math.log(r["value_b"] / r["value"]) for r in rows]
    levels = [r["level"] for r in rows]
    if metric == "tokens_per_s":
        sure = [r["low"] > r["high_b"] for r in rows]
    else:
        sure = [r["high"] < r["low_b"] for r in rows]
    start = _lasting([lead > 0 for lead in leads])
    sure_from = _lasting(sure)
    users = None if start is None else _interpolate(levels, leads, start)
    unsure = len(levels) if sure_from is None else sure_from  # levels before the sure lead
    first_unsure = unsure if start is None else min(unsure, start)
    low = levels[first_unsure - 1] if first_unsure else 0
    high = math.inf if sure_from is None else levels[sure_from]
    return Crossover(
        metric,
        ahead,
        behind,
        users,
        low,
        high,
        _sentence((ahead, behind, metric), users, (low, high), levels),
    )


def _side(table: pl.DataFrame, arm: str, metric: str) -> pl.DataFrame:
    rows = table.filter(pl.col("arm") == arm)
    low, high = (f"{metric}_low", f"{metric}_high") if f"{metric}_low" in table.columns else (metric, metric)
    value = pl.col(metric)
    return rows.select(
        "level", value=value, low=pl.coalesce(pl.col(low), value), high=pl.coalesce(pl.col(high), value)
    )


def _lasting(flags: list[bool]) -> int | None:
    """Index from which all flags hold to the end."""
    start = None
    for index in reversed(range(len(flags))):
        if not flags[index]:
            break
        start = index
    return start


def _interpolate(levels: list[int], leads: list[float], start: int) -> float:
    if start == 0:
        return float(levels[0])
    x0, x1 = levels[start - 1 : start + 1]
    y0, y1 = leads[start - 1 : start + 1]
    share = -y0 / (y1 - y0)
    return float(x0 * (x1 / x0) ** share)


def _sentence(
    who: tuple[str, str, str], users: float | None, interval: tuple[float, float], levels: list[int]
) -> str:
    ahead, behind, metric = who
    low, high = interval
    what = METRICS.get(metric, metric)
    if metric == "tokens_per_s":
        never, leads, unsure, passes = (
            f"{ahead} {verb} {behind} in {what}"
            for verb in ("takes no lasting lead over", "leads", "seems to pass", "passes")
        )
        near = "near {:.1f} users"
    else:  # to "pass" in a latency would read as getting slower
        never, leads, unsure, passes = (
            f"{ahead} {verb} shorter {what} than {behind}"
            for verb in ("has no lastingly", "has the", "seems to have the", "has the")
        )
        near = "from about {:.1f} users on"
    if users is None:
        return f"{never} between {levels[0]} and {levels[-1]} users."
    if high <= levels[0]:
        return f"{leads} from {levels[0]} user{'s' if levels[0] > 1 else ''} on."
    if high == math.inf:
        return f"{unsure} {near.format(users)}, but the ranges overlap: not sure."
    return f"{passes} {near.format(users)}, between {low:.0f} and {high:.0f}."
