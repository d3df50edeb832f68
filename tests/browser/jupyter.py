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

import httpx
from playwright.async_api import Locator, Page

REPOSITORY = Path(__file__).parents[2]
SCREENSHOTS = REPOSITORY / "build" / "screenshots"
SERVER_START_S = 60
IDLE_S = 90
STILL_S = 2.0
"""How long no point may come for a chart to count as stopped; a running one gets several a second."""
LOOPBACK = {"127.0.0.1", "localhost"}

NOTEBOOK = "window.jupyterapp.shell.currentWidget"
FILLED = "cell.model.type === 'code' && cell.model.sharedModel.source.trim()"
POINTS = """() => {
    const shown = [...document.querySelectorAll("%s [data-points]")].map(e => +e.dataset.points);
    return shown.length ? shown.reduce((a, b) => a + b) : -1;
}"""
CONTRAST = """element => {
    const channels = colour => colour.match(/[\\d.]+/g).map(Number);
    const linear = c => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    const light = colour => {
        const [r, g, b] = channels(colour).map(linear);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    const ground = element => getComputedStyle(element).backgroundColor;
    let behind = element;
    while (behind !== document.body && channels(ground(behind))[3] === 0) behind = behind.parentElement;
    const pair = [getComputedStyle(element).color, ground(behind)];
    const [dark, bright] = pair.map(light).sort((a, b) => a - b);
    return bright / dark;
}"""
"""How much a text stands out from what is behind it, as the WCAG define it: from 1 to 21."""

PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""JupyterLab fills in cells a frame after they were scrolled to."""


@dataclass(frozen=True)
class Jupyter:
    """A running server and the folder that it shows."""

    url: str
    token: str
    root: Path

    def end_kernels(self) -> None:
        """Shut down what pages have left running."""
        authorized = {"Authorization": f"token {self.token}"}
        with httpx.Client(base_url=self.url, headers=authorized, trust_env=False, timeout=IDLE_S) as client:
            for kernel in client.get("/api/kernels").json():
                client.delete(f"/api/kernels/{kernel['id']}").raise_for_status()


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
        "PYTHONSTARTUP": REPOSITORY / "notebooks" / ".jupyter" / "startup.py",
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
        self._within = "body"

    async def open(self, notebook: Path) -> None:
        """Show a copy of the notebook in a fresh workspace, and wait for its kernel."""
        self._name = notebook.stem
        shutil.copy(notebook, self._server.root)
        workspace = secrets.token_hex(4)
        path = f"/lab/workspaces/{workspace}/tree/{notebook.name}?reset&token={self._server.token}"
        await self.page.goto(self._server.url + path)
        await self.page.wait_for_function("window.jupyterapp !== undefined")
        await self.page.wait_for_function(f"{NOTEBOOK}?.sessionContext !== undefined")
        await self.page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
        await self.theme("Light")
        await self.idle()
        await self.shot("opened")

    async def execute(self, code: str) -> None:
        """Run code in the kernel, as no cell."""
        await self.page.evaluate(
            f"""async code => {{
                const kernel = {NOTEBOOK}.sessionContext.session.kernel;
                const reply = await kernel.requestExecute({{ code, silent: true }}).done;
                if (reply.content.status !== "ok") throw new Error(reply.content.evalue);
            }}""",
            code,
        )

    async def look_at(self, number: int) -> None:
        """From now on buttons and points are those of the code cell with this number in :meth:`cells`."""
        self._within = f"#under-test-{number}"
        await self.page.evaluate(
            f"""async number => {{
                const notebook = {NOTEBOOK}.content;
                const all = notebook.widgets.map((cell, at) => [cell, at]);
                const [cell, at] = all.filter(([cell]) => {FILLED})[number];
                cell.node.id = `under-test-${{number}}`;
                await notebook.scrollToItem(at, "start");
            }}""",
            number,
        )

    async def run_cells(self, first: int, last: int) -> None:
        """Start these code cells, as the keyboard does one by one, and do not wait for them."""
        await self.page.evaluate(
            f"""numbers => {{
                const notebook = {NOTEBOOK}.content;
                const cells = notebook.widgets.filter(cell => {FILLED});
                const running = [];
                for (let number = numbers[0]; number <= numbers[1]; number++) {{
                    notebook.activeCellIndex = notebook.widgets.indexOf(cells[number]);
                    notebook.deselectAll();
                    running.push(window.jupyterapp.commands.execute("notebook:run-cell"));
                }}
                window.underTest = true;
                Promise.allSettled(running).then(() => {{ window.underTest = false; }});
            }}""",
            [first, last],
        )

    async def theme(self, name: str) -> None:
        """Change to JupyterLab's "Light" or "Dark" theme; the server keeps it for later pages."""
        chosen = f'"apputils:change-theme", {{ theme: "JupyterLab {name}" }}'
        await self.page.evaluate(f"() => window.jupyterapp.commands.execute({chosen})")
        body = f"body[data-jp-theme-name='JupyterLab {name}']"
        await self.page.wait_for_selector(body, state="attached")
        await self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    async def contrast(self, locator: Locator) -> float:
        """How much a text stands out from what is behind it."""
        ratio: float = await locator.evaluate(CONTRAST)
        return ratio

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
        return self.output("button.widget-button", has_text=re.compile(f"^{text}$"))

    def output(self, selector: str, has_text: re.Pattern[str] | None = None) -> Locator:
        """The first such thing among the outputs of the cell that is looked at, or of all."""
        return self.page.locator(f"{self._within} .jp-OutputArea :is({selector})", has_text=has_text).first

    @property
    def _points(self) -> str:
        return POINTS % self._within

    async def click(self, text: str) -> None:
        """Press a widget's button."""
        await self.button(text).click()

    async def points(self) -> int:
        """Points that the views say they have seen, together; -1 before there is a view."""
        points: int = await self.page.evaluate(self._points)
        return points

    async def points_above(self, number: int, timeout_s: float = IDLE_S) -> int:
        """Wait until the views have seen more points than this."""
        await self.page.wait_for_function(f"({self._points})() > {number}", timeout=timeout_s * 1000)
        return await self.points()

    async def stands_still(self) -> int:
        """Wait until the number of points is the same for a while; that number."""
        counts: int = await self.page.evaluate(
            f"""async () => {{
                const points = {self._points};
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
