"""The course's own data files: TOML with a list of records, checked field by field as they are read."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from labkit.errors import BundleError, SchemaError

T = TypeVar("T")

SCHEMA_VERSION = 1
"""Version of these formats; a reader refuses a larger one."""


@dataclass(frozen=True)
class Record:
    """One table of a file, which knows where it stands, so that an error can say so."""

    path: Path
    where: str
    data: Mapping[str, Any]

    def get(self, name: str, kind: type[T]) -> T:
        """The field, which must be there and of this type.

        Raises:
            SchemaError: it is not; names file, record and field.
        """
        value = self.data.get(name)
        # bool is an int, which no field here means
        if not isinstance(value, kind) or isinstance(value, bool) or value in ("", []):
            raise self.error(name, f"should be {kind.__name__}, found {value!r:.80}")
        return value

    def number(self, name: str) -> float:
        """The field as a number, whole or not."""
        return self.get(name, int) if isinstance(self.data.get(name), int) else self.get(name, float)

    def texts(self, name: str) -> tuple[str, ...]:
        """The field as a list of strings."""
        values = self.get(name, list)
        if not all(isinstance(value, str) for value in values):
            raise self.error(name, f"should be a list of strings, found {values!r:.80}")
        return tuple(values)

    def one_of(self, name: str, words: tuple[str, ...]) -> str:
        """The field as one of these words."""
        value = self.get(name, str)
        if value not in words:
            raise self.error(name, f"is {value!r}, not one of {', '.join(words)}")
        return value

    def record(self, name: str) -> Record:
        """The field as a table."""
        return Record(self.path, f"{self.where}{name}, ", self.get(name, dict))

    def records(self, name: str) -> list[Record]:
        """The field as a list of tables; empty if it is not there."""
        tables = self.data.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self.error(name, f"should be [[{name}]] tables, found {tables!r:.80}")
        return [
            Record(self.path, f"{self.where}{name} {table.get('id', number)}, ", table)
            for number, table in enumerate(tables, start=1)
        ]

    def no_others(self, *names: str) -> None:
        """Refuse fields that nobody reads: a misspelt one would be silently without effect."""
        for name in self.data.keys() - set(names):
            raise self.error(name, f"is not known; known are {', '.join(names)}")

    def error(self, field: str, seen: str) -> SchemaError:
        """An error about one field of this record."""
        return SchemaError(f"read {self.path}", f"{self.where}field {field} {seen}", "correct the file")


def read(path: Path) -> Record:
    """The whole file as one record.

    Raises:
        BundleError: no such file, or not TOML; names it.
        SchemaError: a newer format.
    """
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BundleError(f"read {path}", str(error), "correct the file or install labkit again") from None
    record = Record(path, "", data)
    version = record.get("schema_version", int)
    if version > SCHEMA_VERSION:
        raise record.error("schema_version", f"is {version}, this labkit reads up to {SCHEMA_VERSION}")
    return record
