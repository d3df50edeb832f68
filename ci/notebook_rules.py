"""What every notebook of the course keeps to, checked without running it; or, afterwards, on what ran.

usage: notebook_rules.py FOLDER               rules for sources
       notebook_rules.py --executed FOLDER    rules for executed notebooks

Prints one line a breach, then the counts; exit code 1 if there is a breach or nothing to check.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
import prose_rules
from lesson import Lesson, Rule

PARAMETERS = ("MODE", "BUDGET", "SEED")
SHELL = re.compile(
    r"^\s*(?:!|%%(?:bash|sh|script)\b|%(?:pip|conda|uv|mamba|sx|system)\b)|get_ipython\(\)\.system", re.M
)
ABSOLUTE = re.compile(r"(?<![\w.:/<])(?:/(?:home|root|Users|tmp|work|opt|mnt|srv|var|usr)/|[A-Z]:\\\\?\w)")
MINUTES = re.compile(r"\bminutes?\b")
PLACEHOLDER = re.compile(r"\bMINUTES_\w+")
GUESS = re.compile(r"^(GUESS_\w+)\b.*=", re.M)
EXERCISE = re.compile(r"^##+ .*\bexercise\b", re.M | re.I)
HEADING = re.compile(r"^## ", re.M)
HINT = re.compile(r"<details>|^###+ .*\bhint\b", re.M | re.I)
NEXT = re.compile(r"^##+ .*\bnext\b|\*\*Next\b", re.M | re.I)
INTERACTIVE = "application/vnd.plotly.v1+json"

PARTS = ("Predict", "Run", "Look", "Check", "Exercise", "Under the bonnet", "Claims")
"""The shape of a lesson, as its headings have it; header, parameters and the way on have their own rules."""


def kernel_is_named(lesson: Lesson) -> Iterator[str]:
    """papermill refuses a notebook that names no kernel or no language."""
    metadata = lesson.notebook.metadata
    spec = metadata.get("kernelspec", {})
    language = spec.get("language") or metadata.get("language_info", {}).get("name")
    if not (spec.get("name") and language):
        yield "the metadata names no kernel and language"


def header_says_what_it_takes(lesson: Lesson) -> Iterator[str]:
    """The first cell is a title with the time needed."""
    first = lesson.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell is no title"
    elif not MINUTES.search(first.source):
        yield "the first cell does not say how many minutes it takes"
    elif found := PLACEHOLDER.search(first.source):
        yield f"the time is still to be measured: {found[0]}"


def parameters_come_first(lesson: Lesson) -> Iterator[str]:
    """The first code cell has the tag that papermill looks for, and the names it is given."""
    first = lesson.code[0]
    if "parameters" not in first.metadata.get("tags", []):
        yield "the first code cell has no tag 'parameters'"
    for name in PARAMETERS:
        if not re.search(rf"^{name}\b.*=", first.source, re.M):
            yield f"the first code cell does not set {name}"


def nothing_is_stored(lesson: Lesson) -> Iterator[str]:
    """Outputs, counts and widget state belong to the learner's run."""
    if any(cell.outputs or cell.execution_count is not None for cell in lesson.code):
        yield "outputs or execution counts are stored"
    if "widgets" in lesson.notebook.metadata:
        yield "widget state is stored"


def set_up_opens_the_lab(lesson: Lesson) -> Iterator[str]:
    """The cell after the parameters says what answers."""
    if not any("labkit.Lab(" in cell.source for cell in lesson.code[1:2]):
        yield "the second code cell does not open the lab"


def guesses_are_asked_for_and_used(lesson: Lesson) -> Iterator[str]:
    """A guess has a parameter, for runs without a reader, and is taken up later."""
    guesses = GUESS.findall(lesson.code[0].source)
    if not guesses:
        yield "no parameter GUESS_…"
    for name in guesses:
        if not any(re.search(rf"\b{name}\b", cell.source) for cell in lesson.code[1:]):
            yield f"{name} is never used"


def parts_are_there_in_order(lesson: Lesson) -> Iterator[str]:
    """Every lesson has the same shape."""
    headings = [text for level, text in lesson.headings if level > 1]
    at = -1
    for part in PARTS:
        places = [n for n, heading in enumerate(headings) if re.search(rf"\b{part}\b", heading, re.I)]
        if not places:
            yield f"no part {part!r}"
        elif places[0] < at:
            yield f"the part {part!r} comes too early"
        else:
            at = places[0]
    if not any(NEXT.search(text) for text in lesson.texts[-2:]):
        yield "the end does not say what is next"


def claims_are_judged(lesson: Lesson) -> Iterator[str]:
    """The lesson ends with what it has to say about published claims."""
    if not any("lab.claims(" in cell.source for cell in lesson.code):
        yield "no cell judges claims"


