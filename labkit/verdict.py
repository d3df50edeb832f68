"""Can this run be trusted? Pure judgements on drift, foreign load and the client's own health."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from labkit import metrics

LAG_P99_LIMIT_MS = 20.0
"""Above this loop lag the client may be the cause. With both engines' threads on both cores of the 2-core
reference machine the load process itself sees a p99 of several ms (docs/architecture.md, "Client health")."""

COALESCED_LIMIT = 0.05
"""Share of token chunks that shared a read with the one before them."""

OTHERS_LIMIT = 0.15
"""Share of the machine's CPU that other programs may use during a level. On the quiet 2-core reference
machine it is 1 to 3 %; at a fifth an engine on the CPU already lost up to 40 % of its tokens/s."""

FOREIGN_LIMIT = 0.01
"""Share of an engine's work that this run did not send."""

DRIFT_LIMIT = 0.05
"""Change between the first level and the same level again at the end; twice the repeats' spread if larger."""

DRIFT_LIMIT_ONCE = 0.15
"""The same where each level is measured once, so that its noise is not known: two answers on the quiet
reference machine differed by up to 12 %."""

FAILED_LIMIT = 0.10
"""Share of a level's requests that may fail: above it the rest say little of that load."""

UNMETERED_LIMIT = 0.01
"""Share of the answers whose tokens are a count of chunks, since the engine gave none."""

WORDS = ("clean", "unknown", "suspect", "contaminated")
"""From good to bad."""


@dataclass(frozen=True)
class Verdict:
    """clean | unknown | suspect | contaminated, with the reasons in numbers."""

    word: str
    reasons: list[str] = field(default_factory=list)


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst word and every reason."""
    found = list(verdicts)
    word = max((v.word for v in found), key=WORDS.index, default="clean")
    return Verdict(word, [reason for v in found for reason in v.reasons])


def judge_clients(levels: Iterable[dict[str, Any]]) -> Verdict:
    """Suspect if at some level the load process could not keep up, broke off or could not write its rows,
    other programs took much of the CPU, many requests failed, or many answers came without a token count.

    A few answers without a token count are told as a reason, but leave the word as it is.

    Args:
        levels: level records of ``run.json``.
    """
    return combine([_judge_client(record) for record in levels])


def _judge_client(record: dict[str, Any]) -> Verdict:
    health, reasons = record["client"], []
    lag, coalesced = health["loop_lag_p99_ms"], health["coalesced_share"]
    if lag > LAG_P99_LIMIT_MS:
        reasons.append(
            f"the load process ran late: loop lag p99 {lag:.1f} ms (limit {LAG_P99_LIMIT_MS:.0f}), "
            f"{health['missed_ticks']} ticks missed"
        )
    if coalesced > COALESCED_LIMIT:
        reasons.append(
            f"{coalesced:.0%} of token chunks were read together with the one before "
            f"(limit {COALESCED_LIMIT:.0%})"
        )
    others = record["others_cpu"]
    if others is not None and others > OTHERS_LIMIT:
        reasons.append(f"other programs used {others:.0%} of the CPU (limit {OTHERS_LIMIT:.0%})")
    if health["rows_lost"]:
        reasons.append(f"{health['rows_lost']} rows could not be written")
    if record["broken"]:
        reasons.append(record["broken"])
    failed, planned = record["failed"], record["planned"]
    if failed > FAILED_LIMIT * planned:
        reasons.append(f"{failed} of {planned} requests failed (limit {FAILED_LIMIT:.0%})")
    unmetered, answers = record["unmetered"], record["ok"]
    word = "suspect" if reasons or unmetered > UNMETERED_LIMIT * answers else "clean"
    if unmetered:
        reasons.append(
            f"{unmetered} of {answers} answers carried no token count: their chunks were counted as tokens"
        )
    where = f"{record['arm']}, level {record['level']}"
    return Verdict(word, [f"{where}: {reason}" for reason in reasons])


def judge_foreign(arm: str, what: str, served: int | None, sent: int, slack: int = 0) -> Verdict:
    """Contaminated if the engine served over 1 % more than this run sent, unknown if over 1 % less.

    Args:
        what: the unit that was counted ("requests", "output tokens").
        served: difference of the engine's own counter over the run, None if it has none.
        sent: what this run sent or received.
        slack: what cannot be told apart, such as tokens made for cancelled requests and never seen.
    """
    if served is None:
        return Verdict(
            "unknown", [f"{arm}: the engine does not count its {what}, so foreign load is unknown"]
        )
    foreign = served - sent - slack
    if foreign > FOREIGN_LIMIT * max(sent, 1):
        return Verdict(
            "contaminated", [f"{arm}: the engine served {served} {what}, this run accounts for {sent}"]
        )
    if sent - served - slack > FOREIGN_LIMIT * sent:
        reason = (
            f"{arm}: the engine counted {served} {what}, fewer than the {sent} of this run: its counter was "
            "reset or belongs to another server, so foreign load is unknown"
        )
        return Verdict("unknown", [reason])
    return Verdict("clean")


def judge_drift(arm: str, levels: Sequence[dict[str, Any]]) -> Verdict:
    """Suspect if the first level, measured again at the end, gives other total tokens/s.

    Args:
        levels: this arm's level records of ``run.json``; without a drift step among them there is nothing
            to judge and the verdict is clean.
    """
    if not any(r["drift"] for r in levels):
        return Verdict("clean")
    again = next((r for r in levels if r["drift"] and r["ok"]), None)
    measured = [r for r in levels if not r["drift"] and not r["warmup"] and r["ok"]]
    rates = [_rate(r) for r in measured if again and r["level"] == again["level"]]
    if again is None or not rates:
        return Verdict("unknown", [f"{arm}: the first level was not measured twice, so drift is unknown"])
    drift = _rate(again) / rates[0] - 1
    noise = metrics.spread(rates)
    limit = DRIFT_LIMIT_ONCE if noise is None else max(DRIFT_LIMIT, 2 * noise)
    if abs(drift) <= limit:
        return Verdict("clean")
    reason = f"{arm}: the first level changed by {drift:+.0%} between start and end (limit {limit:.0%})"
    return Verdict("suspect", [reason])


def _rate(record: dict[str, Any]) -> float:
    return float(record["tokens"] / (record["ended_s"] - record["started_s"]))
