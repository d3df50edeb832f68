"""What the course measures: each metric once, with definition, unit and source.

A metric of one request is a polars expression over the ``requests`` table (:data:`labkit.schema.REQUESTS`),
so that the same definition serves a table, a figure, a check and the command line. All are in seconds.
Tools disagree on these words; docs/measuring.md says who means what.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

TTFT = (pl.col("first_token_s") - pl.col("sent_s")).alias("ttft_s")
"""Time to first token, from send: first non-empty content or reasoning token − request handed to the socket.
Client clock. A chunk that carries only a role is not a token. Null if no token came."""

TTFT_INTENDED = (pl.col("first_token_s") - pl.col("intended_s")).alias("ttft_intended_s")
"""Time to first token from the moment the plan wanted the request sent: also holds the client's own lateness,
which TTFT hides (coordinated omission). Client clock."""

E2E = (pl.col("end_s") - pl.col("sent_s")).alias("e2e_s")
"""End to end: last byte of the answer − request handed to the socket. Client clock."""

E2E_INTENDED = (pl.col("end_s") - pl.col("intended_s")).alias("e2e_intended_s")
"""End to end from the moment the plan wanted the request sent, as a user counts who came at that moment."""

TPOT = (
    pl.when(pl.col("output_tokens") >= 2)
    .then((pl.col("end_s") - pl.col("first_token_s")) / (pl.col("output_tokens") - 1))
    .alias("tpot_s")
)
"""Time per output token: (E2E − TTFT) / (output tokens − 1), so TTFT is left out. Token count as the engine
reports it. Null for answers of fewer than two tokens."""

QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class Stats:
    """Mean and quantiles of one metric, in the unit of what went in; None where there was no data."""

    n: int
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None

    def scaled(self, factor: float) -> dict[str, float | None]:
        """``{"mean": …, "p50": …, "p95": …, "p99": …}`` times ``factor``, rounded to a thousandth."""
        values = {"mean": self.mean, "p50": self.p50, "p95": self.p95, "p99": self.p99}
        return {k: None if v is None else round(v * factor, 3) for k, v in values.items()}


def stats(values: pl.Series) -> Stats:
    """Mean, median, p95, p99 (linear interpolation between order statistics); nulls and NaN are left out."""
    clean = values.drop_nulls().drop_nans() if values.dtype.is_float() else values.drop_nulls()
    if clean.is_empty():
        return Stats(0, None, None, None, None)
    p50, p95, p99 = (clean.quantile(q, interpolation="linear") for q in QUANTILES)
    return Stats(len(clean), statistics.fmean(clean), p50, p95, p99)


def answered(requests: pl.DataFrame) -> pl.DataFrame:
    """Rows whose times describe a whole answer: outcome ok, not warm-up."""
    return requests.filter((pl.col("outcome") == "ok") & ~pl.col("warmup"))


def gaps(tokens: pl.DataFrame) -> pl.DataFrame:
    """Inter-token latency as gaps: every time between successive token chunks of one request.

    Pooled over requests, so a stall in the middle of one answer stays visible, unlike in a mean per request.
    Where an engine packs several tokens into a chunk this is time per chunk; use TPOT for time per token.

    Returns:
        columns ``request_id``, ``t_s`` (end of the gap), ``itl_s``, ``coalesced``.
    """
    return (
        tokens.sort("request_id", "t_s", maintain_order=True)
        .with_columns(itl_s=pl.col("t_s").diff().over("request_id"))
        .drop_nulls("itl_s")
        .select("request_id", "t_s", "itl_s", "coalesced")
    )


def goodput(
    requests: pl.DataFrame,
    duration_s: float,
    *,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    e2e_s: float | None = None,
) -> float:
    """Requests a second that were answered whole and within every stated limit (in seconds); 0 where the
    level had not begun."""
    good = answered(requests).select(TTFT, TPOT, E2E)
    for column, limit in (("ttft_s", ttft_s), ("tpot_s", tpot_s), ("e2e_s", e2e_s)):
        if limit is not None:
            good = good.filter(pl.col(column) <= limit)
    return len(good) / duration_s if duration_s > 0 else 0.0


def estimate_queue(requests: pl.DataFrame) -> pl.DataFrame:
    """Fill ``queue_s`` where the engine reports none: TTFT − TTFT of an idle probe, not below zero.

    The probe is the median TTFT of the arm's warm-up rows at one user, whose prompts have equal length.
    Filled rows get ``queue_basis`` "estimated"; rows with "reported" are left as they are; an arm without
    a probe stays "unknown".
    """
    probe = (
        requests.filter(pl.col("warmup") & (pl.col("outcome") == "ok"))
        .group_by("arm")
        .agg(idle_s=TTFT.median())
    )
    guess = (pl.col("first_token_s") - pl.col("sent_s") - pl.col("idle_s")).clip(lower_bound=0)
    fill = (pl.col("queue_basis") != "reported") & guess.is_not_null()
    return (
        requests.join(probe, on="arm", how="left", maintain_order="left")
        .with_columns(
            queue_s=pl.when(fill).then(guess).otherwise(pl.col("queue_s")),
            queue_basis=pl.when(fill).then(pl.lit("estimated")).otherwise(pl.col("queue_basis")),
        )
        .drop("idle_s")
    )


def spread(values: Sequence[float]) -> float | None:
    """Half the range over the median of repeats: the repeats' own noise. None below two repeats."""
    if len(values) < 2:
        return None
    middle = statistics.median(values)
    return (max(values) - min(values)) / 2 / middle if middle else None
