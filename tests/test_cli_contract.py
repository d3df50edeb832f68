"""``labkit contract`` on the shell: what it prints, its exit codes, and servers that are no engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from small_server import Reply, serving

from labkit import contract, paths
from labkit.cli import main
from labkit.engines.ports import free_port

CHECKS = """
schema_version = 1
[[check]]
id = "c"
title = "A title."
request = "POST /c"
[check.ollama]
status = 200
"json.a" = 1
[check.vllm]
status = 200
"json.a" = { between = [2, 3] }
"json.b" = { exists = true }
[[check]]
id = "d"
title = "Another."
request = "GET /d"
[check.ollama]
status = 200
"""


@pytest.fixture(autouse=True)
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A contract of two checks in the place of the course's own."""
    (tmp_path / "contract.toml").write_text(CHECKS)
    monkeypatch.setattr(paths, "data", lambda: tmp_path)


async def ran(*argv: str, a: int = 1) -> int:
    """The exit code of the command against a server that is Ollama."""
    async with serving({"/c": Reply({"a": a}), "/d": Reply({})}) as server:
        return await asyncio.to_thread(main, ["contract", "--url", server.url, "--engine", "ollama", *argv])


async def test_all_held_is_0_and_a_difference_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert await ran() == 0
    assert "2 held, 0 differs, 0 error" in capsys.readouterr().out
    assert await ran(a=2) == 1
    assert "differs c: A title." in capsys.readouterr().out


async def test_some_checks_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert await ran("--check", "c", "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["id"], told["request"], told["status"]) == ("c", "POST /c", "held")
    # what vLLM's replies have and this one has not
    assert told["unlike"] == {
        "json.a": {"got": "1", "other": "between 2 and 3"},
        "json.b": {"got": "absent", "other": "present"},
    }


async def test_outcomes_are_told_as_they_come_and_a_model_is_chosen() -> None:
    seen: list[contract.Outcome] = []
    async with serving({"/c": Reply({"a": 1}), "/d": Reply({})}) as server:
        outcomes = await contract.run(server.url, "ollama", on_outcome=seen.append)
    assert seen == outcomes
    assert outcomes[1].unlike == {}  # a check of one engine alone


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--check", "nope"], 2, "checks of ollama are c, d"),
        (["--model", "other"], 1, "it has m"),
    ],
)
async def test_what_cannot_be_asked_is_a_sentence(
    argv: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await ran(*argv) == code
    assert words in capsys.readouterr().err


async def test_a_dead_and_a_foreign_server(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port(0)}"
    assert await asyncio.to_thread(main, ["contract", "--url", url, "--engine", "vllm"]) == 1
    assert "does not answer" in capsys.readouterr().err
    given: dict[str, Any] = {"/v1/models": Reply({"data": []})}
    async with serving(given) as server:
        argv = ["contract", "--url", server.url, "--engine"]
        assert await asyncio.to_thread(main, [*argv, "vllm"]) == 1
        assert "it is ollama" in capsys.readouterr().err
        assert await asyncio.to_thread(main, [*argv, "ollama"]) == 1
        assert "it has no models" in capsys.readouterr().err
