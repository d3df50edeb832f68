"""Rows on disk: whole records only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labkit.load.rows import RowWriter
from labkit.schema import TOKEN


def write(folder: Path, *ids: int) -> None:
    rows = RowWriter(folder)
    for request_id in ids:
        rows.request({"id": request_id, "error": None})
        rows.token(request_id, 0.5, 1, coalesced=True)
    rows.close()
    assert rows.lost == 0


def read(folder: Path) -> tuple[list[dict[str, int]], list[int]]:
    lines = [json.loads(line) for line in (folder / "requests.rows").read_bytes().splitlines()]
    return lines, [record[0] for record in TOKEN.iter_unpack((folder / "tokens.rows").read_bytes())]


def test_rows_are_appended(tmp_path: Path) -> None:
    write(tmp_path / "new", 1, 2)
    write(tmp_path / "new", 3)
    assert read(tmp_path / "new") == ([{"id": 1}, {"id": 2}, {"id": 3}], [1, 2, 3])


@pytest.mark.parametrize("torn", range(1, 8))
def test_a_torn_record_is_cut_off_before_more_is_appended(torn: int, tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    for name in ("requests.rows", "tokens.rows"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-torn])
    write(tmp_path, 3)
    assert read(tmp_path) == ([{"id": 1}, {"id": 3}], [1, 3])


def test_long_files_are_not_read_whole(tmp_path: Path) -> None:
    write(tmp_path, *range(100_000))
    write(tmp_path, 7)
    lines, tokens = read(tmp_path)
    assert len(lines) == len(tokens) == 100_001
    assert tokens[-2:] == [99_999, 7]
