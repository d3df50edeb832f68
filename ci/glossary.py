"""The course's glossary: data/glossary.toml, and the page that is made from it.

usage: glossary.py            write docs/glossary.md
       glossary.py --check    exit code 1 if that page is not what would be written
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from labkit import paths, records

PAGE = Path(__file__).parents[1] / "docs" / "glossary.md"
HEAD = """# Glossary

<!-- Made from data/glossary.toml by ci/glossary.py; change that file. -->

Each word of the course once, as the notebooks use it. [measuring.md](measuring.md) defines what is measured.
"""
NOT_IN_ANCHORS = re.compile(r"[^\w\- ]")


@dataclass(frozen=True)
class Term:
    """One word of the course.

    Attributes:
        name: as the page's heading has it.
        forms: every spelling that counts as its use, the name first.
        everyday: it is an ordinary word too, and need not be linked.
        text: what it means, Markdown.
    """

    section: str
    name: str
    forms: tuple[str, ...]
    everyday: bool
    text: str

    @property
    def anchor(self) -> str:
        """Where the page has it."""
        return anchor(self.name)


def anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading: lower case, no punctuation, hyphens for spaces."""
    return NOT_IN_ANCHORS.sub("", heading.strip().lower()).replace(" ", "-")


@cache
def terms() -> tuple[Term, ...]:
    """All terms, in the order of the page.

    Raises:
        LabkitError: the file is missing or not as it should be; names field and term.
    """
    file = records.read(paths.data() / "glossary.toml")
    file.no_others("schema_version", "section")
    found = tuple(term for section in file.records("section") for term in _section(section))
    for form in (forms := [form.lower() for term in found for form in term.forms]):
        if forms.count(form) > 1:
            raise file.error("section", f"has {form!r} twice")
    return found


def _section(section: records.Record) -> Iterator[Term]:
    section.no_others("id", "term")
    for term in section.records("term"):
        term.no_others("id", "forms", "everyday", "text")
        name = term.get("id", str)
        forms = term.texts("forms") if "forms" in term.data else ()
        everyday = term.data.get("everyday") is True
        yield Term(section.get("id", str), name, (name, *forms), everyday, term.get("text", str))


def page() -> str:
    """The page as it should be."""
    lines = [HEAD]
    before = ""
    for term in terms():
        if term.section != before:
            names = [f"[{other.name}](#{other.anchor})" for other in terms() if other.section == term.section]
            lines += [f"## {term.section}\n", " · ".join(names) + "\n"]
            before = term.section
        lines += [f"### {term.name}\n", term.text + "\n"]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Write the page, or compare; exit code."""
    if arguments == ["--check"]:
        same = PAGE.exists() and PAGE.read_text() == page()
        print(
            f"glossary: {len(terms())} terms"
            + ("" if same else "; docs/glossary.md is stale: python ci/glossary.py")
        )
        return 0 if same else 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
