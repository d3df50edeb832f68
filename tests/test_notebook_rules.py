"""Each rule for notebooks is met by the lesson of the tests, and each is seen when it is broken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import notebook_rules
import pytest
from nbformat import v4

LESSON = nbformat.read(Path(__file__).parent / "fixtures" / "lesson.ipynb", as_version=4)
PICTURE = v4.new_output("display_data", {"image/png": ""}, metadata={"image/png": {"alt": "A line."}})
FIGURE = v4.new_output("display_data", {notebook_rules.INTERACTIVE: {}})

Break = Callable[[Any], object]


def broken(change: Break, rules: tuple[notebook_rules.Rule, ...]) -> list[str]:
    """The breaches of the lesson after this change."""
    notebook = copy.deepcopy(LESSON)
    change(notebook)
    return notebook_rules.breaches(notebook, rules)


def source(cell: int, text: str) -> Break:
    """Replaces one cell's source."""
    return lambda notebook: notebook.cells[cell].update(source=text)


def add(text: str, **metadata: Any) -> Break:
    """Appends one code cell."""
    return lambda notebook: notebook.cells.append(v4.new_code_cell(text, metadata=metadata))


def test_lesson_keeps_all_rules() -> None:
    assert notebook_rules.breaches(LESSON, notebook_rules.SOURCE_RULES) == []


@pytest.mark.parametrize(
    ("change", "breach"),
    [
        (lambda notebook: notebook.metadata.pop("kernelspec"), "names no kernel"),
        (source(0, "What is this?"), "no title"),
        (source(0, "# What is this?"), "how many minutes"),
        (lambda notebook: notebook.cells[1].metadata.clear(), "no tag 'parameters'"),
        (source(1, 'MODE = "auto"\nBUDGET = "short"'), "does not set SEED"),
        (lambda notebook: notebook.cells[1].outputs.append(PICTURE), "outputs or execution counts"),
        (lambda notebook: notebook.cells[1].update(execution_count=1), "outputs or execution counts"),
        (lambda notebook: notebook.metadata.update(widgets={}), "widget state"),
        (add("!pip install labkit"), "shell command in a cell: !"),
        (add("%pip install labkit"), "shell command in a cell: %pip"),
        (add("%%bash\nls"), "shell command in a cell: %%bash"),
        (add('open("/home/me/run.json")'), "absolute path: /home/me/run.json"),
        (add('open("C:\\\\Users\\\\me")'), "absolute path: C:"),
        (source(6, "## Something else"), "no exercise"),
        (source(6, "## Exercise\n\nCount."), "without hint"),
        (source(7, "ANSWER = 5"), "without check"),
        (lambda notebook: notebook.cells[8].metadata.clear(), "without folded solution"),
        (source(8, "ANSWER = 5"), "gives it away: ANSWER = 5"),
    ],
)
def test_breach_is_seen(change: Break, breach: str) -> None:
    found = broken(change, notebook_rules.SOURCE_RULES)
    assert len(found) == 1
    assert breach in found[0]


@pytest.mark.parametrize("text", ["a = b != c", "f'{x!r}'", "https://host/usr/x", "1 % pip", "'a/tmp/b'"])
def test_what_only_looks_like_a_breach(text: str) -> None:
    assert broken(add(text), notebook_rules.SOURCE_RULES) == []


@pytest.mark.parametrize(
    ("outputs", "breach"),
    [
        ([FIGURE, PICTURE], None),
        ([FIGURE], "a figure without PNG twin"),
        ([v4.new_output("display_data", {"image/png": ""})], "a picture without alt text"),
    ],
)
def test_figures_have_twins(outputs: list[Any], breach: str | None) -> None:
    found = broken(lambda notebook: notebook.cells[1].update(outputs=outputs), notebook_rules.EXECUTED_RULES)
    assert [line.partition(":")[0] for line in found] == ([breach] if breach else [])


def test_command_counts_and_refuses_an_empty_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert notebook_rules.main([str(tmp_path)]) == 1
    nbformat.write(LESSON, tmp_path / "lesson.ipynb")
    assert notebook_rules.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "notebook rules: 0 notebooks, 8 rules each, 0 breaches",
        "notebook rules: 1 notebooks, 8 rules each, 0 breaches",
    ]
    nbformat.write(
        v4.new_notebook(cells=[v4.new_markdown_cell("Hm"), v4.new_code_cell("1")]), tmp_path / "b.ipynb"
    )
    assert notebook_rules.main([str(tmp_path)]) == 1
