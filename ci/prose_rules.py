"""What the notebooks' prose keeps to: links that lead somewhere, words explained, no measured figure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import glossary
from lesson import CODE, FENCE, HEADING, LINK, Lesson

GLOSSARY = "../docs/glossary.md"
OUTSIDE = ("http://", "https://", "mailto:")

UNIT = (
    r"(?:[µu]s|ms|s|sec(?:onds?)?|min(?:utes?)?|hours?|[kKMGT]i?B(?:/s)?|bytes?|GHz|W|%|percent"
    r"|(?:tokens?|tok|words|answers?|requests?)(?:/s| a second| per second)"
    r"|[×x]|times (?:as|faster|slower|more|less|higher|lower|longer))"
)
FIGURE = re.compile(rf"(?<![\w.,:/#-])(\d[\d,]*(?:\.\d+)?)(?:\s|&nbsp;|-)*{UNIT}(?![\w/])")


def terms_are_linked_where_they_first_appear(lesson: Lesson) -> Iterator[str]:
    """A word of the glossary is a link there when a reader first meets it."""
    known: set[str] = set()
    for text in lesson.prose:
        for found in _uses().finditer(text):
            if target := found["target"]:
                known.add(target.removeprefix(f"{GLOSSARY}#"))
                continue
            term = _term(found["use"])
            if term.anchor not in known:
                known.add(term.anchor)  # told once
                link = f"[{found['use']}]({GLOSSARY}#{term.anchor})"
                yield f"a word of the glossary is not linked where it is used first: {link}"


def links_lead_somewhere(lesson: Lesson) -> Iterator[str]:
    """A file that is there, and a heading in it; no machine but this one is asked."""
    for text in lesson.prose:
        for found in LINK.finditer(text):
            target = found["target"]
            if target.startswith(OUTSIDE):
                continue
            name, _, fragment = unquote(target).partition("#")
            file = lesson.path.parent / name if name else lesson.path
            if not file.exists():
                yield f"a dead link: {target}"
            elif fragment and fragment not in _anchors(lesson, file):
                yield f"a link to a heading that is not there: {target}"


def neighbours_are_linked(lesson: Lesson) -> Iterator[str]:
    """The notebook before, the one after; at the ends of the course the overview."""
    folder = lesson.path.parent
    course = sorted(path.name for path in folder.glob("[0-9][0-9]_*.ipynb"))
    if lesson.path.name not in course:
        return
    links = {found["target"] for text in lesson.prose for found in LINK.finditer(text)}
    at = course.index(lesson.path.name)
    for neighbour in course[max(at - 1, 0) : at + 2]:
        if neighbour not in links | {lesson.path.name}:
            yield f"no link to {neighbour}"
    if at in (0, len(course) - 1) and "../README.md" not in links:
        yield "no link to the overview, ../README.md"


def no_measured_figure(lesson: Lesson) -> Iterator[str]:
    """A figure with a unit is the run's or from claims.published; what the code sets may be named."""
    for number, text in enumerate(lesson.prose):
        # the header's table says what the notebook needs and how long it takes
        said = re.sub(r"^\|.*$", "", text, flags=re.M) if number == 0 else text
        for found in FIGURE.finditer(LINK.sub(lambda link: link["text"], said)):
            if float(found[1].replace(",", "").rstrip(".")) not in lesson.settings:
                yield f"a figure that nothing here measured or set: {found[0]!r}"


def unused(lessons: Sequence[Lesson]) -> list[str]:
    """Terms that no notebook links."""
    links = {found["target"] for lesson in lessons for text in lesson.prose for found in LINK.finditer(text)}
    return [term.name for term in glossary.terms() if f"{GLOSSARY}#{term.anchor}" not in links]


@cache
def _uses() -> re.Pattern[str]:
    """A link, whatever its words are; or a term, the longest first."""
    forms = sorted((form for term in glossary.terms() if not term.everyday for form in term.forms), key=len)
    either = "|".join(_spelling(form) for form in reversed(forms))
    return re.compile(rf"{LINK.pattern}|(?<![\w-])(?P<use>{either})(?![\w])")


def _spelling(form: str) -> str:
    """Its plural too; letters as they are in an abbreviation, of either case in a word."""
    spelt = re.escape(form) + "s?"
    return spelt if sum(letter.isupper() for letter in form) > 1 else f"(?i:{spelt})"


def _term(use: str) -> glossary.Term:
    """The term that is spelt like this."""
    return next(
        term for term in glossary.terms() if any(re.fullmatch(_spelling(form), use) for form in term.forms)
    )


def _anchors(lesson: Lesson, file: Path) -> set[str]:
    """The fragments that lead to a heading: GitHub's in a page, JupyterLab's in a notebook."""
    if file == lesson.path:
        return {heading.replace(" ", "-") for _, heading in lesson.headings}
    if file.suffix != ".md":
        return set()
    text = FENCE.sub("", file.read_text())
    return {
        glossary.anchor(CODE.sub(lambda code: code[0].strip("`"), found["text"]))
        for found in HEADING.finditer(text)
    }
