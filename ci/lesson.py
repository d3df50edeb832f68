"""A notebook as the rules read it: its cells, its prose without code and headings, what its code sets."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.M | re.S)
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.S)
HEADING = re.compile(r"^(?P<level>#{1,6}) +(?P<text>.*?)#*$", re.M)
TAG = re.compile(r"<!--.*?-->|</?[a-z][^>]*>", re.S | re.I)
LINK = re.compile(r"\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)[^)]*\)")

CELL = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


@dataclass(frozen=True)
class Lesson:
    """One notebook.

    Attributes:
        notebook: as nbformat reads it.
        path: where it lies; its links start from there.
    """

    notebook: Any
    path: Path

    @property
    def cells(self) -> list[Any]:
        """All cells."""
        return list(self.notebook.cells)

    @cached_property
    def code(self) -> list[Any]:
        """The cells that run."""
        return [cell for cell in self.cells if cell.cell_type == "code"]

    @cached_property
    def texts(self) -> list[str]:
        """The Markdown cells without code."""
        return [
            CODE.sub("", FENCE.sub("", cell.source)) for cell in self.cells if cell.cell_type == "markdown"
        ]

    @cached_property
    def headings(self) -> list[tuple[int, str]]:
        """Every heading with its level, 1 for a title."""
        headings = [found for text in self.texts for found in HEADING.finditer(text)]
        return [(len(found["level"]), found["text"].strip()) for found in headings]

    @cached_property
    def prose(self) -> list[str]:
        """What is said in each Markdown cell: no code, no headings, no tags."""
        return [TAG.sub("", HEADING.sub("", text)) for text in self.texts]

    @cached_property
    def settings(self) -> set[float]:
        """Numbers that the code gives to names, arguments and keys: what the learner or the lesson sets."""
        found: set[float] = set()
        for cell in self.code:
            for node in ast.walk(_parsed(cell.source)):
                if isinstance(node, ast.keyword | ast.Assign):
                    found |= _numbers(node.value)
                elif isinstance(node, ast.Dict):
                    found |= {number for value in node.values for number in _numbers(value)}
        return found


Rule = Callable[[Lesson], Iterator[str]]


def _parsed(source: str) -> ast.AST:
    """The cell's tree; empty for what is not Python alone, which other rules refuse."""
    try:
        tree: ast.AST = compile(source, "cell", "exec", flags=CELL)
    except SyntaxError:
        return ast.Module([], [])
    return tree


def _numbers(node: ast.AST) -> set[float]:
    constants = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
    return {float(value) for value in constants if isinstance(value, int | float)}
