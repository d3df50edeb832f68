"""The doctor on this machine as it is, and with things missing."""

from __future__ import annotations

import json
import subprocess
import sys
from html import escape
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from labkit import cli, doctor
from labkit.doctor import Row

without_vllm = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is in this very environment")


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing installed, whatever this machine has."""
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LABKIT_OLLAMA_URL", raising=False)
    monkeypatch.delenv("LABKIT_VLLM_URL", raising=False)


@without_vllm
def test_without_engines_it_says_how_to_get_them_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "→ labkit engines install ollama" in shown
    assert "→ labkit engines install vllm" in shown


def test_every_red_row_has_something_to_copy() -> None:
    rows = doctor.examine()
    assert {row.name for row in rows} >= {
        "system",
        "CPU",
        "memory",
        "disk",
        "GPU",
        "Python",
        "Ollama",
        "vLLM",
    }
    assert all(row.fix for row in rows if row.status == "red")
    assert {row.status for row in rows} <= {"ok", "warn", "red"}


@without_vllm
def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["can_run"] is False
    assert {"name", "status", "seen", "fix"} == set(said["rows"][0])


@without_vllm
def test_a_notebook_gets_a_table_with_what_to_copy_beside_each_red_row() -> None:
    found = doctor.examine()
    html = found._repr_html_()
    assert "No engine can run here yet." in html
    assert html.count('scope="row"') == len(found)
    for row in found:
        if row.status == "red":
            assert f"<code>{escape(row.fix)}</code>" in html
    assert repr(found) == doctor.table(found)


def test_what_was_seen_is_text_and_never_markup() -> None:
    html = doctor.Findings([Row("Ollama", "ok", "<b>0.34.0</b>")])._repr_html_()
    assert "&lt;b&gt;0.34.0" in html
    assert "At least one engine can run here." in html
    assert "<code>" not in html


def test_one_engine_is_enough() -> None:
    assert doctor.can_run([Row("Ollama", "ok", "0.34.0"), Row("vLLM", "red", "not installed", "install it")])
    assert not doctor.can_run([Row("Ollama", "red", "not installed", "install it"), Row("CPU", "ok", "")])


def test_a_named_server_that_does_not_answer_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_VLLM_URL", "http://127.0.0.1:9")
    [row] = [row for row in doctor.examine() if row.name == "vLLM"]
    assert (row.status, row.fix) == ("red", "unset LABKIT_VLLM_URL")


def test_an_engine_is_told_by_its_program_not_by_its_arguments(tmp_path: Path) -> None:
    script = tmp_path / "vllm"
    script.write_text("import time; print(flush=True); time.sleep(60)")
    for argv, engine in (([script], True), (["-c", script.read_text(), "a", "b", "vllm.log"], False)):
        with subprocess.Popen([sys.executable, *argv], stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            assert bool(doctor.ENGINE_PROCESS.search(doctor._command(psutil.Process(child.pid)))) is engine
            child.kill()


def test_a_listener_without_a_visible_owner_is_told_and_one_that_ended_voids_nothing() -> None:
    def listener(address: str, port: int, pid: int | None) -> SimpleNamespace:
        laddr = SimpleNamespace(ip=address, port=port)
        return SimpleNamespace(status=psutil.CONN_LISTEN, laddr=laddr, pid=pid)

    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    sockets = [
        listener("10.0.0.1", 11434, ended.pid),
        listener("0.0.0.0", 11434, None),
        listener("127.0.0.1", 8000, None),
        listener("::", 22, None),
    ]
    assert doctor._reachable(sockets) == ([], ["0.0.0.0:11434"])


@pytest.mark.engines
def test_with_engines_it_names_their_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_HOME")
    rows = {row.name: row for row in doctor.examine()}
    assert rows["vLLM"].status == rows["Ollama"].status == "ok"
    assert doctor.can_run(list(rows.values()))
