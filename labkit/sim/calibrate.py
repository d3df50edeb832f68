"""Fit a profile to runs of the real engines on one machine.

Step times that the runs show (:mod:`labkit.sim.steps`) are fitted by non-negative least squares on relative
errors. A coefficient that the runs cannot move keeps the prior's value. How far predictions then are off is
found by bootstrap: the cells are drawn again and again, and those that were not drawn are predicted.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import log, sqrt
from typing import Any

import numpy as np
import polars as pl

from labkit import verdict
from labkit.bundle import Run
from labkit.errors import CalibrationRefused, MissingExtra
from labkit.sim.cost import TERMS
from labkit.sim.profile import METRICS, EngineProfile, Profile
from labkit.sim.rerun import levels, measured, rerun
from labkit.sim.steps import Observation, observe

FLOORS = {"step": 5e-3, "sequence": 1e-3, "request": 1e-2}
"""Seconds by which the terms without physics may well differ from a prior of 0."""

DOUBT = 4.0
"""Factor by which a prior coefficient may be off."""

TELLING = 0.02
"""A coefficient is moved by the runs if being off by all its doubt would change the step times by this share
(root mean square), beyond what other coefficients could explain."""

PULL = 0.005
"""Towards the prior: being off by all its doubt costs as much as step times that are off by this share."""

OUTLIER = 0.1
"""A step whose logarithm is off by more counts linearly, not by its square."""

ROUNDS = 12

RIDGES = (1, 2, 3, 4, 6, 8, 12, 16)
"""Bends of the roofline that are tried on a CPU, in tokens a step."""

FROM_SIMULATED = "fitted to simulated runs"
"""Basis of a profile that shows what a fit is and says nothing of an engine; no file may have it."""

DRAWS = 4
BAND = 0.90

COLUMNS = {
    "tokens_per_s": "tokens_per_s",
    "itl": "itl_ms_p50",
    "ttft": "ttft_ms_p50",
    "queue": "queue_ms_p50",
}
"""Column of the summary for each metric that has a band."""


@dataclass(frozen=True)
class Source:
    """One arm of one run; ``users`` are its levels that may be used, None for all."""

    run: Run
    arm: str
    users: tuple[int, ...] | None = None

    @property
    def engine(self) -> str:
        """ollama | vllm."""
        return str(self.run.meta["arms"][self.arm]["engine"])


@dataclass(frozen=True)
class Calibration:
    """What came of it: the profile, and for people what moved, what did not, and on how much it stands."""

    profile: Profile
    kept: dict[str, tuple[str, ...]]  # by engine, the terms that keep the prior's value
    observations: dict[str, int]
    residual: dict[str, float]  # median relative error of the step times, by engine


def calibrate(
    sources: Sequence[Source], prior: Profile, *, seed: int = 0, simulated: bool = False
) -> Calibration:
    """Fit each engine that the sources measure; the other one keeps the prior.

    Args:
        simulated: take simulated runs too, for a lesson without engines; the profile's basis says so.

    Raises:
        CalibrationRefused: a run is simulated, contaminated or drifting, or shows too few steps; says why.
    """
    for source in sources:
        check(source, simulated=simulated)
    engines = dict(prior.engines)
    kept, counts, residual = {}, {}, {}
    for engine in dict.fromkeys(source.engine for source in sources):
        own = [source for source in sources if source.engine == engine]
        seen = [o for source in own for o in observations(source)]
        if len({o.cell for o in seen}) < 2:
            raise CalibrationRefused(
                f"calibrate {engine}", f"{len(seen)} kinds of step seen", "measure more levels"
            )
        if engine == "ollama":
            part = prior.engines[engine]
            part = replace(part, limits={**part.limits, **hand_over(own)})
            prior = replace(prior, engines={**prior.engines, engine: part})
        fitted, kept[engine], residual[engine] = fit(seen, prior, engine)
        counts[engine] = len(seen)
        band = bands(own, seen, prior, engine, seed)
        engines[engine] = replace(fitted, band=band)
    imitated = any(source.run.kind == "simulated" for source in sources)
    profile = replace(prior, basis=FROM_SIMULATED if imitated else "measured", engines=engines)
    return Calibration(profile, kept, counts, residual)


def check(source: Source, *, simulated: bool = False) -> None:
    """Refuse a run that cannot stand for the engine.

    Args:
        simulated: a simulated run will do.

    Raises:
        CalibrationRefused: with the reason in numbers.
    """
    run, tried = source.run, f"calibrate from {source.run.path.name}, {source.arm}"
    if run.kind == "simulated" and not simulated:
        raise CalibrationRefused(tried, "it is simulated itself", "measure on the real engine")
    if run.verdict.word == "contaminated":
        foreign = [reason for reason in run.verdict.reasons if source.arm in reason]
        raise CalibrationRefused(tried, "; ".join(foreign) or "it is contaminated", "measure again, alone")
    drift = verdict.judge_drift(
        source.arm, [record for record in run.meta["levels"] if record["arm"] == source.arm]
    )
    if drift.word == "suspect":
        raise CalibrationRefused(tried, drift.reasons[0], "let the machine come to rest, measure again")


def observations(source: Source) -> list[Observation]:
    """Steps of the levels that may be used."""
    return [o for o in observe(source.run, source.arm) if source.users is None or o.cell[2] in source.users]


def hand_over(sources: Sequence[Source]) -> dict[str, float]:
    """What Ollama takes between a request and the reading of its prompt: seconds each, and a prompt token.

    From requests that came alone, by the durations that it reports; nothing where there are not two lengths.
    """
    lengths, waits = [], []
    for source in sources:
        for level in levels(source.run, source.arm):
            if level.measured and level.record["level"] == 1 and source.users and 1 in source.users:
                told = level.rows.filter(pl.col("queue_basis") == "reported")
                lengths += told["prompt_tokens"].to_list()
                waits += told["queue_s"].to_list()
    if len(set(lengths)) < 2 or max(lengths) < 2 * min(lengths):
        return {}
    found, _ = _nnls()(np.array([[1.0, length] for length in lengths]), np.array(waits))
    return {"hop_s": float(found[0]), "hop_token_s": float(found[1])}


def fit(
    seen: Sequence[Observation], prior: Profile, engine: str
) -> tuple[EngineProfile, tuple[str, ...], float]:
    """The engine's part of the profile, the terms that were not moved, the median relative error."""
    part = prior.engines[engine]
    best: tuple[float, EngineProfile, tuple[str, ...], float] | None = None
    for ridge in RIDGES if prior.kind == "cpu" else (part.ridge,):
        tried = replace(part, ridge=ridge)
        found = _solve(seen, replace(prior, engines={**prior.engines, engine: tried}), engine)
        if best is None or found[0] < best[0]:
            best = found
    assert best is not None  # noqa: S101  # there is a ridge to try
    return best[1:]


