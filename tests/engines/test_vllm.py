"""vLLM's settings without a server, and one real server for everything else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from labkit.engines import install, process
from labkit.engines.causes import evidence
from labkit.engines.vllm import VLLM, VLLMSettings, _kv_tokens, _labels, _total
from labkit.engines.vllm_settings import CAUSES
from labkit.errors import EngineDied, EngineError, ModelError, StartFailed, UsageError

MODEL = "smollm2:135m"
SETTINGS = {"max_num_seqs": 4, "max_model_len": 2048, "kv_cache_gib": 0.25}

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 7.0
vllm:cache_config_info{block_size="128",kv_cache_memory_bytes="None",num_gpu_blocks="364"} 1.0
"""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_seqs": 4}, ["max_seqs", "no such setting", "max_num_seqs"]),
        ({"max_num_seqs": 0}, ["max_num_seqs=0", "at least 1"]),
        ({"max_num_seqs": "many"}, ["max_num_seqs='many'", "int"]),
        ({"max_num_seqs": True}, ["max_num_seqs=True", "int"]),
        ({"gpu_memory_utilization": 1.5}, ["gpu_memory_utilization=1.5", "at most 1"]),
        ({"cpu_threads": "some"}, ["cpu_threads='some'", "all, default"]),
    ],
)
def test_a_bad_setting_is_named_with_its_limit(given: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        VLLMSettings.of(given)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_defaults_for_a_cpu_and_for_a_gpu() -> None:
    cpu, gpu = VLLMSettings().resolved("cpu"), VLLMSettings().resolved("cuda")
    assert (cpu.eager, cpu.kv_cache_gib, cpu.max_num_seqs) == (True, 1.0, 128)
    assert (gpu.eager, gpu.kv_cache_gib, gpu.max_num_seqs) == (False, None, 256)
    assert VLLMSettings(eager=False).resolved("cpu").eager is False


def test_the_command_line_says_what_was_asked_for() -> None:
    settings = VLLMSettings.of({"prefix_caching": False, "kv_cache_gib": 0.5}).resolved("cpu")
    argv = settings.argv(Path("/env/bin/python"), Path("/models/m"), MODEL, 8123)
    assert "--host=127.0.0.1" in argv
    assert "--kv-cache-memory-bytes=536870912" in argv
    assert "--no-enable-prefix-caching" in argv
    assert not any(word.startswith("--block-size") for word in argv)


@pytest.mark.parametrize(
    ("settings", "bind"),
    [
        ({}, "0,1,4,5"),
        ({"cpu_threads": 2}, "0,1"),
        ({"cpu_threads": "default"}, None),
        ({"tensor_parallel_size": 2}, "0,1|4,5"),
    ],
)
def test_threads_go_on_the_cores_that_may_be_used(settings: dict[str, object], bind: str | None) -> None:
    env = VLLMSettings.of(settings).environment("cpu", [0, 1, 4, 5])
    assert env["NO_COLOR"] == "1", "the log is read by labkit, also where a kernel asks for colours"
    assert env.get("VLLM_CPU_OMP_THREADS_BIND") == bind


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(UsageError, match="2 cores"):
        VLLMSettings(cpu_threads=8).environment("cpu", [0, 1])


def test_metrics_are_summed_over_engines_and_told_apart_by_name() -> None:
    assert _total(METRICS, "vllm:num_requests_running") == 3
    assert _total(METRICS, "vllm:num_requests_waiting") is None
    assert _kv_tokens(_labels(METRICS, "vllm:cache_config_info")) == 46_592


def test_the_cause_is_found_in_vllms_own_words(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(
        "ValueError: Total number of attention heads (9) must be divisible by tensor parallel size\n"
    )
    seen, fix = evidence(log, CAUSES)
    assert "does not divide" in seen
    assert "tensor_parallel_size" in fix


async def test_a_named_server_that_does_not_answer() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StartFailed, match="does not answer"):
            await VLLM(url).start()
        with pytest.raises(EngineError, match="/metrics"):
            await VLLM(url).gauges()


async def test_a_missing_model_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(install.FINDERS, "vllm", lambda: Path("/env/bin/python"))
    with pytest.raises(ModelError, match="labkit models get"):
        await VLLM(port=process.free_port(8137)).start()
    assert process.states("vllm") == []


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server() -> AsyncIterator[VLLM]:
    """One server for the tests below: a start takes about a minute."""
    engine = VLLM(port=process.free_port(8137))
    await engine.start(model=MODEL, **SETTINGS)
    yield engine
    await engine.stop()


async def chat(engine: VLLM, **options: object) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Count to ten."}], **options}
    async with httpx.AsyncClient(trust_env=False, timeout=120) as client:
        return await client.post(f"{engine.url}/v1/chat/completions", json=body)


@pytest.mark.engines
@pytest.mark.asyncio(loop_scope="module")
async def test_facts_are_read_from_the_server(server: VLLM) -> None:
    facts = await server.facts()
    assert facts.version is not None
    assert facts.version.startswith("0.")
    assert (facts.model, facts.context, facts.slots) == (MODEL, 2048, 4)
    assert (facts.device, facts.quantisation, facts.owner) == ("cpu", "bfloat16", "kernel")
    assert facts.threads is not None
    assert facts.kv_bytes == 2**28
    # SmolLM2-135M: 30 layers, 3 KV heads of 64, keys and values in 16 bit
    assert facts.kv_tokens == 2**28 // (30 * 3 * 64 * 2 * 2) // facts.block_size * facts.block_size
    assert facts.model_digest is not None
    assert len(facts.model_digest) == 64
    assert facts.sources["context"] == "/v1/models"


@pytest.mark.engines
@pytest.mark.asyncio(loop_scope="module")
async def test_gauges_and_counters_follow_the_load(server: VLLM) -> None:
    before = await server.served()
    running = [asyncio.create_task(chat(server, max_tokens=32, ignore_eos=True)) for _ in range(6)]
    seen = await server.gauges()
    while not any(task.done() for task in running):
        now = await server.gauges()
        seen = max(seen, now, key=lambda gauges: gauges.running + gauges.waiting)
    answers = [answer.json()["usage"] for answer in await asyncio.gather(*running)]
    after = await server.served()
    assert seen.running <= 4, "never more than max_num_seqs"
    assert seen.running + seen.waiting > 0
    assert after.requests - before.requests == 6
    assert after.output_tokens - before.output_tokens == 6 * 32
    assert after.prompt_tokens - before.prompt_tokens == sum(usage["prompt_tokens"] for usage in answers)


@pytest.mark.engines
@pytest.mark.asyncio(loop_scope="module")
async def test_only_the_served_model_can_be_loaded(server: VLLM) -> None:
    await server.load(MODEL)
    with pytest.raises(ModelError, match=f"serves {MODEL}"):
        await server.load("llama3")


@pytest.mark.engines
@pytest.mark.asyncio(loop_scope="module")
async def test_a_fitting_server_is_used_again(server: VLLM) -> None:
    again = VLLM()
    said: list[str] = []
    await again.start(model=MODEL, progress=said.append, **SETTINGS)
    assert again.url == server.url
    assert any("settings fit" in line for line in said)


@pytest.mark.engines
@pytest.mark.asyncio(loop_scope="module")
async def test_a_named_server_is_used_as_it_is(server: VLLM) -> None:
    named = VLLM(server.url)
    facts = await named.start(model=MODEL, max_num_seqs=4)
    assert (facts.slots, facts.owner) == (4, "kernel"), "one of labkit's, known by its state file"
    with pytest.raises(UsageError, match="it has max_num_seqs=4"):
        await VLLM(server.url).start(max_num_seqs=8)
    assert await server.ready()


@pytest.mark.engines
@pytest.mark.asyncio(loop_scope="module")
async def test_a_taken_port_names_its_owner(server: VLLM) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(StartFailed, match=rf"port {port}.*\n.*pid"):
        await VLLM(port=port).start(model=MODEL, max_num_seqs=2)
    assert await server.ready()


@pytest.mark.engines
@pytest.mark.asyncio(loop_scope="module")
async def test_a_second_server_that_memory_is_short_for(server: VLLM) -> None:
    with pytest.raises(StartFailed, match=r"at least 1\d{5}\.\d GiB of memory"):
        await VLLM(port=process.free_port(8139)).start(model=MODEL, kv_cache_gib=1e5)
    assert await server.ready()


@pytest.mark.engines
@pytest.mark.asyncio(loop_scope="module")
async def test_an_attached_server_keeps_its_model(server: VLLM) -> None:
    [state] = [state for state in process.states("vllm") if state.url == server.url]
    assert VLLM.attached(state).model == MODEL


@pytest.mark.engines
@pytest.mark.asyncio(loop_scope="module")
async def test_a_killed_server_is_told_with_its_log(server: VLLM) -> None:
    """The last test on this server."""
    [state] = [state for state in process.states("vllm") if state.url == server.url]
    root = state.process()
    root.kill()
    await asyncio.to_thread(root.wait)
    with pytest.raises(EngineDied, match="Last lines"):
        await server.gauges()
    await server.stop()
    assert process.port_owner(state.port) is None


@pytest.mark.engines
async def test_a_context_larger_than_the_kv_cache_is_told_as_the_cause() -> None:
    port = process.free_port(8138)
    with pytest.raises(StartFailed) as caught:
        await VLLM(port=port).start(model=MODEL, max_model_len=8192, kv_cache_gib=0.05)
    assert "needs more KV cache" in caught.value.seen
    assert "kv_cache_gib" in caught.value.fix
    assert process.port_owner(port) is None
    assert [state for state in process.states("vllm") if state.port == port] == []
