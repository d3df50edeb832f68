"""The course's notebooks, executed simulated.

Simulated engines compute; with two at a time each would make the other's measurement a suspect one. So these
are in one file, which one worker of pytest-xdist has to itself while the other does everything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import notebook_rules
import pytest
from lesson import Lesson

from labkit import headless
from labkit.engines import process
from labkit.engines.base import quiet

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

each = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def execute(notebook: Path, mode: str, out: Path) -> Any:
    """The executed notebook; every cell must have run at this depth and left no server."""
    (result,) = headless.execute([notebook], mode=mode, budget="smoke", out=out, progress=quiet)
    assert result.failure is None, result.failure
    assert (result.depth, result.cells) == (mode, result.planned)
    assert process.states() == []
    executed = nbformat.read(out / notebook.name, as_version=4)
    lesson = Lesson(executed, out / notebook.name)
    assert notebook_rules.breaches(lesson, notebook_rules.EXECUTED_RULES) == []
    return executed


def depths(executed: Any) -> set[str]:
    """Every depth that an output says of itself."""
    return {
        output.metadata.labkit.depth
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if "labkit" in output.get("metadata", {})
    }


def texts(executed: Any) -> str:
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    return "\n".join(str(output.get("data", output.get("text", ""))) for output in outputs)


def twice(notebook: Path, folder: Path) -> Path:
    """The notebook with all of its cells two times, to be run in one kernel."""
    doubled = nbformat.read(notebook, as_version=4)
    doubled.cells += [
        nbformat.from_dict({**cell, "id": f"{cell.id}-again"})
        for cell in doubled.cells
        if "parameters" not in cell.metadata.get("tags", [])  # those of the first half hold for both
    ]
    path = folder / notebook.name
    nbformat.write(doubled, path)
    return path


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@each
def test_runs_simulated_twice_in_one_kernel(notebook: Path, tmp_path: Path) -> None:
    executed = execute(twice(notebook, tmp_path), "simulated", tmp_path / "out")
    # what no imitation can say, such as a start-up log, is replayed and says so
    assert "simulated" in depths(executed) <= {"simulated", "recorded"}
    shown = texts(executed)
    assert "simulated: labkit" in shown
    assert "from profile" in shown
