"""A real JupyterLab of the test's own, and a page in a real browser that shows one notebook."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Locator, Page

REPOSITORY = Path(__file__).parents[2]
SCREENSHOTS = REPOSITORY / "build" / "screenshots"
SERVER_START_S = 60
IDLE_S = 90
STILL_S = 2.0
"""How long no point may come for a chart to count as stopped; a running one gets several a second."""
LOOPBACK = {"127.0.0.1", "localhost"}

NOTEBOOK = "window.jupyterapp.shell.currentWidget"
POINTS = """() => {
    const shown = [...document.querySelectorAll("[data-points]")].map(e => +e.dataset.points);
    return shown.length ? shown.reduce((a, b) => a + b) : -1;
}"""

PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""JupyterLab fills in cells a frame after they were scrolled to."""


@dataclass(frozen=True)
class Jupyter:
    """A running server and the folder that it shows."""

    url: str
    token: str
    root: Path


@contextmanager
def jupyter(folder: Path) -> Iterator[Jupyter]:
    """JupyterLab with the course's settings, less autosave, and with no trace in the user's folders."""
    root, settings = folder / "root", folder / "settings"
    root.mkdir()
    manager = settings / "@jupyterlab" / "docmanager-extension" / "plugin.jupyterlab-settings"
    manager.parent.mkdir(parents=True)
    manager.write_text(json.dumps({"autosave": False}))
    token = secrets.token_hex(16)
    own = {
        "JUPYTER_CONFIG_DIR": folder / "config",
        "JUPYTER_CONFIG_PATH": REPOSITORY / "notebooks" / ".jupyter",
        "JUPYTER_DATA_DIR": folder / "data",
        "JUPYTER_RUNTIME_DIR": folder / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": settings,
        "JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces",
        "IPYTHONDIR": folder / "ipython",
        "JUPYTER_TOKEN": token,
    }
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", "--expose-app-in-browser"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                *options,
                "--LabApp.news_url=",
                f"--ServerApp.root_dir={root}",
            ],
            env={**os.environ, **{name: str(value) for name, value in own.items()}},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield Jupyter(_address(server, folder), token, root)
        finally:
            server.terminate()
            server.wait(timeout=60)


def _address(server: subprocess.Popen[bytes], folder: Path) -> str:
    """Where the server listens, as soon as it says so."""
    deadline = time.monotonic() + SERVER_START_S
    log = folder / "server.log"
    while time.monotonic() < deadline and server.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


class Lesson:
    """One notebook, open in the page, driven by what a learner sees and by JupyterLab's own commands."""

    def __init__(self, page: Page, server: Jupyter) -> None:
        self.page = page
        self._server = server
        self._shots = 0

    async def open(self, notebook: Path) -> None:
        """Show a copy of the notebook in a fresh workspace, and wait for its kernel."""
        self._name = notebook.stem
        shutil.copy(notebook, self._server.root)
        workspace = secrets.token_hex(4)
        path = f"/lab/workspaces/{workspace}/tree/{notebook.name}?reset&token={self._server.token}"
        await self.page.goto(self._server.url + path)
        await self.page.wait_for_function("window.jupyterapp !== undefined")
        await self.page.wait_for_function(f"{NOTEBOOK}?.sessionContext !== undefined")
        await self.idle()
        await self.shot("opened")

    async def run_all(self) -> None:
        """Start all cells, as the menu's Run All Cells does, and do not wait for them."""
        await self.page.evaluate(
            """() => {
                window.underTest = true;
                window.jupyterapp.commands.execute("notebook:run-all-cells").finally(() => {
                    window.underTest = false;
                });
            }"""
        )

    async def idle(self, timeout_s: float = IDLE_S) -> None:
        """Wait until the cells of :meth:`run_all` are through and the kernel has nothing to do."""
        await self.page.wait_for_function(
            f"() => !window.underTest && {NOTEBOOK}.sessionContext.session?.kernel?.status === 'idle'",
            timeout=timeout_s * 1000,
        )

    async def cells(self) -> list[dict[str, Any]]:
        """The notebook's code cells with their outputs, as they would be saved."""
        cells: list[dict[str, Any]] = await self.page.evaluate(f"() => {NOTEBOOK}.model.toJSON().cells")
        return [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]

    async def errors(self) -> list[str]:
        """Errors among the outputs."""
        return [
            f"{output['ename']}: {output['evalue']}"
            for cell in await self.cells()
            for output in cell["outputs"]
            if output["output_type"] == "error"
        ]

    def button(self, text: str) -> Locator:
        """A widget's button; JupyterLab's own have the same words in its menus."""
        return self.page.locator(
            ".jp-OutputArea button.widget-button", has_text=re.compile(f"^{text}$")
        ).first

    async def click(self, text: str) -> None:
        """Press a widget's button."""
        await self.button(text).click()

    async def points(self) -> int:
        """Points that the views say they have seen, together; -1 before there is a view."""
        points: int = await self.page.evaluate(POINTS)
        return points

    async def points_above(self, number: int, timeout_s: float = IDLE_S) -> int:
        """Wait until the views have seen more points than this."""
        await self.page.wait_for_function(f"({POINTS})() > {number}", timeout=timeout_s * 1000)
        return await self.points()

    async def stands_still(self) -> int:
        """Wait until the number of points is the same for a while; that number."""
        counts: int = await self.page.evaluate(
            f"""async () => {{
                const points = {POINTS};
                let last = points(), since = performance.now();
                while (performance.now() - since < {STILL_S * 1000}) {{
                    await new Promise(requestAnimationFrame);
                    if (points() !== last) {{ last = points(); since = performance.now(); }}
                }}
                return last;
            }}"""
        )
        return counts

    async def shot(self, what: str) -> None:
        """Keep a picture of the page for a person to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self._shots += 1
        await self.page.evaluate(PAINTED)
        await self.page.screenshot(path=SCREENSHOTS / f"{self._name}-{self._shots}-{what}.png")


def is_loopback(url: str) -> bool:
    """Whether a request stays on this machine."""
    return urlsplit(url).hostname in LOOPBACK
