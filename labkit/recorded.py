"""Runs that were measured on real engines and are shipped with the course, in ``data/runs``."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson

from labkit import paths
from labkit.bundle import Run, empty_folder

LOG_BYTES = 20_000
"""Of each text kept beside the tables: its beginning, where an engine says what it uses."""


def keep(run: Run, folder: Path) -> Run:
    """Copy a live run to ``folder`` as a recorded one, which it says of itself from then on.

    The tables stay as they are. Paths of this machine are taken out of the texts.

    Raises:
        UsageError: the folder holds something already.
    """
    target = empty_folder(folder)
    for table in run.path.glob("*.parquet"):
        shutil.copy(table, target)
    for text in sorted((run.path / "artefacts").glob("*")):
        (target / "artefacts").mkdir(exist_ok=True)
        (target / "artefacts" / text.name).write_text(_neutral(text.read_text()[:LOG_BYTES]))
    meta = {**run.meta, "kind": "recorded"}
    written = _neutral(orjson.dumps(meta, option=orjson.OPT_INDENT_2).decode())
    (target / "run.json").write_text(written)
    return Run.load(target)


def _neutral(text: str) -> str:
    return text.replace(str(paths.home()), "LABKIT_HOME").replace(str(Path.home()), "~")
