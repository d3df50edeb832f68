"""How close the simulated engines come to the real ones, on levels that the fit has never seen.

    python benchmarks/fidelity.py measure [FOLDER]   measure on both real engines, half an hour on 2 cores
    python benchmarks/fidelity.py fit                fit the profile cpu-2core-smollm2-135m to its part
    python benchmarks/fidelity.py report             predict the held-out part, write the table into the docs

The split below was fixed before anything was measured.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

from labkit import depths, designs, paths, recorded
from labkit.budget import BUDGETS
from labkit.bundle import Run
from labkit.calibration import LONG_IN, LONG_OUT, SHARED, USERS
from labkit.designs import Load
from labkit.experiments import Progress
from labkit.predict import line
from labkit.sim import profile
from labkit.sim.calibrate import COLUMNS, Calibration, Source, calibrate, counts
from labkit.sim.rerun import measured, rerun
from labkit.sweeps import Order, Side
from labkit.workload import Workload

FIT_USERS = tuple(sorted(USERS))
HELD_OUT_USERS = (2, 8, 32)
"""Users of the calibration's shapes whose levels no fit may see."""

UNSEEN_SHAPE = Workload("middle", output_tokens=32, prompt_words=110)
"""About 150 tokens in, 32 out: never in a fit."""

OLLAMA = {"num_parallel": 4}
UNSEEN_OLLAMA: dict[str, Any] = {"num_parallel": 1}
UNSEEN_VLLM = {"max_num_seqs": 4}
"""Settings of which no level may be in a fit."""

PRIOR = "cpu-2core-roofline"
FITTED = profile.DEFAULT


@dataclass(frozen=True)
class Recording:
    """One run to measure: a folder of ``data/calibration``."""

    name: str
    users: Sequence[int]
    workload: Workload = LONG_OUT
    ollama: dict[str, Any] | None = None
    vllm: dict[str, Any] | None = None


ALL_USERS = tuple(sorted((*FIT_USERS, *HELD_OUT_USERS)))
RECORDINGS = (
    Recording("the_gap_own", ALL_USERS, ollama=OLLAMA, vllm={}),
    Recording("long_in_ollama", (*USERS, *HELD_OUT_USERS), LONG_IN, ollama=OLLAMA),
    Recording("long_in_vllm", (*USERS, *HELD_OUT_USERS), LONG_IN, vllm={}),
    Recording("shared_prefix", (1, 4), SHARED, ollama=OLLAMA, vllm={}),
    Recording("unseen_shape", FIT_USERS, UNSEEN_SHAPE, ollama=OLLAMA, vllm={}),
    Recording("the_gap", ALL_USERS, ollama=UNSEEN_OLLAMA, vllm={}),
    Recording("unseen_setting", (8, 32), vllm=UNSEEN_VLLM),
)
"""All at 16 bit, in budget normal: two rounds and three repeats a level."""

FIT = {
    "the_gap_own": FIT_USERS,
    "long_in_ollama": FIT_USERS,
    "long_in_vllm": FIT_USERS,
    "shared_prefix": (1, 4),
}
"""Run and users that the fit sees; of the other runs it sees nothing."""


@dataclass(frozen=True)
class HeldOut:
    """What is predicted: users of an engine in a run; baselines come from ``near``, which the fit saw."""

    group: str
    run: str
    engine: str
    users: tuple[int, ...]
    near: str


HELD_OUT = (
    HeldOut("users", "the_gap_own", "ollama", HELD_OUT_USERS, "the_gap_own"),
    HeldOut("users", "the_gap_own", "vllm", HELD_OUT_USERS, "the_gap_own"),
    HeldOut("users", "long_in_ollama", "ollama", HELD_OUT_USERS, "long_in_ollama"),
    HeldOut("users", "long_in_vllm", "vllm", HELD_OUT_USERS, "long_in_vllm"),
    HeldOut("shape", "unseen_shape", "ollama", FIT_USERS, "the_gap_own"),
    HeldOut("shape", "unseen_shape", "vllm", FIT_USERS, "the_gap_own"),
    HeldOut("setting", "the_gap", "ollama", ALL_USERS, "the_gap_own"),
    HeldOut("setting", "unseen_setting", "vllm", (8, 32), "the_gap_own"),
)


