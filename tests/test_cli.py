"""The shell's door: commands, exit codes, and what is printed when something is wrong."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from labkit import __version__, cli
from labkit.errors import EngineError, LabkitError, UsageError


def exit_code(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> int:
    """What ``labkit`` returns when its command raises this."""

    def command(_args: argparse.Namespace) -> int:
        raise raised

    def parser() -> argparse.ArgumentParser:
        top = argparse.ArgumentParser()
        top.set_defaults(func=command)
        return top

    monkeypatch.setattr(cli, "parser", parser)
    return cli.main([])


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (LabkitError("did this"), 1),
        (EngineError("did this"), 1),
        (UsageError("did this"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int) -> None:
    assert exit_code(monkeypatch, raised) == code


def test_error_is_three_sentences_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code(monkeypatch, EngineError("start vLLM", "port taken", "stop it"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "labkit: start vLLM\nSeen: port taken\nNext: stop it\n"


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(monkeypatch, ZeroDivisionError())


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: labkit {command}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"labkit {__version__}\n"


def test_no_command_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 2


def test_start_up_imports_nothing_heavy() -> None:
    """``labkit bench`` is measured on its CPU time: what other commands need must not be paid by it."""
    look = "import sys; from labkit import cli; cli.parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
    assert not {"polars", "papermill", "nbconvert", "plotly", "aiohttp"} & set(loaded.split())
