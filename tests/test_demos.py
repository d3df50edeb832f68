"""What a lab shows beside load runs: at each depth the same transcripts, and nothing left behind."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from labkit import depths, paths, transcript
from labkit import lab_demos as demos
from labkit.demos import apart, evictions, gguf, lifecycle, pull, startup
from labkit.engines import process
from labkit.engines.base import quiet
from labkit.engines.model_files import models_home
from labkit.errors import ModelError, UsageError
from labkit.lab_demos import Demos

TOO_LONG = {"max_model_len": 8192, "kv_cache_gib": 0.06}


class Shown(Demos):
    """The part of a lab under test."""

    def __init__(self, mode: str) -> None:
        self._depth = depths.choose(mode, dict.fromkeys(depths.ENGINES))


@pytest.fixture(autouse=True)
async def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """An empty home, also where the environment names servers; nothing runs or is left at the end."""
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    monkeypatch.setenv("LABKIT_OLLAMA_URL", "http://127.0.0.1:9")
    for module in (apart, startup):  # two workers would choose the same port at the same moment
        monkeypatch.setattr(module, "PORTS", {"live": 0, "simulated": 0})
    yield
    left = process.states()
    for state in left:
        await process.terminate(state, grace_s=0)
    assert left == []
    assert list(models_home().glob(".partial-*")) == []


async def test_a_simulated_pull_tells_of_every_layer() -> None:
    news: list[dict[str, Any]] = []
    told = await pull.pull("simulated", news.append)
    assert news == list(told.events)
    layers = {layer["digest"]: layer for layer in told.of("layer")}
    assert {layer["kind"] for layer in layers.values()} >= {"model", "template", "config"}
    seen = {event["digest"]: event for event in told.of("progress")}  # the last of each
    assert seen.keys() == layers.keys()
    for digest, event in seen.items():
        assert event["completed"] == event["total"] == layers[digest]["bytes"]
    assert told.one("done")["bytes"] == sum(layer["bytes"] for layer in layers.values())
    statuses = [event["status"] for event in told.of("status")]
    assert (statuses[0], statuses[-1]) == ("pulling manifest", "success")


async def test_a_pull_that_is_stopped_leaves_nothing() -> None:
    under_way = asyncio.Event()

    def hear(event: dict[str, Any]) -> None:
        if event["what"] == "progress":
            under_way.set()

    task = asyncio.create_task(pull.pull("simulated", hear))
    await under_way.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("write /x: no space left on device", "free some space"),
        ("digest mismatch, file must be downloaded again", "something on the way"),
        ("pull model manifest: file does not exist", "no such model"),
        ("unexpected EOF", "try again"),
    ],
)
async def test_a_broken_download_is_told_in_three_sentences(
    monkeypatch: pytest.MonkeyPatch, said: str, fix: str
) -> None:
    async def breaking(*_: Any, **__: Any) -> AsyncIterator[ollama.ProgressResponse]:
        async def lines() -> AsyncIterator[ollama.ProgressResponse]:
            yield ollama.ProgressResponse(status="pulling manifest")
            raise ollama.ResponseError(said)

        return lines()

    monkeypatch.setattr(ollama.AsyncClient, "pull", breaking)
    with pytest.raises(ModelError) as caught:
        await pull.pull("simulated", lambda _event: None)
    assert said in caught.value.seen
    assert fix in caught.value.fix
    assert caught.value.tried.startswith("pull ")


async def test_a_pull_that_ends_early_without_an_error_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ending(*_: Any, **__: Any) -> AsyncIterator[ollama.ProgressResponse]:
        async def lines() -> AsyncIterator[ollama.ProgressResponse]:
            yield ollama.ProgressResponse(status="pulling manifest")

        return lines()

    monkeypatch.setattr(ollama.AsyncClient, "pull", ending)
    with pytest.raises(ModelError, match="the last line was 'pulling manifest'"):
        await pull.pull("simulated", lambda _event: None)


async def test_too_little_space_is_told_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_MIRROR", "http://127.0.0.1:9")

    class Full:
        free = 1e6

    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Full)
    with pytest.raises(ModelError, match=r"0\.0 GB free|1 MB free|needed") as caught:
        await pull.pull("live", lambda _event: None)
    assert "LABKIT_HOME" in caught.value.fix


async def test_a_models_life_is_timed_from_inside_and_outside() -> None:
    told = await Shown("simulated").lifecycle(keep_alive="1s")
    first, second, third = told.of("answer")
    assert first["load_s"] > 0.3
    assert third["load_s"] > 0.3
    assert second["load_s"] == 0
    for answer in (first, second, third):
        assert answer["load_s"] + answer["prompt_s"] <= answer["ttft_s"] <= answer["took_s"]
    assert told.one("expired")["after_s"] >= 0.9
    (process_event,) = told.of("process")
    assert process_event["role"] == "server"
    native, openai = told.of("api")
    assert "load_duration" in native["fields"]
    assert "usage.total_tokens" in openai["fields"]
    assert native["text"] == openai["text"]
    assert told.about["asked"] == {"prompt": lifecycle.PROMPT, "keep_alive": "1s"}


async def test_a_model_that_stays_long_is_not_waited_for() -> None:
    told = await Shown("simulated").lifecycle(keep_alive="5m")
    assert told.one("expired")["after_s"] is None


async def test_the_model_with_the_shortest_keep_alive_is_evicted() -> None:
    told = await Shown("simulated").evictions()
    loads = told.of("load")
    assert [load["evicted"] for load in loads] == [[], [], [], ["q4_K_M"], [], ["q4_K_S"]]
    assert [load["was_loaded"] for load in loads] == [False] * 4 + [True, False]
    assert all(len(load["loaded"]) <= told.one("limit")["max_loaded_models"] for load in loads)
    assert max(load["took_s"] for load in loads if load["was_loaded"]) < 0.3


async def test_no_number_is_told_as_none_and_more_than_one_model_stays() -> None:
    told = await evictions.evictions("simulated", quiet, steps=evictions.STEPS[:2], max_loaded_models=None)
    assert told.one("limit")["max_loaded_models"] is None
    assert told.about["asked"] == {"max_loaded_models": None}
    assert len(told.of("load")[-1]["loaded"]) == 2


async def test_a_simulated_refusal_has_the_engines_words() -> None:
    told = await Shown("simulated").refusal(vllm=TOO_LONG)
    assert told.one("said")["text"].startswith("To serve at least one request")
    assert "kv_cache_gib" in told.one("refused")["fix"]
    with pytest.raises(UsageError, match="it started: this fits"):
        await Shown("simulated").refusal(vllm={"max_model_len": 1024})


async def test_recorded_ones_are_found_by_what_was_asked() -> None:
    lab = Shown("recorded")
    for told in (
        await lab.lifecycle(),
        await lab.lifecycle(keep_alive="5s"),
        await lab.evictions(),
        await lab.refusal(vllm=TOO_LONG),
        await lab.start_log("vllm"),
        await lab.gguf(),
    ):
        assert told.kind == "recorded"
    assert (await lab.lifecycle(keep_alive="5s")).one("expired")["keep_alive"] == "5s"
    with pytest.raises(UsageError, match=r"recorded is .*keep_alive='2s'"):
        await lab.lifecycle(keep_alive="9s")
    with pytest.raises(UsageError, match=r"recorded is .*max_loaded_models=3"):
        await lab.evictions(max_loaded_models=2)


async def test_where_no_engine_runs_the_file_is_the_head_that_comes_with_the_course() -> None:
    for mode in ("simulated", "recorded"):
        path = await Shown(mode).weights_file()
        assert path.is_relative_to(paths.data())
        assert gguf.read(path).version == 3
        assert (await Shown(mode).gguf()).kind == "recorded"


async def test_only_vllms_start_is_read() -> None:
    with pytest.raises(UsageError, match="only vLLM's"):
        await Shown("simulated").start_log("ollama")
    assert (await Shown("simulated").start_log()).kind == "recorded"


async def test_a_recorded_pull_is_replayed_in_its_order() -> None:
    told = transcript.recorded("pull")
    news: list[dict[str, Any]] = []
    assert await pull.replay(told, float("inf"), news.append) == told
    assert news == list(told.events)


def test_progress_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    demos.say("one line")
    assert capsys.readouterr().out == "one line\n"
