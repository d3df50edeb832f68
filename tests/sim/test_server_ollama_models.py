"""The simulated Ollama's models: layers of a pull, and quantisations made from one file."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import ollama
import pytest

from labkit.sim import profile as profiles
from labkit.sim.server.ollama_library import Library

from .conftest import Start

NAME = "labkit/smollm2:135m-f16"


@pytest.fixture
async def client(start: Start) -> AsyncIterator[ollama.AsyncClient]:
    here = await start("ollama")
    async with ollama.AsyncClient(here.url, trust_env=False) as client:
        yield client


async def test_a_pull_tells_of_the_layers_that_the_library_has(client: ollama.AsyncClient) -> None:
    await client.delete(NAME)
    last = {line.digest: line async for line in await client.pull(NAME, stream=True) if line.digest}
    library = Library(profiles.load(profiles.DEFAULT))
    entry = library.find(NAME)
    assert entry is not None
    layers = {f"sha256:{layer.digest}": layer for layer in library.layers(entry)}
    assert last.keys() == layers.keys()
    assert all(line.completed == line.total == layers[digest].bytes for digest, line in last.items())
    shown = await client.show(NAME)
    (template,) = (layer for layer in layers.values() if layer.kind == "template")
    assert template.digest == hashlib.sha256((shown.template or "").encode()).hexdigest()


async def test_a_quantisation_is_another_file(client: ollama.AsyncClient) -> None:
    made = await client.create("labkit/smollm2:135m-q8_0", from_=NAME, quantize="q8_0")
    assert made.status == "success"
    details = {str(row.model): row for row in (await client.list()).models}
    new, old = details["labkit/smollm2:135m-q8_0"], details[NAME]
    assert new.digest != old.digest
    assert new.details is not None
    assert new.details.quantization_level == "Q8_0"


async def test_what_cannot_be_made_is_refused(client: ollama.AsyncClient) -> None:
    with pytest.raises(ollama.ResponseError, match="not found"):
        await client.create("x", from_="nothing", quantize="q8_0")
    with pytest.raises(ollama.ResponseError, match="was specified"):
        await client.create("x", from_=NAME)
