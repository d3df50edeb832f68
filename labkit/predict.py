"""What a simulated engine would do under a load that nobody measured, with a band, and how far off it was.

In virtual time: no server is started, and a minute of load takes a fraction of a second. The band is the
profile's 90 % band. It was fitted to medians; a p95 has the band of its median, since nobody fitted one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import fmean, median
from typing import Any

import polars as pl

from labkit import metrics
from labkit.arms import asked_name
from labkit.bundle import Run
from labkit.calibration import USERS
from labkit.errors import UsageError
from labkit.sim import profile as profiles
from labkit.sim.calibrate import COLUMNS, counts
from labkit.sim.drive import TURN_S, closed_loop, drive
from labkit.sim.ollama import Ollama
from labkit.sim.profile import Profile
from labkit.sim.request import Request
from labkit.sim.rerun import PAUSE_S, measured, requests, shared, tables, whole_settings
from labkit.sim.server.tokens import encode
from labkit.sim.vllm import VLLM
from labkit.summary import summarise
from labkit.workload import Workload

BANDED = {
    "tokens_per_s": ("tokens_per_s",),
    "ttft_ms_p50": ("ttft",),
    "ttft_ms_p95": ("ttft",),
    "itl_ms_p50": ("itl",),
    "tpot_ms_p50": ("itl",),
    "tpot_ms_p95": ("itl",),
    "queue_ms_p50": ("queue",),
    # a sum of a TTFT and many ITLs is off by no larger factor than the worse of the two
    "e2e_ms_p50": ("ttft", "itl"),
    "e2e_ms_p95": ("ttft", "itl"),
}
"""Columns that get a band, and the profile's bands that it comes from: the widest of them."""

WORDS = {"tokens_per_s": "tokens/s", "itl": "ITL p50", "ttft": "TTFT p50", "queue": "queue wait p50"}
"""Metrics of a profile's bands in a table for people; times are in milliseconds."""

APART = 50
"""Between the numbers of two requests, so that long questions share no token by chance."""

_ERRORS: dict[str, Any] = {
    "arm": pl.String,
    "engine": pl.String,
    "level": pl.Int64,
    "metric": pl.String,
    **dict.fromkeys(("measured", "measured_low", "measured_high", "predicted", "low", "high"), pl.Float64),
    "inside": pl.Boolean,
    **dict.fromkeys(("error", "line", "line_error"), pl.Float64),
}


