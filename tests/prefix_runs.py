"""Bundles and transcripts in which the test chooses what each question shares, reuses, and takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from labkit.bundle import Recorder, Run
from labkit.designs import Load
from labkit.transcript import Transcript
from labkit.verdict import Verdict
from labkit.workload import Workload

BLOCK = 128
TOTAL = 448
ON, OFF = "vLLM", "vLLM, prefix_caching=False"


class Question(NamedTuple):
    """One question of a level and its answer."""

    ttft_ms: float
    cached: int | None = 0
    prompt: int = TOTAL


Levels = Mapping[int, Sequence[Question]]


def level(cold_ms: float, warm_ms: float, cached: int | None, *, warm: int = 3) -> list[Question]:
    """A question that is new, and those that begin like it."""
    return [Question(cold_ms, 0), *[Question(warm_ms, cached)] * warm]


def staircase(shared: Sequence[int] = (64, 127, 128, 192, 255, 256), per_token_ms: float = 2.0) -> Levels:
    """A cache of whole blocks, in which reading takes so long."""
    return {
        tokens: level(
            TOTAL * per_token_ms,
            50 + (TOTAL - tokens // BLOCK * BLOCK - 25) * per_token_ms,
            tokens // BLOCK * BLOCK,
        )
        for tokens in shared
    }


def flat(shared: Sequence[int] = (64, 127, 128, 192, 255, 256), cached: int | None = 0) -> Levels:
    """No cache."""
    return {tokens: level(900.0, 900.0, cached) for tokens in shared}


def prefix_run(folder: Path, arms: Mapping[str, Levels], **more: Any) -> Run:
    """A run of ``lab.prefixes()``: by arm the questions of each level."""
    every = sorted({tokens for levels in arms.values() for tokens in levels})
    load = Load(tuple(every or (1,)), rounds=4, sharing=True)
    return _run(folder, arms, load, Workload("prefixes", total_tokens=TOTAL), **more)


def workloads_run(
    folder: Path,
    arms: Mapping[str, Mapping[str, Sequence[Question]]],
    *,
    system: str | None = None,
    counted: Mapping[str, tuple[int, int]] | None = None,
    **more: Any,
) -> Run:
    """A run of ``lab.workloads()``: by arm the questions of each workload.

    Args:
        system: of each workload.
        counted: by workload, hits and queries by which the counters grow.
    """
    names = list(next(iter(arms.values())))
    load = Load(
        tuple(range(1, len(names) + 1)),
        workloads=tuple(replace(Workload(name), system=system) for name in names),
    )
    grown = {names.index(name) + 1: pair for name, pair in (counted or {}).items()}
    by_level = {
        arm: {names.index(name) + 1: asked for name, asked in levels.items()} for arm, levels in arms.items()
    }
    return _run(folder, by_level, load, Workload(), counted=grown, **more)


def reuse(
    engine: str = "ollama",
    *,
    cold_s: float = 3.0,
    busy: int | None = 3,
    idle: int | None = 653,
    idle_s: float = 0.06,
    kind: str = "live",
    **about: Any,
) -> Transcript:
    """What ``lab.reuse()`` gives, with the tokens of 661 that B finds; None: the engine does not say."""
    asked = (
        ("busy: first", 0, cold_s),
        ("busy: same prefix meanwhile", busy, cold_s),
        ("idle: same prefix", idle, idle_s),
    )
    events = [
        {"t_s": float(at), "what": "ask", "case": case, "prompt_tokens": 661, "cached_tokens": cached}
        | {"ttft_s": ttft_s}
        for at, (case, cached, ttft_s) in enumerate(asked)
    ]
    return Transcript("reuse", kind, {"engine": engine, **about}, tuple(events))


def _run(
    folder: Path,
    arms: Mapping[str, Levels],
    load: Load,
    workload: Workload,
    *,
    counted: Mapping[int, tuple[int, int]] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    block: int | None = BLOCK,
    verdict: Verdict | None = None,
    stopped: bool = False,
    kind: str = "live",
) -> Run:
    described = {**workload.as_dict(), "experiment": "x", "budget": "short", "load": load.as_dict()}
    entries = {name: _arm(name, (settings or {}).get(name), block) for name in arms}
    recorder = Recorder(folder, kind=kind, arms=entries, workload=described, seed=0)
    now, number = 1.0, 0
    for arm, levels in arms.items():
        labels = {"engine": entries[arm]["engine"], "arm": arm}
        total = {"prefix_hits": 0.0, "prefix_queries": 0.0}
        for at, asked in levels.items():
            rows = [_row(number + n, now + 10 * n, one) for n, one in enumerate(asked)]
            ended = rows[-1]["end_s"]
            own = {**labels, "level": at, "repeat": 0, "warmup": False}
            _append(recorder, "requests.rows", [{**own, **row} for row in rows])
            if grown := (counted or {}).get(at):
                before = dict(total)
                total = dict(
                    zip(total, (a + b for a, b in zip(total.values(), grown, strict=True)), strict=True)
                )
                _append(recorder, "gauges.rows", _readings(labels, {now - 0.5: before, ended + 0.5: total}))
            recorder.level({**own, "started_s": now, "ended_s": ended})
            now, number = ended + 1.0, number + len(rows)
    return recorder.finish(verdict or Verdict("clean", []), stopped=stopped)


def _arm(name: str, settings: Mapping[str, Any] | None, block: int | None) -> dict[str, Any]:
    engine = name.partition(",")[0].lower()
    asked = ({"prefix_caching": False} if name == OFF else {}) if settings is None else dict(settings)
    facts = {"engine": engine, "version": "0.32.0", "model": "smollm2:135m", "device": "cpu"}
    return {"engine": engine, "settings": asked, "facts": {**facts, "block_size": block}}


def _row(number: int, sent: float, asked: Question) -> dict[str, Any]:
    first = sent + asked.ttft_ms / 1000
    return {
        "id": number,
        "user": 0,
        "intended_s": sent,
        "sent_s": sent,
        "first_token_s": first,
        "last_token_s": first + 1,
        "end_s": first + 1,
        "prompt_tokens": asked.prompt,
        "cached_tokens": asked.cached,
        "output_tokens": 8,
        "outcome": "ok",
        "queue_basis": "unknown",
    }


def _readings(labels: Mapping[str, str], told: Mapping[float, Mapping[str, float]]) -> list[dict[str, Any]]:
    return [
        {"t_s": t_s, **labels, "name": name, "value": value}
        for t_s, values in told.items()
        for name, value in values.items()
    ]


def _append(recorder: Recorder, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
    with (recorder.folder / name).open("ab") as out:
        out.writelines(orjson.dumps(line) + b"\n" for line in lines)
