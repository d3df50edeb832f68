"""What cells that run out of order show, in real kernels; headless runs fail on it all the same."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import v4

from labkit import headless, sentences
from labkit.engines.base import quiet

LESSON = (
    "MODE = 'simulated'\nBUDGET = 'smoke'",
    "import labkit\nlab = labkit.Lab(mode=MODE, budget=BUDGET)",
    "levels = lab.levels()",
    "async def top():\n    return max(levels)",
    "await top()",
)
NEEDS = ((), ("MODE", "labkit"), ("lab",), (), ("top", "levels"))
"""Names that each cell may lack: a cell fails at the first that is not there."""

STARTUP = Path(__file__).parents[1] / "notebooks" / ".jupyter" / "startup.py"
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def errors(cells: Sequence[str]) -> list[list[str] | None]:
    """Each cell's traceback as the page shows it, None where it ran."""
    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells], metadata=KERNEL)
    arguments = ["--IPKernelApp.log_level=50"]
    NotebookClient(notebook, allow_errors=True, extra_arguments=arguments).execute()
    return [
        next((output.traceback for output in cell.outputs if output.output_type == "error"), None)
        for cell in notebook.cells
    ]


def explained(name: str) -> list[str]:
    return sentences.sentence(name).splitlines()


@pytest.mark.parametrize("seed", [None, 1])
def test_any_order_gives_sentences_and_the_right_one_then_works(
    seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSTARTUP", str(STARTUP))  # as make lab does
    order = list(reversed(range(len(LESSON))))
    if seed is not None:
        random.Random(seed).shuffle(order)
    shown = errors([LESSON[number] for number in order] + list(LESSON))
    assert any(shown)
    for number, error in zip(order, shown[: len(LESSON)], strict=True):
        assert error is None or error in [explained(name) for name in NEEDS[number]]
    assert not any(shown[len(LESSON) :])


def test_set_up_cell_is_enough_where_nothing_else_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONSTARTUP", raising=False)
    shown = errors([*LESSON[:2], LESSON[4]])
    assert shown == [None, None, explained("top")]


def test_errors_of_labkit_are_their_three_sentences() -> None:
    (shown,) = errors(["import labkit\nlabkit.Lab(mode='deep')"])
    assert shown is not None
    assert shown[0] == "open the lab in mode 'deep'"
    assert [line.partition(" ")[0] for line in shown[1:]] == ["Seen:", "Next:"]


def test_other_errors_keep_their_traceback_and_no_name_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONSTARTUP", str(STARTUP))
    names = "assert not {'sentences', 'install', 'labkit'} & set(dir()), dir()"
    unbound = "def f():\n    print(q)\n    q = 1\nf()"
    inside = "import types\nother = types.ModuleType('other')\nexec('def f(): gone', vars(other))\nother.f()"
    first, *others = errors([names, "1 / 0", unbound, inside])
    assert first is None
    for shown in others:
        assert shown is not None
        assert any("Traceback" in line for line in shown)


@pytest.mark.parametrize(
    ("cell", "told"),
    [("levels", "This cell needs levels"), ("labkit.Lab(mode='deep')", "Seen: no such mode")],
)
def test_headless_run_fails(cell: str, told: str, tmp_path: Path) -> None:
    cells = [v4.new_code_cell(LESSON[0], metadata={"tags": ["parameters"]})]
    cells += map(v4.new_code_cell, itertools.chain(LESSON[1:2], [cell, "print('never')"]))
    notebook = tmp_path / "broken.ipynb"
    nbformat.write(v4.new_notebook(cells=cells, metadata=KERNEL), notebook)
    (result,) = headless.execute(
        [notebook], mode="simulated", budget="smoke", out=tmp_path / "out", progress=quiet
    )
    assert result.failure is not None
    assert told in result.failure
    assert result.cells == 2
