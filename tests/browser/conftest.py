"""Fixtures of the browser tests: one server for all that have the same engines, and a page for each."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

import pytest
from playwright.async_api import Route, async_playwright

from labkit.engines import process
from tests.browser.jupyter import Jupyter, Lesson, is_loopback, jupyter
from tests.conftest import browser

SERVERS_GONE_S = 30
FLAGS = [
    "--no-sandbox",  # for root in a container; the only pages are our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Jupyter]]:
    """Gives the server whose kernels have the ``LABKIT_HOME`` of the moment; it starts at first use."""
    running: dict[str | None, Jupyter] = {}

    with ExitStack() as stack:

        def server() -> Jupyter:
            home = os.environ.get("LABKIT_HOME")
            if home not in running:
                running[home] = stack.enter_context(jupyter(tmp_path_factory.mktemp("jupyter")))
            return running[home]

        yield server


@pytest.fixture
def server(servers: Callable[[], Jupyter]) -> Jupyter:
    return servers()


@pytest.fixture
async def lesson(server: Jupyter) -> AsyncIterator[Lesson]:
    """A page that may talk to this machine only; leaving it, or an error in a script, fails the test.

    Its kernel ends with the test, and so must the engines that it started.
    """
    before = {state.pid for state in process.states()}
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
    server.end_kernels()
    async with asyncio.timeout(SERVERS_GONE_S):
        while {state.pid for state in process.states()} - before:  # noqa: ASYNC110  other processes end
            await asyncio.sleep(0.1)
    assert left == []
    assert broken == []
