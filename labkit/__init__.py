"""labkit: engines under load, measured honestly, for the course in ``notebooks/``."""

from __future__ import annotations

__version__ = "0.1.0"
