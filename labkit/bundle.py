"""The run bundle: the one thing an experiment leaves behind.

A folder with ``run.json``, three parquet tables (:mod:`labkit.schema`) and ``artefacts/``. While the run is
going the tables are ``*.rows`` files that the load process appends to; :meth:`Recorder.finish` converts them.
:meth:`Run.load` reads both forms, so a bundle whose writer was killed still opens, and says so.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import polars as pl

import labkit
from labkit import host, metrics, schema
from labkit.errors import BundleError, SchemaError, UsageError
from labkit.summary import Comparison, side_by_side, summarise, to_html
from labkit.verdict import Verdict

_TYPES: dict[str, type[pl.DataType]] = {
    "i64": pl.Int64,
    "f64": pl.Float64,
    "str": pl.String,
    "bool": pl.Boolean,
}
_TABLES = {"requests": schema.REQUESTS, "tokens": schema.TOKENS, "gauges": schema.GAUGES}
_META_FIELDS = {
    "schema_version": int,
    "kind": str,
    "state": str,
    "arms": dict,
    "levels": list,
    "host": dict,
    "workload": dict,
    "seed": int,
    "labkit": str,
    "started_at": str,
    "verdict": dict,
}
_DAMAGED = "the file is damaged or not a labkit run; measure again"
KINDS = ("live", "simulated", "recorded")


def _polars_schema(table: str) -> dict[str, type[pl.DataType]]:
    return {name: _TYPES[kind] for name, kind in _TABLES[table].items()}


@dataclass(frozen=True, repr=False)
class Run:
    """One finished (or broken-off) experiment.

    Attributes:
        meta: ``run.json``: kind, arms with engine facts and settings, levels with their windows, verdict …
        requests, tokens, gauges: tables with the columns of :mod:`labkit.schema`.
        path: the bundle's folder.
        partial: why the bundle is not whole, or None.
    """

    meta: dict[str, Any]
    requests: pl.DataFrame
    tokens: pl.DataFrame
    gauges: pl.DataFrame
    path: Path
    partial: str | None = None

    @property
    def kind(self) -> str:
        """live | simulated | recorded."""
        return str(self.meta["kind"])

    @property
    def arms(self) -> list[str]:
        """Names of the arms in the order they were planned."""
        return list(self.meta["arms"])

    @property
    def verdict(self) -> Verdict:
        """clean | suspect | contaminated | unknown, with reasons."""
        return Verdict(**self.meta["verdict"])

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a bundle, whole or half-written.

        Raises:
            BundleError: no bundle there, or a table that cannot be read; names the file.
            SchemaError: a newer format or a wrong field; names the file and the field.
        """
        folder = Path(path)
        meta = read_meta(folder)
        tables, notes = {}, []
        for table in _TABLES:
            tables[table], note = _read_table(folder, table)
            notes += [note] if note else []
        if meta["state"] != "complete":
            how = "stopped early" if meta["state"] == "stopped" else "broken off before its end"
            notes.insert(0, f"{folder.name}: the run was {how}")
        return cls(meta, **tables, path=folder, partial="; ".join(notes) or None)

    def summary(self) -> pl.DataFrame:
        """One row per arm and level: throughput, latencies, outcome counts; see :mod:`labkit.summary`."""
        return summarise(self.requests, self.tokens, self.meta["levels"])

    def compare(self, other: Run) -> Comparison:
        """This run beside another, level by level, with every difference in conditions listed."""
        return side_by_side((self.meta, self.summary()), (other.meta, other.summary()))

    def artefact(self, name: str) -> Path:
        """Path of a file under ``artefacts/`` (it may not exist)."""
        return self.path / "artefacts" / name

    def save(self, path: str | Path) -> Run:
        """Copy the whole bundle to another, empty or new, folder."""
        target = empty_folder(Path(path))
        shutil.copytree(self.path, target, dirs_exist_ok=True)
        return replace(self, path=target)

    def __repr__(self) -> str:
        where = f"{self.path}{f' ({self.partial})' if self.partial else ''}"
        return f"{self.kind} run, verdict {self.verdict.word}, {where}\n{self.summary()}"

    def _repr_html_(self) -> str:
        return to_html(self.meta, self.summary(), self.partial)


