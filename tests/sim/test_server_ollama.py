"""The simulated Ollama over HTTP: both its APIs, its models, its two queues."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import ollama
import openai
import pytest

from labkit import contract
from labkit.engines.ollama import Ollama
from labkit.engines.ollama_log import SERVED
from labkit.engines.ollama_store import ollama_store
from labkit.sim.ollama import Ollama as Core
from labkit.sim.server.serving import Serving

from .conftest import Start

MODEL = "smollm2:135m"
OTHER = "labkit/smollm2:135m-f16"
ASK: list[Any] = [{"role": "user", "content": "Write a long story about a clever fox."}]
LONG: list[Any] = [{"role": "user", "content": "word " * 300}]


@asynccontextmanager
async def http_of(here: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=here.url, timeout=60, trust_env=False) as http:
        yield http


async def chat(here: Serving, messages: list[Any] = ASK, tokens: int = 4, **more: Any) -> dict[str, Any]:
    options = {"num_predict": tokens, **more.pop("options", {})}
    async with http_of(here) as http:
        order = {"model": MODEL, "messages": messages, "stream": False, "options": options, **more}
        return dict((await http.post("/api/chat", json=order)).raise_for_status().json())


async def loaded(here: Serving) -> dict[str, Any]:
    async with http_of(here) as http:
        return {row["name"]: row for row in (await http.get("/api/ps")).json()["models"]}


async def test_it_keeps_the_contract(start: Start) -> None:
    here = await start("ollama")
    outcomes = await contract.run(here.url, "ollama", MODEL)
    assert {outcome.status for outcome in outcomes} == {"held"}, contract.table(outcomes)


async def test_labkits_class_loads_and_reads_it(start: Start) -> None:
    here = await start("ollama", num_parallel=4)
    engine = Ollama(url=here.url)
    await engine.load(MODEL)
    facts = await engine.facts()
    assert (facts.kind, facts.model, facts.slots, facts.context) == ("simulated", MODEL, 4, 4096)
    assert (facts.device, facts.version, facts.kv_tokens) == ("cpu", "0.34.0", 4 * 4096)
    assert re.fullmatch("[0-9a-f]{64}", facts.model_digest or "")


async def test_durations_are_simulated_and_add_up(start: Start) -> None:
    here = await start("ollama")
    cold, warm = await chat(here), await chat(here, LONG)
    parts = ("load_duration", "prompt_eval_duration", "eval_duration")
    core = here.core
    assert isinstance(core, Core)
    for answer in (cold, warm):
        unexplained = answer["total_duration"] - sum(answer[part] for part in parts)
        handed_over = core.hop_s + core.hop_token_s * answer["prompt_eval_count"]
        assert -10 <= unexplained <= handed_over * 1e9 + 10
    assert cold["load_duration"] == pytest.approx(core.load_s * 1e9, abs=10)
    assert warm["load_duration"] == 1
    assert (warm["eval_count"], warm["done_reason"]) == (4, "length")


async def test_the_ollama_library(start: Start) -> None:
    here = await start("ollama")
    api = ollama.AsyncClient(host=here.url, trust_env=False)
    whole = await api.chat(model=MODEL, messages=ASK, options={"num_predict": 12})
    pieces = [
        part
        async for part in await api.generate(
            model=MODEL, prompt=ASK[0]["content"], stream=True, options={"num_predict": 12}
        )
    ]
    assert "".join(part.response or "" for part in pieces) == whole.message.content
    assert len(pieces) == 13
    assert pieces[-1].eval_count == whole.eval_count == 12
    assert pieces[-1].prompt_eval_count == whole.prompt_eval_count
    assert {model.model for model in (await api.list()).models} >= {MODEL, OTHER}
    assert [model.model for model in (await api.ps()).models] == [MODEL]
    assert (await api.show(MODEL)).details.quantization_level  # type: ignore[union-attr]
    with pytest.raises(ollama.ResponseError, match="model 'nope:latest' not found"):
        await api.show("nope")
    await api.close()  # type: ignore[no-untyped-call]


async def test_the_openai_library(start: Start) -> None:
    here = await start("ollama")
    async with openai.AsyncOpenAI(base_url=f"{here.url}/v1", api_key="none", max_retries=0) as api:
        pieces = await api.chat.completions.create(
            model=MODEL, messages=ASK, max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in pieces]
        text = await api.completions.create(model=MODEL, prompt="Hi", max_tokens=5)
        assert (await api.models.retrieve(MODEL)).owned_by == "library"
        with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
            await api.chat.completions.create(model="nope", messages=ASK)
    contents = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert contents == ["This", " is", " a", " simulated", " answer", None]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert text.choices[0].text == "This is a simulated answer"


async def test_pull_copy_delete(start: Start) -> None:
    here = await start("ollama")
    async with ollama_store(Ollama(url=here.url)) as store:
        told: list[str] = []
        await store.pull("smollm2:135m", told.append, mirror="127.0.0.1:1")
        there = await store.stored(MODEL)
    assert there is not None
    async with http_of(here) as http:
        await http.request("DELETE", "/api/delete", json={"model": MODEL})
        assert (await http.post("/api/show", json={"model": MODEL})).status_code == 404
        lines = (await http.post("/api/pull", json={"model": MODEL})).text.splitlines()
        assert (await http.post("/api/show", json={"model": MODEL})).status_code == 200
        bad = await http.post("/api/pull", json={"model": "nope"})
    assert told[0] == "pulling manifest"
    assert told[-1] == "success"
    assert "success" in lines[-1]
    assert '"completed":0' in lines[1]
    assert bad.status_code == 200
    assert bad.text.splitlines()[-1] == '{"error":"pull model manifest: file does not exist"}'


async def test_a_hot_models_queue_has_no_bound_and_a_cold_ones_has(start: Start) -> None:
    here = await start("ollama", max_queue=1)

    async def burst() -> list[int]:
        async with http_of(here) as http:
            order = {"model": MODEL, "messages": ASK, "stream": False, "options": {"num_predict": 2}}
            answers = await asyncio.gather(*(http.post("/api/chat", json=order) for _ in range(20)))
        words = "server busy, please try again.  maximum pending requests exceeded"
        assert all(answer.json()["error"] == words for answer in answers if answer.status_code == 503)
        return [answer.status_code for answer in answers]

    cold, hot = await burst(), await burst()
    assert set(cold) == {200, 503}
    assert set(hot) == {200}


async def test_the_openai_style_of_a_full_queue(start: Start) -> None:
    here = await start("ollama", max_queue=1)
    async with http_of(here) as http:
        order = {"model": MODEL, "messages": ASK, "max_tokens": 2}
        answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=order) for _ in range(5)))
    error = next(answer.json()["error"] for answer in answers if answer.status_code == 503)
    assert (error["type"], error["code"], error["param"]) == ("api_error", None, None)


async def test_a_prefix_is_reused_from_an_idle_slot_and_not_from_a_busy_one(start: Start) -> None:
    here = await start("ollama", num_parallel=2)
    await chat(here)
    async with http_of(here) as http:
        order = {"model": MODEL, "messages": LONG, "options": {"num_predict": 400}}
        async with http.stream("POST", "/api/chat", json=order) as first:
            lines = first.aiter_lines()
            await anext(lines)
            during = await chat(here, LONG)
            assert len(here.core.runners.popitem()[1].busy) == 1  # type: ignore[union-attr]
    assert during["prompt_eval_cached_count"] < 30


async def test_the_same_prompt_on_an_idle_slot_is_cached(start: Start) -> None:
    here = await start("ollama", num_parallel=2)
    first, second = await chat(here, LONG), await chat(here, LONG)
    assert first["prompt_eval_cached_count"] == 0
    assert second["prompt_eval_cached_count"] == second["prompt_eval_count"] - 1


async def test_a_client_that_goes_away_frees_its_slot(start: Start) -> None:
    here = await start("ollama")
    async with http_of(here) as http:
        async with http.stream("POST", "/api/chat", json={"model": MODEL, "messages": ASK}) as answer:
            await anext(answer.aiter_lines())
        (runner,) = here.core.runners.values()  # type: ignore[union-attr]
        async with asyncio.timeout(10):
            while runner.busy:
                await http.get("/api/version")


async def test_another_context_loads_the_model_anew(start: Start) -> None:
    here = await start("ollama")
    times = [
        (await chat(here, options={"num_ctx": context} if context else {}))["load_duration"] > 1
        for context in (None, 2048, 2048, None, 10**9)
    ]
    assert times == [True, True, False, True, True]
    assert (await loaded(here))[MODEL]["context_length"] == 8192


async def test_keep_alive(start: Start) -> None:
    here = await start("ollama")
    async with http_of(here) as http:
        load = (await http.post("/api/generate", json={"model": MODEL, "keep_alive": "1h30m"})).json()
        assert (load["done"], load["done_reason"]) == (True, "load")
        assert MODEL in await loaded(here)
        await chat(here, keep_alive=-1)
        assert (await loaded(here))[MODEL]["expires_at"] > "2200"
        gone = (await http.post("/api/generate", json={"model": MODEL, "keep_alive": 0})).json()
        assert gone["done_reason"] == "unload"
        assert await loaded(here) == {}
        await chat(here, keep_alive="0s")
        assert await loaded(here) == {}
        bad = await http.post("/api/generate", json={"model": MODEL, "keep_alive": "soon"})
        assert bad.json() == {"error": 'time: invalid duration "soon"'}


async def test_a_model_in_use_goes_when_its_last_answer_is_written(start: Start) -> None:
    here = await start("ollama")
    ask = {"model": MODEL, "messages": ASK}
    async with http_of(here) as http, http.stream("POST", "/api/chat", json=ask) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        await http.post("/api/generate", json={"model": MODEL, "keep_alive": 0})
        assert set(await loaded(here)) == {MODEL}
        last = [line async for line in lines][-1]
    assert '"done_reason":"stop"' in last
    assert await loaded(here) == {}


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:1", 200), ("[::1]:80", 200), ("10.0.0.7", 200), ("box.local", 200), ("example.org", 403)],
)
async def test_only_local_names_for_the_host(start: Start, host: str, status: int) -> None:
    here = await start("ollama")
    async with http_of(here) as http:
        assert (await http.get("/", headers={"Host": host})).status_code == status


async def test_models_are_told_apart_by_file_and_the_least_kept_one_goes(start: Start) -> None:
    here = await start("ollama", max_loaded_models=2)
    async with http_of(here) as http:
        await http.post("/api/copy", json={"source": MODEL, "destination": "copy"})
    await chat(here)
    assert (await chat(here, model="copy"))["load_duration"] == 1
    await chat(here, model=OTHER, keep_alive="1m")
    await chat(here, model="labkit/smollm2:135m-q4_1")
    assert set(await loaded(here)) == {MODEL, "labkit/smollm2:135m-q4_1"}


async def test_long_prompts_are_cut(start: Start) -> None:
    here = await start("ollama")
    assert (await chat(here, [{"role": "user", "content": "word " * 9000}]))["prompt_eval_count"] == 2050
    old = [*LONG, {"role": "assistant", "content": "word " * 4200}, *ASK]
    assert (await chat(here, old))["prompt_eval_count"] < 100


async def test_the_access_log_is_what_labkit_counts(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    here = await start("ollama")
    with caplog.at_level("INFO", logger="labkit.sim.server.ollama_api"):
        await Ollama(url=here.url).load(MODEL)
        await chat(here)
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if line.startswith("[GIN]")]) == 2
    assert len([line for line in lines if SERVED.match(line)]) == 1
