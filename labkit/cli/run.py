"""``labkit run``: execute notebooks without a browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from labkit.budget import BUDGETS


def add(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = sub.add_parser("run", help="execute notebooks without a browser")
    parser.add_argument(
        "notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: all of notebooks/, in order"
    )
    parser.add_argument(
        "--mode",
        choices=("auto", "live", "simulated", "recorded"),
        default="auto",
        help="depth (default: auto, which is live if both engines are there, else simulated)",
    )
    parser.add_argument("--budget", choices=tuple(BUDGETS), default="short", help="how much to measure")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="folder for executed .ipynb and .html (default: out)"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Say why "auto" is not deeper, execute, print the table, and say what failed."""
    from labkit import depths, headless

    notebooks = args.notebooks or sorted(Path("notebooks").glob("*.ipynb"))
    if args.mode == "auto" and (why := depths.why_not_live(depths.addresses())):
        _say(why)
    results = headless.execute(notebooks, mode=args.mode, budget=args.budget, out=args.out, progress=_say)
    print(headless.table(results))
    for result in results:
        if result.failure:
            print(f"\n{result.notebook.name} failed\n{result.failure}")
    return 1 if any(result.failure for result in results) else 0


def _say(line: str) -> None:
    print(line, flush=True)
