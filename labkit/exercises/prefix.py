"""Right answers and known mistakes of the exercises in notebook 06, from runs and transcripts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from labkit import prefixes
from labkit.bundle import Run
from labkit.exercises.base import Answer, Evidence, Solver, always
from labkit.exercises.runs import trusted
from labkit.sides import Missing
from labkit.transcript import Event, Transcript

CLOSE = 0.10
"""How near a ratio of two latencies has to be, as a share; about what two readings of a chart differ by."""

TIED = 2.0
"""Shares that are less than so many per cent points apart are the same here: where a text happens to end
within a block moves a share by about as much."""

Row = dict[str, Any]


def _caching(table: pl.DataFrame) -> list[Row]:
    """Rows of the arm that may reuse what it has read.

    Raises:
        Missing: the run has no such arm.
    """
    rows: list[Row] = table.filter(pl.col("caching").is_null() | pl.col("caching")).to_dicts()
    if not rows:
        raise Missing("This run has no arm whose prefix cache is on")
    return rows


def _levels(run: Run) -> list[Row]:
    """Lengths of the arm that caches, the shortest first; with a block size that the engine told."""
    table = prefixes.table(trusted(run)).filter(engine="vllm")
    rows = [row for row in _caching(table) if row["block_size"] and row["shared_tokens"] is not None]
    if not rows:
        raise Missing("No later question was answered, or vLLM does not tell its block size")
    return sorted(rows, key=lambda row: row["shared_tokens"])


# prefix-short


def _one_short(runs: Evidence) -> Row:
    """The length that shares the largest part of a block beside its whole ones.

    Raises:
        Missing: all lengths are whole blocks, or less than one.
    """
    rows = [row for row in _levels(runs[0]) if row["shared_tokens"] > row["block_size"] and _part(row)]
    if not rows:
        raise Missing("This takes a run with a length of a block and a part of the next one")
    return max(rows, key=_part)


def _part(row: Row) -> int:
    """Shared tokens of a block that is not shared as a whole."""
    return int(row["shared_tokens"]) % int(row["block_size"])


def _solve_short(runs: Evidence) -> Answer:
    row = _one_short(runs)
    whole = row["shared_tokens"] - _part(row)
    words = {0: "nothing", whole: "n - 1", row["shared_tokens"]: "all", whole + row["block_size"]: "n"}
    cached = row["cached_tokens"] or 0
    if cached not in words:
        raise Missing(f"Of {row['shared_tokens']} shared tokens {cached} were reused, which is none of these")
    return words[cached]


def _judge_short(runs: Evidence, answer: Answer) -> tuple[bool, str]:
    row = _one_short(runs)
    return answer == _solve_short(runs), (
        f"With {row['shared_tokens']} tokens shared, later questions took {row['cached_tokens'] or 0} "
        f"from the cache; a block has {row['block_size']}."
    )


# prefix-speed


def _best(runs: Evidence) -> Row:
    """The length with the most tokens from the cache."""
    rows = [row for row in _levels(runs[0]) if row["ttft_cold_ms_p50"] and row["ttft_warm_ms_p50"]]
    if not rows:
        raise Missing("No length has both a first question and later ones that were answered")
    return max(rows, key=lambda row: row["cached_tokens"] or 0)


def _solve_speed(runs: Evidence) -> Answer:
    return _speed_up(_best(runs))


def _at_best(of: Callable[[Row], float | None]) -> Callable[[Evidence], Answer | None]:
    return lambda runs: of(_best(runs))


def _speed_up(row: Row) -> float:
    return float(row["ttft_cold_ms_p50"] / row["ttft_warm_ms_p50"])


def _judge_speed(runs: Evidence, answer: Answer) -> tuple[bool, str]:
    row = _best(runs)
    right = _speed_up(row)
    return isinstance(answer, float) and math.isclose(answer, right, rel_tol=CLOSE), (
        f"With {row['cached_tokens'] or 0} of {row['prompt_tokens']} tokens from the cache TTFT was "
        f"{row['ttft_warm_ms_p50']:,.0f} ms, without {row['ttft_cold_ms_p50']:,.0f}: a ratio of {right:.2f}."
    )


def _by_tokens(row: Row) -> float | None:
    """As if nothing but reading took time."""
    rest = row["prompt_tokens"] - (row["cached_tokens"] or 0)
    return float(row["prompt_tokens"] / rest) if rest else None


# prefix-workloads


def _workloads(runs: Evidence) -> dict[str, Row]:
    """The first caching arm's workloads by name, in small letters as answers are compared."""
    rows = _caching(prefixes.workloads(trusted(runs[0])))
    rows = [row for row in rows if row["arm"] == rows[0]["arm"]]
    if len(rows) < 2 or any(row["cached_share"] is None for row in rows):
        raise Missing("This takes a run with two workloads at least, whose answers say what was cached")
    return {row["workload"].lower(): row for row in rows}


def _most(rows: Mapping[str, Row], of: Callable[[Row], float]) -> str:
    return max(rows, key=lambda name: of(rows[name]))


def _solve_workloads(runs: Evidence) -> Answer:
    return _most(_workloads(runs), lambda row: row["cached_share"])


def _judge_workloads(runs: Evidence, answer: Answer) -> tuple[bool, str]:
    rows = _workloads(runs)
    best = rows[str(_solve_workloads(runs))]
    given = rows.get(str(answer))
    # a share depends on where a text ends within a block, so near ones are both right
    ok = given is not None and 100 * (best["cached_share"] - given["cached_share"]) < TIED
    told = ", ".join(
        f"{row['workload']} {row['cached_share']:.0%} of {row['prompt_tokens']:,} tokens"
        for row in rows.values()
    )
    return ok, f"From the cache came: {told}."


