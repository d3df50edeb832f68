"""A promise to users, and up to which load it is kept: by a run, or by a prediction with its band."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import polars as pl

from labkit import metrics
from labkit.bundle import Run
from labkit.errors import UsageError
from labkit.summary import measured_levels

PERCENTILES = {0.5: "p50", 0.95: "p95"}
"""Shares of answers that may be promised: those whose quantiles a prediction has."""

NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E"}

_EACH = {name: (f"{name}", f"{name}_low", f"{name}_high") for name in NAMES}


@dataclass(frozen=True)
class Slo:
    """A service-level objective: of each thing that is limited, so large a share of the answers is in time.

    Attributes:
        ttft_s: seconds to the first token, at most; None promises nothing.
        tpot_s: seconds for each token after it, at most.
        e2e_s: seconds to the end of the answer, at most.
        share: of all requests, those without an answer included: 0.95 limits the p95, 0.5 the median.

    Raises:
        UsageError: no limit, one that is not above 0, or another share.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    share: float = 0.95

    def __post_init__(self) -> None:
        if not self.limits:
            raise UsageError("promise something", "no limit is given", "give ttft_s, tpot_s or e2e_s")
        for name, limit in self.limits.items():
            if not (limit > 0 and isfinite(limit)):
                seen = f"{name} is {limit}: no answer can keep that"
                raise UsageError("promise something", seen, "give seconds above 0")
        if self.share not in PERCENTILES:
            known = " or ".join(map(str, PERCENTILES))
            raise UsageError("promise something", f"share is {self.share}", f"one of {known}")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that there are, by field."""
        fields = {"ttft_s": self.ttft_s, "tpot_s": self.tpot_s, "e2e_s": self.e2e_s}
        return {name: limit for name, limit in fields.items() if limit is not None}

    @property
    def percentile(self) -> str:
        """p50 or p95."""
        return PERCENTILES[self.share]

    def __str__(self) -> str:
        return " and ".join(
            f"{self.percentile} of {NAMES[name]} at most {limit:g} s" for name, limit in self.limits.items()
        )


def kept(source: Run | pl.DataFrame, slo: Slo) -> pl.DataFrame:
    """How a run or a prediction (:mod:`labkit.predict`) stands to a promise, one row an arm and level.

    Returns:
        arm, engine, basis (measured | predicted), load (users, or requests a second of an open loop) with its
        unit, level; planned, ok; kept and share: requests that keep all limits, null for a prediction;
        ttft_s, tpot_s, e2e_s: the promised quantile over all requests, null if it falls among those without
        a whole answer, with _low and _high, the ends of a prediction's band; holds, by these; holds_surely
        and holds_possibly, by the ends of the band; broken: in words, the limit that is broken most, null if
        none is.

    Raises:
        UsageError: a run of bursts, in which no load lasts.
    """
    rows = _of_run(source, slo) if isinstance(source, Run) else _of_prediction(source, slo)
    judged = [{**row, **_judged(row, slo)} for row in rows]
    return pl.DataFrame(judged, schema=_SCHEMA).sort("arm", "load", maintain_order=True)


def seats(source: Run | pl.DataFrame, slo: Slo) -> pl.DataFrame:
    """The largest load that keeps a promise, where all smaller ones do too; one row an arm.

    Returns:
        arm, engine, basis, unit ("users" or "requests/s"); users: the largest such load, 0 if none keeps it;
        low and high, the interval: measured, that load and the first that breaks it; predicted, the largest
        that keeps it at the bad end of the band and the first that breaks it even at the good end. high is
        null if nothing that was looked at breaks it. sentence: the same in words.

    Raises:
        UsageError: as :func:`kept`.
    """
    table = kept(source, slo)
    found = []
    for (arm,), rows in table.group_by("arm", maintain_order=True):
        levels = rows.to_dicts()
        best, _ = _lasting(levels, "holds")
        low, _ = _lasting(levels, "holds_surely")
        _, high = _lasting(levels, "holds_possibly")
        first = levels[0]
        found.append(
            {
                "arm": arm,
                **{name: first[name] for name in ("engine", "basis", "unit")},
                "users": best,
                "low": low,
                "high": high,
                "sentence": _sentence(levels, best, (low, high), slo),
            }
        )
    return pl.DataFrame(found, schema=_SEATS)


_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("arm", "engine", "basis", "unit"), pl.String),
    "load": pl.Float64,
    **dict.fromkeys(("level", "planned", "ok", "kept"), pl.Int64),
    "share": pl.Float64,
    **{column: pl.Float64 for columns in _EACH.values() for column in columns},
    **dict.fromkeys(("holds", "holds_surely", "holds_possibly"), pl.Boolean),
    "broken": pl.String,
}
_SEATS: dict[str, Any] = {
    **dict.fromkeys(("arm", "engine", "basis", "unit"), pl.String),
    **dict.fromkeys(("users", "low", "high"), pl.Float64),
    "sentence": pl.String,
}


def _of_run(run: Run, slo: Slo) -> list[dict[str, Any]]:
    kind = run.arrivals["arrivals"]
    if kind == "burst":
        raise UsageError(
            f"look for a lasting load in {run.path.name}",
            "its requests came at one moment",
            "take a run of lab.sweep or lab.arrivals",
        )
    windows = measured_levels(run.meta["levels"])
    rows = run.requests.filter(~pl.col("warmup")).join(windows, on=["arm", "level", "repeat"], how="inner")
    found = []
    for (arm, level), asked in rows.group_by("arm", "level", maintain_order=True):
        answers = metrics.answered(asked).select(metrics.TTFT, metrics.TPOT, metrics.E2E)
        good = answers.filter(*(pl.col(name) <= limit for name, limit in slo.limits.items()))
        told = {
            "arm": arm,
            "engine": run.meta["arms"][arm]["engine"],
            "basis": "measured",
            "unit": "users" if kind == "closed" else "requests/s",
            "load": float(str(level)) if kind == "closed" else _rate(asked),
            "level": level,
            "planned": len(asked),
            "ok": len(answers),
            "kept": len(good),
            "share": len(good) / len(asked),
        }
        for name, columns in _EACH.items():
            told |= dict.fromkeys(columns, _quantile(answers[name], len(asked) - len(answers), slo.share))
        found.append(told)
    return found


def _quantile(seconds: pl.Series, without: int, share: float) -> float | None:
    """Of all requests, those without an answer being later than any; None where it falls among these."""
    late = pl.Series(seconds.name, [inf] * without, dtype=pl.Float64)
    found = pl.concat([seconds.drop_nulls(), late]).quantile(share, interpolation="linear")
    return found if found is not None and isfinite(found) else None


def _rate(asked: pl.DataFrame) -> float:
    """Requests a second that were meant to come at a level of an open loop, in the mean of its repeats."""
    due = pl.col("intended_s")
    gaps = asked.group_by("repeat").agg(n=pl.len() - 1, span=due.max() - due.min())
    count, span = float(gaps["n"].sum()), float(gaps["span"].sum())
    return count / span if span else 0.0


def _of_prediction(table: pl.DataFrame, slo: Slo) -> list[dict[str, Any]]:
    by_rate = "rate" in table.columns
    found = []
    for row in table.iter_rows(named=True):
        told = {
            **{name: row[name] for name in ("arm", "engine", "level", "planned", "ok")},
            "basis": "predicted",
            "unit": "requests/s" if by_rate else "users",
            "load": float(row["rate"] if by_rate else row["level"]),
            "kept": None,
            "share": None,
        }
        for name, columns in _EACH.items():
            source = f"{name.removesuffix('_s')}_ms_{slo.percentile}"
            for column, end in zip(columns, ("", "_low", "_high"), strict=True):
                value = row[f"{source}{end}"]
                told[column] = None if value is None else value / 1000
        found.append(told)
    return found


def _judged(row: dict[str, Any], slo: Slo) -> dict[str, Any]:
    """Whether a level keeps the promise, and what breaks it."""
    came = row["ok"] >= slo.share * row["planned"]
    # a prediction without a band is sure of nothing
    bad = {name: inf if row[f"{name}_high"] is None else row[f"{name}_high"] for name in slo.limits}
    without = inf if row["basis"] == "measured" else 0.0
    good = {name: without if row[f"{name}_low"] is None else row[f"{name}_low"] for name in slo.limits}
    middle = {name: inf if row[name] is None else row[name] for name in slo.limits}
    over = {name: middle[name] / limit for name, limit in slo.limits.items()}
    worst = max(over, key=lambda name: over[name])
    if not came:
        broken = f"only {row['ok']} of {row['planned']} requests got a whole answer"
    elif over[worst] == inf:
        broken = f"no {NAMES[worst]} is known"
    elif over[worst] > 1:
        broken = (
            f"the {slo.percentile} of {NAMES[worst]} is {middle[worst]:.3g} s, "
            f"{over[worst]:.3g} times its limit of {slo.limits[worst]:g} s"
        )
    else:
        broken = None
    return {
        "holds": broken is None,
        "holds_surely": came and all(bad[name] <= limit for name, limit in slo.limits.items()),
        "holds_possibly": came and all(good[name] <= limit for name, limit in slo.limits.items()),
        "broken": broken,
    }


def _lasting(levels: list[dict[str, Any]], flag: str) -> tuple[float, float | None]:
    """The largest load up to which a flag holds throughout, and the first where it does not."""
    best = 0.0
    for level in levels:
        if not level[flag]:
            return best, level["load"]
        best = level["load"]
    return best, None


def _sentence(
    levels: list[dict[str, Any]], best: float, interval: tuple[float, float | None], slo: Slo
) -> str:
    arm, unit, looked = levels[0]["arm"], levels[0]["unit"], levels[0]["basis"]
    first = next((level for level in levels if not level["holds"]), None)
    if first is None:
        return (
            f"{arm} keeps it ({slo}) at every load that was {looked}, up to {_load(best, unit)}; where that "
            "ends, nobody looked."
        )
    why = f"with {_load(first['load'], unit)} {first['broken']}"
    if not best:
        fewer = "" if first["load"] <= 1 or unit != "users" else " Fewer users were not looked at."
        return f"{arm} keeps it ({slo}) at no load that was {looked}: already {why}.{fewer}"
    text = f"{arm} keeps it ({slo}) up to {_load(best, unit)}; {why}."
    if looked == "measured":
        return f"{text} What lies between was not measured."
    low, high = interval
    end = "beyond what was looked at" if high is None else f"below {_load(high, unit)}"
    return f"{text} By its band it ends between {_load(low, unit)} and somewhere {end}."


def _load(load: float, unit: str) -> str:
    """ "1 user", "2.5 requests/s"."""
    return f"{load:.3g} {unit if load != 1 else unit.replace('users', 'user')}"
