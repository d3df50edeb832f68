"""What a plan says in words: the decision, what would change it, and both engines side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from labkit import costs
from labkit.bundle import Run
from labkit.options import Need, Option, Prices, break_even
from labkit.slo import NAMES, Slo

READ = "read from the engine"
UNKNOWN = "not known"


@dataclass(frozen=True)
class Row:
    """One row of the decision table; ``origin`` says whether it was measured, predicted, entered or read."""

    what: str
    ollama: str
    vllm: str
    origin: str


def decision(deciding: Sequence[Option], need: Need, slo: Slo) -> str:
    """Which option holds the load with the fewest machines; or that none does, and what breaks it."""
    able = [(machines, -o.users, o) for o in deciding if (machines := o.machines(need.amount)) is not None]
    if not able:
        why = " ".join(option.sentence for option in deciding)
        return (
            f"No number of these machines keeps the promise ({slo}): the smallest load that was looked at "
            "breaks it already. "
            f"{why} Promise less, ask for shorter answers, or take a smaller model or a faster machine."
        )
    ranked = [option for _, _, option in sorted(able, key=lambda entry: entry[:2])]
    best, *others = ranked
    fewest = best.machines(need.amount)
    alike = [best, *(option for option in others if option.machines(need.amount) == fewest)]
    held = "; ".join(f"{option.arm}: {option.basis}, {_interval(option)}" for option in alike)
    if len(alike) == 1:
        text = f"{best.arm} holds {need} with {_machines(fewest)} ({held})."
    else:
        names = f"{', '.join(option.arm for option in alike[:-1])} and {alike[-1].arm}"
        text = f"{names} hold {need} with {_machines(fewest)} each ({held}); {_room(alike)}."
    for option in others:
        if option not in alike:
            text += f" {option.arm} needs {_machines(option.machines(need.amount))} ({option.basis})."
    for option in deciding:
        if not option.users:
            text += f" Left out: {option.sentence}"
    if best.low * (fewest or 0) < need.amount:
        text += " The interval begins below that load: measure it before you rely on it."
    if best.high is None and fewest and fewest > 1:
        text += " Nobody looked at more load for one machine, so fewer may do."
    return text


def _room(alike: Sequence[Option]) -> str:
    """Who of those that need as many machines could take more; the first has the most."""
    best, second, *_ = alike
    if best.users > second.users:
        return f"{best.arm} has the most room"
    return "none of them was seen to have more room than the others"


def changes(
    deciding: Sequence[Option], options: Sequence[Option], need: Need, slo: Slo, runs: Sequence[Run]
) -> Iterator[str]:
    """A sentence for each thing that would change the decision: load, promise, price, lengths."""
    for option in deciding:
        if not option.users:
            continue
        if option.users < need.amount:
            yield f"Load: with {_amount(option.users, need)} or less one machine with {option.arm} is enough."
        elif option.high is not None:
            yield f"Load: from {_amount(option.high, need)} on one machine with {option.arm} is too little."
    for option in deciding:
        level = next((row for row in option.kept.to_dicts() if row["load"] >= need.amount), None)
        over = [
            f"a {slo.percentile} of {NAMES[name]} of {level[name]:.3g} s"
            for name, limit in slo.limits.items()
            if level is not None and level[name] is not None and level[name] > limit
        ]
        if level is not None and over:
            yield (
                f"Promise: with {' and '.join(over)} in place of what was promised, one machine with "
                f"{option.arm} would hold {_amount(level['load'], need)} ({option.basis})."
            )
    yield (
        "Price: as long as all options run on the same kind of machine it moves all costs alike; between "
        "kinds of machines it decides together with the load that each holds."
    )
    told = {option.arm: option for option in options if option.basis == "predicted"}
    for option in deciding:
        if option.basis == "measured" and option.high is None and option.arm in told:
            more = _interval(told[option.arm])
            yield f"Room: nobody measured more on {option.arm}; by the prediction {more}."
    if any(option.basis == "measured" and not option.fitting for option in options):
        yield (
            "Lengths: no run asked for the needed lengths, so this stands on predictions; a measurement with "
            "your own questions may move it as far as their bands are wide."
        )
    for run in runs:
        if run.arrivals["arrivals"] == "closed" and len(run.arms) > 1:
            yield f"Total output, {run.path.name}: {' '.join(break_even(run)['sentence'])}"


def side_by_side(
    deciding: Sequence[Option], runs: Sequence[Run], prices: Prices, need: Need
) -> Iterator[Row]:
    """What each engine's best option is and does."""
    best: dict[str, Option] = {}
    for option in sorted(deciding, key=lambda option: option.users):
        best[option.engine] = option
    basis = " and ".join(dict.fromkeys(option.basis for option in best.values()))
    lines: list[tuple[str, Callable[[Option], object], str]] = [
        ("settings", lambda option: option.arm, READ),
        ("runs on", lambda option: option.arm_meta["facts"].get("device"), READ),
        ("model file", _file, READ),
        ("requests worked on at once", lambda option: option.arm_meta["facts"].get("slots"), READ),
        (f"{need.unit} of one machine within the promise", _interval, basis),
        ("one user alone, whole answer (E2E p50)", lambda option: _alone(option, runs), "measured"),
        ("million output tokens at that load", lambda option: _price(option, prices), f"computed: {basis}"),
    ]
    for what, cell, origin in lines:
        found = {engine: cell(option) for engine, option in best.items()}
        known = {engine: str(value) for engine, value in found.items() if value is not None}
        yield Row(what, known.get("ollama", UNKNOWN), known.get("vllm", UNKNOWN), origin)


def _alone(option: Option, runs: Sequence[Run]) -> str | None:
    """Seconds of a whole answer for one user of an option, in the first run that has them."""
    for run in runs:
        if run.arrivals["arrivals"] == "closed":
            rows = run.summary().filter(arm=option.arm, level=1)["e2e_ms_p50"].drop_nulls()
            if len(rows):
                return f"{rows[0] / 1000:.3g} s"
    return None


def _price(option: Option, prices: Prices) -> str | None:
    if not option.tokens_per_s:
        return None
    return f"{costs.per_million_tokens(option.tokens_per_s, prices.per_hour, prices.utilisation):,.2f}"


def _file(option: Option) -> str:
    facts = option.arm_meta["facts"]
    return f"{facts.get('model')}, {facts.get('quantisation')}"


def _interval(option: Option) -> str:
    """What one machine holds, and how sure that is."""
    unit = option.unit if option.users != 1 else option.unit.replace("users", "user")
    end = "nobody looked further" if option.high is None else f"less than {option.high:.3g}"
    surely = f"surely {option.low:.3g}, " if option.low < option.users else ""
    return f"one holds {option.users:.3g} {unit}, {surely}{end}"


def _amount(load: float, need: Need) -> str:
    return str(Need(users=round(load))) if need.users else f"{load:.3g} {need.unit}"


def _machines(count: int | None) -> str:
    return "one machine" if count == 1 else f"{count} machines"
