"""The course's notebooks, executed on what was recorded."""

from __future__ import annotations

from pathlib import Path

from tests.test_notebooks import depths, each, execute, texts


@each
def test_runs_recorded_without_an_engine(notebook: Path, tmp_path: Path) -> None:
    executed = execute(notebook, "recorded", tmp_path)
    # what only an imitation can show, such as the blocks inside a scheduler, is simulated and says so
    assert "recorded" in depths(executed) <= {"recorded", "simulated"}
    assert "recorded: measured on" in texts(executed)
