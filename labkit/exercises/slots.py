"""Right answers and known mistakes of the exercises in notebook 03, computed from the learner's runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from labkit.bundle import Run
from labkit.exercises.base import Answer, Evidence, Solver, always, which
from labkit.exercises.runs import changed_questions, refuse_other_file, refuse_unlike, trusted
from labkit.figures.memory import MIB
from labkit.figures.settings import settings_data
from labkit.sides import NOISE, Missing, people
from labkit.transcript import Event, Transcript

WORTH = 0.10
"""Growth of total tokens/s for a doubling of the slots from which on, in this course, it is worth the memory
that the doubling takes. Nobody can measure such a limit; it is a choice."""

SENSIBLE = (NOISE, 0.30)
"""Limits that a reader may choose instead: less is noise, more would turn down what two slots bring."""

MEMORY_AGREES = 0.02
"""KV memory by arithmetic and as read are the same within this share; mebi- and megabytes are 5 % apart."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Curve:
    """Ollama at one number of users, with fewest slots first."""

    users: int
    rows: Sequence[Row]

    @property
    def slots(self) -> list[int]:
        return [row["slots"] for row in self.rows]

    @property
    def gains(self) -> list[float]:
        """Growth of total tokens/s from each setting to the next, for a doubling of the slots."""
        return [
            (b["tokens_per_s"] / a["tokens_per_s"]) ** (1 / math.log2(b["slots"] / a["slots"])) - 1
            for a, b in itertools.pairwise(self.rows)
        ]

    def knee(self, worth: float = WORTH) -> int:
        """The last setting before the first step that is not worth it; the last of all if each is."""
        steps = zip(self.slots, self.gains, strict=False)
        return next((slots for slots, gain in steps if gain < worth), self.slots[-1])

    def limits(self, slots: int) -> tuple[float, float]:
        """For which limits this setting is the knee: above the first number, up to the second one."""
        at = self.slots.index(slots)
        coming = self.gains[at] if at < len(self.gains) else -math.inf
        return coming, min(self.gains[:at], default=math.inf)

    def best(self, column: str, *, most: bool = False) -> int | None:
        """The setting with the lowest value, or the highest; None if a value is missing."""
        if any(row[column] is None for row in self.rows):
            return None
        pick = max if most else min
        return int(pick(self.rows, key=lambda row: row[column])["slots"])

    @property
    def told(self) -> str:
        steps = zip(itertools.pairwise(self.slots), self.gains, strict=True)
        return ", ".join(f"{a} to {b} slots {gain:+.0%}" for (a, b), gain in steps)


def curve(run: Run) -> _Curve:
    """Ollama's settings at the run's highest number of users.

    Raises:
        Missing: it was not measured with two numbers of slots, or somebody else used it meanwhile.
    """
    data = settings_data(trusted(run)).filter(pl.col("engine") == "ollama", pl.col("tokens_per_s") > 0)
    top = data.filter(pl.col("level") == pl.col("level").max()).unique("slots", keep="first").sort("slots")
    if top.height < 2:
        raise Missing("This takes a run of Ollama with at least two numbers of slots")
    return _Curve(int(top["level"][0]), top.to_dicts())


# slots-knee


def _solve_knee(runs: Evidence) -> Answer:
    return float(curve(runs[0]).knee())


def _judge_knee(runs: Evidence, answer: Answer) -> tuple[bool, str]:
    found = curve(runs[0])
    told = f"Total tokens/s for each doubling: {found.told}"
    if answer not in found.slots:
        there = ", ".join(map(str, found.slots))
        return False, f"{told}. Measured were {there} slots; the answer is one of these."
    slots = int(answer)
    coming, so_far = found.limits(slots)
    low, high = max(coming, SENSIBLE[0]), min(so_far, SENSIBLE[1])
    if coming < high and high >= SENSIBLE[0]:
        return True, f"{told}. {slots} is the knee for any limit from {low:.0%} to {high:.0%} a doubling."
    if so_far < SENSIBLE[0]:
        why = f"on the way to {slots} a doubling brought only {so_far:+.0%}, which is within the noise"
    elif slots == found.slots[-1] or coming < so_far:
        why = f"that takes a limit above {SENSIBLE[1]:.0%} a doubling, and the next step brings {coming:+.0%}"
    else:
        why = f"the step after {slots} brings {coming:+.0%}, more than one before it ({so_far:+.0%})"
    return False, f"{told}. {slots} is not the knee: {why}."


def _setting(column: str, *, most: bool = False) -> Callable[[Evidence], Answer | None]:
    def rule(runs: Evidence) -> Answer | None:
        found = curve(runs[0]).best(column, most=most)
        return None if found is None else float(found)

    return rule


def _one_too_far(runs: Evidence) -> Answer | None:
    found = curve(runs[0])
    above = [slots for slots in found.slots if slots > found.knee()]
    return float(above[0]) if above else None


# slots-who-gains


