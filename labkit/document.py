"""A short document as Markdown and as a page of HTML that fetches nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from labkit.errors import UsageError

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;"
    "background:#fff}table{border-collapse:collapse;margin:1rem 0}th,td{border:1px solid #bbb;padding:.3rem "
    ".6rem;text-align:left;vertical-align:top}th{background:#eee}.first{font-weight:bold}"
)


@dataclass(frozen=True)
class Heading:
    """A section begins."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; ``strong`` for the one to read if only one is read."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells in rows under a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


Block = Heading | Text | Items | Table


@dataclass(frozen=True)
class Document:
    """A title and what comes below it; all of it plain text."""

    title: str
    blocks: Sequence[Block]

    def markdown(self) -> str:
        """As Markdown."""
        return "\n\n".join([f"# {_plain(self.title)}", *map(_markdown, self.blocks)]) + "\n"

    def html(self) -> str:
        """As a whole page with its style in it."""
        body = "\n".join(map(_html, self.blocks))
        title = escape(self.title)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n"
        )

    def save(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write both forms; earlier ones of this name are replaced.

        Raises:
            UsageError: the folder cannot be made or written to.
        """
        paths = folder / f"{name}.md", folder / f"{name}.html"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path, text in zip(paths, (self.markdown(), self.html()), strict=True):
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"write {name} to {folder}", str(error), "name another folder") from None
        return paths


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {_plain(text)}"
        case Text(text, strong):
            return f"**{_plain(text)}**" if strong else _plain(text)
        case Items(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Table(head, rows):
            lines = [head, ["---"] * len(head), *rows]
            return "\n".join(
                "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
            )


def _plain(text: str) -> str:
    """One line, in which nothing is taken for markup."""
    line = " ".join(text.split())
    return line.translate({ord(mark): f"\\{mark}" for mark in "*_`<[\\"})


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Text(text, strong):
            return f'<p class="first">{escape(text)}</p>' if strong else f"<p>{escape(text)}</p>"
        case Items(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Table(head, rows):
            top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
            lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
            return f"<table><tr>{top}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
