"""Where things are: the cache folder, the course's data files, the learner's runs."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def home() -> Path:
    """Cache folder for engines, models, state files and locks (``LABKIT_HOME``); created on demand."""
    given = os.environ.get("LABKIT_HOME")
    folder = Path(given).expanduser() if given else user_cache_path("labkit")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def folder(name: str) -> Path:
    """A folder of this name under :func:`home`; created on demand."""
    path = home() / name
    path.mkdir(exist_ok=True)
    return path


def data() -> Path:
    """The course's ``data/`` folder: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent / "data"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "data"


def import_path() -> str:
    """``PYTHONPATH`` of a child process that has to find this very labkit."""
    return os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))


def runs() -> Path:
    """Where run bundles go (``LABKIT_RUNS``, default ``runs/`` in the working directory, which in JupyterLab
    and under papermill is the notebooks' folder)."""
    given = os.environ.get("LABKIT_RUNS")
    return Path(given).expanduser() if given else Path.cwd() / "runs"


def neutral(text: str) -> str:
    """A text without this machine's paths, for what is shipped with the course."""
    return text.replace(str(home()), "LABKIT_HOME").replace(str(Path.home()), "~")
