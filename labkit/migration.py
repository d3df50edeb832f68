"""Moving requests from one engine to the other while they come: the proxy's share, and what it really was."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import polars as pl

from labkit import metrics
from labkit.arms import Step
from labkit.bundle import Recorder, Run
from labkit.errors import LabkitError, UsageError
from labkit.schema import OUTCOMES

ASKED, ACTIVE = "share_asked", "share"
"""Gauges: the share in per cent when it was asked for, and when the proxy was seen to have it."""

DRAWS = 2000
"""Of a bootstrap."""

_COUNTS = ("planned", "ollama", "vllm", *OUTCOMES, "n")
_PHASES: dict[str, type[pl.DataType]] = {
    "phase": pl.Int64,
    **dict.fromkeys(("wanted", "from_s", "to_s"), pl.Float64),
    **dict.fromkeys(_COUNTS, pl.Int64),
    **dict.fromkeys(("measured", "low", "high"), pl.Float64),
}


class Moves:
    """A proxy's way from share to share while requests come; each share lasts for as many answers.

    Attributes:
        failed: why it got no further, if it did not.
    """

    def __init__(self, step: Step, recorder: Recorder) -> None:
        self.failed: LabkitError | None = None
        self._step, self._recorder = step, recorder
        self._each = (step.requests or 0) // (len(step.shares) + 1)
        self._done, self._more = 0, asyncio.Event()

    def ended(self, count: int) -> None:
        """So many requests have ended."""
        self._done = count
        self._more.set()

    async def to(self, share: float) -> None:
        """Move, and write down when it was asked for and when it was so."""
        engine, arm = self._step.arm.engine, self._step.arm.name
        self._recorder.gauge(engine.name, arm, {ASKED: share})
        await engine.shift(share)
        self._recorder.gauge(engine.name, arm, {ACTIVE: share})

    async def all(self) -> None:
        """Go all the way; answers that are left over belong to the last share."""
        try:
            for number, share in enumerate(self._step.shares, 1):
                while self._done < number * self._each:
                    self._more.clear()
                    await self._more.wait()
                await self.to(share)
        except LabkitError as error:  # what was measured until then is worth no less
            self.failed = error


@contextlib.asynccontextmanager
async def shifting(step: Step, recorder: Recorder) -> AsyncIterator[Moves]:
    """The proxy moves from no share to each of the step's, if it has any.

    Raises:
        LabkitError: it cannot even begin.
    """
    moves = Moves(step, recorder)
    if not step.shares:
        yield moves
        return
    await moves.to(0.0)
    walking = asyncio.create_task(moves.all())
    try:
        yield moves
    finally:
        walking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await walking


def wilson(hits: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a proportion, 95 % unless another z is given.

    It stays within 0 and 1 and holds for small n too (E. B. Wilson, Journal of the American Statistical
    Association 22, 1927, p. 209).

    Args:
        hits: how many of the n; not whole where a share is tried out that no count gave.

    Raises:
        UsageError: n is below 1, or hits is not among 0 to n.
    """
    if n < 1 or not 0 <= hits <= n:
        raise UsageError(f"give the interval of {hits} of {n}", "that is no proportion", "0 to n, n ≥ 1")
    share, room = hits / n, z * z / n
    middle = (share + room / 2) / (1 + room)
    half = z / (1 + room) * math.sqrt(share * (1 - share) / n + room / (4 * n))
    # at 0 and n of n the bound is exact; rounding would put it just beside
    return 0.0 if hits == 0 else middle - half, 1.0 if hits == n else middle + half


def phases(run: Run) -> pl.DataFrame:
    """The shares of a shift in order of time: what was wanted, and what was measured.

    A request belongs to the share that was active when it was sent; of those sent while the share changed see
    :func:`moving`. Where one user stays on one side, users are counted in place of requests: those of one
    user are not independent.

    Returns:
        phase, wanted (per cent), from_s, to_s, planned, ollama, vllm, ok, failed, cancelled, unfinished,
        n (what the interval counts), measured, low, high (per cent for vLLM, with :func:`wilson`'s interval;
        null where nothing was answered).

    Raises:
        UsageError: no share was moved in this run.
    """
    sticky = any(arm["settings"].get("sticky") for arm in run.meta["arms"].values())
    sent = _sent(run)
    rows = []
    for number, span in enumerate(_spans(run)):
        mine = sent.filter(pl.col("at_s").is_between(span["from_s"], span["to_s"], closed="left"))
        counts = {"planned": mine.height, **_counts(mine)}
        rows.append({"phase": number, **span, **counts, **_share(mine, sticky)})
    return pl.DataFrame(rows, schema=_PHASES)


def moving(run: Run) -> pl.DataFrame:
    """Requests of no phase: sent while a share changed, so that either one may have decided where they went,
    or before the first one was seen to be active.

    Raises:
        UsageError: no share was moved in this run.
    """
    within = [pl.col("at_s").is_between(span["from_s"], span["to_s"], closed="left") for span in _spans(run)]
    return _sent(run).filter(~pl.any_horizontal(pl.lit(False), *within))


