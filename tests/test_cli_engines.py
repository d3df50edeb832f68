"""``labkit engines`` from the shell, on a server that is started, seen and stopped like an engine."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit import cli
from labkit.cli.engines import _settings_parser
from labkit.engines import process


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))


@pytest.fixture
def server() -> Iterator[process.ServerState]:
    port = process.free_port(0)

    async def listens() -> bool:
        return process.port_owner(port) is not None

    async def start() -> process.ServerState:
        return await process.launch(
            engine="vllm",
            argv=[sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)],
            env={},
            port=port,
            settings={"max_num_seqs": 4},
            owner="kernel",
            log_name=f"vllm-{port}.log",
            ready=listens,
            deadline_s=30,
            model="m",
        )

    state = asyncio.run(start())
    yield state
    asyncio.run(process.terminate(state))


def test_status_shows_settings_and_what_could_not_be_read(
    server: process.ServerState, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["engines", "status", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["engine"], row["port"], row["owner"]) == ("vllm", server.port, "kernel")
    assert row["settings"] == {"max_num_seqs": 4}
    assert row["facts"] is None
    assert "404" in row["error"]
    assert cli.main(["engines", "status"]) == 0
    assert server.url in capsys.readouterr().out


def test_stop_proves_that_it_stopped(server: process.ServerState, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engines", "stop", "ollama"]) == 0
    assert process.states() == [server]
    assert cli.main(["engines", "stop", "--all"]) == 0
    assert "port" in capsys.readouterr().err
    assert process.states() == []
    assert process.port_owner(server.port) is None
    assert cli.main(["engines", "stop", "--all"]) == 0
    assert "nothing that labkit started is running" in capsys.readouterr().out


def test_what_runs_is_not_removed(server: process.ServerState, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engines", "remove", "vllm"]) == 1
    assert "labkit engines stop vllm" in capsys.readouterr().err


def test_logs_of_the_newest_server(server: process.ServerState, capsys: pytest.CaptureFixture[str]) -> None:
    Path(server.log).write_text("one\ntwo\nthree\n")
    assert cli.main(["engines", "logs", "vllm", "-n", "2"]) == 0
    assert capsys.readouterr().out == "two\nthree\n"
    assert cli.main(["engines", "logs", "ollama"]) == 1


def test_stop_wants_to_know_which() -> None:
    assert cli.main(["engines", "stop"]) == 2


def test_each_setting_is_a_flag_and_only_given_ones_count() -> None:
    parser = _settings_parser("vllm")
    assert vars(parser.parse_args([])) == {}
    words = ["--max-num-seqs", "4", "--kv-cache-gib", "0.5", "--no-prefix-caching", "--cpu-threads", "all"]
    given = vars(parser.parse_args(words))
    assert given == {"max_num_seqs": 4, "kv_cache_gib": 0.5, "prefix_caching": False, "cpu_threads": "all"}
    with pytest.raises(SystemExit):
        parser.parse_args(["--max-num-seqs", "many"])


def test_a_simulated_server_is_started_shown_and_stopped(
    server: process.ServerState, capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(process.free_port(0))
    words = ["--port", port, "--time-scale", "2", "--max-num-seqs", "3"]
    assert cli.main(["engines", "start", "vllm", "--simulated", *words]) == 0
    told = capsys.readouterr()
    assert "slots: 3" in told.out
    assert "simulated-vllm: ready" in told.err
    assert cli.main(["engines", "status"]) == 0
    [shown] = [line for line in capsys.readouterr().out.splitlines() if port in line]
    assert shown.startswith("simulated-vllm")
    assert "profile cpu-2core-smollm2-135m, 2 times real time" in shown
    assert cli.main(["engines", "logs", "vllm", "--simulated"]) == 0
    assert f"simulated-vllm-{port}.log" in capsys.readouterr().err
    assert cli.main(["engines", "stop", "vllm", "--simulated"]) == 0
    assert process.states() == [server]


def test_the_word_simulated_may_stand_before_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    port = str(process.free_port(0))
    assert cli.main(["engines", "start", "--simulated", "ollama", "--port", port]) == 0
    assert f"http://127.0.0.1:{port}" in capsys.readouterr().out
    assert cli.main(["engines", "stop", "ollama"]) == 0
    assert [state.engine for state in process.states()] == ["simulated-ollama"]
    assert cli.main(["engines", "stop", "--all"]) == 0
    assert process.states() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--time-scale", "2"], "with time_scale\nSeen: a real engine has none"),
        (["--profile", "p"], "with profile\nSeen: a real engine has none"),
        (["--simulated", "--profile", "no-such"], "no such profile"),
        (["--simulated", "--time-scale", "0.5"], "time_scale=0.5"),
        (["--simulated", "--model", "smollm2:135m"], "it serves its profile's"),
    ],
)
def test_what_cannot_be_simulated_is_told(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["engines", "start", "vllm", *words]) == 2
    assert said in capsys.readouterr().err
    assert process.states() == []
