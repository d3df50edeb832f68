"""What each rank of a vLLM with tensor parallelism holds, from the log of its start."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit import parallel
from labkit.demos import startup
from labkit.demos.apart import about
from labkit.engines.vllm import VLLM
from labkit.errors import EngineError
from labkit.parallel import Shape
from labkit.transcript import Event, Transcript

LINES = {
    "world": r"world_size=(?P<size>\d+) rank=(?P<rank>\d+) .*backend=(?P<backend>\w+)",
    "cores": r"local_rank=(?P<rank>\d+), core ids=\[(?P<cores>[\d, ]+)\]",
    "weights": r"Worker\w*_TP(?P<rank>\d+).* Model loading took (?P<weights_gib>[\d.]+) GiB",
    "pool": r"Worker\w*_TP(?P<rank>\d+).* Explicitly set \((?P<kv_gib>[\d.]+)/",
    "free": r"Worker\w*_TP(?P<rank>\d+).* (Available KV cache memory:|reserved) (?P<kv_gib>[\d.]+) GiB",
    "tokens": r"KV cache size: (?P<kv_tokens>[\d,]+) tokens",
}
"""Lines of vLLM 0.32.0 and what they tell; "weights" and "free" are those of a GPU, not yet verified."""


def read(log: str, began: datetime | None = None) -> list[Event]:
    """What the log tells: "joined" for each rank, "rank" with its cores, weights and KV memory, and "tokens".

    A rank's field that no line tells is left out: on a CPU there is none about its weights.
    """
    events: list[Event] = []
    ranks: dict[int, Event] = {}
    for t_s, line in _lines(log, began):
        for what, pattern in LINES.items():
            if not (match := re.search(pattern, line)):
                continue
            said = {name: _value(name, text) for name, text in match.groupdict().items()}
            if what == "world":
                events.append({"t_s": t_s, "what": "joined", **said})
                ranks.setdefault(said["rank"], {"t_s": t_s, "what": "rank", "rank": said["rank"]})
            elif what == "tokens":
                events.append({"t_s": t_s, "what": "tokens", **said, "says": startup.short(match[0])})
            else:
                rank = ranks.setdefault(said["rank"], {"t_s": t_s, "what": "rank"})
                rank |= {"t_s": t_s, **said}
    joined = sorted((one for one in events if one["what"] == "joined"), key=lambda one: one["rank"])
    pool = [one for one in events if one["what"] == "tokens"][:1]
    return [*joined, *(ranks[number] for number in sorted(ranks)), *pool]


async def ranks(engine: VLLM) -> Transcript:
    """What each rank of a running vLLM holds: by its log, and by arithmetic on its model's ``config.json``.

    Raises:
        EngineError: labkit did not start this server, it has one rank, or its log is none that is known.
    """
    server = engine.server
    tried = f"read what the ranks of {engine.title} at {engine.url} hold"
    if server is None:
        raise EngineError(
            tried,
            "labkit did not start this server, and does not know where its log is",
            "unset LABKIT_VLLM_URL to let labkit start one, or MODE = 'recorded'",
        )
    began = datetime.fromtimestamp(server.create_time)
    log = startup.log_text(server.log)
    told = read(log, began)
    count, folder = parallel.ranks_of(engine.asked), _folder(log)
    if count < 2:
        raise EngineError(tried, "it has one rank", "start it with tensor_parallel_size=2")
    if not told or folder is None:
        raise EngineError(
            tried,
            f"the lines that vLLM 0.32.0 has are not all in {server.log}",
            "labkit engines install vllm installs the version that this course knows",
        )
    facts = await engine.facts()
    shape = Shape.of(json.loads((folder / "config.json").read_text()))
    part = parallel.share(shape, count)
    by_arithmetic = {
        "heads": part.heads,
        "kv_heads": part.kv_heads,
        "weights_gib_computed": round(part.weights_gib, 3),
        "kv_kib_a_token": part.kv_bytes / 1024,
    }
    events: list[Event] = [{"t_s": 0.0, "what": "model", **asdict(shape)}]
    events += [{**one, **by_arithmetic} if one["what"] == "rank" else one for one in told]
    seen_on = about(engine, facts.version, model=facts.model, asked=engine.asked)
    return Transcript("ranks", "live", seen_on, tuple(events))


def _folder(log: str) -> Path | None:
    """The model's folder, as the server names it in its log."""
    match = re.search(r"Starting to load model (.+?)\.\.\.", log)
    return None if match is None else Path(match[1])


def _lines(log: str, began: datetime | None) -> list[tuple[float, str]]:
    """Seconds and text of each line, with the process that said it."""
    stamped = startup.stamped(log, began)
    whole = [line for line in log.splitlines() if startup.STAMPED.match(line)]
    return [(t_s, line) for (t_s, _), line in zip(stamped, whole, strict=True)]


def _value(name: str, text: str) -> Any:
    if name == "cores":
        return [int(core) for core in text.split(",")]
    if name == "kv_tokens":
        return int(text.replace(",", ""))
    return text if name == "backend" else float(text) if name.endswith("_gib") else int(text)