def account(run: Run) -> dict[str, Any]:
    """Where all requests of a run went: planned, outcomes, lost (0, or labkit has a bug), and by engine."""
    rows = _sent(run)
    outcomes = {word: int((rows["outcome"] == word).sum()) for word in OUTCOMES}
    levels = [record for record in run.meta["levels"] if not record["warmup"]]
    planned = sum(record["planned"] for record in levels)
    served = dict(rows.group_by("served_by").len().iter_rows())
    return {"planned": planned, **outcomes, "lost": planned - sum(outcomes.values()), "by_server": served}


def added(run: Run) -> pl.DataFrame:
    """What each proxy of a run adds to the way without one.

    The arms were asked the same questions in the same order, so each answer has its partner in the first arm;
    a question that not both answered makes no pair.

    Returns:
        One row an arm: arm, n (pairs), cached_tokens (0, or the later arms had it easier), ttft_ms_p50,
        e2e_ms_p50, added_ttft_ms, added_ttft_ms_low, _high, added_e2e_ms, added_e2e_ms_low, _high: the median
        difference within pairs, with the middle 95 % of the medians of resampled pairs (bootstrap; B. Efron,
        Annals of Statistics 7, 1979, p. 1).

    Raises:
        UsageError: the first arm has no answer, as after an early Stop.
    """
    asked = _sent(run).sort("id").with_columns(place=pl.int_range(pl.len()).over("arm"))
    answers = metrics.answered(asked).with_columns(ttft_ms=metrics.TTFT * 1e3, e2e_ms=metrics.E2E * 1e3)
    direct = answers.filter(arm=run.arms[0]).select("place", first_ttft="ttft_ms", first_e2e="e2e_ms")
    if direct.is_empty():
        seen = f"{run.arms[0]} has no answer in {run.path.name}"
        raise UsageError("tell what a proxy adds", seen, "let lab.gateway() run to its end")
    rows = []
    for name in run.arms:
        pairs = answers.filter(arm=name).join(direct, on="place")
        if pairs.is_empty():
            continue
        row = {"arm": name, "n": pairs.height, "cached_tokens": int(pairs["cached_tokens"].sum())}
        row |= {f"{of}_ms_p50": pairs[f"{of}_ms"].median() for of in ("ttft", "e2e")}
        for of in ("ttft", "e2e"):
            differences = (pairs[f"{of}_ms"] - pairs[f"first_{of}"]).to_numpy()
            low, high = _resampled(differences)
            row |= {f"added_{of}_ms": float(np.median(differences))}
            row |= {f"added_{of}_ms_low": low, f"added_{of}_ms_high": high}
        rows.append(row)
    return pl.DataFrame(rows)


def _resampled(differences: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    drawn = np.random.default_rng(0).choice(differences, (DRAWS, len(differences)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)


def _sent(run: Run) -> pl.DataFrame:
    """The requests that count, with ``at_s``: when each was sent, or was due if it could not be sent."""
    return run.requests.filter(~pl.col("warmup")).with_columns(at_s=pl.coalesce("sent_s", "intended_s"))


def _spans(run: Run) -> list[dict[str, float]]:
    """When each share was active: from when it was proved to when the next one was asked for."""
    moves = run.gauges.filter(pl.col("name").is_in([ASKED, ACTIVE])).sort("t_s", maintain_order=True)
    active = moves.filter(name=ACTIVE)
    if active.is_empty() and not run.arrivals.get("shares"):
        raise UsageError("read the shares of a run", "no share was moved in it", "take one of lab.shift()")
    asked = moves.filter(name=ASKED)["t_s"].to_list()
    end_s = max(record["ended_s"] for record in run.meta["levels"])
    return [
        {"wanted": value, "from_s": at, "to_s": next((t for t in asked if t > at), end_s)}
        for at, value in active.select("t_s", "value").iter_rows()
    ]


def _counts(rows: pl.DataFrame) -> dict[str, int]:
    by_engine = {name: int((rows["served_by"] == name).sum()) for name in ("ollama", "vllm")}
    return by_engine | {word: int((rows["outcome"] == word).sum()) for word in OUTCOMES}


def _share(rows: pl.DataFrame, sticky: bool) -> dict[str, float | None]:
    """Per cent for vLLM of what can be counted one by one."""
    known = rows.filter(pl.col("served_by").is_not_null())
    units = known.unique(["user", "served_by"]) if sticky else known
    n, hits = units.height, int((units["served_by"] == "vllm").sum())
    if n == 0:
        return {"n": 0, "measured": None, "low": None, "high": None}
    low, high = wilson(hits, n)
    return {"n": n, "measured": 100 * hits / n, "low": 100 * low, "high": 100 * high}
