"""Fixtures of the browser tests: a server and a page that are each used once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Route, async_playwright

from tests.browser.jupyter import Jupyter, Lesson, is_loopback, jupyter
from tests.conftest import browser

FLAGS = [
    "--no-sandbox",  # for root in a container; the only pages are our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Jupyter]:
    with jupyter(tmp_path) as running:
        yield running


@pytest.fixture
async def lesson(server: Jupyter) -> AsyncIterator[Lesson]:
    """A page that may talk to this machine only; leaving it, or an error in a script, fails the test."""
    left: list[str] = []
    broken: list[str] = []

    async def guard(route: Route) -> None:
        if is_loopback(route.request.url):
            await route.continue_()
        else:
            left.append(route.request.url)
            await route.abort()

    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=browser(), args=FLAGS)
        page = await chromium.new_page(viewport={"width": 1280, "height": 900}, service_workers="block")
        await page.route("**/*", guard)
        page.on("websocket", lambda socket: None if is_loopback(socket.url) else left.append(socket.url))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.on("console", lambda message: broken.append(message.text) if message.type == "error" else None)
        yield Lesson(page, server)
        await chromium.close()
    assert left == []
    assert broken == []