def _better(first: Row, last: Row, column: str) -> bool:
    before, after = first[column], last[column]
    if before is None or after is None:
        raise Missing(f"A setting has no {column}: no whole answer came")
    return bool(after < before * (1 - NOISE))


def _solve_gains(runs: Evidence) -> Answer:
    rows = curve(runs[0]).rows
    return which(
        "ttft", "itl", *(_better(rows[0], rows[-1], column) for column in ("ttft_ms_p50", "itl_ms_p50"))
    )


def _judge_gains(runs: Evidence, answer: Answer) -> tuple[bool, str]:
    found = curve(runs[0])
    first, last = found.rows[0], found.rows[-1]
    right = _solve_gains(runs)
    parts = [
        f"{name} p50 {first[column]:,.0f} to {last[column]:,.0f} ms"
        for name, column in (("TTFT", "ttft_ms_p50"), ("ITL", "itl_ms_p50"))
    ]
    return answer == right, (
        f"At {people(found.users)}, from {first['slots']} to {last['slots']} slots: {', '.join(parts)}; "
        f"total {first['tokens_per_s']:.1f} to {last['tokens_per_s']:.1f} tokens/s."
    )


def _total_is_each(runs: Evidence) -> Answer | None:
    rows = curve(runs[0]).rows
    return "both" if rows[-1]["tokens_per_s"] > rows[0]["tokens_per_s"] * (1 + NOISE) else "neither"


def _upside_down(runs: Evidence) -> Answer | None:
    rows = curve(runs[0]).rows
    return which(
        "ttft", "itl", *(_better(rows[-1], rows[0], column) for column in ("ttft_ms_p50", "itl_ms_p50"))
    )


def _same_work(_runs: Evidence) -> Answer | None:
    return "neither"


# slots-kv and slots-memory


def _reserved(run: Run) -> list[dict[str, Any]]:
    """Facts of the run's Ollama arms that tell context, slots and KV memory."""
    named = ("slots", "context", "kv_bytes")
    arms = [arm["facts"] for arm in run.meta["arms"].values() if arm["engine"] == "ollama"]
    found = [facts for facts in arms if all(facts.get(name) is not None for name in named)]
    if not found:
        raise Missing("No arm of this run tells its slots, its context and its KV memory")
    return found


def _most_slots(run: Run) -> dict[str, Any]:
    return max(_reserved(run), key=lambda facts: facts["slots"])


def _kv(change: Callable[[dict[str, Any]], float]) -> Callable[[Evidence], Answer | None]:
    def rule(runs: Evidence) -> Answer | None:
        return change(_most_slots(runs[0]))

    return rule


def _solve_kv(runs: Evidence) -> Answer:
    return float(_most_slots(runs[0])["kv_bytes"] / MIB)


def _judge_kv(runs: Evidence, answer: Answer) -> tuple[bool, str]:
    facts = _most_slots(runs[0])
    read = facts["kv_bytes"] / MIB
    each = facts["kv_bytes"] / facts["slots"] / facts["context"]
    ok = isinstance(answer, float) and math.isclose(answer, read, rel_tol=MEMORY_AGREES)
    return ok, (
        f"The engine set aside {read:,.1f} MiB: {facts['slots']} slots × {facts['context']} tokens × "
        f"{each:,.0f} bytes, each MiB being 2^20 bytes."
    )