class Recorder:
    """Writes a bundle while an experiment runs.

    ``run.json`` is there from the first moment and is replaced atomically at each step, so that a killed
    kernel leaves a readable bundle.

    Raises:
        BundleError: not even the first ``run.json`` can be written.
    """

    def __init__(
        self, folder: Path, *, kind: str, arms: dict[str, Any], workload: dict[str, Any], seed: int
    ) -> None:
        self.folder = empty_folder(folder)
        self.t0 = time.perf_counter()
        self._trouble: str | None = None
        self._meta: dict[str, Any] = {
            "schema_version": schema.SCHEMA_VERSION,
            "kind": kind,
            "state": "running",
            "arms": arms,
            "levels": [],
            "host": host.describe(),
            "workload": workload,
            "seed": seed,
            "labkit": labkit.__version__,
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "verdict": {"word": "unknown", "reasons": ["the run has not ended"]},
        }
        self._write()
        if self._trouble:
            raise BundleError(f"write a run to {folder}", self._trouble, "make room, or name another folder")

    def gauge(self, engine: str, arm: str, values: dict[str, float | None]) -> None:
        """Append one reading of an engine's gauges; those that it lacks are left out."""
        now = time.perf_counter() - self.t0
        rows = [
            {"t_s": now, "engine": engine, "arm": arm, "name": name, "value": value}
            for name, value in values.items()
            if value is not None
        ]
        with self._disk(), (self.folder / "gauges.rows").open("ab") as out:
            out.write(b"".join(orjson.dumps(row) + b"\n" for row in rows))

    def level(self, record: dict[str, Any]) -> None:
        """Add what one level did: its window, its tally and the client's health."""
        self._meta["levels"].append(record)
        self._write()

    def arm(self, name: str, **facts: Any) -> None:
        """Add facts to one arm, such as what its engine said after loading."""
        self._meta["arms"][name].update(facts)
        self._write()

    def artefact(self, name: str, content: str) -> None:
        """Keep a text (a server log, a transcript) in the bundle."""
        with self._disk():
            (self.folder / "artefacts").mkdir(exist_ok=True)
            (self.folder / "artefacts" / name).write_text(content)

    @property
    def levels(self) -> list[dict[str, Any]]:
        """Records of the levels so far."""
        return list(self._meta["levels"])

    def finish(self, verdict: Verdict, *, stopped: bool = False) -> Run:
        """Convert rows to parquet, set the verdict and return the run.

        On a full disk the rows stay as they are and the returned run says so in ``partial``.
        """
        self._meta["verdict"] = {"word": verdict.word, "reasons": verdict.reasons}
        tables = self._tables()
        tables["requests"] = metrics.estimate_queue(tables["requests"])
        with self._disk():
            for table, frame in tables.items():
                frame.write_parquet(self.folder / f"{table}.parquet")
        if self._trouble:  # half a table is of no use, and run.json may need its room
            for table in _TABLES:
                (self.folder / f"{table}.parquet").unlink(missing_ok=True)
        self._meta["state"] = "stopped" if stopped else "complete"
        self._write()
        if self._trouble:
            note = f"{self.folder}: not all could be written ({self._trouble}); the rows so far are kept"
            return Run(self._meta, **tables, path=self.folder, partial=note)
        for table in _TABLES:
            (self.folder / f"{table}.rows").unlink(missing_ok=True)
        return Run.load(self.folder)

    def so_far(self) -> Run:
        """What is measured up to now, while the run goes on."""
        note = f"{self.folder.name}: the run has not ended"
        return Run(copy.deepcopy(self._meta), **self._tables(), path=self.folder, partial=note)

    def _tables(self) -> dict[str, pl.DataFrame]:
        return {table: _read_table(self.folder, table)[0] for table in _TABLES}

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """A full or vanished disk must not end a measurement that is running: it is reported at the end."""
        try:
            yield
        except (OSError, pl.exceptions.ComputeError) as error:  # the latter is polars' word for a full disk
            self._trouble = str(error)

    def _write(self) -> None:
        temporary = self.folder / "run.json.new"
        with self._disk():
            temporary.write_bytes(orjson.dumps(self._meta, option=orjson.OPT_INDENT_2))
            temporary.replace(self.folder / "run.json")


