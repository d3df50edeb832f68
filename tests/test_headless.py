"""Notebooks executed by real kernels: what is counted, what is reported, what is left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat import v4

from labkit import headless
from labkit.cli import main
from labkit.engines import process
from labkit.engines.base import quiet
from labkit.engines.ports import free_port
from labkit.errors import UsageError

LESSON = Path(__file__).parent / "fixtures" / "lesson.ipynb"
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}

START = """
import httpx
from labkit.engines import process

async def answers():
    async with httpx.AsyncClient(trust_env=False) as client:
        try:
            return (await client.get(f"http://127.0.0.1:{PORT}")).status_code == 200
        except httpx.TransportError:
            return False

server = process.inherited("web")
if server is None:
    import sys
    argv = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(PORT)]
    server = await process.launch(engine="web", argv=argv, env={}, port=PORT, settings={}, owner="kernel",
                                  log_name="web.log", ready=answers, deadline_s=60)
assert process.inherited("web") in (None, server)
"""
"""Stands for an engine: starts a web server as a kernel does, or uses the one that is already up."""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a notebook with these code cells."""

    def write(name: str, *sources: str) -> Path:
        parameters = v4.new_code_cell('MODE = ""\nBUDGET = ""', metadata={"tags": ["parameters"]})
        cells = [parameters, *map(v4.new_code_cell, sources)]
        path = tmp_path / name
        nbformat.write(v4.new_notebook(cells=cells, metadata=KERNEL), path)
        return path

    return write


def execute(*notebooks: Path, budget: str = "smoke") -> list[headless.Result]:
    out = notebooks[0].parent / "out"
    return headless.execute(notebooks, mode="live", budget=budget, out=out, progress=quiet)


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[headless.Result, Path]:
    out = tmp_path_factory.mktemp("out")
    (result,) = headless.execute([LESSON], mode="live", budget="smoke", out=out, progress=quiet)
    return result, out


def test_lesson_is_executed_and_counted(lesson: tuple[headless.Result, Path]) -> None:
    result, _ = lesson
    assert (result.failure, result.depth) == (None, "live")
    assert result.cells == result.planned == 8


def test_parameters_reach_the_notebook_and_widget_state_is_not_stored(
    lesson: tuple[headless.Result, Path],
) -> None:
    executed = nbformat.read(lesson[1] / "lesson.ipynb", as_version=4)
    assert "live</b>, budget smoke" in str(executed.cells)
    assert "widgets" not in executed.metadata


def test_page_fetches_nothing_and_describes_its_picture(lesson: tuple[headless.Result, Path]) -> None:
    page = (lesson[1] / "lesson.html").read_text()
    assert not re.search(r"""(?:src|import\(|@import|url\()\s*[=(]?\s*["']?(?:https?:)?//""", page)
    assert not re.search(r"<(?:script|link|iframe)[^>]+(?:src|href)=", page)
    assert 'alt="A line that rises ever faster."' in page
    assert "VBox(children=" not in page


def test_source_is_not_changed(write: Write) -> None:
    notebook = write("same.ipynb", "1 + 1")
    before = notebook.read_bytes()
    execute(notebook)
    assert notebook.read_bytes() == before


def test_raising_cell_is_quoted_and_the_next_notebook_runs(write: Write) -> None:
    broken, fine = execute(write("broken.ipynb", "1 / 0", "print('never')"), write("fine.ipynb", "2"))
    assert broken.failure is not None
    assert "1 / 0" in broken.failure
    assert "ZeroDivisionError: division by zero" in broken.failure
    assert "\x1b" not in broken.failure
    assert (broken.cells, broken.planned) == (1, 3)
    assert (fine.failure, fine.cells, fine.planned) == (None, 2, 2)


