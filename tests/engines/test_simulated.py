"""Simulated engines: started, found, used and stopped like real ones, and never taken for them."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from labkit.engines import process
from labkit.engines.ollama import Ollama
from labkit.engines.simulated import Simulated, SimulatedOllama, SimulatedVLLM
from labkit.engines.vllm import VLLM
from labkit.errors import StartFailed, UsageError

PROFILE = "cpu-2core-smollm2-135m"
ENGINES = [SimulatedOllama, SimulatedVLLM]
ASKED = {"ollama": {"num_parallel": 3}, "vllm": {"max_num_seqs": 3}}
REAL = {"ollama": Ollama, "vllm": VLLM}

KERNEL = """
import asyncio
from labkit.engines.simulated import SimulatedVLLM
async def main():
    await SimulatedVLLM(time_scale=1).start()
    print("up", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
async def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """An empty home, ports that nobody else uses, and no server left at the end."""
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    for name in ("OLLAMA", "VLLM"):
        monkeypatch.setenv(f"LABKIT_{name}_URL", "http://127.0.0.1:9")  # these name real servers
    for kind in ENGINES:
        monkeypatch.setattr(kind, "default_port", process.free_port(0))
    yield
    for state in process.states():
        await process.terminate(state, grace_s=0)


def pids() -> list[int]:
    return [state.pid for state in process.states()]


@pytest.mark.parametrize("kind", ENGINES)
async def test_facts_are_the_servers_and_stop_is_proved(kind: type[Simulated]) -> None:
    engine = kind(time_scale=2)
    facts = await engine.start(**ASKED[engine.name])
    assert (facts.engine, facts.kind, facts.owner) == (kind.name, "simulated", "kernel")
    assert facts.simulated is not None
    assert (facts.simulated["profile"], facts.time_scale) == (PROFILE, 2)
    assert (facts.slots, facts.device, facts.context) == (3, "cpu", 4096)
    assert facts.kv_tokens is not None
    assert facts.sources["slots"] == "X-Labkit-Simulated"
    assert engine.asked == ASKED[engine.name]
    [state] = process.states()
    assert (state.engine, state.port) == (f"simulated-{kind.name}", kind.default_port)
    assert Path(state.log).name == f"simulated-{kind.name}-{state.port}.log"
    assert engine.cpu_s() is not None
    await engine.stop()
    assert pids() == []
    assert process.port_owner(state.port) is None


async def test_a_model_is_loaded_and_described() -> None:
    vllm, ollama = SimulatedVLLM(), SimulatedOllama()
    await vllm.start()
    await ollama.start()
    for engine, name in ((vllm, "smollm2:135m"), (ollama, "labkit/smollm2:135m-f16")):
        await engine.load(name)
        facts = await engine.facts()
        assert (facts.model, facts.version is None) == (name, False)
    assert (await vllm.served()).output_tokens == 0
    assert (await ollama.served()).requests == 0
    assert (await vllm.gauges()).running == 0


async def test_a_server_is_used_again_if_settings_profile_and_scale_fit() -> None:
    await SimulatedVLLM().start(max_num_seqs=3)
    [first] = pids()
    again = SimulatedVLLM()
    await again.start(max_num_seqs=3)
    assert pids() == [first]
    await again.restart(max_num_seqs=5)
    [second] = pids()
    assert second != first
    await SimulatedVLLM(time_scale=2).start(max_num_seqs=5)
    [third] = pids()
    assert third != second


async def test_an_attached_engine_is_that_servers_own() -> None:
    await SimulatedOllama(owner="shell", time_scale=2).start(num_parallel=3)
    attached = SimulatedOllama.attached(process.states()[0])
    assert (attached.profile, attached.time_scale) == (PROFILE, 2)
    assert attached.asked["num_parallel"] == 3
    assert set(attached.asked) == {
        *("num_parallel", "max_loaded_models", "max_queue", "keep_alive", "context_length")
    }
    assert (await attached.restart()).slots == 3
    await attached.stop()
    assert pids() == []


async def test_it_ends_with_its_kernel() -> None:
    kernel = await asyncio.create_subprocess_exec(sys.executable, "-c", KERNEL, stdout=subprocess.PIPE)
    assert kernel.stdout is not None
    assert await kernel.stdout.readline() == b"up\n"
    [state] = process.states("simulated-vllm")
    kernel.kill()
    await kernel.wait()
    async with asyncio.timeout(20):
        while state.process() is not None:  # noqa: ASYNC110  another process ends it
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", ENGINES)
async def test_what_cannot_be_simulated_is_refused_before_the_start(kind: type[Simulated]) -> None:
    with pytest.raises(UsageError, match=f"no-such.*\n.*\n.*{PROFILE}"):
        await kind(profile="no-such").start()
    for scale in (0, 0.5, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=r"time_scale=.*\n.*1 .*or more"):
            await kind(time_scale=scale).start()
    with pytest.raises(UsageError, match="no such setting"):
        await kind().start(slots=2)
    assert pids() == []


async def test_only_the_profiles_model_is_served() -> None:
    with pytest.raises(UsageError, match=r"model='llama3\.1:8b'\n.*is of smollm2:135m"):
        await SimulatedVLLM().start(model="llama3.1:8b")
    assert (await SimulatedVLLM().start(model="smollm2:135m")).model == "smollm2:135m"


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"max_model_len": 8192, "kv_cache_gib": 0.01}, "raise kv_cache_gib"),
        ({"tensor_parallel_size": 2}, "divides the number of heads"),
    ],
)
async def test_an_impossible_setting_fails_as_the_real_engine_does(
    settings: dict[str, float], cause: str
) -> None:
    with pytest.raises(StartFailed, match="the server ended") as caught:
        await SimulatedVLLM().start(**settings)
    assert cause in caught.value.fix
    assert pids() == []


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_stranger_on_the_port_is_never_used(kind: type[Simulated]) -> None:
    first = kind(port=process.free_port(0))
    await first.start()
    taken = kind.default_port
    with socket.create_server(("127.0.0.1", taken)):
        elsewhere = kind()
        assert (await elsewhere.start(**ASKED[kind.name])).kind == "simulated"
        assert elsewhere.url not in {first.url, f"http://127.0.0.1:{taken}"}
        with pytest.raises(StartFailed, match="the port is taken by"):
            await kind(port=taken).start()


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_real_engine_takes_no_simulated_server_for_one(
    kind: type[Simulated], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(f"LABKIT_{kind.name.upper()}_URL")
    simulated = kind(owner="shell")
    await simulated.start()
    real = REAL[kind.name](port=process.states()[0].port)
    wanted = real._wanted({})
    assert real._fitting(wanted) is None
    assert not await real._stranger_fits(wanted)
    assert real._inherited() is None


@pytest.mark.parametrize("kind", ENGINES)
async def test_at_a_given_url_it_says_what_it_is(kind: type[Simulated]) -> None:
    await kind().start()
    given = REAL[kind.name](process.states()[0].url)
    facts = await given.start()
    assert (facts.kind, facts.owner, facts.device) == ("simulated", "foreign", "cpu")
    assert facts.slots is not None
    with pytest.raises(UsageError, match="cannot be read from it"):
        await given.start(**ASKED[kind.name])
