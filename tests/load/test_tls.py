"""https, with a certificate made for the test."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from .server import WHOLE, Talk, content, load, plan, serving, stream, whole

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="no openssl to make a certificate with")


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's context whose certificate the load process trusts."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = [OPENSSL, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    about = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made, *about, *files], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.load_cert_chain(certificate, key)
    return found


def url(port: int) -> str:
    return f"https://localhost:{port}/v1"


async def test_a_whole_answer(context: ssl.SSLContext, tmp_path: Path) -> None:
    async with serving(whole, tls=context) as server:
        found = await load(plan(url(server.port), tmp_path / "rows", users=2, requests=6, api_key="secret"))
    assert found.tally.ok == 6
    assert found.health.connections == server.connections
    assert all(row["connect_s"] <= row["sent_s"] <= row["first_token_s"] for row in found.rows)
    assert "Authorization: Bearer secret" in server.heads[0]


async def test_broken_answers(context: ssl.SSLContext, tmp_path: Path) -> None:
    replies = {
        1: WHOLE[:-200],
        2: b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy",
        3: stream(content("a")),
        4: b"nonsense\r\n\r\n",
    }

    async def script(talk: Talk) -> None:
        await talk.send(replies[talk.number])
        talk.close()

    async with serving(script, tls=context) as server:
        found = await load(plan(url(server.port), tmp_path / "rows", requests=4))
    assert found.tally.failed == 4
    assert found.rows[1]["error"] == "HTTP 503: busy"
    assert "without finish_reason" in found.rows[2]["error"]


async def test_deadline_and_stop(context: ssl.SSLContext, tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.reader.read()

    async with serving(script, tls=context) as server:
        late = await load(plan(url(server.port), tmp_path / "a", timeout_s=0.3))
        stopped = await load(
            plan(url(server.port), tmp_path / "b"), lambda process, f: process.stop() if f.in_flight else None
        )
    assert "deadline" in late.row["error"]
    assert stopped.row["outcome"] == "cancelled"


async def test_a_certificate_that_nobody_vouches_for(
    context: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    async with serving(whole, tls=context) as server:
        server_noise = asyncio.get_running_loop()
        server_noise.set_exception_handler(lambda *_: None)  # the handshake that the client refuses
        found = await load(plan(url(server.port), tmp_path / "rows"))
    assert "certificate" in found.row["error"].lower()
    assert found.health.connections == 0