@dataclass(frozen=True)
class Point:
    """One metric of one held-out level.

    Attributes:
        measured: a value for each repeat; ``middle`` is their median.
        interpolated: from the levels around it that the fit saw, on a straight line; None in another shape or
            setting, where there is no line.
        last: the nearest smaller level that the fit saw, in the shape and setting that it saw.
    """

    held: HeldOut
    metric: str
    predicted: float
    measured: tuple[float, ...]
    band: float
    interpolated: float | None
    last: float

    @property
    def middle(self) -> float:
        """Median of the repeats."""
        return median(self.measured)

    @property
    def noise(self) -> float:
        """How far one repeat is off the median, in the median over the repeats."""
        return median(abs(value / self.middle - 1) for value in self.measured)

    @property
    def inside(self) -> int:
        """Repeats inside the band."""
        low, high = self.predicted / (1 + self.band), self.predicted * (1 + self.band)
        return sum(low <= value <= high for value in self.measured)


async def measure(folder: Path, names: Sequence[str]) -> None:
    """Measure what ``folder`` does not have yet, and keep it there as recorded runs."""
    live = depths.Live(depths.addresses(), None)
    for recording in RECORDINGS:
        if (folder / recording.name).exists() or (names and recording.name not in names):
            continue
        asked = {"ollama": recording.ollama, "vllm": recording.vllm}
        order = Order(
            name=recording.name,
            sides=[Side(name, settings) for name, settings in asked.items() if settings is not None],
            load=Load(tuple(recording.users)),
            model=depths.PAIRS["fair"],
            workload=recording.workload,
            budget=BUDGETS["normal"],
            seed=0,
        )
        experiment = designs.design(
            order.name,
            await live.arms(order, say),
            order.load,
            workload=order.workload,
            budget=order.budget,
            seed=order.seed,
            folder=paths.runs() / f"{order.name}-{datetime.now():%Y%m%d-%H%M%S-%f}",
        )
        run = await experiment.run(_tell)
        say(f"{run.verdict.word} {run.verdict.reasons}\n{run.summary()}")
        recorded.keep(run, folder / recording.name)
    for engine in live.engines.values():
        await engine.stop(progress=say)


def fit(runs: dict[str, Run]) -> Calibration:
    """The profile from what a fit may see, starting from a roofline."""
    sources = [Source(runs[name], arm, users) for name, users in FIT.items() for arm in runs[name].arms]
    return calibrate(sources, profile.load(PRIOR))


def points(runs: dict[str, Run], fitted: profile.Profile) -> Iterator[Point]:
    """Every held-out level, predicted."""
    for held in HELD_OUT:
        arm, near = _arm(runs[held.run], held.engine), _arm(runs[held.near], held.engine)
        told, truth = rerun(runs[held.run], arm, fitted), measured(runs[held.run], arm)
        seen = measured(runs[held.near], near)
        for users in held.users:
            repeats = [key for key in truth if key[0] == users]
            for metric, column in COLUMNS.items():
                if not all(counts(metric, truth[key]) for key in repeats):
                    continue
                yield Point(
                    held,
                    metric,
                    median(told[key][column] for key in repeats),
                    tuple(truth[key][column] for key in repeats),
                    fitted.engines[held.engine].band[metric],
                    line({u: _seen(seen, column, u) for u in FIT_USERS}, users)
                    if held.group == "users"
                    else None,
                    _seen(seen, column, max(u for u in FIT_USERS if u <= users)),
                )


def _arm(run: Run, engine: str) -> str:
    return next(name for name, arm in run.meta["arms"].items() if arm["engine"] == engine)


