"""What a lab shows beside load runs, on the real Ollama: a pull from this machine, and a model's life."""

from __future__ import annotations

import os
from typing import Any

import pytest

from labkit.demos import lifecycle, pull
from labkit.engines import process
from labkit.engines.base import quiet
from labkit.engines.model_files import models_home

pytestmark = pytest.mark.engines


def left_over() -> list[object]:
    """Servers and unfinished folders of this process."""
    mine = os.getpid()
    servers = [state for state in process.states() if state.owner_pid == mine]
    return [*servers, *models_home().glob(f".partial-{mine}-*")]


async def test_a_pull_without_the_registry_comes_from_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_MIRROR", raising=False)
    monkeypatch.setattr(pull, "REGISTRY", "http://127.0.0.1:9")
    monkeypatch.setattr(pull, "MIRROR_BYTES_PER_S", 400e6)
    news: list[dict[str, Any]] = []
    told = await pull.pull("live", news.append)
    assert told.one("source")["source"] == "mirror"
    layers = {layer["kind"]: layer for layer in told.of("layer")}
    assert {"model", "template", "system", "license", "config"} <= layers.keys()
    assert layers["model"]["bytes"] > 100e6
    big = [event for event in told.of("progress") if event["digest"] == layers["model"]["digest"]]
    assert {event["total"] for event in big} == {layers["model"]["bytes"]}
    came = [event["completed"] for event in big]  # Ollama's last word may come before the last bytes
    assert came == sorted(came)
    assert came[-1] > came[0]
    assert left_over() == []


async def test_a_real_models_life_has_a_child_with_its_file() -> None:
    told = await lifecycle.lifecycle("live", quiet, keep_alive="1s")
    first, second, _third = told.of("answer")
    assert first["load_s"] > 10 * second["load_s"]
    assert {event["role"]: event["program"] for event in told.of("process")} == {
        "server": "ollama",
        "child": "llama-server",
    }
    assert told.one("expired")["after_s"] >= 0.9
    assert left_over() == []
