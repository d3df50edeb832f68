"""``labkit calibrate``: fit a profile for the simulated engines to this machine."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labkit.calibration import Found
    from labkit.experiments import Progress
    from labkit.sim.calibrate import Calibration, Source

ENGINES = ("ollama", "vllm")
SLOTS = 4  # with one slot nothing is seen of what a second answer costs


def add(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = sub.add_parser("calibrate", help="fit a profile for the simulated engines to this machine")
    parser.add_argument("engine", nargs="?", choices=ENGINES, help="default: both")
    parser.add_argument("--runs", type=Path, help="folder with earlier runs (default: where runs go)")
    parser.add_argument("--name", default="here", help="of the profile (default: here)")
    parser.add_argument("--prior", metavar="NAME", help="profile to start from (default: the course's)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and of the bootstrap")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Use the cells that are there, measure the missing ones, fit, write the profile, say what it is."""
    from dataclasses import replace

    from labkit import calibration, host, paths
    from labkit.sim import profile
    from labkit.sim.calibrate import calibrate

    prior = profile.load(args.prior or profile.DEFAULT)
    engines = (args.engine,) if args.engine else ENGINES
    found = calibration.look(calibration.kept(args.runs or paths.runs()), engines, prior)
    for reason in found.refused:
        _say(f"left out: {reason}")
    for source in found.sources:
        _say(f"{source.engine}: {source.run.path.name} has users {source.users}")
    sources = found.sources + asyncio.run(_measure(found, engines, args.seed))
    made = calibrate(sources, prior, seed=args.seed)
    here = f"{host.cpu_model()}, {host.cores()} cores"
    fitted = replace(
        made.profile,
        source=f"calibrated on {here}",
        device=replace(prior.device, name=here),
        threads=host.cores() if prior.kind == "cpu" else prior.threads,
    )
    path = paths.folder("profiles") / f"{args.name}.toml"
    path.write_text(profile.dump(fitted))
    print(_told(made))
    print(f"written: {path}; use it with: labkit engines start --simulated vllm --profile {args.name}")
    return 0


async def _measure(found: Found, engines: tuple[str, ...], seed: int) -> list[Source]:
    from labkit import calibration, depths
    from labkit.designs import Load
    from labkit.sweeps import Order, Side

    lacking = [name for name in engines if found.missing(name)]
    if not lacking:
        return []
    live, measured = depths.Live(depths.addresses(), None), []
    for name in lacking:
        settings = {"num_parallel": SLOTS} if name == "ollama" else {}
        try:
            for workload, users in found.missing(name):
                order = Order(
                    name="calibration",
                    sides=[Side(name, settings)],
                    load=Load(tuple(users)),
                    model=depths.PAIRS["fair"],
                    workload=workload,
                    budget=calibration.BUDGET,
                    seed=seed,
                )
                (arm,) = await live.arms(order, _say)
                measured.append(await calibration.measure(arm, workload, users, seed, _tell))
        finally:
            await live.engines[name].stop(progress=_say)
    return measured


def _told(made: Calibration) -> str:
    lines = []
    for engine, count in made.observations.items():
        part = made.profile.engines[engine]
        bands = ", ".join(f"{metric} ÷ or × {1 + band:.2f}" for metric, band in part.band.items())
        lines += [
            f"{engine}: {count} kinds of steps seen, median error {made.residual[engine]:.1%}",
            f"  not moved by these runs, as in the profile it started from: {', '.join(made.kept[engine])}",
            f"  90 % bands of predictions: {bands}",
        ]
    return "\n".join(lines)


def _tell(progress: Progress) -> None:
    if progress.frame is None:
        _say(f"{progress.done}/{progress.total} {progress.phase}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
