"""Where tests find things, and which of them can run here.

Tests marked ``engines`` need both engines, the proxies and the fair pair's model in the real
``LABKIT_HOME``; tests marked ``browser`` need Chromium. Where those are missing the tests are skipped with
the reason, or fail with it if ``LABKIT_REQUIRE`` names the marker. All other tests get a ``LABKIT_HOME`` that
starts empty.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
REAL_HOME = os.environ.get("LABKIT_HOME")
LONGEST = "test_notebooks.py"
SCRATCH = Path(tempfile.mkdtemp(prefix="labkit-tests-"))


def browser() -> str | None:
    """The browser that the system's packages installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@cache
def missing_engines() -> str | None:
    """What keeps tests on real engines from running here; asked with the real ``LABKIT_HOME`` in place."""
    from labkit.engines import install, models

    found = {
        "Ollama": install.find_ollama(),
        "vLLM": install.find_vllm(),
        "the model's files for vLLM": models.vllm_folder("smollm2:135m"),
        "nginx": install.find_nginx(),
        "LiteLLM": install.find_litellm(),
    }
    missing = [name for name, path in found.items() if path is None]
    return f"not installed: {', '.join(missing)} (make engines)" if missing else None


def missing_browser() -> str | None:
    """What keeps browser tests from running here."""
    return None if browser() else f"no browser on PATH, looked for {', '.join(BROWSERS)}"


MISSING: dict[str, Callable[[], str | None]] = {"engines": missing_engines, "browser": missing_browser}


def pytest_configure() -> None:
    """Send the runs of every test to a folder that goes with the session."""
    os.environ["LABKIT_RUNS"] = str(SCRATCH / "runs")


def pytest_unconfigure() -> None:
    """Remove that folder."""
    shutil.rmtree(SCRATCH)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest comes first: one of two workers is then busy with it from the beginning."""
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give the test its ``LABKIT_HOME`` before any fixture runs, then skip it or fail it if it cannot run."""
    home = REAL_HOME if item.get_closest_marker("engines") else str(SCRATCH / "home")
    if home is None:
        os.environ.pop("LABKIT_HOME", None)
    else:
        os.environ["LABKIT_HOME"] = home
    required = os.environ.get("LABKIT_REQUIRE", "").split(",")
    for marker, missing in MISSING.items():
        if item.get_closest_marker(marker) is None or (reason := missing()) is None:
            continue
        if marker in required:
            pytest.fail(f"LABKIT_REQUIRE={marker}, but {reason}", pytrace=False)
        pytest.skip(reason)
