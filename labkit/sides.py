"""One engine's curve in a run, for judgements in words: a number that is missing is a reason, not a crash."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from labkit import metrics
from labkit.bundle import Run
from labkit.summary import measured_levels

NOISE = 0.05
"""Changes below this share are not told apart where there is only one repeat; the same limit as for drift."""

WAITING_SHARE = 0.5
"""Users "wait in a queue" when more than half of the time to their first token is waiting."""


class Missing(LookupError):
    """The run does not hold what a judgement needs; the text says what, as a sentence without full stop."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"{self}.", "Next: let the cell that measures run to its end, then run this one again."]


class NoArm(Missing):
    """The run has no arm of the engine that is asked about."""


@dataclass(frozen=True)
class Side:
    """One arm of a run.

    Attributes:
        arm: the arm's name in the run; ``name`` is how a sentence calls it.
        facts: what the engine said of itself.
        rows: rows of the run's summary by number of users; empty if no level was measured.
        settings: that it was started with.
    """

    arm: str
    facts: Mapping[str, Any]
    rows: Mapping[int, Mapping[str, Any]]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The arm's name, or the engine's proper one where they are the same."""
        return {"ollama": "Ollama", "vllm": "vLLM"}.get(self.arm, self.arm)

    @property
    def slots(self) -> int | None:
        """Requests the engine works on at once, as read from it."""
        return self.facts.get("slots")

    def value(self, users: int, column: str) -> float:
        """A number of the summary.

        Raises:
            Missing: the level was not measured or the number is null there.
        """
        if users not in self.rows:
            raise Missing(f"{people(users)} were not measured on {self.name}")
        value = self.rows[users][column]
        if value is None:
            raise Missing(
                f"{self.arm} gave no {column} at {people(users)} (no whole answer, or not reported)"
            )
        return float(value)

    def cut_short(self, users: int) -> bool:
        """Whether so many answers failed or are missing that latencies are lower bounds."""
        return bool(self.rows[users]["lower_bound"])

    def ms(self, users: int, column: str) -> str:
        """A latency in words; "at least" where slow answers are missing."""
        return f"{'at least ' if self.cut_short(users) else ''}{self.value(users, column):,.0f} ms"


def sides(run: Run, engine: str) -> list[Side]:
    """All arms of this engine, in planned order.

    Raises:
        NoArm: there is none.
    """
    arms = {name: arm for name, arm in run.meta["arms"].items() if arm["engine"] == engine}
    if not arms:
        raise NoArm(f"This run has no arm with {engine}")
    table = run.summary().sort("level")
    return [
        Side(
            name,
            arm.get("facts", {}),
            {row["level"]: row for row in table.filter(pl.col("arm") == name).to_dicts()},
            arm["settings"],
        )
        for name, arm in arms.items()
    ]


def side(run: Run, engine: str) -> Side:
    """The engine's first arm.

    Raises:
        Missing: no arm of this engine, or no level of it was measured.
    """
    first = sides(run, engine)[0]
    if not first.rows:
        raise Missing(f"This run has no measured level of {first.arm}")
    return first


def both(run: Run) -> tuple[Side, Side]:
    """Ollama's and vLLM's side."""
    return side(run, "ollama"), side(run, "vllm")


def shared(first: Side, second: Side) -> list[int]:
    """Levels at which both delivered tokens, ascending."""
    levels = [n for n in first.rows if n in second.rows]
    found = [n for n in levels if all((s.rows[n]["tokens_per_s"] or 0) > 0 for s in (first, second))]
    if not found:
        raise Missing(f"{first.name} and {second.name} share no level at which both delivered tokens")
    return found


def answers(run: Run, of: Side, users: int) -> pl.DataFrame:
    """Whole answers of the measured repeats of one level."""
    rows = metrics.answered(run.requests).filter((pl.col("arm") == of.arm) & (pl.col("level") == users))
    return rows.join(measured_levels(run.meta["levels"]), on=["arm", "level", "repeat"], how="semi")


@dataclass(frozen=True)
class Ratio:
    """Total tokens/s of one side over the other at one level, with the range that the repeats allow."""

    users: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        spread = f" ({self.low:.2f} to {self.high:.2f})" if self.low < self.high else ""
        return f"{self.value:.2f}{spread} at {people(self.users)}"


def ratio(over: Side, under: Side, users: int) -> Ratio:
    """``over`` / ``under`` in total tokens/s at a shared level."""
    a, b = over.rows[users], under.rows[users]
    return Ratio(
        users,
        a["tokens_per_s"] / b["tokens_per_s"],
        a["tokens_per_s_low"] / b["tokens_per_s_high"],
        a["tokens_per_s_high"] / b["tokens_per_s_low"] if b["tokens_per_s_low"] else float("inf"),
    )


@dataclass(frozen=True)
class Waiting:
    """How much of the time to first token is waiting to be taken on, and how that is known."""

    share: float | None
    basis: str  # reported | gauge | slots
    sentence: str
    queued: bool


def waiting(run: Run, of: Side, users: int) -> Waiting:
    """Do this engine's users wait for their turn at this level?

    Where the engine reports durations per request (Ollama), by the median share of TTFT that they leave over.
    vLLM reports none per request, and a TTFT that rises is no proof, since requests that are worked on at
    once also slow each other; so by its own gauge of waiting requests, else by users against its limit.

    Raises:
        Missing: none of the three is known.
    """
    rows = answers(run, of, users).filter(pl.col("queue_basis") == "reported")
    share = rows.select((pl.col("queue_s") / metrics.TTFT).median()).item() if len(rows) else None
    if share is not None:
        bound = " or more" if of.cut_short(users) else ""
        text = f"{share:.0%}{bound} of {of.name}'s TTFT at {people(users)} is waiting, by its own durations"
        # what is left over on an idle engine is network and HTTP, which on a fast GPU can be half of a TTFT
        line_possible = of.slots is None or users > of.slots
        return Waiting(share, "reported", text, share > WAITING_SHARE and line_possible)
    line = _line(run, of.arm, users)
    if line is not None:
        text = f"{of.name} had {line:.0f} requests waiting at {people(users)} (median of its own gauge)"
        return Waiting(None, "gauge", text, line > 0)
    if of.slots is not None:
        text = f"{of.name} takes on {of.slots} requests at once, and there were {people(users)}"
        return Waiting(None, "slots", text, users > of.slots)
    raise Missing(f"{of.name} reports neither durations nor a queue nor its limit")


def _line(run: Run, arm: str, users: int) -> float | None:
    """Median of the gauge of waiting requests while the level was measured."""
    return readings(run, arm).filter(pl.col("level") == users)["waiting"].median()  # type: ignore[return-value]


def readings(run: Run, arm: str) -> pl.DataFrame:
    """The engine's gauges while levels of an arm were measured, one row a reading.

    Columns: level, repeat, t_s, and the gauges that judgements use, null where it has no such one.
    """
    own = run.gauges.filter(pl.col("arm") == arm)
    parts = [
        own.filter(pl.col("t_s").is_between(r["started_s"], r["ended_s"])).with_columns(
            level=pl.lit(r["level"], pl.Int64), repeat=pl.lit(r["repeat"], pl.Int64)
        )
        for r in run.meta["levels"]
        if r["arm"] == arm and not r["warmup"]
    ]
    names = {
        name: pl.col("value").filter(pl.col("name") == name).first()
        for name in ("running", "waiting", "kv_use")
    }
    rows = (
        pl.concat(parts)
        if parts
        else own.clear().with_columns(level=pl.lit(0, pl.Int64), repeat=pl.lit(0, pl.Int64))
    )
    return rows.group_by("level", "repeat", "t_s").agg(**names).sort("t_s")


def bits(facts: Mapping[str, Any]) -> int | None:
    """Bits per weight from a quantisation's name ("F16", "bfloat16", "Q4_1"), None if it does not tell."""
    found = re.match(r"(?:b?f|bfloat|float|i?q|int|fp|w)(\d+)", str(facts.get("quantisation")).lower())
    return int(found[1]) if found else None


def people(users: int) -> str:
    """ "1 user", "2 users"."""
    return f"{users} user{'' if users == 1 else 's'}"
