"""HTTP as servers really speak it, through the real load process."""

from __future__ import annotations

import asyncio
import json
import socket
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import pytest

from .server import (
    CHUNKED,
    OK,
    SSE,
    WHOLE,
    Talk,
    content,
    event,
    load,
    plan,
    serving,
    stream,
    usage,
    whole,
)

EVENTS = event(content("a")) + event(content("b", "stop")) + event(usage(2)) + event("[DONE]")


async def test_a_whole_answer(tmp_path: Path) -> None:
    async with serving(whole) as server:
        found = await load(plan(server.url, tmp_path))
    row = found.row
    assert row["outcome"] == "ok"
    assert (row["http_status"], row["finish_reason"], row["prompt_tokens"], row["output_tokens"]) == (
        200,
        "stop",
        7,
        2,
    )
    assert row["connect_s"] <= row["sent_s"] <= row["first_byte_s"] <= row["headers_s"]
    assert row["headers_s"] <= row["first_token_s"] <= row["last_token_s"] <= row["end_s"]
    assert row["bytes"] == len(WHOLE)
    assert found.tally.tokens == 2
    assert found.health.connections == 1
    assert [kind for frame in found.frames for kind, _, _ in frame.events] == [
        "sent",
        "first",
        "token",
        "end",
    ]


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(OK + SSE + b"Content-Length: %d\r\n\r\n" % len(EVENTS) + EVENTS, id="content-length"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE, id="100-continue"),
        pytest.param(
            OK + SSE + CHUNKED + b"%x;note=1\r\n%s\r\n0\r\nX-Trailer: yes\r\n\r\n" % (len(EVENTS), EVENTS),
            id="trailer-and-extension",
        ),
        pytest.param(OK + CHUNKED + WHOLE.partition(b"\r\n\r\n")[2], id="no-content-type"),
    ],
)
async def test_framings_keep_the_connection(reply: bytes, tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.send(reply)

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path, requests=3))
    assert found.tally.ok == 3
    assert server.connections == 1


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n", OK + b"Connection: close\r\n"])
async def test_a_body_that_ends_with_the_connection(head: bytes, tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.send(head + SSE + b"\r\n" + EVENTS)
        talk.close()

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path, requests=3))
    assert found.tally.ok == 3
    assert server.connections == 3


async def test_connection_close_makes_the_next_request_reconnect(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.send(WHOLE.replace(SSE, SSE + b"Connection: close\r\n"))
        talk.close()

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path, requests=3))
    assert found.tally.ok == 3
    assert found.health.connections == server.connections == 3


async def test_split_at_every_byte(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        for at in range(len(WHOLE)):
            await talk.send(WHOLE[at : at + 1])
            await asyncio.sleep(0)

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path))
    assert (found.row["outcome"], found.row["output_tokens"], len(found.tokens)) == ("ok", 2, 2)


async def test_a_server_that_closes_idle_connections(tmp_path: Path) -> None:
    """Closed while the user thinks: the next request goes out on a new connection without a failure."""

    async def script(talk: Talk) -> None:
        await talk.send(WHOLE)
        talk.close()

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path, requests=3, think_s=0.1))
    assert found.tally.ok == 3
    assert (found.health.connections, server.requests) == (3, 3)


async def test_a_request_that_meets_a_closing_connection_is_sent_once_more(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        if talk.number % 2:  # as if the connection had been closed just before the request came
            talk.close()
        else:
            await talk.send(WHOLE)

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path))
    assert found.row["outcome"] == "ok"
    assert (found.health.retries, server.requests) == (1, 2)
    assert found.row["sent_s"] < found.row["connect_s"]  # the user's wait began with the first try


async def test_a_reply_that_nobody_asked_for(tmp_path: Path) -> None:
    """It must not pass for the answer to the next request, which would have come before it was asked."""

    async def script(talk: Talk) -> None:
        await talk.send(WHOLE + WHOLE)

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path, requests=5))
    assert found.tally.ok == server.requests == 5
    assert all(row["sent_s"] < row["first_token_s"] for row in found.rows)


async def test_a_request_is_sent_again_only_once(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        talk.close()

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path))
    assert "connection closed by the server" in found.row["error"]
    assert server.requests == 2


