"""Cells that run out of order get a sentence instead of a traceback.

labkit's own errors show as their three sentences (``LabkitError._render_traceback_``); here is the one for a
name that no cell has made yet. The cell fails all the same, for headless runs too.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from IPython import get_ipython


def install() -> None:
    """From now on this kernel explains unknown names in cells; once more changes nothing."""
    shell = get_ipython()
    if shell is not None:
        shell.set_custom_exc((NameError,), _explain)


def _explain(
    shell: Any, kind: type[NameError], error: NameError, trace: TracebackType, tb_offset: int | None = None
) -> None:
    """IPython's hook: show the error."""
    # only what a cell itself lacks is the reader's to mend
    if kind is NameError and error.name and _raised_by_a_cell(shell, trace):
        told = sentence(error.name).splitlines()
        error._render_traceback_ = lambda: told  # type: ignore[attr-defined]
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def sentence(name: str) -> str:
    """What a reader needs to know about a name that is not there."""
    return (
        f"This cell needs {name}, and no cell has made it yet.\n"
        "Next: choose Run > Run All Above Selected Cell, then run this cell again. "
        f"If {name} is a word of your own, look at its spelling."
    )


def _raised_by_a_cell(shell: Any, trace: TracebackType) -> bool:
    """Whether the error happened in a cell's own code, not in something that it called."""
    last = trace
    while last.tb_next is not None:
        last = last.tb_next
    return last.tb_frame.f_globals is shell.user_global_ns
