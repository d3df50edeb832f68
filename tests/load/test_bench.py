"""``labkit bench`` as a user runs it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from labkit.bundle import Run
from labkit.schema import TOKEN as TOKEN_ROW

from .server import Talk, serving, stream, whole
from .test_faults import HEAD, TOKEN, hold

KEYS = {
    *("planned", "ok", "failed", "cancelled", "unfinished", "tokens", "duration_s", "tokens_per_s"),
    *("ttft_ms", "ttft_intended_ms", "itl_ms", "tpot_ms", "e2e_ms", "client"),
}
LATENCIES = ("ttft_ms", "ttft_intended_ms", "itl_ms", "tpot_ms", "e2e_ms")


async def start(url: str, *options: str) -> Process:
    main = "import sys; from labkit.cli import main; sys.exit(main())"
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", main, "bench", "--url", url, "--model", "m", *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def bench(url: str, *options: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    process = await start(url, *options)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def parsed(out: str) -> dict[str, Any]:
    """The one JSON object, whose account must hold."""
    found = dict(json.loads(out))
    assert set(found) == KEYS
    assert found["planned"] == found["ok"] + found["failed"] + found["cancelled"] + found["unfinished"]
    return found


async def test_json_and_bundle_tell_the_same(tmp_path: Path) -> None:
    out_dir = tmp_path / "run"
    async with serving(whole) as server:
        load = ("--users", "3", "--requests", "12", "--output-tokens", "9", "--prompt-tokens", "50")
        code, out, _ = await bench(server.url, *load, "--out", str(out_dir), "--json")
    found = parsed(out)
    assert code == 0
    assert (found["ok"], found["tokens"]) == (12, 24)
    assert found["tokens_per_s"] == pytest.approx(24 / found["duration_s"], rel=0.01)
    assert set(found["client"]) == {"loop_lag_p99_ms", "coalesced_share", "cpu_s"}
    run = Run.load(out_dir)
    assert run.partial is None
    assert run.requests["outcome"].to_list() == ["ok"] * 12
    ttft = run.requests["first_token_s"] - run.requests["sent_s"]
    assert found["ttft_ms"]["p50"] == pytest.approx(ttft.median() * 1e3, abs=1e-3)
    assert found["ttft_ms"]["mean"] == pytest.approx(ttft.mean() * 1e3, abs=1e-3)
    assert all(0 <= found[k]["p50"] <= found[k]["p95"] <= found[k]["p99"] for k in LATENCIES)
    assert server.bodies[0]["max_tokens"] == 9
    assert 40 <= len(server.bodies[0]["messages"][0]["content"].split()) <= 60


async def test_failed_requests_are_results(tmp_path: Path) -> None:
    async def busy(talk: Talk) -> None:
        await talk.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")

    async with serving(busy) as server:
        code, out, err = await bench(server.url, "--requests", "2", "--out", str(tmp_path / "run"), "--json")
    found = parsed(out)
    assert (code, found["failed"], found["tokens"]) == (0, 2, 0)
    assert all(value is None for key in LATENCIES for value in found[key].values())
    assert "2 failed: HTTP 503: busy" in err


async def test_one_token_has_a_ttft_and_no_gaps(tmp_path: Path) -> None:
    async def one(talk: Talk) -> None:
        await talk.send(stream({"choices": [{"delta": {"content": "a"}, "finish_reason": "length"}]}))

    async with serving(one) as server:
        code, out, err = await bench(server.url, "--requests", "1", "--out", str(tmp_path / "run"), "--json")
    found = parsed(out)
    assert (code, found["itl_ms"]["p50"], found["tpot_ms"]["p50"]) == (0, None, None)
    assert math.isfinite(found["ttft_ms"]["p50"])
    assert "no token count" in err


async def test_a_table_for_people(tmp_path: Path) -> None:
    async with serving(whole) as server:
        code, out, _ = await bench(server.url, "--seconds", "0.3", "--out", str(tmp_path / "run"))
    assert code == 0
    assert "TTFT (from intended)" in out


async def test_a_simulated_server_is_measured_in_its_time(tmp_path: Path) -> None:
    async def slow(talk: Talk) -> None:
        await asyncio.sleep(0.05)
        await whole(talk)

    said = {"profile": "small", "basis": "measured", "time_scale": 4.0, "band": {"itl": 0.1}, "slots": 2}
    async with serving(slow, simulated={**said, "threads": None}) as server:
        code, out, err = await bench(server.url, "--requests", "2", "--out", str(tmp_path / "run"), "--json")
    assert (code, server.requests) == (0, 2)
    assert parsed(out)["ttft_ms"]["p50"] >= 4 * 50
    assert "simulated, profile small, 4 times real time" in err
    run = Run.load(tmp_path / "run")
    assert run.kind == "simulated"
    facts = run.meta["arms"]["bench"]["facts"]
    assert facts["slots"] == said.pop("slots")
    assert facts["simulated"] == said
    assert "threads" not in facts


async def test_nobody_listens(tmp_path: Path) -> None:
    async with serving(whole) as server:
        url = server.url
    code, out, err = await bench(url, "--requests", "2", "--out", str(tmp_path / "run"), "--json")
    assert (code, parsed(out)["failed"]) == (1, 2)
    assert f"no connection to {url} was ever made" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--requests", "0"], "not a whole number above 0"),
        (["--requests", "1", "--seconds", "1"], "not allowed with"),
        ([], "required"),
        (["--requests", "1", "--protocol", "grpc"], "invalid choice"),
        (["--requests", "1", "--speed", "9"], "unrecognized arguments"),
        (["--seconds", "nan"], "not a number above 0"),
        (["--requests", "1", "--arrivals", "poisson"], "without a rate"),
        (["--requests", "1", "--url", "nonsense"], "url 'nonsense'"),
    ],
)
async def test_bad_arguments(options: list[str], said: str, tmp_path: Path) -> None:
    code, out, err = await bench("http://127.0.0.1:9", *options, "--out", str(tmp_path / "run"))
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "run").exists()


async def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    async with serving(whole) as server:
        code, out, err = await bench(server.url, "--requests", "1", "--out", str(tmp_path))
    assert (code, out, server.requests) == (2, "", 0)
    assert "not empty" in err
    assert os.listdir(tmp_path) == ["thesis.txt"]  # noqa: PTH208


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with serving(whole) as server:
        options = ("--requests", "1", "--json", "--out", str(tmp_path / "file" / "run"))
        code, out, err = await bench(server.url, *options)
    assert (code, out, server.requests) == (2, "", 0)
    assert "Not a directory" in err
    assert "Traceback" not in err


async def test_no_request_was_due(tmp_path: Path) -> None:
    """The server was reached, so this is no failure."""
    async with serving(whole) as server:
        options = ("--seconds", "0.2", "--arrivals", "poisson", "--rate", "0.0001")
        code, out, _ = await bench(server.url, *options, "--out", str(tmp_path / "run"), "--json")
    found = parsed(out)
    assert (code, found["planned"], found["tokens_per_s"]) == (0, 0, None)


async def test_the_reader_of_the_result_is_gone(tmp_path: Path) -> None:
    async with serving(whole) as server:
        process = await start(server.url, "--requests", "1", "--out", str(tmp_path / "run"), "--json")
        process._transport.get_pipe_transport(1).close()
        _, err = await process.communicate()
    assert process.returncode == 1
    assert b"Traceback" not in err
    assert b"Broken pipe" in err


async def test_the_load_process_is_killed(tmp_path: Path) -> None:
    """What came counts."""
    going_on = asyncio.Event()
    tokens = tmp_path / "run" / "tokens.rows"

    async def script(talk: Talk) -> None:
        await talk.send(HEAD + TOKEN)
        while tokens.stat().st_size == 0:  # noqa: ASYNC110  written, and told to the parent next
            await asyncio.sleep(0.01)
        await talk.send(TOKEN)
        while tokens.stat().st_size == TOKEN_ROW.size:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        going_on.set()
        await talk.reader.read()

    async with serving(script) as server:
        process = await start(server.url, "--requests", "5", "--out", str(tmp_path / "run"), "--json")
        await going_on.wait()
        psutil.Process(process.pid).children()[0].kill()
        out, err = await process.communicate()
    found = parsed(out.decode())
    assert (process.returncode, found["planned"], found["unfinished"]) == (1, 1, 1)
    assert b"was killed by signal 9" in err
    assert found["duration_s"] > 0
    assert found["tokens"] > 0
    told = Run.load(tmp_path / "run").summary().row(0, named=True)
    assert (told["planned"], told["unfinished"]) == (1, 1)
    assert told["tokens_per_s"] == pytest.approx(2 / found["duration_s"], rel=1e-3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_twice_it_keeps_what_came(number: signal.Signals, tmp_path: Path) -> None:
    reached = asyncio.Event()

    async def script(talk: Talk) -> None:
        reached.set()
        await hold(talk)

    async with serving(script) as server:
        process = await start(server.url, "--requests", "5", "--out", str(tmp_path / "run"), "--json")
        await reached.wait()
        process.send_signal(number)
        process.send_signal(number)
        out, _ = await process.communicate()
    found = parsed(out.decode())
    assert process.returncode == 130
    assert (found["planned"], found["cancelled"]) == (1, 1)
    assert Run.load(tmp_path / "run").requests["outcome"].to_list() == ["cancelled"]


async def test_two_on_one_device_wait_for_each_other(tmp_path: Path) -> None:
    async with serving(whole) as server:
        first, second = await asyncio.gather(
            *(
                bench(server.url, "--seconds", "1", "--out", str(tmp_path / name), "--json")
                for name in ("a", "b")
            )
        )
    assert all(code == 0 and parsed(out)["ok"] > 0 for code, out, _ in (first, second))
    assert sum("held by labkit bench" in err for _, _, err in (first, second)) == 1


async def test_a_disk_that_fills_up(tiny_disk: Path) -> None:
    folder = tiny_disk / "run"
    async with serving(whole) as server:
        code, out, err = await bench(server.url, "--requests", "400", "--out", str(folder), "--json")
    assert (code, parsed(out)["ok"]) == (0, 400)
    assert "No space left on device" in err
    run = Run.load(folder)
    assert 0 < len(run.requests) < 400
    assert run.partial


async def test_a_disk_that_is_full(tiny_disk: Path) -> None:
    with contextlib.suppress(OSError), (tiny_disk / "film").open("wb", buffering=0) as film:
        while film.write(b"x" * 4096):
            pass
    async with serving(whole) as server:
        options = ("--requests", "1", "--out", str(tiny_disk / "run"), "--json")
        code, out, err = await bench(server.url, *options)
    assert (code, out, server.requests) == (1, "", 0)
    assert "No space left on device" in err
    assert "Traceback" not in err


async def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    """A limit on the size of files that the load process inherits."""
    main = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
        "from labkit.cli import main; sys.exit(main())"
    )
    async with serving(whole) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", main, "bench", "--url", server.url, "--model", "m"),
            *("--requests", "300", "--out", str(tmp_path / "run"), "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await process.communicate()
    assert parsed(out.decode())["ok"] == 300
    assert b"rows could not be written" in err
    run = Run.load(tmp_path / "run")
    assert 0 < len(run.requests) < 300
    assert run.requests.schema["sent_s"] == pl.Float64
