"""Right answers and known mistakes of the exercises in notebook 04: start, seats, KV pool and preemption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import polars as pl

from labkit import metrics
from labkit.bundle import Run
from labkit.errors import UsageError
from labkit.exercises.base import Answer, Runs, Solver, Transcripts, always
from labkit.exercises.runs import trusted
from labkit.figures.gauges import gauge_arms
from labkit.figures.startup import PARTS, startup_data
from labkit.sides import Missing
from labkit.sim import profile as profiles
from labkit.transcript import Transcript

PAUSE = 5
"""An answer stood still in a gap of more than this many times the level's median gap."""


# serve-start


def _parts(log: Transcript) -> dict[str, float]:
    """Seconds of a start by what they were spent on."""
    try:
        phases = startup_data(log)
    except UsageError as error:
        raise Missing(f"This transcript does not tell of a start: {error.seen}") from None
    took = phases.group_by("part", maintain_order=True).agg(pl.col("took_s").sum())
    return dict(took.rows())


def _solve_start(logs: Transcripts) -> Answer:
    parts = _parts(logs[0])
    return max(parts, key=lambda part: parts[part])


def _judge_start(logs: Transcripts, answer: Answer) -> tuple[bool, str]:
    parts = _parts(logs[0])
    told = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items())
    return answer == _solve_start(logs), f"This start took {sum(parts.values()):.0f} s: {told}."


# serve-seats


@dataclass(frozen=True)
class _Burst:
    """One burst on one arm of vLLM.

    Attributes:
        facts: what the engine said of itself.
        rows: its whole answers.
        gaps: between the tokens of these, see :func:`labkit.metrics.gaps`.
        readings: most of each gauge, None where it was not read.
    """

    name: str
    requests: int
    facts: Mapping[str, Any]
    rows: pl.DataFrame
    gaps: pl.DataFrame
    readings: Mapping[str, float | None]

    @property
    def usual_s(self) -> float:
        """The median gap between two tokens of an answer.

        Raises:
            Missing: no answer has two.
        """
        if self.gaps.is_empty():
            raise Missing(f"No answer of {self.name} has two tokens")
        return float(median(self.gaps["itl_s"].to_list()))

    def fact(self, name: str) -> int:
        value = self.facts.get(name)
        if value is None:
            raise Missing(f"{self.name} did not tell its {name}")
        return int(value)


def _burst(run: Run, arm: str) -> _Burst:
    """The largest burst on this arm.

    Raises:
        Missing: another load than a burst, or an answer was cut off by the time limit.
    """
    if run.arrivals["arrivals"] != "burst":
        raise Missing("This exercise is about requests that come at one moment; give the run of a burst")
    planned = run.requests.filter((pl.col("arm") == arm) & ~pl.col("warmup"))
    if planned.is_empty():
        raise Missing(f"This run has no measured level of {arm}")
    requests = planned["level"].max()
    rows = planned.filter(level=requests, repeat=0)
    read = {found.name: found for found in gauge_arms(run)}
    readings = {name: read[arm].most(name) if arm in read else None for name in ("waiting", "preemptions")}
    whole = rows.filter(outcome="ok")
    if cut := rows.filter(outcome="unfinished").height:
        raise Missing(f"{cut} answers of {arm} were cut off by the time limit; measure again, with fewer")
    gaps = metrics.gaps(run.tokens).join(
        whole.select(request_id="id"), on="request_id", how="semi", maintain_order="left"
    )
    return _Burst(arm, rows.height, run.meta["arms"][arm]["facts"], whole, gaps, readings)


def _vllm_arms(run: Run) -> list[str]:
    arms = [name for name, arm in trusted(run).meta["arms"].items() if arm["engine"] == "vllm"]
    if not arms:
        raise Missing("This run has no arm with vllm")
    return arms


def _narrowest(runs: Runs) -> _Burst:
    """The burst on the arm with the fewest seats."""
    arms = [_burst(runs[0], name) for name in _vllm_arms(runs[0])]
    burst = min(arms, key=lambda burst: burst.fact("slots"))
    if burst.rows.is_empty():
        raise Missing(f"{burst.name} gave no whole answer")
    return burst


def _waited(burst: _Burst) -> int:
    """Requests whose first token came after another answer had ended."""
    return burst.rows.filter(pl.col("first_token_s") > pl.col("end_s").min()).height


def _solve_seats(runs: Runs) -> Answer:
    return float(_waited(_narrowest(runs))) or "none"


def _judge_seats(runs: Runs, answer: Answer) -> tuple[bool, str]:
    burst = _narrowest(runs)
    first_s = burst.rows.select(pl.col("end_s").min() - pl.col("sent_s").min()).item()
    waited, most = _waited(burst), burst.readings["waiting"]
    gauge = "was not read" if most is None else f"showed {most:.0f} waiting at most"
    return answer == _solve_seats(runs), (
        f"{burst.name} has {burst.fact('slots')} seats. Its first answer ended after {first_s:.2f} s; "
        f"{waited} of {burst.requests} requests had their first token later than that. Its own gauge {gauge}."
    )


# serve-kv


def _pool(runs: Runs) -> _Burst:
    return _burst(runs[0], _vllm_arms(runs[0])[0])


def _solve_kv(runs: Runs) -> Answer:
    return float(_pool(runs).fact("kv_tokens"))


def _judge_kv(runs: Runs, answer: Answer) -> tuple[bool, str]:
    pool = _pool(runs)
    tokens, size, total = (pool.fact(name) for name in ("kv_tokens", "block_size", "kv_bytes"))
    near = not isinstance(answer, str) and abs(answer - tokens) <= size
    return near, (
        f"{pool.name} says {tokens:,} tokens, in {tokens // size:,} blocks of {size}: {total:,} bytes, "
        f"which is about {total / tokens:,.0f} bytes a token."
    )


