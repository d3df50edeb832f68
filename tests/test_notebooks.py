"""The course's notebooks, executed at the depths that need no engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest

from labkit import headless
from labkit.engines import process
from labkit.engines.base import quiet

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
GAP = NOTEBOOKS / "05_the_gap.ipynb"


def execute(notebook: Path, mode: str, out: Path) -> Any:
    """The executed notebook; every cell must have run at this depth."""
    (result,) = headless.execute([notebook], mode=mode, budget="smoke", out=out, progress=quiet)
    assert result.failure is None
    assert (result.depth, result.cells) == (mode, result.planned)
    return nbformat.read(out / notebook.name, as_version=4)


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


@pytest.fixture
def twice(tmp_path: Path) -> Path:
    """Notebook 05 with all of its cells two times, to be run in one kernel."""
    notebook = nbformat.read(GAP, as_version=4)
    notebook.cells += [
        nbformat.from_dict({**cell, "id": f"{cell.id}-again"})
        for cell in notebook.cells
        if "parameters" not in cell.metadata.get("tags", [])  # those of the first half hold for both
    ]
    path = tmp_path / GAP.name
    nbformat.write(notebook, path)
    return path


def test_the_gap_runs_recorded_without_an_engine(tmp_path: Path) -> None:
    executed = execute(GAP, "recorded", tmp_path)
    assert depths(executed) == {"recorded"}
    shown = texts(executed)
    assert "recorded: measured on" in shown
    assert "**recorded**" in shown
    assert process.states() == []


def test_the_gap_runs_simulated_twice_in_one_kernel(twice: Path, tmp_path: Path) -> None:
    executed = execute(twice, "simulated", tmp_path / "out")
    assert depths(executed) == {"simulated"}
    shown = texts(executed)
    assert "simulated: labkit" in shown
    assert "from profile" in shown
    assert process.states() == []
