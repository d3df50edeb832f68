"""What questions share with those before them, and what came of it: cached tokens and TTFT."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any

import polars as pl

from labkit import queueing
from labkit.bundle import Run
from labkit.sides import Missing

FEW = 0.1
"""Less than this share of a question counts as nothing: the chat template begins all questions alike."""

EMPTY = pl.DataFrame(
    schema={
        "arm": pl.String,
        "engine": pl.String,
        "caching": pl.Boolean,
        "block_size": pl.Int64,
        "level": pl.Int64,
        "shared_tokens": pl.Int64,
        "prompt_tokens": pl.Int64,
        "cached_tokens": pl.Int64,
        "cached_min": pl.Int64,
        "cached_max": pl.Int64,
        "ttft_cold_ms_p50": pl.Float64,
        "ttft_warm_ms_p50": pl.Float64,
        "warm": pl.Int64,
        "hits": pl.Int64,
        "queries": pl.Int64,
        "hit_rate": pl.Float64,
    }
)
"""What :func:`table` gives of a run without a whole answer."""

_WORKLOADS = {
    "arm": pl.String,
    "engine": pl.String,
    "caching": pl.Boolean,
    "block_size": pl.Int64,
    "level": pl.Int64,
    "workload": pl.String,
    "questions": pl.Int64,
    "prompt_tokens": pl.Int64,
    "cached_tokens": pl.Int64,
    "cached_share": pl.Float64,
    "hits": pl.Int64,
    "queries": pl.Int64,
    "hit_rate": pl.Float64,
    "ttft_first_ms": pl.Float64,
    "ttft_ms_p50": pl.Float64,
}


def table(run: Run) -> pl.DataFrame:
    """What was saved at each number of shared tokens; warm-up left out, repeats together.

    The first question of a level and repeat is cold, since its text is new; all later ones begin like it.

    Returns:
        One row per arm, in their order, and level: arm, engine; caching, the setting, null if it was left to
        the engine; block_size, as the engine says; level; shared_tokens, that all questions have in common,
        as the engine counts: the prompt's less those that each has for itself; prompt_tokens and
        cached_tokens, medians of the warm questions, cached_min and cached_max, null where the engine does
        not tell;
        ttft_cold_ms_p50, ttft_warm_ms_p50; warm, number of warm answers; hits and queries, tokens by the
        engine's own counters, cold questions included, null where it has none, and hit_rate of these.

    Raises:
        Missing: the levels of this run are not what its questions share.
    """
    if not run.arrivals.get("sharing"):
        raise Missing("This takes a run whose levels are what its questions share, of lab.prefixes()")
    total = run.meta["workload"]["total_tokens"]
    rows = []
    for arm, level, asked in _levels(run):
        cold, warm = asked.filter(place=1), asked.filter(pl.col("place") > 1)
        length, cached = _middle(warm["prompt_tokens"]), warm["cached_tokens"]
        own = {
            "shared_tokens": None if length is None else length - (total - level),
            "prompt_tokens": length,
            "cached_tokens": _middle(cached),
            "cached_min": cached.min(),
            "cached_max": cached.max(),
            "ttft_cold_ms_p50": _ms(cold),
            "ttft_warm_ms_p50": _ms(warm),
            "warm": warm.height,
        }
        rows.append({**_described(run, arm), "level": level, **own, **_counted(run, arm, level)})
    return pl.DataFrame(rows, schema=EMPTY.schema, orient="row")


def workloads(run: Run) -> pl.DataFrame:
    """How much of each workload came from the cache, as its answers say and by the engine's own counters.

    Returns:
        One row per arm and workload, in their order: arm, engine, caching and block_size as in :func:`table`;
        level, workload; questions, how many were answered; prompt_tokens and cached_tokens (sums of what the
        answers say, null where they do not) and cached_share of these; hits and queries, tokens by which the
        engine's counters grew, null where it has none, and hit_rate of these; ttft_first_ms of the first
        question, ttft_ms_p50 of the others.

    Raises:
        Missing: the levels of this run are no workloads.
    """
    if not run.arrivals.get("workloads"):
        raise Missing("This takes a run whose levels are workloads, of lab.workloads()")
    rows = []
    for arm, level, asked in _levels(run):
        length, cached = _sum(asked["prompt_tokens"]), _sum(asked["cached_tokens"])
        own = {
            "workload": queueing.asked_words(run.arrivals, level),
            "questions": asked.height,
            "prompt_tokens": length,
            "cached_tokens": cached,
            "cached_share": _share(cached, length),
            "ttft_first_ms": _ms(asked.filter(place=1)),
            "ttft_ms_p50": _ms(asked.filter(pl.col("place") > 1)),
        }
        rows.append({**_described(run, arm), "level": level, **own, **_counted(run, arm, level)})
    return pl.DataFrame(rows, schema=_WORKLOADS, orient="row")


def answers(run: Run) -> pl.DataFrame:
    """Every whole answer: the columns of :func:`labkit.queueing.in_order`, and workload, null if it has none.

    An engine may leave cached_tokens out where nothing was cached. It is 0 here if the engine tells it of
    other answers, or was started without a cache.
    """
    rows = queueing.in_order(run).filter(pl.col("outcome") == "ok")
    tell = set(run.requests.filter(pl.col("cached_tokens").is_not_null())["arm"])
    none = {arm for arm, one in run.meta["arms"].items() if one["settings"].get("prefix_caching") is False}
    known = pl.col("cached_tokens").fill_null(0)
    names = {at: one["name"] for at, one in enumerate(run.arrivals.get("workloads") or (), start=1)}
    return rows.with_columns(
        pl.when(pl.col("arm").is_in(list(tell | none))).then(known).otherwise(pl.col("cached_tokens")),
        workload=pl.col("level").replace_strict(names, default=None, return_dtype=pl.String),
    )


def whole_blocks(shared: int, size: int, total: int) -> int:
    """Tokens that an engine with blocks of this size reuses of a shared beginning: vLLM's rule.

    Only whole blocks are reused, and the last token of a prompt is always computed, since the first one of
    the answer comes from it.

    Args:
        total: tokens of the whole prompt.
    """
    return min(shared, total - 1) // size * size


def _levels(run: Run) -> Iterator[tuple[str, int, pl.DataFrame]]:
    """Arm, level and whole answers, for each arm and level that has any."""
    rows = answers(run)
    for arm in run.meta["arms"]:
        own = rows.filter(arm=arm)
        for level in own["level"].unique().sort().to_list():
            yield arm, level, own.filter(level=level)


def _described(run: Run, arm: str) -> dict[str, Any]:
    said = run.meta["arms"][arm]
    caching, size = said["settings"].get("prefix_caching"), said["facts"].get("block_size")
    return {"arm": arm, "engine": said["engine"], "caching": caching, "block_size": size}


def _counted(run: Run, arm: str, level: int) -> dict[str, Any]:
    """Tokens by which the engine's counters of hits and of queries grew in all repeats of a level."""
    records = [
        record
        for record in run.meta["levels"]
        if (record["arm"], record["level"]) == (arm, level) and not record["warmup"]
    ]
    hits, queries = (
        _sum(pl.Series([_growth(run, record, name) for record in records], dtype=pl.Int64))
        for name in ("prefix_hits", "prefix_queries")
    )
    return {"hits": hits, "queries": queries, "hit_rate": _share(hits, queries)}


def _growth(run: Run, record: dict[str, Any], name: str) -> int | None:
    """Between the last readings of the pauses before and after a level."""
    own = run.gauges.filter(arm=record["arm"], name=name).sort("t_s")
    later = [r["started_s"] for r in run.meta["levels"] if r["started_s"] >= record["ended_s"]]
    before = own.filter(pl.col("t_s") <= record["started_s"])["value"]
    after = own.filter(pl.col("t_s").is_between(record["ended_s"], min(later, default=inf)))["value"]
    return int(after[-1] - before[-1]) if len(before) and len(after) else None


def _ms(rows: pl.DataFrame) -> float | None:
    seconds = rows["ttft_s"].median()
    return seconds * 1000 if isinstance(seconds, float) else None


def _middle(values: pl.Series) -> int | None:
    middle = values.median()
    return round(middle) if isinstance(middle, float | int) else None


def _sum(values: pl.Series) -> int | None:
    return int(values.sum()) if len(values) and not values.null_count() else None


def _share(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None
