"""Real Ollama servers with model stores of their own, apart from those of ``LABKIT_HOME``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from labkit.engines.install import find_ollama
from labkit.engines.ports import free_port

if TYPE_CHECKING:
    from labkit.engines.ollama import Ollama


@contextmanager
def serving(folder: Path) -> Iterator[Ollama]:
    """A server whose models are in ``folder/models``."""
    from labkit.engines.ollama import Ollama

    program = find_ollama()
    assert program
    folder.mkdir()
    url = f"http://127.0.0.1:{free_port(0)}"
    env = {
        **os.environ,
        "HOME": str(folder),
        "OLLAMA_HOST": url,
        "OLLAMA_MODELS": str(folder / "models"),
        "OLLAMA_NO_CLOUD": "1",
    }
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([program, "serve"], env=env, stderr=log) as server,
    ):
        try:
            with httpx.Client(transport=httpx.HTTPTransport(retries=7)) as client:
                client.get(url).raise_for_status()
            yield Ollama(url)
        finally:
            server.terminate()


@pytest.fixture
def ollama_server(tmp_path: Path) -> Iterator[Ollama]:
    """A running Ollama without models."""
    with serving(tmp_path / "first") as engine:
        yield engine


@pytest.fixture
def ollama_models(ollama_server: Ollama, tmp_path: Path) -> Path:
    """The models folder of ``ollama_server``."""
    return tmp_path / "first" / "models"


@pytest.fixture
def second_ollama_server(tmp_path: Path) -> Iterator[Ollama]:
    """Another running Ollama without models."""
    with serving(tmp_path / "second") as engine:
        yield engine
