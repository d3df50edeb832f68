"""Does an engine take a request on while it works on others, or only when all of them have ended?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from labkit import metrics
from labkit.bundle import Run
from labkit.sides import Missing, Side

READING = 2.0
"""A request needs about the TTFT of an idle engine before its first token can come. Only where others went on
for this many times as long does it tell that none came."""

FEWEST = 3
"""Free places that have to be seen before a judgement."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Joining:
    """Free places beside others at work: those that were filled while the others went on, and those that
    stayed empty until all of the others had ended."""

    name: str
    filled: int
    left_empty: int

    @property
    def sentence(self) -> str:
        """What was counted, without full stop."""
        return (
            f"of {self.filled + self.left_empty} places that became free at {self.name} while others were at "
            f"work, {self.filled} were filled before those had ended and {self.left_empty} after"
        )


def joining(run: Run, of: Side) -> Joining:
    """Count them over the measured levels.

    Raises:
        Missing: too few requests were in that position, or it is not known how many may be at work at once.
    """
    if of.slots is None:
        raise Missing(f"{of.name} does not tell how many requests it works on at once")
    rows = run.requests.filter(pl.col("arm") == of.arm, pl.col("outcome") == "ok")
    idle = rows.filter("warmup").select(metrics.TTFT.median()).item()
    if idle is None:
        raise Missing(f"{of.name} was not measured idle")
    times = metrics.answered(rows).select("level", "repeat", "sent_s", "first_token_s", "end_s").drop_nulls()
    told = [
        filled
        for level in times.partition_by("level", "repeat")
        for filled in _each(level.sort("sent_s").to_dicts(), of.slots, READING * idle)
    ]
    if len(told) < FEWEST:
        raise Missing(
            f"Fewer than {FEWEST} places became free at {of.name} while others went on for long enough"
        )
    return Joining(of.name, sum(told), len(told) - sum(told))


def _each(rows: Sequence[Row], slots: int, reading_s: float) -> Iterator[bool]:
    """For each free place beside others at work: did a first token come before those others had ended?

    A place is free when a request finds fewer at the engine than it takes, and when one ends while others
    wait.
    """
    for row in rows:
        sent, end = row["sent_s"], row["end_s"]
        busy_until = _busy_until(rows, sent, reading_s)
        if busy_until is not None and _there(rows, sent) < slots:
            yield row["first_token_s"] < busy_until
        busy_until = _busy_until(rows, end, reading_s)
        if busy_until is not None and _there(rows, end) >= slots:
            yield any(end < other["first_token_s"] < busy_until for other in rows if other["sent_s"] < end)


def _there(rows: Sequence[Row], moment: float) -> int:
    """Requests that are at the engine, at work or in line."""
    return sum(row["sent_s"] < moment < row["end_s"] for row in rows)


def _busy_until(rows: Sequence[Row], moment: float, reading_s: float) -> float | None:
    """When those that are at work at this moment will all have ended; None if that is too soon to tell."""
    ends = [row["end_s"] for row in rows if row["first_token_s"] <= moment < row["end_s"]]
    last = max(ends, default=moment)
    return last if last > moment + reading_s else None
