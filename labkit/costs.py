"""What answers cost: from tokens a second and a price that is entered. Prices are in any one currency."""

from __future__ import annotations

from math import isfinite

import polars as pl

from labkit import metrics
from labkit.bundle import Run
from labkit.errors import UsageError
from labkit.slo import Slo, kept, seats
from labkit.summary import measured_levels

HOURS = 730.0
"""In a month: 365 days of 24 hours, divided by 12."""


def per_million_tokens(tokens_per_s: float, price_per_hour: float, utilisation: float = 1.0) -> float:
    """Price of a million tokens that come at this rate: of output tokens for a rate of output tokens.

    Args:
        price_per_hour: of the machine, whatever it does.
        utilisation: share of the paid time in which it really works at this rate.

    Raises:
        UsageError: a negative price, a utilisation outside 0 to 1, or no tokens.
    """
    _price(price_per_hour)
    _share("utilisation", utilisation)
    if not tokens_per_s > 0:
        raise UsageError("price a million tokens", f"{tokens_per_s} tokens a second", "give a rate above 0")
    return price_per_hour / (3600 * tokens_per_s * utilisation) * 1e6


def per_user_month(
    price_per_hour: float, users: float, *, hours: float = HOURS, active_share: float = 1.0
) -> float:
    """Price of the machine for one person and month.

    Args:
        users: whom it serves at once.
        hours: that it is paid for in a month.
        active_share: share of these in which a person has a question on its way; so ``users / active_share``
            people share the machine, if they come independently and rarely all at once.

    Raises:
        UsageError: a negative price, a share outside 0 to 1, nobody, or no hours.
    """
    _price(price_per_hour)
    _share("active_share", active_share)
    if not users > 0 or not hours > 0:
        seen = f"{users} users and {hours} hours"
        raise UsageError("price a user and month", seen, "both must be above 0")
    return price_per_hour * hours / (users / active_share)


def table(
    source: Run | pl.DataFrame,
    price_per_hour: float,
    *,
    slo: Slo | None = None,
    utilisation: float = 1.0,
    active_share: float = 1.0,
) -> pl.DataFrame:
    """Costs of each arm and level of a run or a prediction in a closed loop.

    Args:
        slo: only the largest load of each arm that keeps this promise.

    Returns:
        The columns of :func:`rates`, and per_million_output, per_million_all, per_user_month.

    Raises:
        UsageError: as :func:`per_million_tokens`.
    """
    found = rates(source)
    if slo is not None:
        fit = seats(source, slo).filter(pl.col("users") > 0).select("arm", load="users")
        held = kept(source, slo).join(fit, on=["arm", "load"], how="semi")
        found = found.join(held, on=["arm", "level"], how="semi", maintain_order="left")
    rows = [
        {
            **row,
            "per_million_output": per_million_tokens(row["tokens_per_s"], price_per_hour, utilisation),
            "per_million_all": per_million_tokens(row["all_tokens_per_s"], price_per_hour, utilisation),
            "per_user_month": per_user_month(price_per_hour, row["level"], active_share=active_share),
        }
        for row in found.filter(pl.col("tokens_per_s") > 0).iter_rows(named=True)
    ]
    priced = dict.fromkeys(("per_million_output", "per_million_all", "per_user_month"), pl.Float64)
    return pl.DataFrame(rows, schema={**found.schema, **priced})


def rates(source: Run | pl.DataFrame) -> pl.DataFrame:
    """Tokens a second of each arm and level of a run or a prediction.

    Returns:
        arm, engine, level, tokens_per_s (output), all_tokens_per_s (those of prompts too, cached or not),
        prompt_tokens and output_tokens (means of the whole answers).
    """
    if isinstance(source, Run):
        engines = {name: arm["engine"] for name, arm in source.meta["arms"].items()}
        found = source.summary().with_columns(
            engine=pl.col("arm").replace_strict(engines, return_dtype=pl.String)
        )
        answers = metrics.answered(source.requests).join(
            measured_levels(source.meta["levels"]), on=["arm", "level", "repeat"], how="semi"
        )
        means = answers.group_by("arm", "level").agg(pl.col("prompt_tokens", "output_tokens").mean())
        found = found.join(means, on=["arm", "level"], how="left", maintain_order="left")
    else:
        found = source
    ratio = pl.col("prompt_tokens") / pl.col("output_tokens")
    return found.select(
        "arm",
        "engine",
        "level",
        "tokens_per_s",
        "prompt_tokens",
        "output_tokens",
        all_tokens_per_s=pl.col("tokens_per_s") * (1 + ratio.fill_null(0.0)),
    )


def _price(price_per_hour: float) -> None:
    if not (price_per_hour >= 0 and isfinite(price_per_hour)):
        seen = f"the price is {price_per_hour} an hour"
        raise UsageError("work out a cost", seen, "give 0 or more; what a machine earns is another question")


def _share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise UsageError("work out a cost", f"{name} is {value}", "give a share above 0, at most 1")
