"""When requests go out, and when a level is over."""

from __future__ import annotations

import asyncio
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import LoadError, UsageError
from labkit.load.plan import Plan, Tally
from labkit.load.process import LoadProcess
from labkit.load.schedule import BACKOFF_S, arrivals

from .server import WHOLE, Talk, load, plan, prompts, read, serving, whole


def open_loop(**fields: Any) -> Plan:
    return plan("http://h", Path(), **{"requests": None, "seconds": 1.0, **fields})


def test_constant_arrivals() -> None:
    assert list(islice(arrivals(open_loop(arrivals="constant", rate=4.0)), 4)) == [0.0, 0.25, 0.5, 0.75]


def test_bursts() -> None:
    assert list(arrivals(open_loop(arrivals="burst", users=3))) == [0.0, 0.0, 0.0]
    repeated = islice(arrivals(open_loop(arrivals="burst", users=2, rate=4.0)), 5)
    assert list(repeated) == [0.0, 0.0, 0.5, 0.5, 1.0]


@given(rate=st.floats(0.1, 1000), seed=st.integers(0, 2**31))
def test_poisson_arrivals(rate: float, seed: int) -> None:
    given_plan = open_loop(arrivals="poisson", rate=rate, seed=seed)
    drawn = list(islice(arrivals(given_plan), 2000))
    assert drawn == list(islice(arrivals(given_plan), 2000))  # the seed decides
    assert drawn == sorted(drawn)
    assert drawn[-1] / 2000 * rate == pytest.approx(1, rel=0.15)  # six standard errors


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"protocol": "grpc"}, "protocol 'grpc'"),
        ({"arrivals": "sometimes"}, "arrivals 'sometimes'"),
        ({"url": "127.0.0.1:8000"}, "url '127.0.0.1:8000'"),
        ({"url": "http://h:port"}, "url 'http://h:port'"),
        ({"url": "http://h/v1?key=1"}, "url 'http://h/v1?key=1'"),
        ({"url": "http://me:secret@h"}, "url 'http://me:secret@h'"),
        ({"url": "http://h/a b"}, "url 'http://h/a b'"),
        ({"model": "\udcff"}, "model '\\udcff'"),
        ({"seed": 2**63}, "seed 9223372036854775808"),
        ({"api_key": "a\r\nX: b"}, "API key that no HTTP header"),
        ({"rate": 1.0}, "a rate in a closed loop"),
        ({"arrivals": "constant", "rate": 1.0, "think_s": 1.0}, "think or ramp in an open loop"),
        ({"prompts": []}, "no prompts"),
        ({"users": 0}, "users is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"think_s": -1.0}, "think_s is -1.0"),
        ({"requests": None}, "it never ends"),
        ({"arrivals": "poisson"}, "poisson arrivals without a rate"),
        ({"arrivals": "constant", "rate": 1.0, "rounds": 1}, "rounds in an open loop"),
        ({"arrivals": "burst", "users": 2, "requests": 3}, "one burst of 2 never makes 3"),
    ],
)
def test_plans_that_make_no_sense(fields: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {
        "url": "http://h",
        "protocol": "openai-chat",
        "model": "m",
        "prompts": prompts(),
        "requests": 1,
    }
    with pytest.raises(UsageError) as refused:
        Plan(**{**good, **fields})
    assert said in str(refused.value)
    assert refused.value.fix


def test_a_plan_survives_the_pipe() -> None:
    given_plan = plan("http://h", Path(), extra_body={"a": [1]}, think_s=1.5)
    assert Plan.from_dict(given_plan.as_dict()) == given_plan


def test_a_tally_that_does_not_add_up() -> None:
    with pytest.raises(LoadError, match="do not add up"):
        Tally(planned=2, ok=1)


async def test_rounds(tmp_path: Path) -> None:
    async with serving(whole) as server:
        found = await load(plan(server.url, tmp_path, users=3, rounds=2))
    assert sorted(row["user"] for row in found.rows) == [0, 0, 1, 1, 2, 2]
    assert server.connections == 3


async def test_think_time(tmp_path: Path) -> None:
    async with serving(whole) as server:
        found = await load(plan(server.url, tmp_path, requests=3, think_s=0.2))
    first, second, third = found.rows
    assert second["intended_s"] == pytest.approx(first["end_s"] + 0.2)
    assert third["intended_s"] == pytest.approx(second["end_s"] + 0.2)
    assert all(row["sent_s"] >= row["intended_s"] for row in found.rows)


async def test_ramp(tmp_path: Path) -> None:
    async with serving(whole) as server:
        found = await load(plan(server.url, tmp_path, users=4, rounds=1, ramp_s=0.4))
    start = found.rows[0]["intended_s"]
    assert [row["intended_s"] - start for row in found.rows] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert all(row["connect_s"] <= start for row in found.rows)


async def test_a_user_whose_request_failed_pauses(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.send(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path, requests=2))
    assert found.rows[1]["intended_s"] == pytest.approx(found.rows[0]["end_s"] + BACKOFF_S)


async def test_an_open_loop_does_not_wait_for_answers(tmp_path: Path) -> None:
    """All arrivals go out while not one is answered, each on a connection of its own."""
    everyone = asyncio.Event()

    async def script(talk: Talk) -> None:
        if talk.number == 10:
            everyone.set()
        await everyone.wait()
        await talk.send(WHOLE)

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path, arrivals="constant", rate=50.0, requests=10))
    assert found.tally.ok == 10
    assert server.connections == 10
    start = found.rows[0]["intended_s"]
    assert [row["intended_s"] - start for row in found.rows] == pytest.approx([n / 50 for n in range(10)])
    assert all("user" not in row for row in found.rows)
    assert found.rows[0]["connect_s"] <= start  # opened ahead
    assert found.rows[9]["connect_s"] > found.rows[9]["intended_s"]  # the growth shows


@pytest.mark.parametrize("arrival", ["poisson", "constant"])
async def test_an_open_loop_ends_by_the_clock(arrival: str, tmp_path: Path) -> None:
    async with serving(whole) as server:
        found = await load(plan(server.url, tmp_path, arrivals=arrival, rate=100.0, seconds=0.5))
    assert found.tally.ok > 5
    assert all(row["intended_s"] <= found.rows[0]["intended_s"] + 0.5 for row in found.rows)


async def test_a_burst(tmp_path: Path) -> None:
    async with serving(whole) as server:
        found = await load(plan(server.url, tmp_path, arrivals="burst", users=20, requests=20))
    assert found.tally.ok == 20
    assert len({row["intended_s"] for row in found.rows}) == 1
    assert server.connections == 20


async def test_levels_of_one_run_share_files_and_clock(tmp_path: Path) -> None:
    began = perf_counter()
    async with serving(whole) as server:
        for level in (1, 3):
            given_plan = plan(
                server.url, tmp_path, users=level, rounds=1, t0=began, level=level, first_id=10 * level
            )
            async with LoadProcess(given_plan) as process:
                async for _ in process.frames():
                    pass
            assert process.tally.ok == level
    rows, tokens = read(tmp_path)
    assert [row["id"] for row in rows] == [10, 30, 31, 32]
    assert {request_id for request_id, *_ in tokens} == {10, 30, 31, 32}
    sent = [row["sent_s"] for row in rows]
    assert sent == sorted(sent)
    assert 0 < sent[0] < sent[-1] < perf_counter() - began
