"""What every notebook of the course keeps to, checked without running it; or, afterwards, on what ran.

usage: notebook_rules.py FOLDER               rules for sources
       notebook_rules.py --executed FOLDER    rules for executed notebooks

Prints one line a breach, then the counts; exit code 1 if there is a breach or nothing to check.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat

Rule = Callable[[Any], Iterator[str]]

PARAMETERS = ("MODE", "BUDGET", "SEED")
SHELL = re.compile(
    r"^\s*(?:!|%%(?:bash|sh|script)\b|%(?:pip|conda|uv|mamba|sx|system)\b)|get_ipython\(\)\.system", re.M
)
ABSOLUTE = re.compile(r"(?<![\w.:/<])(?:/(?:home|root|Users|tmp|work|opt|mnt|srv|var|usr)/|[A-Z]:\\\\?\w)")
MINUTES = re.compile(r"\bminutes?\b")
EXERCISE = re.compile(r"^##+ .*\bexercise\b", re.M | re.I)
HEADING = re.compile(r"^## ", re.M)
HINT = re.compile(r"<details>|^###+ .*\bhint\b", re.M | re.I)
INTERACTIVE = "application/vnd.plotly.v1+json"


def code_cells(notebook: Any) -> list[Any]:
    """The cells that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kernel_is_named(notebook: Any) -> Iterator[str]:
    """papermill refuses a notebook that names no kernel or no language."""
    spec = notebook.metadata.get("kernelspec", {})
    language = spec.get("language") or notebook.metadata.get("language_info", {}).get("name")
    if not (spec.get("name") and language):
        yield "the metadata names no kernel and language"


def header_says_what_it_takes(notebook: Any) -> Iterator[str]:
    """The first cell is a title with the time needed."""
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell is no title"
    elif not MINUTES.search(first.source):
        yield "the first cell does not say how many minutes it takes"


def parameters_come_first(notebook: Any) -> Iterator[str]:
    """The first code cell has the tag that papermill looks for, and the names it is given."""
    first = code_cells(notebook)[0]
    if "parameters" not in first.metadata.get("tags", []):
        yield "the first code cell has no tag 'parameters'"
    for name in PARAMETERS:
        if not re.search(rf"^{name}\b.*=", first.source, re.M):
            yield f"the first code cell does not set {name}"


def nothing_is_stored(notebook: Any) -> Iterator[str]:
    """Outputs, counts and widget state belong to the learner's run."""
    if any(cell.outputs or cell.execution_count is not None for cell in code_cells(notebook)):
        yield "outputs or execution counts are stored"
    if "widgets" in notebook.metadata:
        yield "widget state is stored"


def no_shell(notebook: Any) -> Iterator[str]:
    """A shell line that fails does not fail the run, and an install changes the reader's environment."""
    for cell in code_cells(notebook):
        if found := SHELL.search(cell.source):
            yield f"shell command in a cell: {found[0].strip()}"


def no_absolute_path(notebook: Any) -> Iterator[str]:
    """A path of one machine is wrong on all others."""
    for cell in notebook.cells:
        if found := ABSOLUTE.search(cell.source):
            yield f"absolute path: {cell.source[found.start() :].split()[0]}"


def exercise_has_hint_check_and_solution(notebook: Any) -> Iterator[str]:
    """From the exercise's heading to the next one: a hint, a check, a folded solution."""
    headings = [n for n, cell in enumerate(notebook.cells) if cell.cell_type == "markdown"]
    starts = [n for n in headings if EXERCISE.search(notebook.cells[n].source)]
    if not starts:
        yield "no exercise"
    for start in starts:
        later = [n for n in headings if n > start and HEADING.search(notebook.cells[n].source)]
        cells = notebook.cells[start : later[0] if later else None]
        if not any(cell.cell_type == "markdown" and HINT.search(cell.source) for cell in cells):
            yield "an exercise without hint"
        if not any(cell.cell_type == "code" and ".check(" in cell.source for cell in cells):
            yield "an exercise without check"
        if not any(cell.metadata.get("jupyter", {}).get("source_hidden") for cell in cells):
            yield "an exercise without folded solution"


def folded_cells_begin_with_a_comment(notebook: Any) -> Iterator[str]:
    """JupyterLab shows the first line of a folded cell."""
    for cell in code_cells(notebook):
        if cell.metadata.get("jupyter", {}).get("source_hidden") and not cell.source.startswith("#"):
            yield f"the first line of a folded cell gives it away: {cell.source.splitlines()[0]}"


def figures_have_twins(notebook: Any) -> Iterator[str]:
    """A figure that needs JavaScript has a PNG with alt text beside it, in an output of its own."""
    for cell in code_cells(notebook):
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        if any(INTERACTIVE in output.get("data", {}) for output in cell.outputs) and not pictures:
            yield f"a figure without PNG twin: {cell.source.splitlines()[0]}"
        for output in pictures:
            if not output.metadata.get("image/png", {}).get("alt"):
                yield f"a picture without alt text: {cell.source.splitlines()[0]}"


SOURCE_RULES: tuple[Rule, ...] = (
    kernel_is_named,
    header_says_what_it_takes,
    parameters_come_first,
    nothing_is_stored,
    no_shell,
    no_absolute_path,
    exercise_has_hint_check_and_solution,
    folded_cells_begin_with_a_comment,
)
EXECUTED_RULES: tuple[Rule, ...] = (figures_have_twins,)


def breaches(notebook: Any, rules: tuple[Rule, ...]) -> list[str]:
    """Everything that is wrong with one notebook."""
    return [breach for rule in rules for breach in rule(notebook)]


def main(arguments: list[str]) -> int:
    """Check a folder; exit code."""
    parser = argparse.ArgumentParser(description="Check the course's notebooks.")
    parser.add_argument("--executed", action="store_true")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args(arguments)
    rules = EXECUTED_RULES if given.executed else SOURCE_RULES
    notebooks = sorted(given.folder.glob("*.ipynb"))
    found = 0
    for path in notebooks:
        for breach in breaches(nbformat.read(path, as_version=4), rules):
            print(f"{path}: {breach}")
            found += 1
    print(f"notebook rules: {len(notebooks)} notebooks, {len(rules)} rules each, {found} breaches")
    return 1 if found or not notebooks else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
