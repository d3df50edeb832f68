"""Execute notebooks without a browser: papermill runs them, this module counts, keeps engines up and reports.

The runner owns the engines that its notebooks start (``LABKIT_OWNER_PID``): one that fits the next notebook's
settings stays up between the two, and all end with the runner, whatever ends it.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from labkit.engines import process
from labkit.errors import MissingExtra, StopFailed, UsageError

try:
    import nbformat
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellControlSignal
    from nbconvert import HTMLExporter
    from papermill.exceptions import PapermillException, PapermillExecutionError
except ImportError as error:
    raise MissingExtra("execute notebooks", str(error), "pip install 'labkit[lab]'") from error

CELL_TIMEOUT_S = {"smoke": 15 * 60, "short": 60 * 60, "normal": 6 * 3600, "long": 48 * 3600}
"""Longest time for one cell, by budget: the cell that awaits the largest sweep, several times over."""
KERNEL_START_S = 120
QUIET_KERNEL = ["--IPKernelApp.log_level=50"]
"""CRITICAL: kernels would warn of unencrypted loopback sockets, and of the interrupt that ends them."""
LOG_LINES = 20
WATCH_EVERY_S = 0.5

OFFLINE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock html_head_js -%}
{%- block jupyter_widgets -%}{%- endblock jupyter_widgets -%}
{%- block html_head_js_mathjax -%}{%- endblock html_head_js_mathjax -%}
{%- block html_head_js_mermaidjs -%}{%- endblock html_head_js_mermaidjs -%}
{%- block data_png scoped -%}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data['image/png'] }}"
 alt="{{ output | get_metadata('alt', 'image/png') or '' | escape_html }}"></div>
{%- endblock data_png -%}
"""
"""nbconvert's page less the scripts it fetches from public servers; figures keep their alt text."""

LIVE_ONLY = {"application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"}
"""Outputs that only a running JupyterLab can draw; on a page their PNG twins stand for them."""


@dataclass(frozen=True)
class Result:
    """What came of one notebook.

    Attributes:
        depth: live, simulated or recorded, as the notebook's badge says; "-" if it shows none.
        cells: code cells that ran to their end.
        planned: code cells in the source that are not empty.
        seconds: wall time, kernel start included.
        engine_starts: engine servers that were started while it ran.
        failure: None, or the failing cell's source, the error and the end of the engines' logs.
    """

    notebook: Path
    depth: str
    cells: int
    planned: int
    seconds: float
    engine_starts: int
    failure: str | None


def execute(
    notebooks: Sequence[Path], *, mode: str, budget: str, out: Path, progress: Callable[[str], None]
) -> list[Result]:
    """Execute notebooks one after the other into ``out``, as .ipynb and as .html that needs no network.

    A notebook that fails does not keep the later ones from running.

    Raises:
        UsageError: nothing to execute, a file that cannot be, or two files of one name.
    """
    sources = _read_all(notebooks)
    out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    with _ownership(progress) as left_running:
        for notebook, source in zip(notebooks, sources, strict=True):
            progress(f"{notebook.name}: running ({mode}, {budget})")
            result = _execute(notebook, source, mode, budget, out)
            progress(
                f"{notebook.name}: {'failed' if result.failure else 'done'}, see {out / notebook.stem}.html"
            )
            results.append(result)
    if left_running:  # told with the last notebook: the others' results are worth no less
        told = filter(None, [results[-1].failure, *left_running])
        results[-1] = replace(results[-1], failure="\n\n".join(told))
    return results


