"""A run in one table, and two runs beside each other."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import polars as pl

from labkit import metrics
from labkit.budget import BUDGETS
from labkit.schema import OUTCOMES

LOWER_BOUND_SHARE = 0.10
"""With more than this share of a level's requests failed or unfinished, its quantiles miss the slow ones and
those that were turned away."""

_KEY = ["arm", "level"]


def measured_levels(levels: list[dict[str, Any]]) -> pl.DataFrame:
    """The levels that count as results, one row per arm, level and repeat: warm-up and drift check left out.

    Columns: arm, level, repeat, window_s (first send to last end).
    """
    rows = [
        (r["arm"], r["level"], r["repeat"], r["ended_s"] - r["started_s"])
        for r in levels
        if not r["warmup"] and not r.get("drift", False)
    ]
    schema = {"arm": pl.String, "level": pl.Int64, "repeat": pl.Int64, "window_s": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def summarise(requests: pl.DataFrame, tokens: pl.DataFrame, levels: list[dict[str, Any]]) -> pl.DataFrame:
    """One row per arm and level, in planned order.

    Returns:
        arm, level, repeats; planned, ok, failed, cancelled, unfinished (sums over repeats);
        tokens_per_s (median over repeats of all tokens received / window), tokens_per_s_low and _high (range
        over repeats); ttft_ms_p50/_p95, ttft_intended_ms_p50, itl_ms_p50/_p99 (pooled gaps),
        tpot_ms_p50/_p95, e2e_ms_p50/_p95, queue_ms_p50 over the answers that came whole; queue_basis of these
        (reported | estimated | unknown, or "mixed"); lower_bound (see :data:`LOWER_BOUND_SHARE`).
    """
    windows = measured_levels(levels)
    # the warm-up is also a repeat 0 of level 1
    measured = requests.filter(~pl.col("warmup"))
    # a request that was in flight when the load process was killed has no count of its own
    received = tokens.group_by(id="request_id").agg(received=pl.col("tokens").sum().cast(pl.Int64))
    measured = measured.join(received, on="id", how="left", maintain_order="left").with_columns(
        pl.col("output_tokens").fill_null(pl.col("received"))
    )
    rows = measured.join(windows, on=[*_KEY, "repeat"], how="inner", maintain_order="left")
    outcomes = rows.group_by(_KEY, maintain_order=True).agg(
        pl.len().alias("planned"),
        *((pl.col("outcome") == word).sum().alias(word) for word in OUTCOMES),
    )
    whole = metrics.answered(rows)
    latencies = whole.group_by(_KEY, maintain_order=True).agg(
        _ms(metrics.TTFT, 0.5, "ttft_ms_p50"),
        _ms(metrics.TTFT, 0.95, "ttft_ms_p95"),
        _ms(metrics.TTFT_INTENDED, 0.5, "ttft_intended_ms_p50"),
        _ms(metrics.TPOT, 0.5, "tpot_ms_p50"),
        _ms(metrics.TPOT, 0.95, "tpot_ms_p95"),
        _ms(metrics.E2E, 0.5, "e2e_ms_p50"),
        _ms(metrics.E2E, 0.95, "e2e_ms_p95"),
        _ms(pl.col("queue_s"), 0.5, "queue_ms_p50"),
        pl.when(pl.col("queue_basis").n_unique() == 1)
        .then(pl.col("queue_basis").first())
        .otherwise(pl.lit("mixed"))
        .alias("queue_basis"),
    )
    gaps = (
        metrics.gaps(tokens)
        .join(whole.select(*_KEY, "id"), left_on="request_id", right_on="id", how="inner")
        .group_by(_KEY)
        .agg(_ms(pl.col("itl_s"), 0.5, "itl_ms_p50"), _ms(pl.col("itl_s"), 0.99, "itl_ms_p99"))
    )
    return (
        _rates(rows)
        .join(outcomes, on=_KEY, how="left", maintain_order="left")
        .join(latencies, on=_KEY, how="left", maintain_order="left")
        .join(gaps, on=_KEY, how="left", maintain_order="left")
        .with_columns(
            lower_bound=pl.col("failed") + pl.col("unfinished") > LOWER_BOUND_SHARE * pl.col("planned")
        )
        .sort("arm", "level", maintain_order=True)
    )


def _rates(rows: pl.DataFrame) -> pl.DataFrame:
    """Total tokens/s of each arm and level: median and range over its repeats."""
    return (
        rows.group_by(*_KEY, "repeat", "window_s", maintain_order=True)
        .agg(pl.col("output_tokens").sum())
        .with_columns(rate=pl.col("output_tokens") / pl.col("window_s"))
        .group_by(_KEY, maintain_order=True)
        .agg(
            repeats=pl.len(),
            tokens_per_s=pl.col("rate").median(),
            tokens_per_s_low=pl.col("rate").min(),
            tokens_per_s_high=pl.col("rate").max(),
        )
    )


def unrecorded_levels(
    requests: pl.DataFrame, tokens: pl.DataFrame, meta: dict[str, Any]
) -> list[dict[str, Any]]:
    """Records of the levels that have rows and no record, as after a kill: window and counts from the rows.

    Such a level lasts from its first intended send to the last byte or token that came.
    """
    known = {(r["arm"], r["level"], r["repeat"]) for r in meta["levels"] if not r["warmup"]}
    # the drift step is numbered as one repeat more than was planned
    planned = BUDGETS.get(meta["workload"].get("budget", ""))
    came = tokens.group_by(id="request_id").agg(came_s=pl.col("t_s").max(), came=pl.col("tokens").sum())
    found = (
        requests.filter(~pl.col("warmup"))
        .join(came, on="id", how="left", maintain_order="left")
        .group_by("engine", *_KEY, "repeat", maintain_order=True)
        .agg(
            pl.len().alias("planned"),
            *((pl.col("outcome") == word).sum().alias(word) for word in OUTCOMES),
            pl.coalesce("output_tokens", "came").sum().alias("tokens"),
            pl.col("intended_s").min().alias("started_s"),
            pl.max_horizontal("end_s", "last_token_s", "came_s").max().alias("ended_s"),
        )
        .filter(pl.col("ended_s") > pl.col("started_s"))
    )
    return [
        {
            **row,
            "warmup": False,
            "drift": planned is not None and row["repeat"] >= planned.repeats,
            "broken": "the run was broken off in this level",
        }
        for row in found.to_dicts()
        if (row["arm"], row["level"], row["repeat"]) not in known
    ]


def _ms(seconds: pl.Expr, quantile: float, name: str) -> pl.Expr:
    return (seconds.quantile(quantile, interpolation="linear") * 1000).alias(name)


@dataclass(frozen=True)
class Comparison:
    """Two runs beside each other.

    Attributes:
        table: arm, level, and for each metric its value in both runs and their ratio (second / first). Where
            the one arm of an engine has another name in each run, the row is labelled "first / second".
        differences: every condition that differs, as "where: this / that". Only an empty list makes the two
            runs comparable as equals.
        same_files: whether the arms that both have served the same model files; False without such arms.
    """

    table: pl.DataFrame
    differences: list[str]
    same_files: bool

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{escape(d)}</li>" for d in self.differences)
        head = "Same conditions." if not self.differences else f"Conditions that differ:<ul>{notes}</ul>"
        return head + str(self.table._repr_html_())


_FILE_FIELDS = ("model_digest", "quantisation", "model_source")
_INCIDENTAL = ("url", "owner", "sources")
"""Facts of an engine that say nothing about how it computes."""
_COMPARED = ("tokens_per_s", "ttft_ms_p50", "ttft_ms_p95", "itl_ms_p50", "itl_ms_p99", "e2e_ms_p50")


def side_by_side(
    first: tuple[dict[str, Any], pl.DataFrame], second: tuple[dict[str, Any], pl.DataFrame]
) -> Comparison:
    """Set two runs (meta and summary each) side by side over the arms and levels that both have."""
    (meta_a, table_a), (meta_b, table_b) = first, second
    differences = [
        f"{k}: {meta_a[k]} / {meta_b[k]}" for k in ("kind", "labkit", "seed") if meta_a[k] != meta_b[k]
    ]
    for part in ("host", "workload"):
        differences += _unlike(part, meta_a[part], meta_b[part])
    arms_a, arms_b = meta_a["arms"], meta_b["arms"]
    pairs = _pairs(arms_a, arms_b)
    for arms, paired in ((arms_a, pairs.keys()), (arms_b, pairs.values())):
        if only := [arm for arm in arms if arm not in paired]:
            differences.append(f"measured in one run only: {', '.join(only)}")
    labels = {a: a if a == b else f"{a} / {b}" for a, b in pairs.items()}
    same_files = bool(pairs)
    for a, b in pairs.items():
        facts_a, facts_b = arms_a[a]["facts"], arms_b[b]["facts"]
        differences += _unlike(labels[a], facts_a, facts_b)
        differences += _unlike(f"{labels[a]}, asked for", arms_a[a]["settings"], arms_b[b]["settings"])
        # two unknown digests prove nothing, so they do not count as the same file
        digests = [f.get("model_digest") for f in (facts_a, facts_b)]
        if not digests[0] or digests[0] != digests[1]:
            known = "another one" if all(digests) else "not known to be the same"
            differences.append(f"{labels[a]}, model file: {known}")
            same_files = False
        same_files &= all(facts_a.get(n) == facts_b.get(n) for n in _FILE_FIELDS)
    others = {pairs[a]: label for a, label in labels.items()}
    joined = table_a.with_columns(pl.col("arm").replace(labels)).join(
        table_b.with_columns(pl.col("arm").replace(others)),
        on=_KEY,
        how="inner",
        suffix="_other",
        maintain_order="left",
    )
    ratios = [(pl.col(f"{m}_other") / pl.col(m)).alias(f"{m}_ratio") for m in _COMPARED]
    columns = [c for m in _COMPARED for c in (m, f"{m}_other", f"{m}_ratio")]
    return Comparison(joined.with_columns(ratios).select(*_KEY, *columns), differences, same_files)


def _pairs(first: dict[str, Any], second: dict[str, Any]) -> dict[str, str]:
    """Which arm of the first run stands beside which of the second: by name, else by engine where each run
    has exactly one arm of it."""
    pairs = {}
    for name, arm in first.items():
        ours, theirs = (
            [n for n, other in arms.items() if other["engine"] == arm["engine"]] for arms in (first, second)
        )
        if name in second:
            pairs[name] = name
        elif len(ours) == len(theirs) == 1 and theirs[0] not in first:
            pairs[name] = theirs[0]
    return pairs


def _unlike(where: str, first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """One line for each field that differs."""
    return [
        f"{where}, {name}: {first.get(name)} / {second.get(name)}"
        for name in dict.fromkeys([*first, *second])
        if name not in _INCIDENTAL and first.get(name) != second.get(name)
    ]


def to_html(meta: dict[str, Any], table: pl.DataFrame, partial: str | None) -> str:
    """The run as a notebook shows it: badge, verdict, conditions, table."""
    verdict = meta["verdict"]
    reasons = "".join(f"<li>{escape(r)}</li>" for r in verdict["reasons"])
    arms = "".join(f"<li>{escape(name)}: {escape(caption(arm))}</li>" for name, arm in meta["arms"].items())
    broken = f"<p><b>Not whole:</b> {escape(partial)}</p>" if partial else ""
    return (
        f"<p><b>{escape(meta['kind'])}</b> · {escape(meta['started_at'])} · {escape(meta['host']['cpu'])}, "
        f"{meta['host']['cores']} cores · verdict <b>{escape(verdict['word'])}</b></p>"
        f"<ul>{reasons}</ul>{broken}<ul>{arms}</ul>{_short(meta, table)._repr_html_()}"
    )


def _short(meta: dict[str, Any], table: pl.DataFrame) -> pl.DataFrame:
    """The columns to read first, with as many digits as mean something; the rest is in ``Run.summary()``."""
    return table.select(
        "arm",
        _level(meta["workload"].get("load") or {}),
        pl.col("tokens_per_s").round(1),
        pl.col("ttft_ms_p50", "ttft_ms_p95", "itl_ms_p50", "itl_ms_p99").round(0),
        pl.format("{}/{}", "ok", "planned").alias("ok/planned"),
        "lower_bound",
    )


def _level(load: dict[str, Any]) -> pl.Expr:
    """The levels under the name of what they count."""
    if several := load.get("workloads"):
        names = {at: one["name"] for at, one in enumerate(several, start=1)}
        return pl.col("level").replace_strict(names, return_dtype=pl.String).alias("workload")
    return pl.col("level").alias("shared tokens" if load.get("sharing") else "users")


def caption(arm: dict[str, Any]) -> str:
    """One line on what was measured: version, model, precision, slots, threads; unknown parts left out."""
    facts = arm.get("facts", {})
    ollama = facts.get("engine") == "ollama"
    slots = ("{} slot" if facts.get("slots") == 1 else "{} slots") if ollama else "at most {} sequences"
    parts = [
        f"{facts.get('engine', '?')} {facts.get('version') or ''}".strip(),
        facts.get("model"),
        facts.get("quantisation"),
        slots.format(facts["slots"]) if facts.get("slots") else None,
        f"{facts['threads']} threads" if facts.get("threads") else None,
        facts.get("device"),
        *(f"before {caption({'facts': one})}" for one in (facts.get("behind") or {}).values()),
    ]
    return ", ".join(str(p) for p in parts if p)
