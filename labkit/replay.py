"""A recorded run, walked through once more at a chosen speed: the same samples and tables, and no engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import fields
from typing import Any

import polars as pl

from labkit import verdict
from labkit.arms import Arm, Step
from labkit.bundle import Run
from labkit.engines.absent import AbsentEngine
from labkit.engines.base import Gauges
from labkit.errors import ExperimentStopped
from labkit.experiments import OnProgress, Progress
from labkit.load.plan import Tally
from labkit.load.process import Frame
from labkit.queueing import asked_words
from labkit.recorded import levels_of
from labkit.schema import OUTCOMES
from labkit.verdict import Verdict

FRAME_S = 0.1
"""Seconds between two samples by the reader's clock, as in a measurement."""

_KEY = ["arm", "level", "repeat", "warmup"]
_READ = {field.name for field in fields(Gauges)}
_EVENTS = {"sent": "sent_s", "first": "first_token_s", "end": "end_s"}

Record = dict[str, Any]


class Replay:
    """Does with a recorded run what an :class:`labkit.experiments.Experiment` does with engines.

    It goes level by level in the recorded order and leaves out the pauses between them. What it returns is
    of kind "recorded" and has the recording's verdict.
    """

    def __init__(self, recording: Run, users: Sequence[int], *, speed: float) -> None:
        """Prepare it.

        Args:
            users: levels to replay; those that were not recorded are left out, and the verdict says so.
            speed: how many recorded seconds pass in one; infinity for all at once.
        """
        self._recording = recording
        self._speed = speed
        self._records = [r for r in recording.meta["levels"] if r["warmup"] or r["level"] in users]
        self._lacking = sorted(set(users) - levels_of(recording.meta))
        self._stopping = False

    def stop(self) -> None:
        """End early and keep the levels that were replayed to their end. Again is harmless."""
        self._stopping = True

    async def run(self, on_progress: OnProgress = lambda _progress: None) -> Run:
        """Walk through it and return what was replayed.

        Raises:
            ExperimentStopped: stop() came before the first level had ended.
        """
        done, total = 0, len(self._records)
        for record in self._records:
            step, left_s = self._step(record), self._left_s(done)
            async for frame in self._frames(record):
                gauges = self._gauges(record, frame.t_s)
                on_progress(Progress(str(step), done, total, left_s, step, frame, gauges))
            if self._stopping:
                break
            done += 1
            so_far = self._part(done, "the replay has not ended")
            on_progress(Progress(str(step), done, total, self._left_s(done), step, run=so_far))
        if done == 0:
            raise ExperimentStopped(
                "replay a recorded run", "stopped before its first level had ended", "press Run"
            )
        stopped = done < total
        run = self._part(done, "the replay was stopped early" if stopped else None)
        on_progress(Progress("stopped" if stopped else "done", done, total, 0.0, run=run))
        return run

    async def _frames(self, record: Record) -> AsyncIterator[Frame]:
        """The level's samples, each when it is due, until its end or until stop()."""
        started, ended = record["started_s"], record["ended_s"]
        requests, tokens = self._rows([record])
        at = started
        before: Frame | None = None
        while not self._stopping and (before is None or at < ended):
            due = min(at + FRAME_S * self._speed, ended)
            await asyncio.sleep((due - at) / self._speed)
            at = due
            before = _frame(requests, tokens, started, at, before)
            yield before

    def _gauges(self, record: Record, at_s: float) -> Gauges | None:
        """What the engine had said last of itself at a moment of a level."""
        then = pl.col("t_s").is_between(record["started_s"], at_s)
        readings = self._recording.gauges.filter(then, arm=record["arm"])
        newest = {
            row["name"]: row["value"] for row in readings.sort("t_s").to_dicts() if row["name"] in _READ
        }
        return Gauges(**newest) if newest else None

    def _rows(self, records: Sequence[Record]) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Requests and tokens of these levels."""
        keys = pl.DataFrame([{name: record[name] for name in _KEY} for record in records])
        requests = self._recording.requests.join(keys, on=_KEY, how="semi", maintain_order="left")
        ids = requests.select(request_id="id")
        return requests, self._recording.tokens.join(ids, on="request_id", how="semi", maintain_order="left")

    def _around(self, record: Record) -> tuple[float, float]:
        """A level with the pauses before and after it, in which the engine was read once more."""
        recorded = self._recording.meta["levels"]
        before = [r["ended_s"] for r in recorded if r["ended_s"] <= record["started_s"]]
        after = [r["started_s"] for r in recorded if r["started_s"] >= record["ended_s"]]
        return max(before, default=0.0), min(after, default=float("inf"))

    def _part(self, done: int, partial: str | None) -> Run:
        """The first levels of the replay as a run."""
        recording, records = self._recording, self._records[:done]
        requests, tokens = self._rows(records)
        readings = [(pl.col("arm") == r["arm"]) & pl.col("t_s").is_between(*self._around(r)) for r in records]
        judged = self._verdict(stopped=self._stopping and done < len(self._records))
        meta = {
            **recording.meta,
            "levels": records,
            "state": "complete" if partial is None else "stopped",
            "verdict": {"word": judged.word, "reasons": judged.reasons},
        }
        gauges = recording.gauges.filter(pl.any_horizontal(readings))
        note = partial and f"{recording.path.name}: {partial}"
        return Run(meta, requests, tokens, gauges, path=recording.path, partial=note)

    def _verdict(self, *, stopped: bool) -> Verdict:
        """The recording's own, with what this replay leaves out."""
        verdicts = [self._recording.verdict]
        if self._lacking:
            missing = ", ".join(map(str, self._lacking))
            verdicts.append(Verdict("clean", [f"left out, since nobody recorded it: {missing} users"]))
        if stopped:
            verdicts.append(Verdict("suspect", ["the replay was stopped early: later levels are missing"]))
        return verdict.combine(verdicts)

    def _left_s(self, done: int) -> float:
        """Seconds to the end by the reader's clock."""
        left: float = sum(r["ended_s"] - r["started_s"] for r in self._records[done:])
        return left / self._speed

    def _step(self, record: Record) -> Step:
        facts = self._recording.meta["arms"][record["arm"]]["facts"]
        arm = Arm(record["arm"], AbsentEngine(record["engine"]), facts.get("model") or "")
        phase = "warm-up" if record["warmup"] else "drift" if record.get("drift") else "measure"
        load = self._recording.arrivals
        words = asked_words(load, record["level"])
        return Step(arm, record["level"], record["repeat"], load, phase, words=words)


