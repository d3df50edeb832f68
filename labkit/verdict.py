"""Can this run be trusted? Pure judgements on drift, foreign load and the client's own health."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

LAG_P99_LIMIT_MS = 20.0
"""Above this loop lag the client may be the cause. With both engines' threads on both cores of the 2-core
reference machine the load process itself sees a p99 of several ms (docs/architecture.md, "Client health")."""

COALESCED_LIMIT = 0.05
"""Share of token chunks that shared a read with the one before them."""

FOREIGN_LIMIT = 0.01
"""Share of an engine's work that this run did not send."""

DRIFT_LIMIT = 0.05
"""Change between the first level and the same level again at the end; twice the repeats' spread if larger."""

_ORDER = ("clean", "unknown", "suspect", "contaminated")


@dataclass(frozen=True)
class Verdict:
    """clean | unknown | suspect | contaminated, with the reasons in numbers."""

    word: str = "clean"
    reasons: list[str] = field(default_factory=list)


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst word and every reason."""
    found = list(verdicts)
    word = max((v.word for v in found), key=_ORDER.index, default="unknown")
    return Verdict(word, [reason for v in found for reason in v.reasons])


def judge_client(*, loop_lag_p99_ms: float, missed_ticks: int, coalesced_share: float) -> Verdict:
    """Suspect if the load process could not keep up."""
    reasons = []
    if loop_lag_p99_ms > LAG_P99_LIMIT_MS:
        reasons.append(
            f"the load process ran late: loop lag p99 {loop_lag_p99_ms:.1f} ms "
            f"(limit {LAG_P99_LIMIT_MS:.0f}), {missed_ticks} ticks missed"
        )
    if coalesced_share > COALESCED_LIMIT:
        reasons.append(
            f"{coalesced_share:.0%} of token chunks were read together with the one before "
            f"(limit {COALESCED_LIMIT:.0%})"
        )
    return Verdict("suspect" if reasons else "clean", reasons)


def judge_foreign(arm: str, what: str, served: int | None, sent: int, slack: int = 0) -> Verdict:
    """Contaminated if the engine served over 1 % more than this run sent.

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
    return Verdict()


def judge_drift(arm: str, first: float | None, again: float | None, noise: float | None) -> Verdict:
    """Suspect if the first level, measured again at the end, gives another result.

    Args:
        first, again: total tokens/s at the first level, at the start and at the end.
        noise: half range over median of the repeats, if there were any.
    """
    if not first or not again:
        return Verdict("unknown", [f"{arm}: the first level was not measured twice, so drift is unknown"])
    drift = again / first - 1
    limit = max(DRIFT_LIMIT, 2 * (noise or 0.0))
    if abs(drift) <= limit:
        return Verdict()
    return Verdict(
        "suspect",
        [f"{arm}: the first level changed by {drift:+.0%} between start and end (limit {limit:.0%})"],
    )