def _solve(
    seen: Sequence[Observation], prior: Profile, engine: str
) -> tuple[float, EngineProfile, tuple[str, ...], float]:
    from scipy.linalg import qr

    nnls = _nnls()
    part = prior.engines[engine]
    start = np.array([part.coefficients[term] for term in TERMS])
    scale = np.array([max(DOUBT * part.coefficients[term], FLOORS.get(term, 0.0)) for term in TERMS])
    seconds = np.array([o.seconds for o in seen])
    weights = np.sqrt([_weight(o, seen) for o in seen])
    matrix = _matrix(prior, engine, seen)
    # columns in the order of what each adds to those before it; the rest cannot be told from them
    relative = matrix * scale * (weights / seconds)[:, None]
    _, triangle, order = qr(relative, mode="economic", pivoting=True)
    adds = np.abs(np.diag(triangle))
    free = sorted(int(k) for k, share in zip(order, adds, strict=False) if share > TELLING)
    fixed = [k for k in range(len(TERMS)) if k not in free]
    values, off = start.copy(), np.zeros(len(seen))
    for _ in range(ROUNDS):
        # in the middle between relative to the one and to the other, and outliers count less: as in log space
        rows = weights / seconds / np.exp(off / 2) / np.sqrt(np.maximum(1, np.abs(off) / OUTLIER))
        rest = seconds - matrix[:, fixed] @ start[fixed]
        towards = PULL * np.eye(len(free)), PULL * start[free] / scale[free]
        system = np.vstack([matrix[:, free] * scale[free] * rows[:, None], towards[0]])
        found, _ = nnls(system, np.concatenate([rest * rows, towards[1]]))
        values[free] = found * scale[free]
        off = np.log(np.maximum(matrix @ values, 1e-6) / seconds)
    coefficients = {term: float(value) for term, value in zip(TERMS, values, strict=True)}
    loss = float(np.sum(weights**2 * np.minimum(off**2, OUTLIER * np.abs(off))))
    kept = tuple(TERMS[k] for k in fixed)
    return loss, replace(part, coefficients=coefficients), kept, float(np.median(np.abs(off)))


