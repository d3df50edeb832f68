"""The LiteLLM proxy into an environment of its own: its many packages must not meet those of the course."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from labkit.engines.base import Progress
from labkit.engines.install_steps import Pins, Plan, environment, log_file


def folders(pins: Pins, engines: Path) -> list[Path]:
    """Where an install may be."""
    return [engines / f"litellm-{pins['version']}"]


def executable(folder: Path) -> Path:
    """The program of an install."""
    return folder / "bin" / "litellm"


def plan(pins: Pins, engines: Path, _progress: Progress) -> Plan:
    """The one way: Python packages."""
    return Plan(
        "LiteLLM",
        pins["version"],
        "Python packages",
        folders(pins, engines)[0],
        pins["download_mb"],
        pins["disk_mb"],
        pins["minutes"],
        partial(_build, pins["packages"]),
    )


def _build(packages: list[str], work: Path, progress: Progress) -> Path:
    folder = work / "install"
    # compiled now, or the first start spends half a minute on it
    extra = ["--compile-bytecode"]
    environment(folder, packages, log=log_file("litellm"), progress=progress, extra=extra)
    return folder
