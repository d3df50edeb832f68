"""The simulated vLLM over HTTP: its words, its metrics, its queue, its cache."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from labkit import contract
from labkit.engines.declared import HEADER, declared
from labkit.engines.vllm import VLLM

from .conftest import Start

MODEL = "smollm2:135m"
ASK: list[Any] = [{"role": "user", "content": "Write a long story about a clever fox."}]
LONG: list[Any] = [{"role": "user", "content": "word " * 300}]


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


async def chat(url: str, messages: list[Any] = ASK, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        order = {"messages": messages, "max_tokens": 4, **more}
        return await http.post(f"{url}/v1/chat/completions", json=order)


async def test_it_keeps_the_contract(start: Start) -> None:
    here = await start("vllm")
    outcomes = await contract.run(here.url, "vllm", MODEL)
    assert {outcome.status for outcome in outcomes} == {"held"}, contract.table(outcomes)


async def test_every_answer_declares_the_simulation(start: Start) -> None:
    here = await start("vllm", max_num_seqs=7)
    async with httpx.AsyncClient(base_url=here.url, trust_env=False) as http:
        for path in ("/version", "/metrics", "/nowhere"):
            said = declared(await http.get(path))
            assert said is not None
            assert (said["slots"], said["context"], said["time_scale"]) == (7, 4096, 10.0)
        assert HEADER in (await http.post("/v1/chat/completions", content=b"{")).headers


async def test_labkits_class_reads_it(start: Start) -> None:
    here = await start("vllm")
    engine = VLLM(url=here.url)
    await chat(here.url)
    await chat(here.url, LONG)
    await chat(here.url, LONG)
    facts, gauges, served = await engine.facts(), await engine.gauges(), await engine.served()
    assert (facts.kind, facts.model, facts.context, facts.block_size) == ("simulated", MODEL, 4096, 128)
    assert facts.kv_tokens == (here.core.pool.total + 1) * 128  # type: ignore[union-attr]
    assert facts.slots is not None
    assert (gauges.running, gauges.waiting) == (0, 0)
    assert served.requests == 3
    assert served.output_tokens == 12
    assert gauges.prefix_queries == served.prompt_tokens
    assert gauges.prefix_hits == 256


async def test_metrics_add_up(start: Start) -> None:
    here = await start("vllm")
    await chat(here.url)
    await chat(here.url, n=2)
    async with httpx.AsyncClient(base_url=here.url, trust_env=False) as http:
        text = (await http.get("/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    labels = f'{{engine="0",model_name="{MODEL}"'
    for name, count in (("e2e_request_latency", 3), ("time_to_first_token", 3), ("inter_token_latency", 9)):
        assert float(values[f"vllm:{name}_seconds_count{labels}}}"]) == count
        assert float(values[f'vllm:{name}_seconds_bucket{labels},le="+Inf"}}']) == count
        assert float(values[f"vllm:{name}_seconds_sum{labels}}}"]) > 0
    assert float(values[f'vllm:request_success_total{labels},finished_reason="length"}}']) == 3
    assert float(values[f"vllm:kv_cache_usage_perc{labels}}}"]) == 0


async def test_the_openai_library_streams_and_asks(start: Start) -> None:
    here = await start("vllm")
    async with client(here.url) as api:
        models = [model.id async for model in api.models.list()]
        whole = await api.chat.completions.create(model=MODEL, messages=ASK, max_tokens=12)
        pieces = await api.chat.completions.create(
            model=MODEL, messages=ASK, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in pieces]
        several = await api.completions.create(model=MODEL, prompt=["One", "Two"], n=2, echo=True)
    assert models == [MODEL]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert text.startswith("This is a simulated answer.")
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert [choice.text[:3] for choice in several.choices] == ["One", "One", "Two", "Two"]
    assert several.usage is not None
    assert several.usage.completion_tokens == 64


async def test_usage_in_every_chunk_counts_up(start: Start) -> None:
    here = await start("vllm")
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with client(here.url) as api:
        pieces = await api.chat.completions.create(
            model=MODEL,
            messages=ASK,
            max_tokens=3,
            stream=True,
            stream_options=options,  # type: ignore[call-overload]
        )
        counts = [chunk.usage.completion_tokens async for chunk in pieces if chunk.usage]
    assert counts == [1, 2, 3, 3]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"messages": None}, 400, "Field required"),
        ({"max_tokens": "many"}, 400, "valid integer"),
        ({"stream_options": {"include_usage": True}}, 400, "Stream options can only be defined"),
        ({"n": 0}, 400, "n must be at least 1"),
        ({"model": "nope"}, 404, f"The model `nope` does not exist. Valid aliases: {MODEL}."),
        ({"messages": [{"role": "user", "content": "word " * 4096}]}, 400, "maximum context length is 4096"),
    ],
)
async def test_refusals(start: Start, body: dict[str, Any], status: int, words: str) -> None:
    here = await start("vllm")
    answer = await chat(here.url, **body)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == status


async def test_a_bounded_queue_refuses_what_is_beyond(start: Start) -> None:
    here = await start("vllm", max_num_queued_reqs=3)
    answers = await asyncio.gather(*(chat(here.url, max_tokens=16) for _ in range(8)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200] * 3 + [503] * 5
    error = next(answer for answer in answers if answer.status_code == 503).json()["error"]
    assert (error["type"], error["code"]) == ("Service Unavailable", 503)
    async with httpx.AsyncClient(base_url=here.url, trust_env=False) as http:
        assert 'admission_rejections_total{model_name="smollm2:135m",reason="max_num_queued_reqs"} 5.0' in (
            (await http.get("/metrics")).text
        )


async def test_a_prefix_is_shared_with_a_request_that_is_still_answered(start: Start) -> None:
    here = await start("vllm")
    async with client(here.url) as api:
        first = await api.chat.completions.create(model=MODEL, messages=LONG, max_tokens=400, stream=True)
        async for chunk in first:
            if chunk.choices[0].delta.content:
                break
        second = await chat(here.url, LONG)
        assert second.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 256
        assert len(here.core.running) == 1  # type: ignore[union-attr]
        await first.close()


async def test_a_client_that_goes_away_frees_its_blocks(start: Start) -> None:
    here = await start("vllm")
    engine = VLLM(url=here.url)
    async with client(here.url) as api:
        pieces = await api.chat.completions.create(model=MODEL, messages=ASK, stream=True)
        async for _ in pieces:
            break
        assert (await engine.gauges()).running == 1
        await pieces.close()
    async with asyncio.timeout(10):
        while (gauges := await engine.gauges()).running:
            pass
    assert (gauges.kv_use, gauges.waiting) == (0, 0)


async def test_old_clients_get_their_stream_without_chunks(start: Start) -> None:
    here = await start("vllm")
    order = json.dumps({"messages": ASK, "max_tokens": 3, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(here.url.rpartition(":")[2]))
    writer.write(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(order), order))
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    assert b"chunked" not in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_ignore_eos_goes_up_to_the_limit(start: Start) -> None:
    here = await start("vllm")
    own = (await chat(here.url, max_tokens=600)).json()
    forced = (await chat(here.url, max_tokens=600, ignore_eos=True)).json()
    assert own["choices"][0]["finish_reason"] == "stop"
    assert forced["choices"][0]["finish_reason"] == "length"
    assert own["usage"]["completion_tokens"] <= 400 < forced["usage"]["completion_tokens"] == 600


async def test_its_gauges_tell_of_preemption(start: Start) -> None:
    here = await start("vllm", max_model_len=512, kv_cache_gib=0.036)
    engine = VLLM(url=here.url)
    assert (await engine.gauges()).preemptions == 0
    asked = [[{"role": "user", "content": f"{n} " + "word " * 80}] for n in range(12)]
    replies = await asyncio.gather(*(chat(here.url, one, max_tokens=60, ignore_eos=True) for one in asked))
    assert {reply.json()["usage"]["completion_tokens"] for reply in replies} == {60}
    gauges = await engine.gauges()
    assert gauges.preemptions is not None
    assert gauges.preemptions > 0
    assert (gauges.kv_use, gauges.waiting) == (0, 0)