def _soonest(runs: Evidence) -> Answer | None:
    rows = {name: row for name, row in _workloads(runs).items() if row["ttft_ms_p50"] is not None}
    return _most(rows, lambda row: -row["ttft_ms_p50"]) if rows else None


# prefix-own


def _orders(runs: Evidence) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The later questions to the first arm that caches, with the changing part last, and with it first.

    Raises:
        Missing: it is another run.
    """
    run = trusted(runs[0])
    arm = _caching(prefixes.workloads(run))[0]["arm"]
    later = prefixes.answers(run).filter(pl.col("place") > 1, arm=arm)
    last, first = (later.filter(workload=name) for name in ("changes last", "changes first"))
    if last.is_empty() or first.is_empty():
        raise Missing('This takes a run with later questions of both "changes last" and "changes first"')
    return last, first


def _reused(answers: pl.DataFrame) -> float:
    """Tokens from the cache of a question, at the median."""
    return float(answers.select(pl.col("cached_tokens").fill_null(0).median()).item())


def _number(tokens: float) -> Answer:
    """As the exercise wants it: no number is 0."""
    return tokens or "none"


def _solve_own(runs: Evidence) -> Answer:
    return _number(_reused(_orders(runs)[0]))


def _judge_own(runs: Evidence, answer: Answer) -> tuple[bool, str]:
    last, first = _orders(runs)
    right = _solve_own(runs)
    ok = answer == right if isinstance(right, str) or isinstance(answer, str) else abs(answer - right) < 1
    whole = last.select(pl.col("prompt_tokens").median()).item()
    told = "" if (size := _block_size(runs)) is None else f" Blocks have {size} tokens."
    return ok, (
        f"Of the {whole:.0f} tokens of a later question {_reused(last):.0f} came from the cache with the "
        f"changing part last, and {_reused(first):.0f} with it first.{told}"
    )


def _block_size(runs: Evidence) -> int | None:
    sizes = (arm["facts"].get("block_size") for arm in runs[0].meta["arms"].values())
    return next((size for size in sizes if size), None)


def _rounded_up(runs: Evidence) -> Answer | None:
    size = _block_size(runs)
    return None if size is None else _reused(_orders(runs)[0]) + size


def _whole_question(runs: Evidence) -> Answer | None:
    return float(_orders(runs)[0].select(pl.col("prompt_tokens").median()).item())


def _in_blocks(runs: Evidence) -> Answer | None:
    size = _block_size(runs)
    return None if size is None else _reused(_orders(runs)[0]) / size or None


def _other_order(runs: Evidence) -> Answer | None:
    return _number(_reused(_orders(runs)[1]))


# prefix-busy


def _moments(found: Evidence) -> tuple[Event, Event]:
    """B's answer while A was at work, and the one after it.

    Raises:
        Missing: the transcript lacks one, or does not say what was reused.
    """
    cases = {event["case"]: event for event in found[0].of("ask")}
    busy, idle = (cases.get(name) for name in ("busy: same prefix meanwhile", "idle: same prefix"))
    if busy is None or idle is None or not idle["cached_tokens"]:
        raise Missing(f"In the transcript {found[0].name} nothing was reused from an idle slot")
    if not busy.get("busy", True):
        raise Missing("A's answer had ended before the first token of B's came")
    return busy, idle


def _solve_busy(found: Evidence) -> Answer:
    busy, idle = (event["cached_tokens"] or 0 for event in _moments(found))
    few = prefixes.FEW
    return "nothing" if busy < few * idle else "as much" if busy >= (1 - few) * idle else "part"


def _judge_busy(found: Evidence, answer: Answer) -> tuple[bool, str]:
    busy, idle = _moments(found)
    told = [
        f"{event['cached_tokens'] or 0} of {event['prompt_tokens']} tokens {when}, first token after "
        f"{event['ttft_s']:.2f} s"
        for event, when in ((busy, "while A was answered"), (idle, "after that"))
    ]
    return answer == _solve_busy(found), f"{found[0].about['engine']} reused {'; '.join(told)}."


SOLVERS = {
    "prefix-short": Solver(
        _solve_short,
        _judge_short,
        {
            "all_that_is_shared": always("all"),
            "rounded_up": always("n"),
            "all_or_nothing": always("nothing"),
        },
    ),
    "prefix-speed": Solver(
        _solve_speed,
        _judge_speed,
        {
            "upside_down": _at_best(lambda row: 1 / _speed_up(row)),
            "by_tokens": _at_best(_by_tokens),
            "difference": _at_best(lambda row: row["ttft_cold_ms_p50"] - row["ttft_warm_ms_p50"]),
            "no_gain": _at_best(lambda _row: 1.0),
        },
    ),
    "prefix-workloads": Solver(
        _solve_workloads,
        _judge_workloads,
        {
            "soonest": _soonest,
            "longest": lambda runs: _most(_workloads(runs), lambda row: row["prompt_tokens"]),
            "least": lambda runs: _most(_workloads(runs), lambda row: -row["cached_share"]),
        },
    ),
    "prefix-own": Solver(
        _solve_own,
        _judge_own,
        {
            "other_order": _other_order,
            "rounded_up": _rounded_up,
            "whole_question": _whole_question,
            "in_blocks": _in_blocks,
        },
    ),
    "prefix-busy": Solver(
        _solve_busy,
        _judge_busy,
        {"one_cache": always("as much"), "like_blocks": always("part"), "no_cache": always("nothing")},
        takes=Transcript,
    ),
}
