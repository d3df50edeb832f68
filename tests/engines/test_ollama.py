"""Ollama's settings and log without a server; one real server for everything else."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from labkit.engines import models, ollama_log, process
from labkit.engines.base import quiet
from labkit.engines.ollama import Ollama, OllamaSettings
from labkit.engines.ollama_log import Child, last_load
from labkit.engines.wanted import Command
from labkit.errors import EngineDied, ModelError, StartFailed, UsageError

MODEL = "labkit/smollm2:135m-q4_1"
SETTINGS = {"num_parallel": 2, "context_length": 2048, "max_queue": 77}
"""``max_queue`` is one that nobody else starts a server with, so that none is shared with these tests."""

BLOB = "941f309b54caaad6747569ba43712bcde44a2be3bae16c3282ff499c37c54af5"
OTHER = "e3b2721cec511e3a627ae0993753abbf5c72cdf4cfcdbc8f5c33ce15c4c4e04b"


def started(blob: str, slots: int, context: int) -> str:
    return (
        'time=2026-11-23T12:49:46.470Z level=INFO source=llama_server.go:433 msg="starting llama-server" '
        f'cmd="/x/lib/ollama/llama-server --model /m/blobs/sha256-{blob} --port 39129 --host 127.0.0.1 '
        f'--no-webui --offline -c {context} -np {slots} --flash-attn auto --keep 4"'
    )


def answered(status: int, request: str) -> str:
    return f"[GIN] 2026/11/23 - 12:50:00 | {status} |  7.125842531s |       127.0.0.1 | {request}"


LOG = "\n".join(  # lines of Ollama 0.34.0; the GPU's are put together from its source
    [
        'time=… level=INFO msg="server config" env="map[CUDA: OLLAMA_NUM_PARALLEL:4 OLLAMA_X:]"',
        'time=… level=INFO source=types.go:50 msg="inference compute" id=GPU-1 library=CUDA compute=8.0 '
        'name=CUDA0 description="NVIDIA A100-SXM4-40GB" libdirs=ollama,cuda_v13 driver=13.0 total="39.4 GiB"',
        started(BLOB, 1, 4096),
        "llama_kv_cache:        CPU KV buffer size =    90.00 MiB",
        started(OTHER, 4, 16384),
        "llama_kv_cache:      CUDA0 KV buffer size =   300.50 MiB",
        "llama_kv_cache:        CPU KV buffer size =    59.50 MiB",
        started(BLOB, 2, 8192),
        "cmn  common_param: system_info: n_threads = 2 (n_threads_batch = 2) / 2 | CPU : SSE3 = 1 | ",
        "llama_kv_cache:        CPU KV buffer size =   180.00 MiB",
        "srv  update_slots: all slots are idle",
        answered(200, 'POST     "/api/generate?labkit=load"'),
        answered(200, 'GET      "/api/ps"'),
        answered(200, 'POST     "/api/chat"'),
        answered(503, 'POST     "/v1/chat/completions"'),
        answered(200, 'POST     "/api/show"'),
    ]
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "ollama.log"
    path.write_text(LOG, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"slots": 4}, ["slots", "no such setting", "num_parallel"]),
        ({"num_parallel": 0}, ["num_parallel=0", "at least 1"]),
        ({"num_parallel": "4"}, ["num_parallel='4'", "int"]),
        ({"context_length": 8}, ["context_length=8", "at least 64"]),
        ({"keep_alive": "soon"}, ["keep_alive='soon'", "24h"]),
    ],
)
def test_a_bad_setting_is_named_with_its_limit(given: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        OllamaSettings.of(given)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("time", ["0", "-1", "90s", "1h30m", "1.5h", "300"])
def test_times_as_ollama_writes_them(time: str) -> None:
    assert OllamaSettings.of({"keep_alive": time}).keep_alive == time


def test_the_environment_says_what_was_asked_for() -> None:
    env = OllamaSettings.of({"num_parallel": 4}).environment(11500, Path("/labkit/ollama"))
    assert env["OLLAMA_NUM_PARALLEL"] == "4"
    assert env["OLLAMA_MAX_LOADED_MODELS"] == "", "Ollama's own default"
    assert env["OLLAMA_HOST"] == "127.0.0.1:11500"
    assert env["HOME"] == "/labkit/ollama"
    assert env["OLLAMA_NO_CLOUD"] == "1"


def test_last_load_of_a_model_is_read_from_the_log(log: Path) -> None:
    load = last_load(log, BLOB)
    assert load is not None
    assert load.child == Child(BLOB, port=39129, slots=2, context=4096, threads=None)
    assert (load.kv_bytes, load.threads, load.device) == (180 * 2**20, 2, "cpu")


def test_a_model_that_is_split_over_a_gpu_and_the_cpu(log: Path) -> None:
    load = last_load(log, OTHER)
    assert load is not None
    assert load.child.context == 4096
    assert (load.kv_bytes, load.device) == (360 * 2**20, "cuda:0 NVIDIA A100-SXM4-40GB")


def test_what_the_log_does_not_show_is_none(log: Path) -> None:
    assert last_load(log, "0" * 64) is None
    log.write_text("")
    assert ollama_log.configured_slots(log) is None


def test_only_requests_that_make_a_model_work_are_counted(log: Path) -> None:
    assert ollama_log.count_served(log) == 2
    assert ollama_log.configured_slots(log) == 4


@pytest.mark.parametrize("argv", [[], ["ollama", "serve"], ["llama-server", "--model", "x.gguf"]])
def test_other_processes_are_not_taken_for_the_child(argv: list[str]) -> None:
    assert Child.of(argv) is None


SLOTS = """
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answers = {"/api/version": {"version": "0"}, "/api/ps": {"models": []}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answers.get(self.path, [{"is_processing": True}] * 2)).encode())