def _frame(
    requests: pl.DataFrame, tokens: pl.DataFrame, started_s: float, at_s: float, before: Frame | None
) -> Frame:
    """One level's account as it stood at a moment, and what happened since the frame before."""
    issued = requests.filter(pl.col("intended_s") <= at_s)
    ended = issued.filter(pl.col("end_s") <= at_s)
    outcomes = {word: int((ended["outcome"] == word).sum()) for word in OUTCOMES}
    in_flight = issued.height - ended.height
    received = int(tokens.filter(pl.col("t_s") <= at_s)["tokens"].sum())
    tally = Tally(
        planned=issued.height,
        **{**outcomes, "unfinished": outcomes["unfinished"] + in_flight},
        tokens=received,
        started_s=started_s,
        ended_s=at_s,
    )
    since_s = float("-inf") if before is None else before.t_s
    new = received - (before.tally.tokens if before else 0)
    return Frame(at_s, tally, in_flight, new, _events(requests, tokens, since_s, at_s))


def _events(
    requests: pl.DataFrame, tokens: pl.DataFrame, since_s: float, until_s: float
) -> list[tuple[str, int, float]]:
    """What happened to requests after one moment and up to another, in order."""
    later = tokens.join(requests.select(request_id="id", first="first_token_s"), on="request_id")
    happened = pl.concat(
        [
            *(
                requests.select(pl.lit(kind).alias("kind"), "id", pl.col(column).alias("t_s"))
                for kind, column in _EVENTS.items()
            ),
            later.filter(pl.col("t_s") > pl.col("first")).select(
                pl.lit("token").alias("kind"), id="request_id", t_s="t_s"
            ),
        ]
    )
    now = (pl.col("t_s") > since_s) & (pl.col("t_s") <= until_s)
    return happened.filter(now).sort("t_s", maintain_order=True).rows()
