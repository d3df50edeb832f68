"""Bundles of one Ollama arm whose requests are chosen one by one: when they come, wait, and how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from labkit.bundle import Recorder, Run
from labkit.load.plan import ClientHealth, Tally
from labkit.schema import TOKEN
from labkit.verdict import Verdict
from labkit.workload import Workload

ARM = "Ollama, 1 slot"
TOKENS_EACH = 4


@dataclass(frozen=True)
class Asked:
    """One request, in seconds: asked for at ``at``, then waiting, reading, and writing its tokens.

    Attributes:
        late: how much after ``at`` it was sent.
        pause: a stop before its last token.
        status: 200, or that of a request which got no answer.
    """

    at: float = 0.0
    waits: float = 0.0
    reads: float = 0.1
    writes: float = 0.3
    late: float = 0.0
    pause: float = 0.0
    status: int = 200


def burst(work: Sequence[float], *, refused: int = 0) -> list[Asked]:
    """Requests at one moment before one slot, each with this much work; some more are turned away."""
    waits = [sum(work[:place]) for place in range(len(work))]
    served = [Asked(waits=w, reads=one - 0.3) for w, one in zip(waits, work, strict=True)]
    return [*served, *(Asked(status=503) for _ in range(refused))]


def queue_run(
    folder: Path,
    levels: Mapping[int, Sequence[Asked] | list[list[Asked]]],
    *,
    load: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    own_prompts: tuple[str, ...] = (),
    basis: str = "reported",
    verdict: Verdict | None = None,
    kind: str = "live",
) -> Run:
    """Write and read back a run with these requests by level; a list of lists gives repeats."""
    facts = {"engine": "ollama", "kind": kind, "version": "0.34.0", "slots": 1, "device": "cpu"}
    described = {
        **Workload(own_prompts=own_prompts).as_dict(),
        "experiment": "x",
        "budget": "short",
        "load": {"arrivals": "burst", "rounds": None, "requests": None, "stall_s": None, "cold": False}
        | dict(load or {}),
    }
    recorder = Recorder(
        folder,
        kind=kind,
        arms={ARM: {"engine": "ollama", "settings": dict(settings or {}), "facts": facts}},
        workload=described,
        seed=0,
    )
    now, number = 0.0, 0
    for level, given in levels.items():
        for repeat, asked in enumerate(_repeats(given)):
            rows = [_row(number + place, level, repeat, now, one) for place, one in enumerate(asked)]
            for row, one in zip(rows, asked, strict=True):
                row["queue_basis"] = basis
                if basis == "unknown":
                    row["queue_s"] = None
                _append(recorder, "tokens.rows", _tokens(row, one))
            _append(recorder, "requests.rows", b"".join(orjson.dumps(row) + b"\n" for row in rows))
            number += len(rows)
            now = _end(recorder, level, repeat, rows, now)
    return recorder.finish(verdict or Verdict("clean", []))


def _repeats(given: Sequence[Asked] | list[list[Asked]]) -> list[list[Asked]]:
    single = [one for one in given if isinstance(one, Asked)]
    return [single] if single else [list(one) for one in given if not isinstance(one, Asked)]


def _row(number: int, level: int, repeat: int, start: float, one: Asked) -> dict[str, Any]:
    sent = start + one.at + one.late + number * 1e-6
    row = {
        "id": number,
        "engine": "ollama",
        "arm": ARM,
        "level": level,
        "repeat": repeat,
        "warmup": False,
        "intended_s": start + one.at,
        "sent_s": sent,
        "http_status": one.status,
        "outcome": "ok" if one.status == 200 else "failed",
        "end_s": sent + 0.01,
    }
    if one.status == 200:
        first = sent + one.waits + one.reads
        end = first + one.writes + one.pause
        row |= {"first_token_s": first, "last_token_s": end, "end_s": end, "queue_s": one.waits}
        row |= {"prompt_tokens": 24, "output_tokens": TOKENS_EACH}
    return row


def _tokens(row: Mapping[str, Any], one: Asked) -> bytes:
    if one.status != 200:
        return b""
    steps = [one.writes * n / (TOKENS_EACH - 1) for n in range(TOKENS_EACH)]
    steps[-1] += one.pause
    return b"".join(TOKEN.pack(row["id"], row["first_token_s"] + step, 1, 0) for step in steps)


def _end(recorder: Recorder, level: int, repeat: int, rows: Sequence[dict[str, Any]], now: float) -> float:
    ok = sum(row["outcome"] == "ok" for row in rows)
    end = max((row["end_s"] for row in rows), default=now)
    tally = Tally(
        planned=len(rows), ok=ok, failed=len(rows) - ok, tokens=ok * TOKENS_EACH, started_s=now, ended_s=end
    )
    recorder.level(
        {
            "arm": ARM,
            "engine": "ollama",
            "level": level,
            "repeat": repeat,
            "warmup": False,
            "drift": False,
            **tally.__dict__,
            "client": ClientHealth().__dict__,
            "broken": None,
            "others_cpu": None,
        }
    )
    return end + 1.0


def _append(recorder: Recorder, name: str, data: bytes) -> None:
    with (recorder.folder / name).open("ab") as out:
        out.write(data)