http.server.HTTPServer(("127.0.0.1", int(sys.argv[4])), Handler).serve_forever()
"""


class OneProcess(Ollama):
    """A server that is its own ``llama-server``, to be started without Ollama."""

    def _command(self, _settings: OllamaSettings, port: int) -> Command:
        told = ["--model", f"sha256-{BLOB}", "--port", str(port), "-np", "2", "-c", "4096"]
        return Command([sys.executable, "-c", SLOTS, *told], {}, 20)


async def test_a_child_is_looked_for_once_and_again_when_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    monkeypatch.delenv("LABKIT_OLLAMA_URL", raising=False)
    walks: list[int] = []
    family = process.ServerState.family
    monkeypatch.setattr(process.ServerState, "family", lambda state: (walks.append(1), family(state))[1])
    engine = OneProcess(port=process.free_port(0))
    await engine.start()
    try:
        before = len(walks)
        assert [(await engine.gauges()).running for _ in range(3)] == [2, 2, 2]
        assert len(walks) == before + 1
        await engine.restart()
        assert (await engine.gauges()).running == 2
    finally:
        await engine.stop()


async def test_a_url_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_OLLAMA_URL", f"http://127.0.0.1:{process.free_port(0)}/v1/")
    engine = Ollama()
    assert not engine.url.endswith("/")
    with pytest.raises(StartFailed, match="does not answer"):
        await engine.start()
    assert engine.alive()
    assert engine.log_tail() == []


@pytest.fixture
async def engine() -> AsyncIterator[Ollama]:
    """A server of the test's own with the 4-bit model loaded."""
    ours = Ollama(port=process.free_port(0))
    await ours.start(**SETTINGS)
    await models.ensure(MODEL, engine=ours)
    await ours.load(MODEL)
    yield ours
    await ours.stop()


async def chat(engine: Ollama, tokens: int = 4) -> httpx.Response:
    order = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "stream": False,
        "options": {"num_predict": tokens},
    }
    async with httpx.AsyncClient(base_url=engine.url, timeout=120, trust_env=False) as client:
        return await client.post("/api/chat", json=order)