def table(results: Sequence[Result]) -> str:
    """The results as aligned text, one notebook a line and their sum below."""
    rows = [("notebook", "depth", "cells", "minutes", "engine starts", "result")]
    rows += [
        (
            result.notebook.name,
            result.depth,
            f"{result.cells}/{result.planned}",
            f"{result.seconds / 60:.1f}",
            str(result.engine_starts),
            "failed" if result.failure else "ok",
        )
        for result in results
    ]
    failed = sum(result.failure is not None for result in results)
    rows.append(
        (
            "total",
            "",
            f"{sum(result.cells for result in results)}/{sum(result.planned for result in results)}",
            f"{sum(result.seconds for result in results) / 60:.1f}",
            str(sum(result.engine_starts for result in results)),
            f"{failed} failed" if failed else "ok",
        )
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _read(notebook: Path) -> Any:
    """The notebook, fit to be executed."""
    try:
        source = nbformat.read(notebook, as_version=4)
    except FileNotFoundError:
        raise UsageError(f"execute {notebook}", "no such file", "ls notebooks/") from None
    except (ValueError, nbformat.ValidationError) as error:
        raise UsageError(f"execute {notebook}", f"not a notebook: {error}", "name an .ipynb file") from None
    if "name" not in source.metadata.get("kernelspec", {}):
        fix = "open it in JupyterLab, choose a kernel, save"
        raise UsageError(f"execute {notebook}", "its metadata names no kernel", fix)
    return source


def _read_all(notebooks: Sequence[Path]) -> list[Any]:
    if not notebooks:
        raise UsageError("execute notebooks", "there are none", "name one, or go where notebooks/ is")
    names = [notebook.name for notebook in notebooks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError("execute notebooks", f"two are called {twice.pop()}", "give each run its own --out")
    return [_read(notebook) for notebook in notebooks]


@contextmanager
def _ownership(progress: Callable[[str], None]) -> Iterator[list[str]]:
    """Make this process the owner of what the kernels start, and stop that in the end.

    What could not be stopped is in the yielded list then.
    """
    os.environ[process.OWNER_PID] = str(os.getpid())
    left_running: list[str] = []
    try:
        yield left_running
    finally:
        del os.environ[process.OWNER_PID]
        for state in process.states():
            if state.owner_pid == os.getpid():
                try:
                    asyncio.run(process.terminate(state))
                except StopFailed as error:
                    progress(str(error))
                    left_running.append(str(error))


def _execute(notebook: Path, source: Any, mode: str, budget: str, out: Path) -> Result:
    target = out / notebook.name
    target.unlink(missing_ok=True)
    started = time.monotonic()
    error = None
    with _Starts() as starts:
        try:
            papermill.execute_notebook(
                notebook,
                target,
                parameters={"MODE": mode, "BUDGET": budget},
                cwd=notebook.parent,
                progress_bar=False,
                start_timeout=KERNEL_START_S,
                execution_timeout=CELL_TIMEOUT_S[budget],
                store_widget_state=False,
                extra_arguments=QUIET_KERNEL,
            )
        except (PapermillException, CellControlSignal, NoSuchKernel, RuntimeError) as raised:
            error = raised  # RuntimeError: how nbclient says that the kernel died or never came up
    executed = nbformat.read(target, as_version=4) if target.exists() else source
    ran, failing = _split(executed, error)
    planned = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in source.cells)
    failure = None
    if error:
        failure = "\n\n".join([failing, _plain(error), *starts.log_tails()])
    elif not 0 < planned == ran:
        failure = f"{ran} of {planned} cells were executed"
    target.with_suffix(".html").write_text(_page(executed, notebook.stem), encoding="utf-8")
    seconds = time.monotonic() - started
    return Result(notebook, _depth(executed), ran, planned, seconds, len(starts.seen), failure)


def _plain(error: Exception) -> str:
    """The error as text; a cell's traceback less its terminal colours."""
    text = "\n".join(error.traceback) if isinstance(error, PapermillExecutionError) else str(error)
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _split(executed: Any, error: Exception | None) -> tuple[int, str]:
    """How many cells of the source ran to their end, and the source of the one that did not.

    Nothing is begun after a cell that raised, met the timeout or saw the kernel die: it is the last begun.
    """
    cells = [
        cell
        for cell in executed.cells
        if cell.cell_type == "code"
        and cell.source.strip()
        and "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    if error is None:
        return sum(cell.execution_count is not None for cell in cells), ""
    begun = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    if not begun:
        return 0, "no cell was begun"
    return len(begun) - 1, f"the cell:\n{begun[-1].source}"


def _depth(executed: Any) -> str:
    """What the notebook's first badge, the lab's, says in its metadata, ``{"labkit": {"depth": …}}``."""
    depths = [
        output.metadata.labkit.depth
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if "labkit" in output.get("metadata", {})
    ]
    return depths[0] if depths else "-"


def _page(executed: Any, title: str) -> str:
    """One HTML file with pictures and styles inside, and no script that is fetched."""
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not LIVE_ONLY & set(o.get("data", {}))]
    page, _ = HTMLExporter(raw_template=OFFLINE, embed_images=True).from_notebook_node(
        executed, resources={"metadata": {"name": title}}
    )
    return str(page)


class _Starts(threading.Thread):
    """Sees the engines that come up under this process's ownership while a notebook runs."""

    def __init__(self) -> None:
        super().__init__(name="labkit engine starts", daemon=True)
        self._before = self._mine()
        self._done = threading.Event()
        self.seen: dict[int, process.ServerState] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        """Look until told to stop, and once more then."""
        while True:
            last = self._done.wait(WATCH_EVERY_S)
            mine = self._mine()
            self.seen |= {pid: state for pid, state in mine.items() if pid not in self._before}
            if last:
                return

    def log_tails(self) -> list[str]:
        """The end of each log of an engine that was up at some time."""
        logs = {state.log: state.engine for state in (self._before | self.seen).values()}
        return [
            f"end of {engine}'s log ({log}):\n" + "\n".join(process.tail(Path(log), LOG_LINES))
            for log, engine in logs.items()
        ]

    @staticmethod
    def _mine() -> dict[int, process.ServerState]:
        return {state.pid: state for state in process.states() if state.owner_pid == os.getpid()}
