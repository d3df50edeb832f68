"""What each engine and setting can hold of a load, by runs and by predictions; the material of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, isfinite
from typing import Any

import polars as pl

from labkit import costs, designs, metrics, predict
from labkit.bundle import Run
from labkit.calibration import Calibrated
from labkit.crossover import crossover
from labkit.engines import model_table
from labkit.errors import UsageError
from labkit.predict import Lengths
from labkit.sim.calibrate import Source
from labkit.slo import Slo, kept, seats

ALIKE = 0.25
"""Questions and answers whose mean lengths differ by no more than this share count as the same load."""

STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256)
"""Users at which a prediction looks for the end of a promise."""

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Rates at which it does, as shares of the rate that is asked for."""

ROUNDS = 2
"""Questions of each user in a prediction."""


@dataclass(frozen=True)
class Need:
    """The load that has to be held: users at once or requests a second, and their lengths in tokens.

    Raises:
        UsageError: not exactly one of users and rate, one length of two, or a number that is not above 0.
    """

    users: int | None = None
    rate: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None

    def __post_init__(self) -> None:
        tried = "plan for a load"
        if (self.users is None) == (self.rate is None):
            seen = f"users is {self.users} and rate is {self.rate}"
            raise UsageError(tried, seen, "give the users at once, or else the requests a second")
        if (self.prompt_tokens is None) != (self.output_tokens is None):
            seen = f"prompt_tokens is {self.prompt_tokens}, output_tokens is {self.output_tokens}"
            raise UsageError(tried, seen, "give both or none")
        for name, value in vars(self).items():
            if value is not None and not (value > 0 and isfinite(value)):
                raise UsageError(tried, f"{name} is {value}", "give a number above 0")

    @property
    def amount(self) -> float:
        """Users, or requests a second."""
        return float(self.rate if self.users is None else self.users)  # type: ignore[arg-type]

    @property
    def unit(self) -> str:
        """Of the amount, as :func:`labkit.slo.seats` has it."""
        return "requests/s" if self.users is None else "users"

    def like(self, lengths: tuple[float, float]) -> bool:
        """Whether mean lengths of a question and an answer are those that are needed."""
        asked = (self.prompt_tokens, self.output_tokens)
        return all(
            want is None or abs(has / want - 1) <= ALIKE for has, want in zip(lengths, asked, strict=True)
        )

    def __str__(self) -> str:
        load = f"{self.amount:g} {'user' if self.users == 1 else self.unit}"
        return f"{load}{' at once' if self.users else ''}"


@dataclass(frozen=True)
class Prices:
    """What is entered about money; any one currency.

    Attributes:
        per_hour: of one machine.
        utilisation: share of the paid time in which it works at the load that the plan is for.
        active_share: share of that time in which one person has a question on its way.

    Raises:
        UsageError: a negative price, or a share outside 0 to 1.
    """

    per_hour: float
    utilisation: float = 1.0
    active_share: float = 1.0

    def __post_init__(self) -> None:
        costs.per_million_tokens(1.0, self.per_hour, self.utilisation)
        costs.per_user_month(self.per_hour, 1.0, active_share=self.active_share)


@dataclass(frozen=True)
class Option:
    """One arm, and what one machine with it holds.

    Attributes:
        basis: measured | predicted; ``evidence`` is the run or the profile.
        users, low, high, sentence: see :func:`labkit.slo.seats`; by ``unit``.
        lengths: mean tokens of a question and of an answer.
        kept: see :func:`labkit.slo.kept`.
        tokens_per_s, all_tokens_per_s: at that load; None where the promise is kept at none.
        arm_meta: the arm as ``run.json`` describes it.
        fitting: whether its lengths are those that are needed.
    """

    arm: str
    engine: str
    basis: str
    evidence: str
    unit: str
    users: float
    low: float
    high: float | None
    sentence: str
    lengths: tuple[float, float]
    kept: pl.DataFrame
    tokens_per_s: float | None
    all_tokens_per_s: float | None
    arm_meta: Mapping[str, Any]
    fitting: bool

    def machines(self, amount: float) -> int | None:
        """How many such machines hold so much together, if it is spread evenly; None if no number does."""
        return ceil(amount / self.users - 1e-9) if self.users else None


def comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that cannot stand in one plan.

    Raises:
        UsageError: there is none; or one is of another depth, machine or model than the first.
    """
    tried = "plan from runs"
    if not runs:
        raise UsageError(tried, "there is no run", "give at least one, such as lab.last_run('the_gap')")
    first = runs[0]
    for run in runs[1:]:
        for what, one, other in (
            ("depth", first.kind, run.kind),
            ("machine", _machine(first), _machine(run)),
        ):
            if one != other:
                seen = f"{first.path.name} has the {what} {one}, {run.path.name} {other}"
                raise UsageError(tried, seen, f"give runs of one {what}, or a plan for each")
    served: dict[str, tuple[str, str]] = {}
    rows: set[str] | None = None
    for run in runs:
        for name, arm in run.meta["arms"].items():
            model = ", ".join(str(arm["facts"].get(fact)) for fact in ("model", "quantisation", "device"))
            where, known = served.setdefault(arm["engine"], (run.path.name, model))
            mine = _rows(arm)
            both = mine if rows is None else rows & mine if mine else rows
            if known != model or (rows and not both):
                seen = f"{where} serves {known}; {run.path.name}, {name}, serves {model}"
                raise UsageError(
                    tried, seen, "give runs of one model, one precision and one device, or a plan for each"
                )
            rows = both or rows


def measured_options(runs: Sequence[Run], need: Need, slo: Slo) -> list[Option]:
    """What each arm holds by the runs whose requests came as the need's do; of several runs of an arm the one
    with the needed lengths, and of these the one with most levels."""
    found: dict[str, tuple[tuple[bool, int], Option]] = {}
    for run in runs:
        load = run.arrivals
        other = (load["arrivals"] == "closed") != (need.rate is None)
        if other or load["arrivals"] == "burst" or not designs.even(run):
            continue
        for option in _of(run, run.path.name, need, slo, run.meta["arms"]):
            if option.arm_meta["facts"].get("behind"):
                continue  # a proxy holds no more than the engine behind it
            rank = (option.fitting, len(option.kept))
            if option.arm not in found or rank > found[option.arm][0]:
                found[option.arm] = rank, option
    return [option for _, option in found.values()]


def predicted_options(
    runs: Sequence[Run], fit: Calibrated, need: Need, slo: Slo, seed: int = 0
) -> list[Option]:
    """What each engine and setting of the runs would hold of the needed lengths, by the fitted simulator.

    Where no lengths are asked for they are those that the arm had in the runs.
    """
    arms = {name: arm for run in runs for name, arm in run.meta["arms"].items()}
    found: list[Option] = []
    for name, arm in arms.items():
        engine, source = arm["engine"], fit.source(arm["engine"])
        if source is None:
            continue
        if need.prompt_tokens is None or need.output_tokens is None:
            lengths = _seen(runs, name, source)
        else:
            lengths = Lengths.even(need.prompt_tokens, need.output_tokens)
        search = _search(fit, (engine, arm["settings"], lengths, seed), need, slo)
        named = search.with_columns(arm=pl.lit(name))  # as the run calls it
        found += _of(named, fit.profile.name, need, slo, {name: arm})
    return found


def _seen(runs: Sequence[Run], arm: str, source: Source) -> Lengths:
    """Lengths as in the first of the runs with a whole answer of an arm, else as the fit saw its engine."""
    for run in runs:
        if not metrics.answered(run.requests).filter(arm=arm).is_empty():
            return Lengths.seen(run, arm)
    return Lengths.seen(source.run, source.arm)


def break_even(source: Run | pl.DataFrame, metric: str = "tokens_per_s") -> pl.DataFrame:
    """From how many users on one arm leads another, for each pair of arms of a run or of predictions.

    Args:
        metric: see :func:`labkit.crossover.crossover`.

    Returns:
        ahead, behind, metric, users, low, high, sentence; of each pair that one is ahead which leads at the
        most users. users is null where there is no lasting lead, high where the lead is never sure.
    """
    table = source.summary() if isinstance(source, Run) else source
    found = []
    for one, other in combinations(table["arm"].unique(maintain_order=True), 2):
        pair = [crossover(table, *names, metric) for names in ((one, other), (other, one))]
        best = min(pair, key=lambda c: c.users is None)
        high = best.high if isfinite(best.high) else None
        found.append((best.ahead, best.behind, metric, best.users, float(best.low), high, best.sentence))
    numbers = dict.fromkeys(("users", "low", "high"), pl.Float64)
    words = dict.fromkeys(("ahead", "behind", "metric"), pl.String)
    return pl.DataFrame(found, schema={**words, **numbers, "sentence": pl.String}, orient="row")


def _of(
    source: Run | pl.DataFrame, evidence: str, need: Need, slo: Slo, arms: Mapping[str, Any]
) -> Iterator[Option]:
    table, rates = kept(source, slo), costs.rates(source)
    for row in seats(source, slo).iter_rows(named=True):
        own = table.filter(arm=row["arm"])
        level = own.filter(load=row["users"])["level"].to_list()
        rate = rates.filter(pl.col("arm") == row["arm"], pl.col("level").is_in(level)).to_dicts()
        mean = rates.filter(arm=row["arm"]).select(pl.col("prompt_tokens", "output_tokens").mean()).row(0)
        yield Option(
            **{name: row[name] for name in ("arm", "engine", "basis", "unit", "users", "low", "high")},
            sentence=row["sentence"],
            evidence=evidence,
            lengths=mean,
            kept=own,
            tokens_per_s=rate[0]["tokens_per_s"] if rate else None,
            all_tokens_per_s=rate[0]["all_tokens_per_s"] if rate else None,
            arm_meta=arms[row["arm"]],
            fitting=None not in mean and need.like(mean),
        )


def _search(
    fit: Calibrated, asked: tuple[str, Mapping[str, Any], Lengths, int], need: Need, slo: Slo
) -> pl.DataFrame:
    """Predictions up to the load at which even the good end of the band breaks the promise."""
    engine, settings, lengths, seed = asked
    parts: list[pl.DataFrame] = []
    for number, step in enumerate(STEPS if need.rate is None else SHARES, start=1):
        if need.rate is None:
            part = predict.sweep(
                fit.profile, engine, [int(step)], settings=settings, lengths=lengths, rounds=ROUNDS, seed=seed
            )
        else:
            part = predict.arrivals(
                fit.profile, engine, [step * need.rate], settings=settings, lengths=lengths, seed=seed
            ).with_columns(level=pl.lit(number, pl.Int64))
        parts.append(part)
        if not kept(part, slo)["holds_possibly"][0]:
            break
    return pl.concat(parts)


def _machine(run: Run) -> str:
    return f"{run.meta['host']['cpu']}, {run.meta['host']['cores']} cores"


def _rows(arm: Mapping[str, Any]) -> set[str]:
    """Rows of ``data/models.toml`` that an arm's model may be; none where it is not of the course's."""
    name = arm["facts"].get("model")
    return {
        row.name
        for row in model_table.load_table().values()
        if (row.ollama.name if arm["engine"] == "ollama" else row.vllm.name) == name
    }
