"""How what an engine does by itself changed from version to version, as data with its sources."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import polars as pl

from labkit import paths, records
from labkit.errors import UsageError

SEEN = ("history", "measured")
FIELDS = ("versions", "value", "since", "source", "seen", "checked")


def eras(setting: str, path: Path | None = None) -> pl.DataFrame:
    """What a setting's default was, one row for each span of versions, the oldest first.

    Args:
        setting: the engine's own name for it.
        path: another file than the course's own, ``data/defaults.toml``, which explains the columns.

    Raises:
        UsageError: nothing is known of this setting; names those that are known.
        SchemaError: a field is missing or wrong; names it.
    """
    rows: dict[str, list[tuple[Any, ...]]] = {}
    for record in records.read(path or paths.data() / "defaults.toml").records("era"):
        record.no_others("setting", *FIELDS)
        found = (
            *(record.get(name, str) for name in ("versions", "value")),
            record.get("since", datetime.date),
            record.get("source", str),
            record.one_of("seen", SEEN),
            record.get("checked", datetime.date),
        )
        rows.setdefault(record.get("setting", str), []).append(found)
    if setting not in rows:
        raise UsageError(f"tell the history of {setting}", f"known are {', '.join(rows)}", "name one")
    return pl.DataFrame(rows[setting], schema=list(FIELDS), orient="row")
