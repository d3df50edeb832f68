"""Servers that misbehave, disks that fill, processes that die: the account holds and the rows stay."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from labkit.errors import LoadError
from labkit.load.plan import Plan, Tally
from labkit.load.process import Frame, LoadProcess

from .server import (
    CHUNKED,
    OK,
    SSE,
    WHOLE,
    Talk,
    account,
    chunk,
    content,
    event,
    load,
    plan,
    prompts,
    read,
    serving,
    whole,
)

HEAD = OK + SSE + CHUNKED
TOKEN = chunk(event(content("a")))


async def hold(talk: Talk) -> None:
    """One token, then nothing until the client goes."""
    await talk.send(HEAD + TOKEN)
    await talk.reader.read()


@pytest.mark.parametrize(
    ("reply", "seen"),
    [
        pytest.param(HEAD + TOKEN, "connection closed by the server", id="closed-mid-way"),
        pytest.param(OK + SSE + b"Content-Length: 9999\r\n\r\n" + event(content("a")), "closed", id="short"),
        pytest.param(HEAD + TOKEN + b"0\r\n\r\n", "without finish_reason and without [DONE]", id="no-done"),
        pytest.param(HEAD + TOKEN + chunk(b"data: {oops\n\n"), "{oops", id="malformed-event"),
        pytest.param(HEAD + TOKEN + chunk(b"dat\n"), "malformed SSE line: b'dat'", id="malformed-line"),
        pytest.param(
            HEAD + chunk(event({"error": {"message": "no memory"}})), "no memory", id="error-in-200"
        ),
        pytest.param(HEAD + TOKEN + b"zz\r\n", "malformed HTTP reply", id="malformed-chunk"),
        pytest.param(
            b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "malformed HTTP reply",
            id="upgrade",
        ),
        pytest.param(b"SSH-2.0-OpenSSH_9\r\n", "malformed HTTP reply", id="not-http"),
        pytest.param(b"", "connection closed by the server", id="no-answer"),
        pytest.param(b"HTTP/1.1 200 O", "connection closed by the server", id="half-a-head"),
        pytest.param(HEAD + b"0\r\n\r\n", "without finish_reason", id="empty-reply"),
        pytest.param(HEAD + chunk(event("[DONE]")) + b"0\r\n\r\n", "empty answer", id="nothing-but-done"),
    ],
)
async def test_broken_answers_fail_with_the_evidence(reply: bytes, seen: str, tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        if talk.body["messages"][0]["content"] == "question 1":
            await talk.send(WHOLE)
        else:
            await talk.send(reply)
            talk.close()

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path, prompts=prompts(2), requests=2))
    broken, after = found.rows
    assert (broken["outcome"], after["outcome"]) == ("failed", "ok")
    assert seen in broken["error"]
    assert broken["output_tokens"] == len([t for t in found.tokens if t[0] == broken["id"]])


@pytest.mark.parametrize(
    "reply",
    [
        HEAD + chunk(event(content("a", "stop"))),
        HEAD + chunk(event(content("a"))) + chunk(event("[DONE]")),
        HEAD + chunk(event(content("a"))) + chunk(event("[DONE]")) + b"zz\r\n",
    ],
)
async def test_closed_after_the_last_word_is_whole(reply: bytes, tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.send(reply)
        talk.close()

    async with serving(script) as server:
        assert (await load(plan(server.url, tmp_path))).row["outcome"] == "ok"


@pytest.mark.parametrize(
    "reply",
    [pytest.param(b"HTTP/1.1 200 OK\r\nConte", id="half-a-header"), pytest.param(HEAD + TOKEN, id="stall")],
)
async def test_silence_ends_at_the_deadline(reply: bytes, tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.send(reply)
        await talk.reader.read()  # returns when the client hangs up
        gone.set()

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path, timeout_s=0.3))
        await gone.wait()
    assert found.row["outcome"] == "failed"
    assert found.row["error"] == "deadline: not answered within 0.3 s"
    assert found.row["end_s"] - found.row["sent_s"] >= 0.29


async def test_a_server_that_said_all_but_never_ends_the_reply(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.send(HEAD + TOKEN + chunk(event("[DONE]")))
        await talk.reader.read()

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path, requests=3, timeout_s=600))
    assert found.tally.ok == 3
    assert server.connections == 3  # one that was left in the middle of a reply is not used again


async def test_a_storm_of_503(tmp_path: Path) -> None:
    body = b'{"error":"server busy, please try again.  maximum pending requests exceeded"}'

    async def script(talk: Talk) -> None:
        if talk.number % 2:
            await talk.send(b"HTTP/1.1 503 Busy\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        else:
            await talk.send(WHOLE)

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path, users=8, requests=40))
    assert (found.tally.ok, found.tally.failed) == (20, 20)
    failed = [row for row in found.rows if row["outcome"] == "failed"]
    assert all(row["http_status"] == 503 and "maximum pending" in row["error"] for row in failed)


async def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = await load(plan(f"http://127.0.0.1:{port}", tmp_path, users=2, requests=3))
    assert (found.tally.failed, found.health.connections) == (3, 0)
    assert all("Connection refused" in row["error"] for row in found.rows)


async def test_a_name_that_does_not_resolve(tmp_path: Path) -> None:
    found = await load(plan("http://nowhere.invalid", tmp_path))
    assert "does not resolve" in found.row["error"]


async def test_a_server_that_dies_under_load(tmp_path: Path) -> None:
    async with serving(hold) as server:

        def kill(_process: LoadProcess, frame: Frame) -> None:
            if frame.tally.tokens == 4:
                server.die()

        found = await load(plan(server.url, tmp_path, users=4, rounds=2), kill)
    assert (found.tally.planned, found.tally.failed) == (8, 8)
    assert sum("Connection refused" in row["error"] for row in found.rows) == 4


async def test_stop_cancels_what_is_in_flight(tmp_path: Path) -> None:
    hung_up = []

    async def script(talk: Talk) -> None:
        await hold(talk)
        hung_up.append(talk.number)

    def stop(process: LoadProcess, frame: Frame) -> None:
        if frame.tally.tokens == 3:
            process.stop()
            process.stop()  # pressed twice

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path, users=3, requests=9), stop)
    assert (found.tally.planned, found.tally.cancelled) == (3, 3)
    assert found.broken is None
    assert len(hung_up) == 3
    assert all(row["output_tokens"] == 1 for row in found.rows)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_stop_too(number: signal.Signals, tmp_path: Path) -> None:
    def stop(process: LoadProcess, frame: Frame) -> None:
        if frame.tally.tokens == 1:
            os.kill(process.pid, number)

    async with serving(hold) as server:
        found = await load(plan(server.url, tmp_path), stop)
    assert (found.tally.cancelled, found.broken) == (1, None)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_stop_before_the_start(scheme: str, tmp_path: Path) -> None:
    """Said in the same breath as the plan."""
    child = start(plan(f"{scheme}://127.0.0.1:9", tmp_path, users=2, seconds=30), after=b"stop\n")
    frames = hear_out(child)
    assert child.returncode == 0
    assert frames[-1]["tally"]["planned"] == 0


async def test_leaving_early_stops_the_process(tmp_path: Path) -> None:
    async with serving(hold) as server:
        async with LoadProcess(plan(server.url, tmp_path, users=2, requests=2)) as process:
            async for _ in process.frames():
                break
        assert not psutil.pid_exists(process.pid)
    account(process.tally, read(tmp_path)[0])
    assert process.tally.cancelled == process.tally.planned


async def test_the_level_ends_by_its_own_clock(tmp_path: Path) -> None:
    async with serving(hold) as server:
        found = await load(plan(server.url, tmp_path, users=3, seconds=0.3))
    assert (found.tally.unfinished, found.tally.cancelled) == (3, 0)
    assert [row["outcome"] for row in found.rows] == ["unfinished"] * 3


async def test_the_load_process_is_killed(tmp_path: Path) -> None:
    def kill(process: LoadProcess, frame: Frame) -> None:
        if frame.tally.tokens == 3:
            os.kill(process.pid, signal.SIGKILL)

    async with serving(hold) as server:
        found = await load(plan(server.url, tmp_path, users=3, requests=3), kill)
    assert found.broken == "the load process was killed by signal 9"
    assert (found.tally.planned, found.tally.unfinished) == (3, 3)
    assert [row["outcome"] for row in found.rows] == ["unfinished"] * 3
    assert len(found.tokens) == 3


PARENT = """
import asyncio, os, signal, sys
from tests_plan import given
from labkit.load.process import LoadProcess
async def main():
    async with LoadProcess(given) as process:
        async for frame in process.frames():
            if frame.tally.tokens == 2:
                print(process.pid, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_the_parent_is_killed(tmp_path: Path) -> None:
    async with serving(hold) as server:
        given = plan(server.url, tmp_path / "rows", users=2, requests=4)
        module = f"from labkit.load.plan import Plan\ngiven = Plan.from_dict({given.as_dict()!r})\n"
        (tmp_path / "tests_plan.py").write_text(module)
        parent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PARENT),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )
        said, _ = await parent.communicate()
        with contextlib.suppress(psutil.NoSuchProcess):
            await asyncio.to_thread(psutil.Process(int(said)).wait, timeout=5)
    assert parent.returncode == -signal.SIGKILL
    rows, tokens = read(tmp_path / "rows")
    assert [row["outcome"] for row in rows] == ["cancelled"] * 2
    assert len(tokens) == 2