def _all_heads(runs: Runs) -> Answer | None:
    pool, model = _pool(runs), profiles.load(profiles.DEFAULT).model
    if pool.facts.get("model") != model.name:
        return None
    return pool.fact("kv_tokens") * model.kv_heads / model.heads


# serve-preempted


def _longest_s(burst: _Burst) -> float:
    """The longest gap between two tokens of one answer."""
    return float(max(burst.gaps["itl_s"].to_list(), default=0.0))


def _squeezed(runs: Runs) -> _Burst:
    burst = _pool(runs)
    if not burst.readings["preemptions"]:
        raise Missing(
            f"No gauge of {burst.name} showed a preemption in this run: its pool was large enough, or it was "
            "not read at the right moment. Measure again, with more requests"
        )
    if burst.rows.is_empty():
        raise Missing(f"{burst.name} gave no whole answer")
    return burst


def _solve_preempted(runs: Runs) -> Answer:
    burst = _squeezed(runs)
    if burst.rows.height < burst.requests:
        return "lost"
    return "paused" if _longest_s(burst) > PAUSE * burst.usual_s else "slow"


def _judge_preempted(runs: Runs, answer: Answer) -> tuple[bool, str]:
    burst = _squeezed(runs)
    lengths = burst.rows["output_tokens"].to_list()
    return answer == _solve_preempted(runs), (
        f"{burst.name} counted {burst.readings['preemptions']:.0f} preemptions. {len(lengths)} of "
        f"{burst.requests} answers came whole, with {min(lengths)} to {max(lengths)} tokens. The usual gap "
        f"between two tokens is {1000 * burst.usual_s:.0f} ms, the longest one "
        f"{1000 * _longest_s(burst):,.0f} ms."
    )


# serve-fits


@dataclass(frozen=True)
class _Fit:
    """A pool, and what one request of the learner's kind needs of it.

    Attributes:
        blocks: that are given out; vLLM keeps one for itself.
        prompt, stored: tokens of the longest question, and with all of its answer but the last token, whose
            keys and values nobody needs.
    """

    burst: _Burst
    size: int
    blocks: int
    prompt: int
    stored: int

    def each(self, tokens: int) -> int:
        """Blocks for so many tokens."""
        return -(-tokens // self.size)

    @property
    def most(self) -> int:
        return self.blocks // self.each(self.stored)


def _fit(runs: Runs) -> _Fit:
    burst = _pool(runs)
    if burst.rows.is_empty() or burst.rows["prompt_tokens"].null_count():
        raise Missing(f"{burst.name} gave no whole answer that tells how long its question was")
    size, prompt = burst.fact("block_size"), int(burst.rows["prompt_tokens"].max())  # type: ignore[arg-type]
    stored = int(burst.rows.select((pl.col("prompt_tokens") + pl.col("output_tokens")).max()).item()) - 1
    fit = _Fit(burst, size, burst.fact("kv_tokens") // size - 1, prompt, stored)
    stolen = burst.readings["preemptions"]
    if fit.most < 1:
        raise Missing(f"One request of {stored} tokens does not fit into the pool of {burst.name}")
    if stolen and burst.requests <= fit.most:
        raise Missing(
            f"{burst.requests} requests should fit, and still {burst.name} counted {stolen:.0f} preemptions: "
            "something else was in its pool. Measure again"
        )
    return fit


def _solve_fits(runs: Runs) -> Answer:
    return float(_fit(runs).most)


def _judge_fits(runs: Runs, answer: Answer) -> tuple[bool, str]:
    fit = _fit(runs)
    stolen = fit.burst.readings["preemptions"]
    counted = "no reading of preemptions" if stolen is None else f"{stolen:.0f} preemptions"
    return answer == fit.most, (
        f"A request of yours stores up to {fit.stored} tokens, which take {fit.each(fit.stored)} blocks of "
        f"{fit.size}. {fit.burst.name} gives out {fit.blocks} blocks, enough for {fit.most} such requests. "
        f"In this run there were {fit.burst.requests} at once, and {counted}."
    )


SOLVERS = {
    "serve-start": Solver(
        _solve_start,
        _judge_start,
        {part: always(part) for part in PARTS},
        takes=Transcript,
    ),
    "serve-seats": Solver(
        _solve_seats,
        _judge_seats,
        {
            "seats": lambda runs: float(_narrowest(runs).fact("slots")),
            "everybody": lambda runs: float(_narrowest(runs).requests),
            "one_slot": lambda runs: float(_narrowest(runs).requests - 1),
            "no_limit": always("none"),
        },
    ),
    "serve-kv": Solver(
        _solve_kv,
        _judge_kv,
        {
            "keys_only": lambda runs: 2.0 * _pool(runs).fact("kv_tokens"),
            "all_heads": _all_heads,
            "blocks": lambda runs: float(_pool(runs).fact("kv_tokens") // _pool(runs).fact("block_size")),
            "one_request": lambda runs: float(_pool(runs).fact("context")),
        },
    ),
    "serve-preempted": Solver(
        _solve_preempted,
        _judge_preempted,
        {word: always(word) for word in ("lost", "shorter", "slow")},
    ),
    "serve-fits": Solver(
        _solve_fits,
        _judge_fits,
        {
            "no_blocks": lambda runs: float(_fit(runs).blocks * _fit(runs).size // _fit(runs).stored),
            "prompt_only": lambda runs: float(_fit(runs).blocks // _fit(runs).each(_fit(runs).prompt)),
            "whole_context": lambda runs: float(_pool(runs).fact("kv_tokens") // _pool(runs).fact("context")),
            "seats": lambda runs: float(_pool(runs).fact("slots")),
        },
    ),
}
