"""``labkit plan``: a plan for a load of one's own, from runs that were measured."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labkit.bundle import Run
    from labkit.calibration import Calibrated


def add(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = sub.add_parser("plan", help="a plan for your own load, from runs that were measured")
    parser.add_argument(
        "--runs", type=Path, nargs="+", required=True, metavar="DIR", help="runs, or folders that hold some"
    )
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--users", type=int, metavar="N", help="who wait for an answer at the same time")
    load.add_argument("--rate", type=float, metavar="R", help="requests a second that come at random")
    parser.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="of a question (default: as in the runs)"
    )
    parser.add_argument(
        "--output-tokens", type=int, metavar="N", help="of an answer (default: as in the runs)"
    )
    parser.add_argument("--ttft", type=float, metavar="S", help="promise: seconds to the first token")
    parser.add_argument("--tpot", type=float, metavar="S", help="promise: seconds for each token after it")
    parser.add_argument("--e2e", type=float, metavar="S", help="promise: seconds to the end of the answer")
    parser.add_argument("--share", type=float, default=0.95, help="of the requests that keep it: 0.95 or 0.5")
    parser.add_argument("--price", type=float, required=True, metavar="P", help="of a machine for an hour")
    parser.add_argument(
        "--utilisation",
        type=float,
        default=1.0,
        metavar="U",
        help="share of the paid time at work (default: 1)",
    )
    parser.add_argument(
        "--active-share", type=float, default=1.0, metavar="A",
        help="share of that time in which one person waits for an answer (default: 1)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="write plan.md and plan.html there")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the predictions")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Read the runs, fit a simulator to them where they allow it, plan, print or write."""
    from labkit import planning
    from labkit.options import Need, Prices
    from labkit.slo import Slo

    need = Need(args.users, args.rate, args.prompt_tokens, args.output_tokens)
    slo = Slo(args.ttft, args.tpot, args.e2e, args.share)
    prices = Prices(args.price, args.utilisation, args.active_share)
    runs = [run for folder in args.runs for run in _runs(folder)]
    made = planning.plan(runs, need, slo, prices, fit=_fit(runs, args.seed), seed=args.seed)
    if args.out is None:
        print(made.markdown(), end="")
        return 0
    for path in made.save(args.out):
        print(f"written: {path}")
    print(made.decision)
    return 0


def _runs(folder: Path) -> list[Run]:
    """The run in a folder, or those in the folders below it."""
    from labkit.bundle import Run

    below = sorted(path.parent for path in folder.glob("*/run.json"))
    return [Run.load(path) for path in (below if below and not (folder / "run.json").exists() else [folder])]


def _fit(runs: list[Run], seed: int) -> Calibrated | None:
    """A simulator that is fitted to the runs; without one there are no predictions, which is said."""
    from labkit import calibration, designs
    from labkit.errors import CalibrationRefused

    arms = [arm for run in runs for arm in run.meta["arms"].values()]
    engines = tuple(dict.fromkeys(arm["engine"] for arm in arms if not arm["facts"].get("behind")))
    plain = [run for run in runs if designs.plain(run)]
    simulated = all(run.kind == "simulated" for run in runs)
    try:
        return calibration.fit(plain, engines, simulated=simulated, seed=seed)
    except CalibrationRefused as error:
        print(f"no predictions: {error.seen}", file=sys.stderr)
        return None
