"""Claims of notebook 07: their words on runs with one rank and with several."""

from __future__ import annotations

from pathlib import Path

from parallel_runs import BOTH, ONE, POOLS, RANKS, RATES, parallel_run

from labkit.bundle import Run
from labkit.judges import HELD, NOT_HELD, NOT_HERE


def _split(folder: Path) -> Run:
    return parallel_run(folder / "run")


def _alone(folder: Path) -> Run:
    return parallel_run(folder / "run", {ONE: RATES[ONE], BOTH: RATES[BOTH]})


def _broken(folder: Path) -> Run:
    return parallel_run(folder / "run", unfinished={RANKS: {1: 1.0, 8: 1.0}})


def _no_more(folder: Path) -> Run:
    return parallel_run(folder / "run", pools={**POOLS, RANKS: 1100})


def _silent(folder: Path) -> Run:
    return parallel_run(folder / "run", pools={**POOLS, RANKS: None})


BUILT = [
    ("C73", HELD, "2 ranks, started by one command", _split),
    ("C73", NOT_HELD, "questions at one address", _broken),
    ("C73", NOT_HERE, "No vLLM with several ranks", _alone),
    ("C74", HELD, "2 ranks hold 2,000 tokens", _split),
    ("C74", NOT_HELD, "1.10 times as many", _no_more),
    ("C74", NOT_HERE, "as much KV memory as each rank has", _silent),
]
