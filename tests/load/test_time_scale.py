"""A plan with a time scale: planned durations go by faster, and all that is told is in time of the run."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pytest

from labkit.clock import RunClock
from labkit.load.child import Level
from labkit.load.rows import RowWriter

from .server import OK, Talk, chunk, content, event, load, plan, serving, usage, whole
from .test_faults import HEAD, TOKEN, hold

SCALE = 4.0
EARLY_S = 0.02  # by which a timer of the loop may fire too early
REST = b"".join(chunk(event(data)) for data in (content("b", "stop"), usage(2), "[DONE]")) + b"0\r\n\r\n"


async def test_times_are_those_of_the_server_times_the_scale(tmp_path: Path) -> None:
    """The server reads the same clock: what the load process says lies between two of its readings."""
    asked, first, second = [], [], []

    async def script(talk: Talk) -> None:
        asked.append(perf_counter())
        await asyncio.sleep(0.1)
        first.append(perf_counter())
        await talk.send(HEAD + TOKEN)
        await asyncio.sleep(0.05)
        second.append(perf_counter())
        await talk.send(REST)

    run = RunClock(perf_counter(), SCALE)
    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path, requests=3, t0=run.t0, time_scale=SCALE))
    asked.append(perf_counter())
    for i, row in enumerate(found.rows):
        assert row["intended_s"] <= run.at(asked[i])
        assert run.at(first[i]) <= row["first_token_s"]
        assert run.at(second[i]) <= row["last_token_s"] <= row["end_s"] <= run.at(asked[i + 1])
        assert row["first_token_s"] - row["intended_s"] >= SCALE * 0.1
    assert [t_s for _, t_s, *_ in found.tokens] == [
        row[name] for row in found.rows for name in ("first_token_s", "last_token_s")
    ]
    assert found.tally.started_s == found.rows[0]["intended_s"]
    assert found.tally.ended_s == found.rows[-1]["end_s"] <= found.frames[-1].t_s
    assert all(before.t_s <= after.t_s <= run.at(asked[-1]) for before, after in pairwise(found.frames))
    ends = [at for frame in found.frames for kind, _, at in frame.events if kind == "end"]
    assert ends == [row["end_s"] for row in found.rows]


@pytest.mark.parametrize(
    ("limit", "outcome"), [({"seconds": 2.0}, "unfinished"), ({"timeout_s": 2.0}, "failed")]
)
async def test_limits_are_in_time_of_the_run(limit: dict[str, float], outcome: str, tmp_path: Path) -> None:
    gone = []

    async def script(talk: Talk) -> None:
        await hold(talk)
        gone.append(perf_counter())

    run = RunClock(perf_counter(), SCALE)
    async with serving(script) as server:
        row = (await load(plan(server.url, tmp_path, t0=run.t0, time_scale=SCALE, **limit))).row
    lasted = row["end_s"] - row["intended_s"]
    assert 2.0 - SCALE * EARLY_S <= lasted < 2.0 * SCALE  # the latter is what 2 s by the wall clock would be
    assert row["outcome"] == outcome
    assert ("not answered within 2 s" in row.get("error", "")) == (outcome == "failed")
    assert all(row["end_s"] <= run.at(at) for at in gone)


async def test_pauses_and_rates_are_in_time_of_the_run(tmp_path: Path) -> None:
    async with serving(whole) as server:

        async def measured(name: str, **fields: Any) -> list[dict[str, Any]]:
            return (await load(plan(server.url, tmp_path / name, time_scale=SCALE, **fields))).rows

        think = await measured("think", requests=2, think_s=0.4)
        ramp = await measured("ramp", users=4, rounds=1, ramp_s=0.8)
        opened = await measured("open", arrivals="constant", rate=20.0, requests=5)
    assert think[1]["intended_s"] == pytest.approx(think[0]["end_s"] + 0.4)
    for rows, gap in ((ramp, 0.2), (opened, 0.05)):
        assert [b["intended_s"] - a["intended_s"] for a, b in pairwise(rows)] == pytest.approx(
            [gap] * (len(rows) - 1)
        )


async def test_durations_that_a_server_reports_are_of_the_run_already(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await asyncio.sleep(0.05)
        lines = [
            {"message": {"role": "assistant", "content": "a"}},
            {"done": True, "done_reason": "stop", "eval_count": 1, "prompt_eval_duration": 100_000_000},
        ]
        body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        await talk.send(
            OK + b"Content-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )

    async with serving(script) as server:
        row = (await load(plan(server.url, tmp_path, protocol="ollama-chat", time_scale=SCALE))).row
    assert row["prefill_s"] == 0.1
    assert row["queue_s"] == pytest.approx(row["first_token_s"] - row["sent_s"] - 0.1)


async def test_lags_are_told_in_time_of_the_run(tmp_path: Path) -> None:
    rows = RowWriter(tmp_path)
    scaled = plan("http://h", tmp_path, time_scale=SCALE)
    level = Level(scaled, rows, SimpleNamespace(connections=0, retries=0))
    health = level.health(SimpleNamespace(missed=1, lag_ms=lambda quantile: 3.0 * quantile))
    rows.close()
    assert (health.loop_lag_p50_ms, health.loop_lag_max_ms, health.missed_ticks) == (6.0, 12.0, 1)
