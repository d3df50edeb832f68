"""Runs whose truth is known: measured, so to speak, on an engine whose coefficients the test has chosen."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from labkit.bundle import Run
from labkit.sim import profile
from labkit.sim.drive import closed_loop
from labkit.sim.profile import Profile, build
from labkit.sim.request import Request
from labkit.sim.rerun import tables, whole_settings

COEFFICIENTS = {
    "step": 0.004,
    "weights": 1.0,
    "compute": 0.3,
    "sequence": 0.0006,
    "request": 0.004,
    "kv": 1.5,
    "attention": 0.8,
    "link": 1.0,
}
SHAPES = {"short": (60, 40), "long": (250, 12)}


def known(engine: str, **changed: float) -> Profile:
    """The roofline profile with these coefficients for one engine."""
    prior = profile.load("cpu-2core-roofline")
    part = replace(prior.engines[engine], coefficients={**COEFFICIENTS, **changed}, ridge=4)
    return replace(prior, engines={**prior.engines, engine: part})


def run(
    engine: str,
    shape: str,
    *,
    users: tuple[int, ...] = (1, 4, 16),
    repeats: int = 2,
    asked: dict[str, Any] | None = None,
    noise: float = 0.0,
    drift: float = 1.0,
    truth: Profile | None = None,
    **meta: Any,
) -> Run:
    """A closed loop of two rounds on the engine of known truth.

    Args:
        noise: standard deviation of the step times between levels, as a share.
        drift: factor by which the first level is slower at the end.
    """
    arm = f"{engine} arm"
    asked = asked if asked is not None else ({"num_parallel": 4} if engine == "ollama" else {})
    made = Run(
        {
            "kind": "live",
            "arms": {arm: {"engine": engine, "settings": asked, "facts": {"device": "cpu"}}},
            "levels": [],
            "verdict": {"word": "clean", "reasons": []},
            "workload": {"name": shape},
            "started_at": "2026-01-01T00:00:00+00:00",
            **meta,
        },
        pl.DataFrame(),
        pl.DataFrame(),
        pl.DataFrame(),
        Path(shape),
    )
    served = build(truth or known(engine), engine, whole_settings(made.meta["arms"][arm], asked))
    true_seconds, pace, draw = served.cost.seconds, [1.0], random.Random(shape)
    object.__setattr__(served.cost, "seconds", lambda work: pace[0] * true_seconds(work))
    prompt, answer = SHAPES[shape]
    warm = closed_loop(served, [Request(0, tuple(range(8)), (1,), model="m")], 1, 0.0)  # loads Ollama's model
    now, frames = warm[0].ended_s or 0.0, []
    plan = [(n, r, False) for r in range(repeats) for n in users] + [(users[0], repeats, True)]
    for index, (level, repeat, again) in enumerate(plan):
        pace[0] = (drift if again else 1.0) * (1 + noise * draw.gauss(0, 1))
        first = (index + 1) * 1_000_000
        asks = [
            Request(
                first + n,
                tuple(range(first * 1000 + n * 1000, first * 1000 + n * 1000 + prompt)),
                tuple(range(answer)),
                model="m",
            )
            for n in range(level * 2)
        ]
        done = closed_loop(served, asks, level, now + 1)
        now = max(r.ended_s or 0.0 for r in done)
        record = {
            "arm": arm,
            "engine": engine,
            "level": level,
            "repeat": repeat,
            "warmup": False,
            "drift": again,
            "ok": len(done),
            "planned": len(done),
            "tokens": sum(len(r.token_s) for r in done),
            "started_s": min(r.sent_s for r in done),
            "ended_s": now,
        }
        made.meta["levels"].append(record)
        frames.append(tables(done, record))
    return replace(made, requests=pl.concat(f[0] for f in frames), tokens=pl.concat(f[1] for f in frames))