def _seen(rows: dict[tuple[int, int], dict[str, Any]], column: str, users: int) -> float:
    return median(row[column] or 0.0 for key, row in rows.items() if key[0] == users)


def table(found: Sequence[Point]) -> str:
    """Errors by group, engine and metric, in Markdown."""
    lines = [
        "| held out | engine | metric | levels | bias | median | p90 | line | last | noise | in the band |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((p.held.group, p.held.engine, p.metric) for p in found)
    for group, engine, metric in keys:
        same = [p for p in found if (p.held.group, p.held.engine, p.metric) == (group, engine, metric)]
        errors = [p.predicted / p.middle - 1 for p in same]
        sizes = sorted(abs(e) for e in errors)
        lines_ = [abs(p.interpolated / p.middle - 1) for p in same if p.interpolated is not None]
        lasts = [abs(p.last / p.middle - 1) for p in same]
        cells = [
            _share(median(errors), sign=True),
            _share(median(sizes)),
            _share(sizes[min(len(sizes) - 1, int(0.9 * len(sizes)))]),
            _share(median(lines_)) if lines_ else "–",
            _share(median(lasts)),
            _share(median(p.noise for p in same)),
            _coverage(same),
        ]
        lines.append(f"| {group} | {engine} | {NAMES[metric]} | {len(same)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _coverage(found: Sequence[Point]) -> str:
    inside, of = sum(p.inside for p in found), sum(len(p.measured) for p in found)
    low, high = binomial(inside, of)
    return f"{inside}/{of} ({low:.0%} to {high:.0%})"


def binomial(hits: int, of: int, share: float = 0.95) -> tuple[float, float]:
    """The shares that are compatible with so many hits: Clopper and Pearson's interval."""

    def at_least(p: float, k: int) -> float:
        return sum(comb(of, i) * p**i * (1 - p) ** (of - i) for i in range(k, of + 1))

    def bisect(rising: Any, target: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if rising(middle) < target else (low, middle)
        return low

    tail = (1 - share) / 2
    lower = bisect(lambda p: at_least(p, hits), tail) if hits else 0.0
    upper = bisect(lambda p: at_least(p, hits + 1), 1 - tail) if hits < of else 1.0
    return lower, upper


def _share(value: float, *, sign: bool = False) -> str:
    return f"{value:+.1%}" if sign else f"{value:.1%}"


NAMES = {
    "tokens_per_s": "total tokens/s",
    "itl": "ITL p50",
    "ttft": "TTFT p50",
    "queue": "queue wait p50",
}
AIMS = (
    # group, metric, engine, and the largest median error that is aimed at; None: see `aim`
    ("users", "tokens_per_s", None),
    ("users", "itl", None),
    ("users", "ttft", 0.08),
    ("users", "queue", 0.08),
    ("shape", "tokens_per_s", 0.05),
    ("shape", "itl", 0.05),
)


def aims(found: Sequence[Point]) -> str:
    """Each aim, and whether it was met."""
    lines = ["| aim | engine | reached | met |", "|---|---|---|---|"]
    for group, metric, limit in AIMS:
        for engine in ("ollama", "vllm"):
            same = [p for p in found if (p.held.group, p.metric, p.held.engine) == (group, metric, engine)]
            if not same:
                continue
            error = median(abs(p.predicted / p.middle - 1) for p in same)
            noise = median(p.noise for p in same)
            lines_ = [abs(p.interpolated / p.middle - 1) for p in same if p.interpolated is not None]
            bound = max(0.02, 1.5 * noise) if limit is None else limit
            met = error <= bound
            words = f"{group}: {NAMES[metric]}, median error at most {bound:.1%}"
            if limit is None:
                words += f" and {median(lines_) + 0.01:.1%} (a point above the line)"
                met &= error <= median(lines_) + 0.01
            lines.append(f"| {words} | {engine} | {error:.1%} | {'yes' if met else '**no**'} |")
    low, high = binomial(sum(p.inside for p in found), sum(len(p.measured) for p in found))
    met = low <= 0.9 <= high
    lines.append(
        f"| 90 % bands: compatible with 90 % | both | {_coverage(found)} | {'yes' if met else '**no**'} |"
    )
    return "\n".join(lines)


def page(runs: dict[str, Run], made: Calibration) -> str:
    """The page of the docs."""
    found = list(points(runs, made.profile))
    first = next(iter(runs.values())).meta
    parts = [
        TEXT.format(
            host=f"{first['host']['cpu']}, {first['host']['cores']} cores", date=first["started_at"][:10]
        ),
        aims(found),
        EXPLAINED,
        table(found),
        BASELINES,
        "\n".join(f"- `{name}`: verdict {run.verdict.word}" for name, run in runs.items()),
    ]
    return "\n\n".join(parts) + "\n"


TEXT = """# How close the simulated engines come

Made by `python benchmarks/fidelity.py report`; do not edit. Everything here was measured on one machine
({host}; {date}) with SmolLM2-135M at 16 bit on both engines. On other machines and with other
models the errors are other ones, and for the profiles from datasheets nobody knows them.

The profile `cpu-2core-smollm2-135m` was fitted to 1, 4 and 16 users with two shapes of questions and to two
levels with a shared prefix, with Ollama at four slots and vLLM at its defaults. No fit has seen what was held
out: 2, 8 and 32 users; another shape (*shape*); Ollama with one slot and vLLM with at most four sequences
(*setting*). The split was written down before the runs were measured. Two things to know: the machine is
a virtual one whose speed moved by up to a tenth between runs, which no repeat within a run shows, so the runs
of the unseen shape and settings were measured a second time, nearer to the fit's; and the time that Ollama
takes to hand over a prompt became a part of the model after a first report, because the fit's own cells
showed it."""

EXPLAINED = """An error is prediction / measurement − 1, the measurement being the median of its repeats.
*line* is a straight line through the measured levels that the fit saw (beyond the last: by its last two),
*last* the nearest smaller one of them; for another shape or setting *last* is what was measured in the known
one, which is what one would have without a model. *noise* is how far one repeat is off the median of its
repeats. *in the band*: single repeats inside the 90 % band that the fit gave, with the 95 % interval of that
share."""

BASELINES = """Where the line or the last value beats the model, use those: the model is for what nobody
measured. The runs, all in `data/calibration`:"""


def say(line: str) -> None:
    """Progress, beside the results."""
    print(f"{datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)


def _tell(progress: Progress) -> None:
    if progress.frame is None:
        say(f"{progress.done}/{progress.total} {progress.phase}")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description="Compare the simulated engines with the real ones.")
    actions = parser.add_subparsers(required=True, dest="action")
    measuring = actions.add_parser("measure")
    measuring.add_argument("folder", nargs="?", type=Path, default=paths.data() / "calibration")
    measuring.add_argument("--only", nargs="*", default=(), metavar="NAME")
    actions.add_parser("fit")
    actions.add_parser("report")
    given = parser.parse_args()
    if given.action == "measure":
        asyncio.run(measure(given.folder, given.only))
        return
    runs = {r.name: Run.load(paths.data() / "calibration" / r.name) for r in RECORDINGS}
    made = fit(runs)
    if given.action == "fit":
        text = profile.dump(replace(made.profile, source="benchmarks/fidelity.py fit, from data/calibration"))
        (paths.data() / "profiles" / f"{FITTED}.toml").write_text(text)
    else:
        Path("docs/fidelity.md").write_text(page(runs, made))
    print(table(list(points(runs, made.profile))))
    for engine, kept in made.kept.items():
        print(
            f"{engine}: not moved: {', '.join(kept)}; step times off by {made.residual[engine]:.1%} (median)"
        )


if __name__ == "__main__":
    main()