def _two_ways(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arm with the most slots, and the one with the longest context."""
    reserved = _reserved(run)
    many, long = _most_slots(run), max(reserved, key=lambda facts: facts["context"])
    if many is long or many["slots"] * many["context"] != long["slots"] * long["context"]:
        raise Missing("This takes a run with many short slots and with a long one, as long in all")
    return many, long


def _solve_memory(runs: Evidence) -> Answer:
    many, long = _two_ways(runs[0])
    if not many["kv_bytes"] and not long["kv_bytes"]:
        return "none"
    if math.isclose(many["kv_bytes"], long["kv_bytes"], rel_tol=MEMORY_AGREES):
        return "same"
    return "slots" if many["kv_bytes"] > long["kv_bytes"] else "context"


def _judge_memory(runs: Evidence, answer: Answer) -> tuple[bool, str]:
    parts = [
        f"{facts['slots']} × {facts['context']} tokens: {facts['kv_bytes'] / MIB:,.1f} MiB"
        for facts in _two_ways(runs[0])
    ]
    return answer == _solve_memory(runs), f"As read from the engine, {' and '.join(parts)}."


# slots-evicted


def _overfull(found: Evidence) -> tuple[list[Event], Event]:
    """The loads before the first one for which a model had to go, and that load."""
    loads = found[0].of("load")
    for at, load in enumerate(loads):
        if load["evicted"]:
            return loads[:at], load
    raise Missing(f"In the transcript {found[0].name} no model had to go")


def _solve_evicted(found: Evidence) -> Answer:
    return str(_overfull(found)[1]["evicted"][0]).lower()


def _judge_evicted(found: Evidence, answer: Answer) -> tuple[bool, str]:
    before, load = _overfull(found)
    last = {one["model"]: one for one in before}
    there = ", ".join(f"{name} (to be kept for {one['keep_alive']})" for name, one in last.items())
    return answer == _solve_evicted(found), (
        f"In memory, the one that was used longest ago first: {there}. Then {load['model']} was loaded, "
        f"and {load['evicted'][0]} went."
    )


def _longest_unused(found: Evidence) -> Answer | None:
    used = {one["model"]: one["t_s"] for one in _overfull(found)[0]}
    return str(min(used, key=lambda model: used[model])).lower()


def _newcomer(found: Evidence) -> Answer | None:
    return str(_overfull(found)[1]["model"]).lower()


# slots-own


def _pair(runs: Evidence) -> tuple[_Curve, _Curve, list[str]]:
    """Both curves and what was changed between them, if they may be compared."""
    first, second = runs
    refuse_unlike(first, second)
    curves = curve(first), curve(second)
    facts = [next(a["facts"] for a in run.meta["arms"].values() if a["engine"] == "ollama") for run in runs]
    refuse_other_file(*facts)
    changed = changed_questions(first, second)
    users, slots = ([getattr(one, name) for one in curves] for name in ("users", "slots"))
    if users[0] != users[1]:
        changed.append(f"the users ({users[0]} to {users[1]})")
    if slots[0] != slots[1]:
        changed.append(f"the slots that were tried ({slots[0]} to {slots[1]})")
    if not changed:
        raise Missing(
            "The two runs have the same questions, users and slots, so what differs between them is noise; "
            "change one of the three and measure again"
        )
    return *curves, changed


def _moved(before: float, after: float) -> str:
    return "up" if after > before else "down" if after < before else "same"


def _solve_own(runs: Evidence) -> Answer:
    first, second, _ = _pair(runs)
    return _moved(first.knee(), second.knee())


def _judge_own(runs: Evidence, answer: Answer) -> tuple[bool, str]:
    first, second, changed = _pair(runs)
    # a gain that was measured once is known no better than that, so the limit may as well lie so much beside
    right = {_moved(first.knee(worth), second.knee(worth)) for worth in (WORTH - NOISE, WORTH, WORTH + NOISE)}
    more = " More than one thing was changed, so the two cannot be told apart." if len(changed) > 1 else ""
    unsure = (
        f" Within {NOISE:.0%} of that limit, the noise, it can also be otherwise." if len(right) > 1 else ""
    )
    return answer in right, (
        f"Changed: {' and '.join(changed)}.{more} With {WORTH:.0%} a doubling as the limit the knee went "
        f"from {first.knee()} to {second.knee()} slots.{unsure} First run: {first.told}. "
        f"Second run: {second.told}."
    )


def _height(runs: Evidence) -> Answer | None:
    first, second, _ = _pair(runs)
    rates = [found.rows[-1]["tokens_per_s"] for found in (first, second)]
    return _moved(rates[0], rates[1])


def _peak(runs: Evidence) -> Answer | None:
    first, second, _ = _pair(runs)
    before, after = (found.best("tokens_per_s", most=True) for found in (first, second))
    return None if before is None or after is None else _moved(before, after)


def _backwards(runs: Evidence) -> Answer | None:
    first, second, _ = _pair(runs)
    return _moved(second.knee(), first.knee())


SOLVERS = {
    "slots-knee": Solver(
        _solve_knee,
        _judge_knee,
        {
            "most_tokens": _setting("tokens_per_s", most=True),
            "shortest_wait": _setting("ttft_ms_p50"),
            "steadiest": _setting("itl_ms_p50"),
            "one_too_far": _one_too_far,
        },
    ),
    "slots-who-gains": Solver(
        _solve_gains,
        _judge_gains,
        {"total_is_each": _total_is_each, "upside_down": _upside_down, "same_work": _same_work},
    ),
    "slots-kv": Solver(
        _solve_kv,
        _judge_kv,
        {
            "one_slot": _kv(lambda facts: facts["kv_bytes"] / facts["slots"] / MIB),
            "keys_only": _kv(lambda facts: facts["kv_bytes"] / 2 / MIB),
            "megabytes": _kv(lambda facts: facts["kv_bytes"] / 1e6),
            "slots_twice": _kv(lambda facts: facts["kv_bytes"] * facts["slots"] / MIB),
        },
    ),
    "slots-memory": Solver(
        _solve_memory,
        _judge_memory,
        {"per_slot": always("slots"), "per_context": always("context"), "on_demand": always("none")},
    ),
    "slots-evicted": Solver(
        _solve_evicted,
        _judge_evicted,
        {"longest_unused": _longest_unused, "newcomer": _newcomer, "all_stay": always("none")},
        takes=Transcript,
    ),
    "slots-own": Solver(
        _solve_own,
        _judge_own,
        {"peak": _peak, "height": _height, "backwards": _backwards},
        runs=2,
    ),
}