async def test_ipv6(tmp_path: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    async with serving(whole, "::1") as server:
        assert (await load(plan(f"http://[::1]:{server.port}", tmp_path))).tally.ok == 1
    assert f"Host: [::1]:{server.port}\r\n" in server.heads[0]


async def test_a_host_name(tmp_path: Path) -> None:
    async with serving(whole) as server:
        assert (await load(plan(f"http://localhost:{server.port}", tmp_path))).tally.ok == 1


async def test_what_is_sent(tmp_path: Path) -> None:
    async with serving(whole) as server:
        given = plan(f"http://127.0.0.1:{server.port}/base/v1", tmp_path, api_key="secret", requests=2)
        await load(given)
    assert server.heads[0].startswith("POST /base/v1/chat/completions HTTP/1.1\r\n")
    assert "Authorization: Bearer secret\r\n" in server.heads[0]
    assert "Accept-Encoding: identity\r\n" in server.heads[0]
    assert server.bodies[0]["messages"] == given.prompts[0].messages


async def test_sent_means_that_the_socket_took_all_of_it(tmp_path: Path) -> None:
    """A prompt larger than any socket buffer: not sent while the server has read only its beginning."""
    reading: list[float] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        reading.append(perf_counter())
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
        writer.write(WHOLE)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    began = perf_counter()
    given = plan(url, tmp_path, t0=began)
    given.prompts[0].messages[0]["content"] = "x" * 20_000_000
    found = await load(given)
    server.close()
    assert found.row["outcome"] == "ok"
    assert reading[0] < began + found.row["sent_s"] < began + found.row["first_byte_s"]


async def test_redirects_are_failures(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.send(
            b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
        )

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path))
    assert (found.row["outcome"], found.row["http_status"]) == ("failed", 307)
    assert found.row["error"] == "HTTP 307: no body"


async def test_an_answer_in_one_piece_is_no_stream(tmp_path: Path) -> None:
    reply = json.dumps({"choices": [{"message": {"content": "all at once"}}]}).encode()

    async def script(talk: Talk) -> None:
        await talk.send(
            OK + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(reply) + reply
        )

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path))
    assert found.row["outcome"] == "failed"
    assert "in one piece instead of a stream" in found.row["error"]
    assert "first_token_s" not in found.row


async def test_tokens_per_chunk_from_usage(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.send(stream(content("a b c"), content("d e", "stop"), usage(5), "[DONE]"))

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path))
    assert (found.row["output_tokens"], found.tally.tokens, found.tally.unmetered) == (5, 5, 0)
    assert sum(frame.tokens for frame in found.frames) == 5


async def test_answers_without_usage_are_noted(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.send(stream(content("a b c"), content("d e", "stop"), "[DONE]"))

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path))
    assert (found.row["output_tokens"], found.tally.unmetered) == (2, 1)


async def test_a_finish_without_tokens_has_no_ttft(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.send(stream(content("", "stop"), usage(0), "[DONE]"))

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path))
    assert (found.row["outcome"], found.row["output_tokens"]) == ("ok", 0)
    assert "first_token_s" not in found.row


async def test_ollama_splits_the_wait(tmp_path: Path) -> None:
    last = {"message": {"content": ""}, "done": True, "done_reason": "stop", "eval_count": 1}
    spent = {"load_duration": 50_000_000, "prompt_eval_duration": 100_000_000, "eval_duration": 1_000_000}

    async def script(talk: Talk) -> None:
        await talk.send(OK + b"Content-Type: application/x-ndjson\r\n" + CHUNKED)
        await asyncio.sleep(0.4)
        for line in ({"message": {"content": "a"}, "done": False}, {**last, **spent}):
            data = json.dumps(line).encode() + b"\n"
            await talk.send(b"%x\r\n%s\r\n" % (len(data), data))
        await talk.send(b"0\r\n\r\n")

    async with serving(script) as server:
        row = (await load(plan(server.url, tmp_path, protocol="ollama-chat"))).row
    assert (row["load_s"], row["prefill_s"], row["decode_s"]) == (0.05, 0.1, 0.001)
    assert row["queue_s"] == pytest.approx(row["first_token_s"] - row["sent_s"] - 0.15)
    assert row["queue_s"] > 0
    assert row["queue_basis"] == "reported"


async def test_a_stall_in_the_middle_shows_in_the_gaps(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.send(OK + SSE + CHUNKED)
        for at in range(6):
            data = event(content("x", "stop" if at == 5 else None))
            await talk.send(b"%x\r\n%s\r\n" % (len(data), data))
            await asyncio.sleep(0.5 if at == 2 else 0)
        await talk.send(b"0\r\n\r\n")

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path))
    times = [at for _, at, _, _ in found.tokens]
    assert max(b - a for a, b in pairwise(times)) >= 0.45
    assert found.row["last_token_s"] - found.row["first_token_s"] >= 0.45