async def eventually(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():  # noqa: ASYNC110  what happens in other processes sets no event here
            await asyncio.sleep(0.02)


@pytest.mark.engines
async def test_facts_are_read_and_survive_the_child(engine: Ollama) -> None:
    facts = await engine.facts()
    assert facts.owner == "kernel"
    assert facts.model == MODEL
    assert facts.quantisation == "Q4_1"
    assert facts.model_digest is not None
    assert (facts.slots, facts.context, facts.kv_tokens) == (2, 2048, 4096)
    assert facts.sources["slots"] == "llama-server's command line"
    assert facts.kv_bytes is not None
    assert facts.threads is not None
    assert facts.device is not None

    assert engine._state is not None
    [child] = [member for member in engine._state.family() if member.pid != engine._state.pid]
    child.kill()
    await asyncio.to_thread(child.wait)
    without = await engine.facts()
    assert without.sources["slots"] == "log"
    assert (without.slots, without.context, without.kv_bytes) == (2, 2048, facts.kv_bytes)
    assert engine.alive()
    assert (await engine.gauges()).running is None

    await engine.load(MODEL)
    assert (await chat(engine)).is_success
    assert (await engine.facts()).sources["slots"] == "llama-server's command line"


@pytest.mark.engines
async def test_gauges_and_served_follow_the_requests(engine: Ollama) -> None:
    before = (await engine.served()).requests
    assert before is not None
    assert (await engine.gauges()).running == 0
    asking = asyncio.create_task(chat(engine, 128))
    async with asyncio.timeout(60):
        while (await engine.gauges()).running != 1:
            assert not asking.done()
            await asyncio.sleep(0.05)
    await asking
    assert (await engine.gauges()).running == 0
    await engine.load(MODEL)
    assert (await engine.served()).requests == before + 1


@pytest.mark.engines
async def test_unknown_model_lists_those_that_are_there(engine: Ollama) -> None:
    with pytest.raises(ModelError, match=MODEL):
        await engine.load("nope:1b")
    assert (await engine.facts()).model == MODEL


@pytest.mark.engines
async def test_killed_server_is_told_with_its_log(engine: Ollama) -> None:
    assert engine._state is not None
    family = engine._state.family()
    os.kill(engine._state.pid, signal.SIGKILL)
    await eventually(lambda: engine.log_tail(1) == ["labkit: the server was killed by signal 9 (SIGKILL)"])
    with pytest.raises(EngineDied, match=r"killed it with signal 9\)\nLast lines of") as caught:
        await engine.load(MODEL)
    assert str(engine._state.pid) in caught.value.tried
    assert not engine.alive()
    await eventually(lambda: not any(map(process.supervisor.alive, family)))


@pytest.mark.engines
async def test_restart_changes_settings_and_a_bad_one_costs_nothing(engine: Ollama) -> None:
    said: list[str] = []
    with pytest.raises(UsageError, match="num_parallel=0"):
        await engine.restart(num_parallel=0)
    assert await engine.ready()
    assert engine._state is not None
    family = engine._state.family()
    facts = await engine.restart(num_parallel=3, progress=said.append)
    assert facts.slots == 3
    assert not any(map(process.supervisor.alive, family))
    assert f"port {engine._port} free, 2 processes gone, memory" in said[0]
    assert engine._state.settings == OllamaSettings(**{**SETTINGS, "num_parallel": 3}).as_dict()


@pytest.mark.engines
async def test_a_shells_server_is_used_and_left_running() -> None:
    port = process.free_port(0)
    shell = Ollama(owner="shell", port=port)
    await shell.start(**SETTINGS)
    try:
        kernel = Ollama(port=port)
        facts = await kernel.start(**SETTINGS)
        assert (facts.owner, facts.url) == ("shell", shell.url)
        await kernel.stop()
        assert await shell.ready()
    finally:
        await shell.stop()
    assert not await shell.ready()
    assert process.port_owner(port) is None


@pytest.mark.engines
async def test_a_given_url_is_used_as_it_is(engine: Ollama, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of a URL is labkit's own here; a stranger's is one whose state file is not there."""
    pinned = Ollama(engine.url)
    assert (await pinned.start(num_parallel=2)).slots == 2
    with pytest.raises(UsageError, match="it has num_parallel=2"):
        await pinned.start(num_parallel=4)

    monkeypatch.setattr(process, "states", lambda _engine: [])
    foreign = Ollama(engine.url)
    facts = await foreign.start(progress=quiet)
    assert facts.owner == "foreign"
    assert (facts.version, facts.model, facts.context) == ((await engine.facts()).version, MODEL, 2048)
    assert (facts.slots, facts.kv_bytes) == (None, None)
    assert (await foreign.served()).requests is None
    with pytest.raises(UsageError, match="cannot be read"):
        await foreign.start(num_parallel=2)
    await foreign.stop()
    assert await engine.ready()