def test_killed_kernel_is_a_failure(write: Write) -> None:
    (result,) = execute(write("killed.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "2"))
    assert result.failure is not None
    assert "os.kill" in result.failure
    assert "died" in result.failure


def test_timeout_names_the_cell(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(headless.CELL_TIMEOUT_S, "smoke", 2)
    (result,) = execute(write("slow.ipynb", "import asyncio\nawait asyncio.Event().wait()", "2"))
    assert result.failure is not None
    assert "asyncio.Event().wait()" in result.failure
    assert "timed out" in result.failure
    assert (result.cells, result.planned) == (1, 3)


def test_unknown_kernel_is_a_failure(write: Write) -> None:
    notebook = write("elsewhere.ipynb", "1")
    notebook.write_text(notebook.read_text().replace('"name": "python3"', '"name": "no-such-kernel"'))
    (result,) = execute(notebook)
    assert result.failure is not None
    assert "no-such-kernel" in result.failure


def test_nothing_executed_is_a_failure(tmp_path: Path) -> None:
    empty = tmp_path / "empty.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("# Words")], metadata=KERNEL), empty)
    (result,) = execute(empty)
    assert result.failure == "0 of 0 cells were executed"


def test_bad_input_is_refused_before_anything_runs(write: Write, tmp_path: Path) -> None:
    good = write("good.ipynb", "1")
    prose = tmp_path / "prose.ipynb"
    prose.write_text("not json")
    nameless = tmp_path / "nameless.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("1")]), nameless)
    for bad in (prose, nameless, tmp_path / "absent.ipynb", tmp_path / ".." / tmp_path.name / "good.ipynb"):
        with pytest.raises(UsageError):
            execute(good, bad)
    with pytest.raises(UsageError):
        headless.execute([], mode="live", budget="smoke", out=tmp_path, progress=quiet)
    assert not (tmp_path / "out").exists()


def test_engine_stays_up_between_notebooks_and_ends_with_the_run(write: Write) -> None:
    source = f"PORT = {process.free_port(0)}\n{START}"
    results = execute(
        write("one.ipynb", source), write("two.ipynb", source), write("three.ipynb", source, "1 / 0")
    )
    assert [result.engine_starts for result in results] == [1, 0, 0]
    assert [bool(result.failure) for result in results] == [False, False, True]
    assert "end of web's log" in (results[2].failure or "")
    assert process.states("web") == []
    assert process.OWNER_PID not in os.environ


def test_killed_runner_leaves_no_engine(write: Write) -> None:
    wait = "import asyncio\nprint('up', flush=True)\nawait asyncio.Event().wait()"
    notebook = write("up.ipynb", f"PORT = {process.free_port(0)}\n{START}", wait)
    labkit = [sys.executable, "-c", "import sys; from labkit.cli import main; sys.exit(main())"]
    with subprocess.Popen(
        [*labkit, "run", str(notebook), "--out", str(notebook.parent / "out")], stdout=subprocess.DEVNULL
    ) as runner:
        server = wait_for_server(runner)
        runner.send_signal(signal.SIGKILL)
    server.wait(timeout=30)
    assert not server.is_running()


def wait_for_server(runner: subprocess.Popen[bytes]) -> psutil.Process:
    """The server that the runner's kernel started."""
    while runner.poll() is None:
        if found := process.states("web"):
            return psutil.Process(found[0].pid)
        time.sleep(0.05)
    raise AssertionError("the runner ended before its server was up")


def test_command_prints_the_table_and_the_failure(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    fine, broken = write("fine.ipynb", "1"), write("broken.ipynb", "1 / 0")
    arguments = ["--mode", "live", "--budget", "smoke", "--out", str(fine.parent / "out")]
    assert main(["run", str(fine), *arguments]) == 0
    assert "fine.ipynb  -      2/2" in capsys.readouterr().out
    assert main(["run", str(fine), str(broken), *arguments]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^total +3/4 +\d+\.\d +0 +1 failed$", out, re.M)
    assert "broken.ipynb failed" in out
    assert "1 / 0" in out


def test_auto_says_why_it_is_not_live(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["run", str(write("fine.ipynb", "1")), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "not live" in out
    assert "make engines" in out


async def test_an_engine_that_cannot_be_stopped_costs_no_result(write: Write) -> None:
    async def at_once() -> bool:
        return True

    port = free_port(0)
    argv = [sys.executable, "-c", "import time; time.sleep(600)"]
    await process.launch(
        engine="web",
        argv=argv,
        env={},
        port=port,
        settings={},
        owner="kernel",
        log_name="web.log",
        ready=at_once,
        deadline_s=60,
    )
    with socket.create_server(("127.0.0.1", port)):  # its port is taken when it is gone
        first, second = await asyncio.to_thread(
            execute, write("first.ipynb", "1"), write("second.ipynb", "2")
        )
    assert first.failure is None
    assert (second.cells, second.planned) == (2, 2)
    assert "listens on the port" in str(second.failure)
