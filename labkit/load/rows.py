"""Rows on disk while a run goes: appended often, whole records only, and never in the way of the run.

A full disk costs rows, not the run: what came before stays readable, what could not be written is counted.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson

from labkit.schema import TOKEN

_LONGEST = 2**20
"""Bytes that no single record comes near."""


class _Appender:
    """One file of records. ``pending`` is filled by the owner and emptied by :meth:`flush`."""

    def __init__(self, path: Path) -> None:
        self.pending = bytearray()
        self.lost = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        # A writer killed half-way through a record leaves a torn one: cut it off, or all later ones shift.
        size = os.fstat(self._file).st_size
        last = max(size - _LONGEST, 0) // TOKEN.size * TOKEN.size
        self._size = last + self._whole(os.pread(self._file, size - last, last))
        os.ftruncate(self._file, self._size)

    def _whole(self, data: bytes | bytearray) -> int:
        """Length of the whole records at the start of ``data``."""
        raise NotImplementedError

    def _count(self, data: bytes | bytearray) -> int:
        """Number of whole records in ``data``."""
        raise NotImplementedError

    def flush(self) -> None:
        if not self.pending:
            return
        data, self.pending = self.pending, bytearray()
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file, memoryview(data)[written:], self._size + written)
        except OSError:  # disk full, quota, file size limit
            written = self._whole(data[:written])
            os.ftruncate(self._file, self._size + written)
            self.lost += self._count(data[written:])
        self._size += written

    def close(self) -> None:
        self.flush()
        os.close(self._file)


class _Lines(_Appender):
    def _whole(self, data: bytes | bytearray) -> int:
        return data.rfind(b"\n") + 1

    def _count(self, data: bytes | bytearray) -> int:
        return data.count(b"\n")


class _Records(_Appender):
    def _whole(self, data: bytes | bytearray) -> int:
        return len(data) // TOKEN.size * TOKEN.size

    def _count(self, data: bytes | bytearray) -> int:
        return len(data) // TOKEN.size


class RowWriter:
    """Appends to ``requests.rows`` and ``tokens.rows`` of a bundle's folder.

    Raises:
        OSError: the files cannot be opened at all.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._requests = _Lines(folder / "requests.rows")
        self._tokens = _Records(folder / "tokens.rows")

    def request(self, row: dict[str, Any]) -> None:
        """One row of a request; the last row of an id counts. Keys without a value are left out."""
        line = {key: value for key, value in row.items() if value is not None}
        self._requests.pending += orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)

    def token(self, request_id: int, t_s: float, tokens: int, coalesced: bool) -> None:
        """One chunk of an answer."""
        self._tokens.pending += TOKEN.pack(request_id, t_s, tokens, coalesced)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._requests.flush()
        self._tokens.flush()

    @property
    def lost(self) -> int:
        """Rows of both tables that could not be written."""
        return self._requests.lost + self._tokens.lost

    def close(self) -> None:
        self._requests.close()
        self._tokens.close()