def _nnls() -> Any:
    """Non-negative least squares."""
    try:
        from scipy.optimize import nnls
    except ImportError as error:
        raise MissingExtra("calibrate", str(error), "pip install 'labkit[engines]'") from error
    return nnls


def _matrix(prior: Profile, engine: str, seen: Iterable[Observation]) -> Any:
    ideals = [prior.cost(engine, o.ranks, o.share).ideal(o.work) for o in seen]
    return np.array([[ideal[term] for term in TERMS] for ideal in ideals])


def _weight(observation: Observation, seen: Sequence[Observation]) -> float:
    """Each cell weighs the same, in it steps that read prompts as much as those that do not, and of these
    each kind by how often it was seen; all sum to 1."""
    cells = {o.cell for o in seen}
    cell = [o for o in seen if o.cell == observation.cell]
    alike = [o for o in cell if bool(o.work.pairs) == bool(observation.work.pairs)]
    share = 1.0 if len(alike) == len(cell) else 0.5
    return share * sqrt(observation.count) / sum(sqrt(o.count) for o in alike) / len(cells)


def bands(
    sources: Sequence[Source], seen: Sequence[Observation], prior: Profile, engine: str, seed: int
) -> dict[str, float]:
    """Half width of the 90 % band by metric: a prediction p means p / (1 + band) to p × (1 + band).

    Errors of two kinds are pooled, as many of the one as of the other: of cells that the fit has seen, which
    alone would promise too much, and of cells that were left out of it, which is harder than what is asked.
    Fits are to repeats drawn by bootstrap, and predictions are compared with each repeat by itself, so that
    the noise of one measurement is in the band. A metric that no cell shows keeps the prior's band.
    """
    draw = random.Random(seed)
    errors: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for source in sources:
        truth = measured(source.run, source.arm)
        name = (source.run.path.name, source.arm)
        cells = sorted({o.cell[2] for o in seen if o.cell[:2] == name})
        for users in cells:
            # the only cell of its shape is never left out: the band is not for work of a kind never seen
            others = [o for o in seen if o.cell[:3] != (*name, users)] if len(cells) > 1 else seen
            for sample in [others, seen] * DRAWS:
                fitted, _, _ = fit(_drawn(sample, draw), prior, engine)
                profile = replace(prior, engines={**prior.engines, engine: fitted})
                _collect(errors, rerun(source.run, source.arm, profile, {users}), truth)
    fresh = {metric: round(_quantile(found, BAND), 3) for metric, found in errors.items() if found}
    return {**prior.engines[engine].band, **fresh}


def _drawn(seen: Sequence[Observation], draw: random.Random) -> list[Observation]:
    """As many repeats of each cell, drawn with replacement; no cell is lost: that is another question."""
    drawn = []
    for cell in sorted({o.cell[:3] for o in seen}):
        repeats = sorted({o.cell for o in seen if o.cell[:3] == cell})
        drawn += [o for repeat in draw.choices(repeats, k=len(repeats)) for o in seen if o.cell == repeat]
    return drawn


def _collect(
    errors: dict[str, list[float]],
    told: dict[tuple[int, int], dict[str, Any]],
    truth: dict[tuple[int, int], dict[str, Any]],
) -> None:
    for key, row in told.items():
        for metric, column in COLUMNS.items():
            ours, theirs = row[column], truth[key][column]
            if counts(metric, truth[key]) and ours and theirs:
                errors[metric].append(abs(log(ours / theirs)))


def counts(metric: str, row: dict[str, Any]) -> bool:
    """Whether a metric says anything at this level: a queue does where most of the TTFT is waiting."""
    if metric != "queue":
        return row[COLUMNS[metric]] is not None
    return row["queue_basis"] == "reported" and (row["queue_ms_p50"] or 0) > 0.5 * (row["ttft_ms_p50"] or 0)


def _quantile(errors: list[float], share: float) -> float:
    """As a factor less 1; a little wider than the quantile itself, for what a small sample leaves out."""
    ordered = sorted(errors)
    index = min(len(ordered) - 1, int(share * (len(ordered) + 1)))
    return float(np.exp(ordered[index]) - 1)
