"""What engines reuse: the two rules told by one list of questions, and what a reader may ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from labkit import transcript
from labkit.arms import Arm
from labkit.demos import reuse
from labkit.engines.base import quiet
from labkit.engines.simulated import SimulatedOllama, SimulatedVLLM
from labkit.errors import EngineError, UsageError
from labkit.lab import Lab
from labkit.transcript import Event, Transcript

MODEL = "smollm2:135m"
CLASSES = {"vllm": SimulatedVLLM, "ollama": SimulatedOllama}


@pytest.fixture(params=list(CLASSES))
async def arm(request: pytest.FixtureRequest) -> AsyncIterator[Arm]:
    engine = CLASSES[request.param](time_scale=5)
    settings = dict(reuse.SETTINGS[request.param])
    await engine.start(**settings)
    await engine.load(MODEL)
    yield Arm(request.param, engine, MODEL, settings=settings)
    await engine.stop()


def cases(told: Transcript) -> dict[str, Event]:
    """The last answer of each case."""
    return {event["case"]: event for event in told.of("ask")}


async def test_both_reuse_what_is_idle_and_only_one_what_is_busy(arm: Arm) -> None:
    told = await reuse.reuse("simulated", arm, quiet)
    blocks = arm.engine.name == "vllm"
    asked = cases(told)
    cached = {case: event["cached_tokens"] for case, event in asked.items()}
    assert cached["cold"] == 0
    size = told.about["block_size"] or 1
    again = asked["same again"]["prompt_tokens"] - 1  # the last token is always computed
    assert cached["same again"] == again // size * size
    assert cached["longer by a question"] >= cached["same again"]
    assert cached["early token changed"] < 10 < cached["late token changed"]
    assert asked["busy: same prefix meanwhile"]["busy"]
    assert (cached["busy: same prefix meanwhile"] > 10) == blocks
    assert cached["idle: same prefix"] > 10
    assert cached["pressure: again"] > 10
    assert (cached["pressure: after others"] == 0) == blocks
    pool = told.one("pool")
    assert not blocks or pool["other_tokens"] > pool["kv_tokens"]
    assert [event["t_s"] for event in told.events] == sorted(event["t_s"] for event in told.events)
    assert told.about["time_scale"] == 5
    assert asked["same again"]["ttft_s"] < asked["cold"]["ttft_s"]


async def test_an_own_text_is_new_each_time_it_is_asked_about(arm: Arm) -> None:
    text = "You answer in one short sentence. " * 30
    for _ in range(2):
        told = await reuse.reuse("simulated", arm, quiet, text=text)
        asked = cases(told)
        assert asked["cold"]["cached_tokens"] < 10 < asked["same again"]["cached_tokens"]
    assert told.about["asked"] == {"engine": arm.engine.name, "text": text, **arm.settings}


async def test_a_text_that_does_not_fit_is_refused_in_the_engines_words() -> None:
    engine = SimulatedVLLM(time_scale=5)
    await engine.start(max_model_len=128)
    try:
        with pytest.raises(EngineError, match="maximum context length is 128"):
            await reuse.reuse("simulated", Arm("vLLM", engine, MODEL), quiet)
    finally:
        await engine.stop()


async def test_a_lab_starts_its_own_engine_for_it_and_later_measurements_do_not_keep_its_settings() -> None:
    lab = Lab("simulated", "smoke")
    told = await lab.reuse("ollama")
    assert (told.about["slots"], lab.ollama.asked) == (2, {"num_parallel": 2})
    assert lab._depth.settings("ollama", None) == {}
    with pytest.raises(UsageError, match="one of ollama, vllm"):
        await lab.reuse("llama.cpp")
    await lab.close()


async def test_a_recorded_lab_has_what_was_kept_and_says_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcript, "_home", lambda: tmp_path)
    for number, (name, settings) in enumerate(reuse.SETTINGS.items(), start=1):
        asked: dict[str, Any] = {"engine": name, "text": None, **settings}
        transcript.keep(Transcript("reuse", "live", {"engine": name, "asked": asked}, ()), number=number)
    lab = Lab("recorded", "smoke")
    for name in reuse.SETTINGS:
        assert (await lab.reuse(name)).about["engine"] == name
    with pytest.raises(UsageError, match="num_parallel=2"):
        await lab.reuse("ollama", text="my own")
    await lab.close()
