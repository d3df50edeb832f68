"""labkit: engines under load, measured honestly, for the course in ``notebooks/``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from labkit.errors import MissingExtra

if TYPE_CHECKING:
    from labkit import figures
    from labkit.lab import Lab

__all__ = ["Lab", "figures"]

__version__ = "0.1.0"

_HOMES = {"Lab": "labkit.lab", "figures": "labkit.figures"}


def __getattr__(name: str) -> Any:
    """Import the notebooks' surface when it is first used: the load process starts without it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'labkit' has no attribute {name!r}")
    try:
        module = importlib.import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("labkit"):
            raise
        raise MissingExtra(
            f"use labkit.{name}", f"{error.name} is not installed", "pip install 'labkit[lab]'"
        ) from error
    return module if name == "figures" else getattr(module, name)
