"""``labkit doctor``: what this machine can run, and what to do about the rest."""

from __future__ import annotations

import argparse


def add(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = sub.add_parser("doctor", help="what this machine can run, and what to do about the rest")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if no engine can run."""
    from labkit import doctor

    rows = doctor.examine()
    print(doctor.as_json(rows) if args.json else doctor.table(rows))
    return 0 if doctor.can_run(rows) else 1
