"""Reading a run bundle's tables: from parquet, or from the rows of a run that was never finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import polars as pl

from labkit import schema
from labkit.errors import BundleError, SchemaError

DAMAGED = "the file is damaged or not a labkit run; measure again"
"""What to do about a bundle that cannot be read."""

TABLES = {"requests": schema.REQUESTS, "tokens": schema.TOKENS, "gauges": schema.GAUGES}
"""The bundle's tables and their columns."""

_TYPES: dict[str, type[pl.DataType]] = {
    "i64": pl.Int64,
    "f64": pl.Float64,
    "str": pl.String,
    "bool": pl.Boolean,
}


def columns(table: str) -> dict[str, type[pl.DataType]]:
    """A table's columns and their types, as polars has them."""
    return {name: _TYPES[kind] for name, kind in TABLES[table].items()}


def read_table(folder: Path, table: str) -> tuple[pl.DataFrame, str | None]:
    """A table from parquet, or from rows that were never converted; a note if something was amiss.

    Raises:
        BundleError: the file cannot be read; names it.
        SchemaError: a column is missing or of another type; names both.
    """
    expected = columns(table)
    path = folder / f"{table}.parquet"
    if path.exists() and not (folder / f"{table}.rows").exists():
        return _read_parquet(path, expected), None
    path = folder / f"{table}.rows"
    data = path.read_bytes() if path.exists() else b""
    try:
        rows, torn = _read_tokens(data) if table == "tokens" else _read_json_rows(data)
        frame = pl.DataFrame(rows, schema=expected, orient="row" if table == "tokens" else None)
    except orjson.JSONDecodeError as error:
        raise BundleError(f"read {path}", f"not JSON lines: {error}", DAMAGED) from None
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise BundleError(f"read {path}", f"a row that is none: {error}", DAMAGED) from None
    if table == "requests":
        frame = frame.unique("id", keep="last", maintain_order=True).sort("id")
    return frame, f"{path.name}: the last row was cut short and is left out" if torn else None


def _read_parquet(path: Path, expected: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise BundleError(f"read {path}", str(error), DAMAGED) from None
    frame = frame.with_columns(
        pl.lit(None, expected[name]).alias(name)
        for name in schema.LATER
        if name in expected and name not in frame.columns
    )
    for name, kind in expected.items():
        if name not in frame.columns:
            raise SchemaError(f"read {path}", f"column {name} is missing", DAMAGED)
        if frame.schema[name] != kind:
            raise SchemaError(f"read {path}", f"column {name} is {frame.schema[name]}, not {kind}", DAMAGED)
    return frame.select(list(expected))


def _read_json_rows(data: bytes) -> tuple[list[dict[str, Any]], bool]:
    whole, _, rest = data.rpartition(b"\n")
    return [orjson.loads(line) for line in whole.splitlines()], bool(rest)


def _read_tokens(data: bytes) -> tuple[list[tuple[Any, ...]], bool]:
    whole = len(data) - len(data) % schema.TOKEN.size
    return list(schema.TOKEN.iter_unpack(data[:whole])), whole != len(data)
