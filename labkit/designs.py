"""Designs of experiments: how requests come at each level, and in which order levels and arms take turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from labkit.arms import Arm
from labkit.budget import Budget
from labkit.bundle import Run
from labkit.errors import UsageError
from labkit.experiments import Experiment, Step
from labkit.load.plan import ARRIVALS
from labkit.queueing import asked_words
from labkit.workload import Workload

PROBES = 4
"""Warm-up requests an arm, one after another: the first may carry set-up, the median is the idle TTFT."""

OPEN_CONNECTIONS = 8
"""Opened before the first arrival of an open loop; more are opened as they are needed."""

COLD_AND_WARM = 4
"""Questions that share a beginning: the first finds nothing of it in a cache, three do."""

ASKED = 6
"""Questions of a workload."""


@dataclass(frozen=True)
class Load:
    """How requests come; the same for each arm of a run.

    Attributes:
        levels: users of a closed loop, requests of a burst, per cent of ``capacity`` of an open loop.
        arrivals: "closed", "burst" (all at one moment), "poisson" or "constant".
        rounds: questions that each user of a closed loop asks (default: the budget's; where a level is what
            is asked, :data:`COLD_AND_WARM`, or :data:`ASKED` times the budget's).
        requests: of each level of an open loop.
        capacity: answers a second that 100 % of an open loop stand for.
        stall_s: after the first answers of each level the whole engine stands still for this long.
        cold: the model is unloaded before each level.
        sharing: one user asks, and a level is a number of tokens that its questions have in common.
        workloads: one user asks, at level n the n-th of these.
        shares: while a level goes on, the proxy in front moves from 0 % of the requests for vLLM to each of
            these shares, after as many answers each.

    Raises:
        UsageError: fields that make no sense, alone or together.
    """

    levels: tuple[int, ...]
    arrivals: str = "closed"
    rounds: int | None = None
    requests: int | None = None
    capacity: float | None = None
    stall_s: float | None = None
    cold: bool = False
    sharing: bool = False
    workloads: tuple[Workload, ...] | None = None
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        tried = f"plan {self.arrivals} load at the levels {', '.join(map(str, self.levels)) or 'none'}"
        if self.arrivals not in ARRIVALS:
            raise UsageError(tried, f"no such arrivals: {self.arrivals!r}", f"one of {', '.join(ARRIVALS)}")
        if not self.levels or min(self.levels) < 1:
            raise UsageError(tried, "a level is 1 at least, and one is needed", "such as [1, 4]")
        for name, value in (("rounds", self.rounds), ("stall_s", self.stall_s), ("requests", self.requests)):
            if value is not None and value <= 0:
                raise UsageError(tried, f"{name} is {value}", f"leave {name} out, or make it larger than 0")
        if self.open and (self.requests is None or self.capacity is None or not self.capacity > 0):
            seen = f"requests is {self.requests} and capacity {self.capacity}"
            raise UsageError(tried, seen, "give both: the level is a share of the capacity")
        if self.workloads is not None and self.levels[-1] > len(self.workloads):
            raise UsageError(tried, f"there are {len(self.workloads)} workloads", "a level for each of them")

    @property
    def open(self) -> bool:
        """Whether requests come by the clock, whether or not the engine keeps up."""
        return self.arrivals in {"poisson", "constant"}

    @property
    def by_users(self) -> bool:
        """Whether a level says how many come, and not what is asked."""
        return not self.sharing and self.workloads is None

    def workload(self, level: int, given: Workload) -> Workload | None:
        """What is asked at a level instead of what is given for the whole run; None where it is that."""
        if self.sharing:
            return replace(given, shared_tokens=level)
        return None if self.workloads is None else self.workloads[level - 1]

    def plan(self, level: int, budget: Budget) -> dict[str, Any]:
        """Fields of :class:`labkit.load.plan.Plan` that make this level."""
        if self.open:
            rate = (self.capacity or 0.0) * level / 100
            return {
                "arrivals": self.arrivals,
                "rate": rate,
                "requests": self.requests,
                "users": OPEN_CONNECTIONS,
            }
        if self.arrivals == "burst":
            return {"arrivals": "burst", "users": level, "requests": level}
        if not self.by_users:
            usual = COLD_AND_WARM if self.sharing else ASKED * budget.rounds
            return {"users": 1, "rounds": self.rounds or usual}
        # who asks for a number of rounds wants all of them
        limit = budget.max_s if self.rounds is None else None
        plan = {"users": level, "rounds": self.rounds or budget.rounds, "seconds": limit}
        return {**plan, "name_users": True} if self.shares else plan

    def as_dict(self) -> dict[str, Any]:
        """What ``run.json`` says of it: all that decides whether two runs had the same load."""
        told = asdict(self)
        del told["levels"], told["capacity"]
        told["shares"] = list(self.shares)  # as JSON has it
        if self.workloads is not None:
            told["workloads"] = [workload.in_short() for workload in self.workloads]
        return told

    def same_as(self, described: dict[str, Any] | None) -> bool:
        """Whether a run whose ``run.json`` says this had such load; one that says nothing had a plain one."""
        return self.as_dict() == {**Load((1,)).as_dict(), **(described or {})}


def even(run: Run) -> bool:
    """Whether a run's questions were alike at all levels and nothing was in their way."""
    return not any(run.arrivals.get(name) for name in ("stall_s", "sharing", "workloads", "shares"))


def plain(run: Run) -> bool:
    """Whether a run's load was a closed loop of so many users with nothing in its way."""
    return run.arrivals["arrivals"] == "closed" and even(run)


def capacity(run: Run, engine: str) -> float:
    """Whole answers a second of an engine at the level of a run where it gave most.

    Raises:
        UsageError: this engine gave none.
    """
    rates: list[float] = [
        record["ok"] / (record["ended_s"] - record["started_s"])
        for record in run.meta["levels"]
        if record["engine"] == engine and not record["warmup"] and record["ok"]
    ]
    if not rates:
        raise UsageError(f"read the capacity of {engine} off a run", "it gave no whole answer", "measure it")
    return max(rates)


def design(
    name: str,
    arms: Sequence[Arm],
    load: Load,
    *,
    workload: Workload,
    budget: Budget,
    seed: int,
    folder: Path,
) -> Experiment:
    """The experiment that puts this load on these arms.

    Arms on engines of their own take turns level by level, so that slow drift of the machine hits all alike.
    Arms that share an engine, which is started anew for each, are measured one after the other. In a closed
    loop whose arms take turns the first level is measured again at the end, to see drift.
    """
    turns = len({id(arm.engine) for arm in arms}) == len(arms)
    if turns:
        steps = [*_warm_up(arms), *_levels(arms, load, budget)]
        if load.arrivals == "closed" and load.stall_s is None and load.by_users and not load.shares:
            first = load.levels[0]
            again = load.plan(first, budget)
            steps += [Step(arm, first, budget.repeats, again, "drift") for arm in arms]
    else:
        steps = [step for arm in arms for step in (*_warm_up([arm]), *_levels([arm], load, budget))]
    steps = [_asking(step, load, workload) for step in steps]
    return Experiment(
        name, steps, workload=workload, load=load.as_dict(), budget=budget, seed=seed, folder=folder
    )


def sweep(
    arms: Sequence[Arm],
    users: Sequence[int],
    *,
    workload: Workload,
    budget: Budget,
    seed: int,
    folder: Path,
) -> Experiment:
    """Closed-loop load at each number of users on each arm in turn."""
    load = Load(tuple(users))
    return design("sweep", arms, load, workload=workload, budget=budget, seed=seed, folder=folder)


def _levels(arms: Sequence[Arm], load: Load, budget: Budget) -> list[Step]:
    steps = []
    for repeat in range(budget.repeats):
        for position, level in enumerate(load.levels):
            turn = arms if (repeat + position) % 2 == 0 else list(reversed(arms))
            plan = load.plan(level, budget)
            more: dict[str, Any] = {"stall_s": load.stall_s, "cold": load.cold, "shares": load.shares}
            steps += [Step(arm, level, repeat, plan, **more) for arm in turn]
    return steps


def _warm_up(arms: Sequence[Arm]) -> list[Step]:
    return [Step(arm, 1, 0, {"users": 1, "requests": PROBES}, "warm-up") for arm in arms]


def _asking(step: Step, load: Load, given: Workload) -> Step:
    """The step with what its level asks, where that is not the same at all levels."""
    level = load.levels[0] if step.phase == "warm-up" else step.level
    return replace(step, workload=load.workload(level, given), words=asked_words(load.as_dict(), level))