def empty_folder(folder: Path) -> Path:
    """Create ``folder``; a non-empty one is refused.

    Raises:
        UsageError: the folder holds something already, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = any(folder.iterdir())
    except OSError as error:
        raise UsageError(f"write a run to {folder}", str(error), "name a new or empty folder") from None
    if used:
        raise UsageError(f"write a run to {folder}", "it is not empty", "name a new or empty folder")
    return folder


def read_meta(folder: Path) -> dict[str, Any]:
    """``run.json`` of a bundle, checked field by field."""
    path = folder / "run.json"
    try:
        meta = orjson.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(
            f"read the run in {folder}", str(error), "name a folder that holds a run.json"
        ) from None
    except orjson.JSONDecodeError as error:
        raise BundleError(f"read {path}", f"not JSON: {error}", _DAMAGED) from None
    if not isinstance(meta, dict):
        raise SchemaError(f"read {path}", "not a JSON object", _DAMAGED)
    version = meta.get("schema_version")
    if isinstance(version, int) and version > schema.SCHEMA_VERSION:
        raise SchemaError(
            f"read {path}",
            f"field schema_version is {version}, this labkit reads up to {schema.SCHEMA_VERSION}",
            "install the newer labkit that wrote it",
        )
    for name, kind in _META_FIELDS.items():
        if not isinstance(meta.get(name), kind):
            raise SchemaError(
                f"read {path}",
                f"field {name} should be {kind.__name__}, found {meta.get(name)!r:.80}",
                _DAMAGED,
            )
    if meta["kind"] not in KINDS:
        raise SchemaError(f"read {path}", f"field kind is {meta['kind']!r}", f"one of {', '.join(KINDS)}")
    return meta


def _read_table(folder: Path, table: str) -> tuple[pl.DataFrame, str | None]:
    """A table from parquet, or from rows that were never converted; a note if something was amiss."""
    path = folder / f"{table}.parquet"
    if path.exists() and not (folder / f"{table}.rows").exists():
        return _read_parquet(path, _polars_schema(table)), None
    path = folder / f"{table}.rows"
    data = path.read_bytes() if path.exists() else b""
    try:
        rows, torn = _read_tokens(data) if table == "tokens" else _read_json_rows(data)
    except orjson.JSONDecodeError as error:
        raise BundleError(f"read {path}", f"not JSON lines: {error}", _DAMAGED) from None
    frame = pl.DataFrame(rows, schema=_polars_schema(table), orient="row" if table == "tokens" else None)
    if table == "requests":
        frame = frame.unique("id", keep="last", maintain_order=True).sort("id")
    return frame, f"{path.name}: the last row was cut short and is left out" if torn else None


def _read_parquet(path: Path, expected: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise BundleError(f"read {path}", str(error), _DAMAGED) from None
    for name, kind in expected.items():
        if name not in frame.columns:
            raise SchemaError(f"read {path}", f"column {name} is missing", _DAMAGED)
        if frame.schema[name] != kind:
            raise SchemaError(f"read {path}", f"column {name} is {frame.schema[name]}, not {kind}", _DAMAGED)
    return frame.select(list(expected))


def _read_json_rows(data: bytes) -> tuple[list[dict[str, Any]], bool]:
    whole, _, rest = data.rpartition(b"\n")
    return [orjson.loads(line) for line in whole.splitlines()], bool(rest)


def _read_tokens(data: bytes) -> tuple[list[tuple[Any, ...]], bool]:
    whole = len(data) - len(data) % schema.TOKEN.size
    return list(schema.TOKEN.iter_unpack(data[:whole])), whole != len(data)
