"""The steps of an engine, read off the token times of a run that was measured on it.

All answers that are being written get a token at the end of a step, so tokens that arrive together tell when
a step ended and who was in it; the prompts whose first token came then tell what was read in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import polars as pl

from labkit.bundle import Run
from labkit.sim.cost import Work
from labkit.sim.ollama import batch
from labkit.sim.rerun import Level, levels

TOGETHER = 0.35
"""Tokens of different answers belong to one step if they are closer than this share of the usual step."""

SLACK = 0.1
"""Share of a step within which what came after its beginning is taken for part of it."""

SMALLEST_BUDGET = 2048
"""Of vLLM's own defaults for tokens a step (CPUs, GPUs below 70 GiB); larger devices have larger ones."""

FEWEST = 3
"""Steps of one kind in a cell that make an observation: fewer are left to chance."""


@dataclass(frozen=True)
class Observation:
    """The usual time of one kind of step in one cell (an arm's level and repeat), and what it does."""

    cell: tuple[str, str, int, int]  # run, arm, users, repeat
    work: Work
    seconds: float
    count: int
    ranks: int = 1
    share: float = 1.0  # of the machine's cores, all ranks together


def observe(run: Run, arm: str) -> list[Observation]:
    """All that the run tells of an arm's steps; warm-up and drift check left out."""
    described = run.meta["arms"][arm]
    found, limit = [], _limit(described)
    ranks = int(described.get("settings", {}).get("tensor_parallel_size") or 1)
    for level in levels(run, arm):
        if level.measured:
            tokens = run.tokens.filter(pl.col("request_id").is_in(level.rows["id"].implode())).sort("t_s")
            found += _cell((str(run.path.name), arm, *level.key), level, tokens.rows(), limit)
    return [replace(one, ranks=ranks, share=_share(run, described)) for one in found]


def _share(run: Run, arm: dict[str, Any]) -> float:
    """Of the machine's cores, what vLLM was given on purpose; 1 where nothing was said of it."""
    if not isinstance(arm.get("settings", {}).get("cpu_threads"), int):
        return 1.0
    return float(arm["facts"]["threads"] / run.meta["host"]["cores"])


def _limit(arm: dict[str, Any]) -> int:
    """Tokens a step that the engine surely takes: a larger work may have been several steps."""
    if arm["engine"] == "vllm":
        return SMALLEST_BUDGET
    return batch((arm["facts"].get("context") or 0) * (arm["facts"].get("slots") or 1))


def _cell(cell: tuple[str, str, int, int], level: Level, tokens: list[Any], limit: int) -> list[Observation]:
    rows = {row["id"]: row for row in level.rows.iter_rows(named=True) if row["outcome"] == "ok"}
    kinds: dict[tuple[float, float], list[tuple[Work, float]]] = {}
    for work, seconds in _steps(rows, tokens, limit):
        kinds.setdefault((work.sequences, work.requests), []).append((work, seconds))
    return [
        Observation(cell, _usual([work for work, _ in same]), median(s for _, s in same), len(same))
        for same in kinds.values()
        if len(same) >= FEWEST or same[0][0].requests
    ]


def _usual(works: list[Work]) -> Work:
    return Work(*(sum(values) / len(works) for values in zip(*works, strict=True)))


def _steps(rows: dict[int, dict[str, Any]], tokens: list[Any], limit: int) -> Iterator[tuple[Work, float]]:
    """Work and time of each step of which both are known for sure."""
    written = dict.fromkeys(rows, 0)
    before: set[int] = set()
    torn, ended = False, 0.0
    for at, ids in _together([row for row in tokens if row[0] in rows]):
        first = [rows[i] for i in ids if written[i] == 0]
        going = [i for i in ids if written[i] > 0]
        due = {i for i in before if written[i] < rows[i]["output_tokens"]}
        for i in ids:
            written[i] += 1
        read = sum(_read(row) for row in first)
        began = ended if due else _began(first, ended)
        whole = due <= set(ids) and not torn  # else the tokens of one step were taken for two
        torn, before, ended = not due <= set(ids), due | set(ids), at
        if (
            began is None
            or not whole
            or read + len(going) > limit
            or _unclear(rows.values(), first, began, at)
        ):
            continue
        pairs = sum(_read(row) * (2 * row["prompt_tokens"] - _read(row)) / 2 for row in first)
        kv = sum(rows[i]["prompt_tokens"] + written[i] - 1 for i in going)
        yield Work(read + len(going), len(ids), len(first), kv, pairs), at - began


def _read(row: dict[str, Any]) -> int:
    """Tokens of a prompt that had to be read."""
    return int(row["prompt_tokens"] - (row["cached_tokens"] or 0))


def _unclear(rows: Iterable[dict[str, Any]], first: list[dict[str, Any]], began: float, at: float) -> bool:
    """Whether more was read in it than the prompts whose first token came, or these began in another."""
    slack = SLACK * (at - began)
    part = any(_prefill(row) < began + slack and row["first_token_s"] > at + 1e-4 for row in rows)
    late = any(row["sent_s"] > began + slack for row in first)
    early = any(row["prefill_s"] is not None and _prefill(row) < began - slack for row in first)
    return part or late or early


def _prefill(row: dict[str, Any]) -> float:
    """When work on a prompt began, at the earliest: known where the engine reports how long it took."""
    if row["prefill_s"] is not None:
        return float(row["first_token_s"] - row["prefill_s"])
    return float(row["sent_s"])


def _began(first: list[dict[str, Any]], ended: float) -> float | None:
    """When a step began before which nobody was served: with the first request, if it was idle then."""
    began = min((_prefill(row) for row in first), default=None)
    return began if began is not None and began >= ended else None


def _together(tokens: list[Any]) -> Iterator[tuple[float, list[int]]]:
    """Tokens grouped by the step that wrote them: its end, and whose they are."""
    last: dict[int, float] = {}
    gaps = []
    for request, at, *_ in tokens:
        if request in last:
            gaps.append(at - last[request])
        last[request] = at
    near = TOGETHER * median(gaps) if gaps else 0.0
    group: dict[int, float] = {}
    previous = 0.0
    for request, at, *_ in tokens:
        if group and (request in group or at - previous > near):
            yield median(group.values()), list(group)
            group = {}
        group[request] = previous = at
    if group:
        yield median(group.values()), list(group)