def no_shell(lesson: Lesson) -> Iterator[str]:
    """A shell line that fails does not fail the run, and an install changes the reader's environment."""
    for cell in lesson.code:
        if found := SHELL.search(cell.source):
            yield f"shell command in a cell: {found[0].strip()}"


def no_absolute_path(lesson: Lesson) -> Iterator[str]:
    """A path of one machine is wrong on all others."""
    for cell in lesson.cells:
        if found := ABSOLUTE.search(cell.source):
            yield f"absolute path: {cell.source[found.start() :].split()[0]}"


def exercise_has_hint_check_and_solution(lesson: Lesson) -> Iterator[str]:
    """From the exercise's heading to the next one: a hint, a check, a folded solution."""
    headings = [n for n, cell in enumerate(lesson.cells) if cell.cell_type == "markdown"]
    starts = [n for n in headings if EXERCISE.search(lesson.cells[n].source)]
    if not starts:
        yield "no exercise"
    for start in starts:
        later = [n for n in headings if n > start and HEADING.search(lesson.cells[n].source)]
        cells = lesson.cells[start : later[0] if later else None]
        if not any(cell.cell_type == "markdown" and HINT.search(cell.source) for cell in cells):
            yield "an exercise without hint"
        if not any(cell.cell_type == "code" and ".check(" in cell.source for cell in cells):
            yield "an exercise without check"
        if not any(cell.metadata.get("jupyter", {}).get("source_hidden") for cell in cells):
            yield "an exercise without folded solution"


def folded_cells_begin_with_a_comment(lesson: Lesson) -> Iterator[str]:
    """JupyterLab shows the first line of a folded cell."""
    for cell in lesson.code:
        if cell.metadata.get("jupyter", {}).get("source_hidden") and not cell.source.startswith("#"):
            yield f"the first line of a folded cell gives it away: {cell.source.splitlines()[0]}"


def figures_have_twins(lesson: Lesson) -> Iterator[str]:
    """A figure that needs JavaScript has a PNG with alt text beside it, in an output of its own."""
    for cell in lesson.code:
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        if any(INTERACTIVE in output.get("data", {}) for output in cell.outputs) and not pictures:
            yield f"a figure without PNG twin: {cell.source.splitlines()[0]}"
        for output in pictures:
            if not output.metadata.get("image/png", {}).get("alt"):
                yield f"a picture without alt text: {cell.source.splitlines()[0]}"


def figures_say_their_depth(lesson: Lesson) -> Iterator[str]:
    """A picture without a badge could be taken for a measurement."""
    for cell in lesson.code:
        for output in cell.outputs:
            if "image/png" in output.get("data", {}) and "labkit" not in output.metadata:
                yield f"a picture that does not say its depth: {cell.source.splitlines()[0]}"


SOURCE_RULES: tuple[Rule, ...] = (
    kernel_is_named,
    header_says_what_it_takes,
    parameters_come_first,
    set_up_opens_the_lab,
    guesses_are_asked_for_and_used,
    parts_are_there_in_order,
    claims_are_judged,
    nothing_is_stored,
    no_shell,
    no_absolute_path,
    exercise_has_hint_check_and_solution,
    folded_cells_begin_with_a_comment,
    prose_rules.terms_are_linked_where_they_first_appear,
    prose_rules.links_lead_somewhere,
    prose_rules.neighbours_are_linked,
    prose_rules.no_measured_figure,
)
EXECUTED_RULES: tuple[Rule, ...] = (figures_have_twins, figures_say_their_depth)


def breaches(lesson: Lesson, rules: Sequence[Rule]) -> list[str]:
    """Everything that is wrong with one notebook."""
    return [breach for rule in rules for breach in rule(lesson)]


def main(arguments: list[str]) -> int:
    """Check a folder; exit code."""
    parser = argparse.ArgumentParser(description="Check the course's notebooks.")
    parser.add_argument("--executed", action="store_true")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args(arguments)
    rules = EXECUTED_RULES if given.executed else SOURCE_RULES
    paths = sorted(given.folder.glob("*.ipynb"))
    lessons = [Lesson(nbformat.read(path, as_version=4), path) for path in paths]
    found = [(lesson, breach) for lesson in lessons for breach in breaches(lesson, rules)]
    for lesson, breach in found:
        print(f"{lesson.path}: {breach}")
    if not given.executed:
        print(f"glossary: in no notebook: {', '.join(prose_rules.unused(lessons)) or 'none'}")
    print(f"notebook rules: {len(lessons)} notebooks, {len(rules)} rules each, {len(found)} breaches")
    return 1 if found or not lessons else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
