"""Runs in which the test chooses when each request was sent, taken on and answered."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from labkit.bundle import Recorder, Run
from labkit.schema import TOKEN
from labkit.verdict import Verdict
from labkit.workload import Workload

READING_S = 0.1
"""From being taken on to the first token, in all that is made here; also TTFT of an idle engine."""

Request = dict[str, Any]
IDLE = {"sent_s": 0.0, "first_token_s": READING_S, "end_s": 0.2}


def ollama(slots: int | None = 1, **facts: Any) -> dict[str, Any]:
    """An arm's facts."""
    read = {"context": 4096, "kv_bytes": (slots or 1) * 4096 * 23040, "model_digest": "aa"}
    return {"version": "0.34.0", "slots": slots, "device": "cpu", **read, **facts}


def vllm(slots: int | None = 128, **facts: Any) -> dict[str, Any]:
    """An arm's facts: a pool of 100 blocks of 128 tokens."""
    pool = {"block_size": 128, "kv_tokens": 12_800, "kv_bytes": 12_800 * 23040, "context": 4096}
    return {"version": "0.32.0", "slots": slots, "device": "cpu", **pool, **facts}


def made(
    folder: Path,
    rows: dict[str, Sequence[Request]],
    facts: dict[str, dict[str, Any]] | None = None,
    *,
    settings: dict[str, dict[str, Any]] | None = None,
    gauges: Iterable[tuple[str, float, dict[str, float]]] = (),
    load: dict[str, Any] | None = None,
    level: int = 8,
    kind: str = "live",
    memory_gib: float | None = 24.0,
    verdict: Verdict | None = None,
) -> Run:
    """One level of requests on each arm, after a warm-up of an idle engine.

    Args:
        rows: by arm, whose name begins with its engine's; ids are given here. ``output_tokens`` come evenly
            from first token to end.
        facts: by arm; of :func:`ollama` and :func:`vllm` by default.
        gauges: arm, second, values.
        load: of ``run.json``.
    """
    arms = {name: _arm(name, (facts or {}).get(name), (settings or {}).get(name, {})) for name in rows}
    described = {**Workload().as_dict(), "experiment": "made", "budget": "short", "load": load or {}}
    recorder = Recorder(folder, kind=kind, arms=arms, workload=described, seed=0)
    number = 0
    for arm, requests in rows.items():
        for warmup, given in ((True, [IDLE] * 4), (False, requests)):
            written = [_row(number + n, arm, level, warmup, one) for n, one in enumerate(given)]
            _append(recorder, "requests.rows", (orjson.dumps(row) + b"\n" for row in written))
            _append(recorder, "tokens.rows", (part for row in written for part in _tokens(row)))
            number += len(written)
            ends = [row["end_s"] for row in written if row["end_s"] is not None]
            recorder.level(
                {
                    "arm": arm,
                    "level": level,
                    "repeat": 0,
                    "warmup": warmup,
                    "started_s": min((row["sent_s"] for row in written), default=0.0),
                    "ended_s": max(ends, default=1.0),
                }
            )
    lines = (
        {"t_s": t_s, "engine": arms[arm]["engine"], "arm": arm, "name": name, "value": value}
        for arm, t_s, values in gauges
        for name, value in values.items()
    )
    _append(recorder, "gauges.rows", (orjson.dumps(line) + b"\n" for line in lines))
    run = recorder.finish(verdict or Verdict("clean", []))
    run.meta["host"]["memory_gib"] = memory_gib
    return run


def served(sent: Sequence[float], slots: int = 1, work_s: float | Sequence[float] = 1.0) -> list[Request]:
    """Requests that are served in the order of sending, as many at a time as there are slots."""
    works = [work_s] * len(sent) if isinstance(work_s, float) else work_s
    free = [0.0] * slots
    rows = []
    for moment, work in zip(sent, works, strict=True):
        begun = max(moment, heapq.heappop(free))
        heapq.heappush(free, begun + work)
        rows.append(request(moment, begun + READING_S, begun + work, queue_s=begun - moment))
    return rows


def request(sent: float, first: float, end: float, **more: Any) -> Request:
    """One whole answer; ``queue_s`` makes its waiting a reported one."""
    basis = "reported" if "queue_s" in more else "unknown"
    return {"sent_s": sent, "first_token_s": first, "end_s": end, "queue_basis": basis, **more}


def refused(sent: float) -> Request:
    """One that was answered with 503."""
    return {"sent_s": sent, "end_s": sent + 0.01, "outcome": "failed", "http_status": 503}


def _arm(name: str, facts: dict[str, Any] | None, settings: dict[str, Any]) -> dict[str, Any]:
    engine = name.partition(",")[0].lower()
    usual = ollama() if engine == "ollama" else vllm()
    read = {"engine": engine, "kind": "live", "url": "http://127.0.0.1:1", **(facts or usual)}
    return {"engine": engine, "settings": settings, "facts": read}


def _row(number: int, arm: str, level: int, warmup: bool, given: Request) -> Request:
    return {
        "id": number,
        "engine": arm.partition(",")[0].lower(),
        "arm": arm,
        "level": level,
        "repeat": 0,
        "warmup": warmup,
        "intended_s": given["sent_s"],
        "outcome": "ok",
        "http_status": 200,
        "prompt_tokens": 60,
        "output_tokens": 0 if given.get("outcome") == "failed" else 10,
        "first_token_s": None,
        **given,
    }


def _tokens(row: Request) -> Iterable[bytes]:
    first, count = row["first_token_s"], row["output_tokens"]
    if first is None:
        return
    step = (row["end_s"] - first) / max(count - 1, 1)
    yield from (TOKEN.pack(row["id"], first + step * n, 1, 0) for n in range(count))


def _append(recorder: Recorder, name: str, parts: Iterable[bytes]) -> None:
    with (recorder.folder / name).open("ab") as out:
        out.writelines(parts)