def start(given: Plan, before: str = "", after: bytes = b"") -> subprocess.Popen[bytes]:
    """The bare load process; nobody reads what it says until the test does."""
    run = f"{before}\nfrom labkit.load.child import main\nraise SystemExit(main())"
    child = subprocess.Popen([sys.executable, "-c", run], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdin.write(orjson.dumps(given.as_dict()) + b"\n" + after)
    child.stdin.flush()
    return child


def hear_out(child: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    """All its frames, to the end."""
    with child:
        return [json.loads(line) for line in child.stdout]


async def test_a_parent_that_does_not_read_blocks_nothing(tmp_path: Path) -> None:
    """The pipe fills up, the load goes on, and the counters are right when the parent comes back."""
    answered = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.send(WHOLE)
        if talk.number == 3000:
            answered.set()

    async with serving(script) as server:
        child = start(plan(server.url, tmp_path, users=4, requests=3000))
        await answered.wait()
        frames = await asyncio.to_thread(hear_out, child)
    assert len(json.dumps(frames)) > 2**16  # more than the pipe holds
    last = Tally(**frames[-1]["tally"])
    assert (last.planned, last.ok, last.tokens) == (3000, 3000, 6000)


async def test_a_full_disk_costs_rows_and_nothing_else(tiny_disk: Path) -> None:
    async with (
        serving(whole) as server,
        LoadProcess(plan(server.url, tiny_disk, users=4, requests=400)) as process,
    ):
        async for _ in process.frames():
            pass
    assert (process.tally.planned, process.tally.ok) == (400, 400)
    rows, tokens = read(tiny_disk)  # whole rows only, or this raises
    assert 0 < len(rows) < 400
    written = (tiny_disk / "requests.rows").read_bytes().count(b"\n") + len(tokens)
    assert written + process.health.rows_lost == 2 * 400 + 800


async def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    """The same without the right to mount."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))"
    async with serving(whole) as server:
        child = start(plan(server.url, tmp_path, requests=200), limit)
        last = (await asyncio.to_thread(hear_out, child))[-1]
    rows, tokens = read(tmp_path)
    lines = (tmp_path / "requests.rows").read_bytes().count(b"\n")
    assert last["tally"]["ok"] == 200
    assert 0 < len(rows) < 200
    assert lines + len(tokens) + last["health"]["rows_lost"] == 2 * 200 + 400


async def test_rows_that_cannot_be_written_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LoadError, match="exit code 1: rows folder"):
        await load(plan("http://127.0.0.1:9", tmp_path / "file"))
