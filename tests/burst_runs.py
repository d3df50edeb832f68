"""Bundles of bursts on vLLM: seats, gauges and pauses are chosen by the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from labkit.bundle import Recorder, Run
from labkit.load.plan import ClientHealth, Tally
from labkit.schema import TOKEN
from labkit.verdict import Verdict
from labkit.workload import Workload

STEP_S = 0.05
PROMPT = 60

Reading = Mapping[str, float]


@dataclass(frozen=True)
class Burst:
    """What one arm did with a burst; times in seconds from its beginning.

    Attributes:
        starts: when the first token of each request came.
        tokens: of each answer, one every :data:`STEP_S`.
        pauses: by request, how long it stood still before its last token.
        outcomes: by request, where it is not "ok".
        readings: by time, the gauges that were read then.
        facts: changes to what vLLM says of itself.
    """

    starts: Sequence[float]
    tokens: int = 96
    pauses: Mapping[int, float] = field(default_factory=dict)
    outcomes: Mapping[int, str] = field(default_factory=dict)
    readings: Mapping[float, Reading] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def times(self, number: int) -> list[float]:
        """When each token of an answer came."""
        came = [self.starts[number] + STEP_S * n for n in range(self.tokens)]
        came[-1] += self.pauses.get(number, 0.0)
        return came


def groups(count: int, seats: int, tokens: int = 96) -> list[float]:
    """First tokens of so many requests before so many seats, all answers of one length."""
    return [0.1 + (number // seats) * (tokens + 1) * STEP_S for number in range(count)]


def burst_run(
    folder: Path,
    arms: Mapping[str, Burst],
    *,
    arrivals: str = "burst",
    repeats: int = 1,
    verdict: Verdict | None = None,
    kind: str = "live",
) -> Run:
    """Write and read back a run with one burst on each arm; an arm's name begins with its engine's."""
    load = {"arrivals": arrivals, "rounds": None, "requests": None, "stall_s": None, "cold": False}
    described = {**Workload().as_dict(), "experiment": "x", "budget": "short", "load": load}
    engines = {name: name.partition(",")[0].lower() for name in arms}
    entries = {
        name: {"engine": engines[name], "settings": {}, "facts": _facts(engines[name], kind, burst)}
        for name, burst in arms.items()
    }
    recorder = Recorder(folder, kind=kind, arms=entries, workload=described, seed=0)
    now, number = 10.0, 0
    for repeat in range(repeats):
        for name, burst in arms.items():
            _write(recorder, burst, now, number, name, engines[name], repeat)
            now, number = now + 1000.0, number + len(burst.starts)
    return recorder.finish(verdict or Verdict("clean", []), stopped=False)


def _facts(engine: str, kind: str, burst: Burst) -> dict[str, Any]:
    return {
        "engine": engine,
        "kind": kind,
        "version": "0.32.0",
        "model": "smollm2:135m",
        "device": "cpu",
        "slots": 128,
        "context": 512,
        "block_size": 128,
        "kv_tokens": 1664,
        "kv_bytes": 1664 * 23_040,
        **burst.facts,
    }


def _write(
    recorder: Recorder, burst: Burst, now: float, first: int, arm: str, engine: str, repeat: int
) -> None:
    labels = {"engine": engine, "arm": arm}
    level = len(burst.starts)
    rows, records, ends = [], [], [1.0]
    for number in range(level):
        outcome = burst.outcomes.get(number, "ok")
        row = {
            **labels,
            "id": first + number,
            "level": level,
            "repeat": repeat,
            "warmup": False,
            "user": number,
            "intended_s": now,
            "sent_s": now,
            "outcome": outcome,
            "output_tokens": 0,
            "queue_basis": "unknown",
        }
        if outcome == "ok":
            came = [now + t_s for t_s in burst.times(number)]
            records += [TOKEN.pack(first + number, t_s, 1, 0) for t_s in came]
            ends.append(came[-1] - now)
            row |= {
                "first_token_s": came[0],
                "last_token_s": came[-1],
                "end_s": came[-1],
                "prompt_tokens": PROMPT,
                "output_tokens": len(came),
            }
        rows.append(row)
    readings = [
        {"t_s": now + t_s, **labels, "name": name, "value": value}
        for t_s, reading in burst.readings.items()
        for name, value in reading.items()
    ]
    for table, lines in (("requests", rows), ("gauges", readings)):
        _append(recorder, f"{table}.rows", b"".join(orjson.dumps(line) + b"\n" for line in lines))
    _append(recorder, "tokens.rows", b"".join(records))
    ok = sum(row["outcome"] == "ok" for row in rows)
    failed = sum(row["outcome"] == "failed" for row in rows)
    tally = Tally(
        planned=level,
        ok=ok,
        failed=failed,
        unfinished=level - ok - failed,
        tokens=ok * burst.tokens,
        started_s=now,
        ended_s=now + max(ends),
    )
    recorder.level(
        {
            **labels,
            "level": level,
            "repeat": repeat,
            "warmup": False,
            "drift": False,
            **tally.__dict__,
            "client": ClientHealth().__dict__,
            "broken": None,
            "others_cpu": None,
        }
    )


def _append(recorder: Recorder, name: str, data: bytes) -> None:
    with (recorder.folder / name).open("ab") as out:
        out.write(data)