@dataclass(frozen=True)
class Lengths:
    """How long questions and answers are, in tokens, as pairs to draw from.

    Attributes:
        shared: tokens with which all questions begin, so that a cache may have them.
    """

    pairs: tuple[tuple[int, int], ...]
    shared: int = 0

    @classmethod
    def of(cls, workload: Workload, seed: int = 0) -> Lengths:
        """Those of a workload's questions by the simulated engines' count, with answers as long as asked."""
        asked = [encode(prompt.messages) for prompt in workload.prompts(64, f"{seed}/predict")]
        return cls(tuple((len(tokens), workload.output_tokens) for tokens in asked), _common(asked))

    @classmethod
    def even(cls, prompt_tokens: int, output_tokens: int) -> Lengths:
        """All alike; only the chat template's beginning is shared.

        Raises:
            UsageError: less than one token.
        """
        if prompt_tokens < 1 or output_tokens < 1:
            seen = f"{prompt_tokens} tokens in and {output_tokens} out"
            raise UsageError("predict a load", seen, "both must be 1 or more")
        template = _common([encode([{"role": "user", "content": word}]) for word in ("a", "b")])
        return cls(((prompt_tokens, output_tokens),), min(template, prompt_tokens // 2))

    @classmethod
    def seen(cls, run: Run, arm: str) -> Lengths:
        """Those that an arm's whole answers had in a run.

        Raises:
            UsageError: there is none.
        """
        rows = metrics.answered(run.requests).filter(arm=arm).select("prompt_tokens", "output_tokens")
        if rows.is_empty():
            seen = f"{arm} has no whole answer in {run.path.name}"
            raise UsageError("read lengths off a run", seen, "measure it")
        return cls(tuple(rows.iter_rows()), shared(run))

    @property
    def means(self) -> tuple[float, float]:
        """Mean tokens of a question and of an answer."""
        return fmean(asked for asked, _ in self.pairs), fmean(answered for _, answered in self.pairs)

    def draw(self, count: int, seed: str) -> list[tuple[int, int]]:
        """So many pairs; the same for the same seed."""
        return random.Random(seed).choices(self.pairs, k=count)


def sweep(
    profile: Profile | str,
    engine: str,
    users: Sequence[int],
    *,
    settings: Mapping[str, Any] | None = None,
    workload: Workload | None = None,
    prompt_tokens: int | None = None,
    output_tokens: int | None = None,
    lengths: Lengths | None = None,
    rounds: int = 2,
    seed: int = 0,
) -> pl.DataFrame:
    """A closed loop at each number of users.

    Args:
        profile: one, or its name in ``data/profiles`` or of ``labkit calibrate``.
        settings: that the engine is started with, as ``lab.sweep`` takes them.
        workload: whose questions are asked (default: the course's); or ``prompt_tokens`` and
            ``output_tokens``, or ``lengths``.
        rounds: questions that each user asks.

    Returns:
        A row a level with the columns of :func:`labkit.summary.summarise`; for those of :data:`BANDED` also
        ``_low`` and ``_high``, null where the profile has no band; engine, profile, basis; answers_per_s;
        prompt_tokens and output_tokens (means of what was drawn from).

    Raises:
        UsageError: unknown profile or engine, an impossible setting, no users, impossible lengths.
    """
    told = _profile(profile, engine)
    drawn = _lengths(workload, prompt_tokens, output_tokens, lengths, seed)
    if not users or min(users) < 1:
        raise UsageError(
            "predict a load", f"users are {list(users)}", "give numbers of users, each 1 or more"
        )
    machine = _Machine(told, engine, settings or {}, drawn)
    rows = [machine.closed(level, rounds, seed) for level in sorted(set(users))]
    return _banded(pl.concat(rows), told, engine, drawn)


def arrivals(
    profile: Profile | str,
    engine: str,
    rates: Sequence[float],
    *,
    settings: Mapping[str, Any] | None = None,
    workload: Workload | None = None,
    prompt_tokens: int | None = None,
    output_tokens: int | None = None,
    lengths: Lengths | None = None,
    requests: int = 100,
    seed: int = 0,
) -> pl.DataFrame:
    """Requests that come at random times, whether or not the engine keeps up; see :func:`sweep`.

    Args:
        rates: requests a second, a level each.
        requests: of each level.

    Returns:
        As :func:`sweep`; ``level`` counts from 1, and ``rate`` has the requests a second.

    Raises:
        UsageError: as :func:`sweep`; or a rate that is not above 0.
    """
    told = _profile(profile, engine)
    drawn = _lengths(workload, prompt_tokens, output_tokens, lengths, seed)
    if not rates or not all(0 < rate < inf for rate in rates):
        raise UsageError("predict a load", f"rates are {list(rates)}", "give requests a second, each above 0")
    machine = _Machine(told, engine, settings or {}, drawn)
    ordered = sorted(set(rates))
    rows = [machine.open(level, rate, requests, seed) for level, rate in enumerate(ordered, start=1)]
    return _banded(pl.concat(rows), told, engine, drawn).with_columns(rate=pl.Series(ordered))


def told(table: pl.DataFrame) -> str:
    """One line on where a prediction comes from, for a caption."""
    return "; ".join(
        f"predicted from profile {name}, {basis}"
        for name, basis in table.select("profile", "basis").unique(maintain_order=True).rows()
    )


def line(points: Mapping[int, float], users: int) -> float:
    """The plain way: between the two nearest measured levels, or on from the last two, on a straight line.

    Args:
        points: values by number of users, two at least.
    """
    ordered = sorted(points)
    low, high = next(((a, b) for a, b in pairwise(ordered) if users <= b), (ordered[-2], ordered[-1]))
    return points[low] + (points[high] - points[low]) * (users - low) / (high - low)


def errors(
    predicted: pl.DataFrame, run: Run, baseline: Run | None = None, *, seen: Sequence[int] = USERS
) -> pl.DataFrame:
    """A prediction beside the measurement, level by level, and beside the plain line.

    Args:
        predicted: of :func:`sweep`; its arms are found in the run by name.
        baseline: an earlier run with the same arms; its levels ``seen`` make the line.

    Returns:
        arm, engine, level, metric (keys of :data:`WORDS`); measured (median of the repeats), measured_low and
        measured_high (their range); predicted with low and high; inside: whether the measurement is in the
        band; error: prediction / measurement - 1; line and line_error, null without two levels to draw it.

    Raises:
        UsageError: no level of the prediction was measured.
    """
    rows = []
    for arm, engine in predicted.select("arm", "engine").unique(maintain_order=True).rows():
        truth = measured(run, arm) if arm in run.arms else {}
        known = measured(baseline, arm) if baseline is not None and arm in baseline.arms else {}
        for told in predicted.filter(arm=arm).iter_rows(named=True):
            repeats = [row for (users, _), row in truth.items() if users == told["level"]]
            for metric, column in COLUMNS.items():
                if told[column] and repeats and all(counts(metric, row) and row[column] for row in repeats):
                    points = _points(known, metric, column, seen)
                    rows.append(_error(engine, told, metric, [row[column] for row in repeats], points))
    if not rows:
        raise UsageError(
            f"compare a prediction with {run.path.name}",
            f"predicted are {_levels(predicted)}, measured {_levels(run.summary())}",
            "measure the levels that were predicted, on engines with the same settings",
        )
    return pl.DataFrame(rows, schema=_ERRORS)


def _error(
    engine: str, told: dict[str, Any], metric: str, values: list[float], points: dict[int, float]
) -> dict[str, Any]:
    column, middle = COLUMNS[metric], median(values)
    value, low, high = told[column], told.get(f"{column}_low"), told.get(f"{column}_high")
    plain = line(points, told["level"]) if len(points) > 1 else None
    return {
        "arm": told["arm"],
        "engine": engine,
        "level": told["level"],
        "metric": metric,
        "measured": middle,
        "measured_low": min(values),
        "measured_high": max(values),
        "predicted": value,
        "low": low,
        "high": high,
        "inside": None if low is None or high is None else low <= middle <= high,
        "error": value / middle - 1,
        "line": plain,
        "line_error": None if plain is None else plain / middle - 1,
    }


def _points(
    known: Mapping[tuple[int, int], dict[str, Any]], metric: str, column: str, seen: Sequence[int]
) -> dict[int, float]:
    """What a run measured at the levels that may be used, by users."""
    values: dict[int, list[float]] = {}
    for (users, _), row in known.items():
        # of a queue that was none there is a point on the line all the same: zero
        if users in seen and (row[column] is not None or metric == "queue"):
            values.setdefault(users, []).append(row[column] or 0.0)
    return {users: median(some) for users, some in values.items()}


def _levels(table: pl.DataFrame) -> str:
    pairs = table.select("arm", "level").unique(maintain_order=True).group_by("arm", maintain_order=True)
    return "; ".join(f"{arm[0]}: {', '.join(map(str, rows['level']))} users" for arm, rows in pairs) or "none"


class _Machine:
    """One simulated engine that is put under one level of load after the other, as a measured one is."""

    def __init__(self, profile: Profile, engine: str, given: Mapping[str, Any], lengths: Lengths) -> None:
        described = {"engine": engine, "facts": {"device": profile.kind}}
        self._engine: VLLM | Ollama = profiles.build(profile, engine, whole_settings(described, given))
        self._labels = {"arm": asked_name(engine, given), "engine": engine, "repeat": 0, "warmup": False}
        self._lengths = lengths
        self._ids = 1
        self._now = 0.0
        self._serve(1, lambda asked, start: closed_loop(self._engine, asked, 1, start), "warm-up")

    def closed(self, users: int, rounds: int, seed: int) -> pl.DataFrame:
        """One level of a closed loop, summarised."""
        done = self._serve(
            users * rounds,
            lambda asked, start: closed_loop(self._engine, asked, users, start),
            f"{seed}/{users}",
        )
        return self._summary(done, users)

    def open(self, level: int, rate: float, count: int, seed: int) -> pl.DataFrame:
        """One level of arrivals at random, summarised."""
        rng = random.Random(f"{seed}/{rate}/arrivals")

        def send(asked: list[Request], start: float) -> list[Request]:
            return drive(self._engine, _timed(asked, start, rate, rng), lambda _request, _now: None)

        return self._summary(self._serve(count, send, f"{seed}/{rate}"), level)

    def _serve(self, count: int, send: Any, seed: str) -> list[Request]:
        pairs = self._lengths.draw(count, seed)
        numbered = ((self._ids + n * APART, *pair) for n, pair in enumerate(pairs))
        asked = list(requests(numbered, self._lengths.shared))
        self._ids += count * APART
        done: list[Request] = send(asked, self._now + PAUSE_S)
        self._now = max(request.ended_s or 0.0 for request in done)
        return done

    def _summary(self, done: list[Request], level: int) -> pl.DataFrame:
        labels = {**self._labels, "level": level}
        rows, tokens = tables(done, labels)
        started, ended = min(r.sent_s for r in done), max(r.ended_s or 0.0 for r in done)
        window = {**labels, "started_s": started, "ended_s": ended}
        whole = sum(bool(r.token_s) for r in done)
        return summarise(rows, tokens, [window]).with_columns(answers_per_s=pl.lit(whole / (ended - started)))


def _timed(
    asked: Sequence[Request], start: float, rate: float, rng: random.Random
) -> Iterator[tuple[float, Request]]:
    for request in asked:
        start += max(TURN_S, rng.expovariate(rate))
        yield start, request


def _banded(table: pl.DataFrame, profile: Profile, engine: str, lengths: Lengths) -> pl.DataFrame:
    band = profile.engines[engine].band
    asked, answered = lengths.means
    ends: dict[str, pl.Expr] = {}
    for column, names in BANDED.items():
        half = max(band[name] for name in names) if all(name in band for name in names) else None
        factor = pl.lit(None if half is None else 1 + half, pl.Float64)
        ends |= {f"{column}_low": pl.col(column) / factor, f"{column}_high": pl.col(column) * factor}
    return table.with_columns(
        engine=pl.lit(engine),
        profile=pl.lit(profile.name),
        basis=pl.lit(profile.basis),
        prompt_tokens=pl.lit(asked),
        output_tokens=pl.lit(answered),
        **ends,
    )


def _profile(given: Profile | str, engine: str) -> Profile:
    profile = profiles.load(given) if isinstance(given, str) else given
    if engine not in profile.engines:
        raise UsageError(f"predict {engine!r}", "no such engine", f"one of {', '.join(profile.engines)}")
    return profile


def _lengths(
    workload: Workload | None,
    prompt_tokens: int | None,
    output_tokens: int | None,
    lengths: Lengths | None,
    seed: int,
) -> Lengths:
    if (prompt_tokens is None) != (output_tokens is None):
        seen = f"prompt_tokens is {prompt_tokens}, output_tokens is {output_tokens}"
        raise UsageError("predict a load", seen, "give both of them or none")
    if prompt_tokens is not None and output_tokens is not None:
        return Lengths.even(prompt_tokens, output_tokens)
    return lengths or Lengths.of(workload or Workload(), seed)


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens with which all of them begin."""
    length = 0
    for column in zip(*prompts, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length
