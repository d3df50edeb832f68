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
from labkit.clock import RunClock
from labkit.errors import BundleError, SchemaError, UsageError
from labkit.summary import Comparison, side_by_side, summarise, to_html, unrecorded_levels
from labkit.tables import DAMAGED, TABLES, read_table
from labkit.verdict import WORDS, Verdict

_Kind = type | tuple[type, ...]
_NUMBER = (int, float)
_META_FIELDS: dict[str, _Kind] = {
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
_ARM_FIELDS: dict[str, _Kind] = {"engine": str, "settings": dict, "facts": dict}
_LEVEL_FIELDS: dict[str, _Kind] = {
    "arm": str,
    "level": int,
    "repeat": int,
    "warmup": bool,
    "started_s": _NUMBER,
    "ended_s": _NUMBER,
}
_HOST_FIELDS: dict[str, _Kind] = {"cpu": str, "cores": int}
_VERDICT_FIELDS: dict[str, _Kind] = {"word": str, "reasons": list}
KINDS = ("live", "simulated", "recorded")


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
    def arrivals(self) -> dict[str, Any]:
        """How its requests came (:meth:`labkit.designs.Load.as_dict`); a closed loop if it does not say."""
        return {"arrivals": "closed", **(self.meta["workload"].get("load") or {})}

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
        """Read a bundle, whole or half-written. A level that a killed writer never closed is derived from
        its rows.

        Raises:
            BundleError: no bundle there, or a table that cannot be read; names the file.
            SchemaError: a newer format or a wrong field; names the file and the field.
        """
        folder = Path(path)
        meta = read_meta(folder)
        tables, notes = {}, []
        for table in TABLES:
            tables[table], note = read_table(folder, table)
            notes += [note] if note else []
        if meta["state"] != "complete":
            how = "stopped early" if meta["state"] == "stopped" else "broken off before its end"
            notes.insert(0, f"{folder.name}: the run was {how}")
        if meta.get("trouble"):
            notes.append(f"{folder.name}: {meta['trouble']}")
        if meta["state"] == "running":
            meta["levels"] += unrecorded_levels(tables["requests"], tables["tokens"], meta)
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

    def save(self, path: str | Path | None = None) -> Run:
        """Copy the whole bundle to another, empty or new, folder.

        A run is on disk already, at :attr:`path`: without an argument nothing is left to do.

        Raises:
            UsageError: the folder holds something already, or cannot be made.
        """
        if path is None:
            return self
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

    Attributes:
        clock: of the run; all its times are by this one.
        kind: live | simulated | recorded.

    Raises:
        BundleError: not even the first ``run.json`` can be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kind: str,
        arms: dict[str, Any],
        workload: dict[str, Any],
        seed: int,
        time_scale: float = 1.0,
    ) -> None:
        self.folder = empty_folder(folder)
        self.clock = RunClock(time.perf_counter(), time_scale)
        self.kind = kind
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
        now = self.clock.at(time.perf_counter())
        rows = [
            {"t_s": now, "engine": engine, "arm": arm, "name": name, "value": value}
            for name, value in values.items()
            if value is not None
        ]
        data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
        with self._disk(), (self.folder / "gauges.rows").open("ab", buffering=0) as out:
            size = out.tell()
            try:
                while data:
                    data = data[out.write(data) :]
            except OSError:  # half a line would spoil the next one
                out.truncate(size)
                raise

    def arms(self, described: dict[str, dict[str, Any]]) -> None:
        """Say what the arms are that were there so far."""
        self._meta["arms"] = dict(described)
        self._write()

    def level(self, record: dict[str, Any]) -> None:
        """Add what one level did: its window, its tally and the client's health."""
        self._meta["levels"].append(record)
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
            for table in TABLES:
                (self.folder / f"{table}.parquet").unlink(missing_ok=True)
        self._meta |= {"state": "stopped" if stopped else "complete", "trouble": self._lost()}
        self._write()
        if lost := self._lost():
            return Run(self._meta, **tables, path=self.folder, partial=f"{self.folder}: {lost}")
        for table in TABLES:
            (self.folder / f"{table}.rows").unlink(missing_ok=True)
        return Run.load(self.folder)

    def so_far(self) -> Run:
        """What is measured up to now, while the run goes on."""
        note = f"{self.folder.name}: the run has not ended"
        return Run(copy.deepcopy(self._meta), **self._tables(), path=self.folder, partial=note)

    def _lost(self) -> str | None:
        if self._trouble is None:
            return None
        return f"not all could be written ({self._trouble}); the rows so far are kept"

    def _tables(self) -> dict[str, pl.DataFrame]:
        return {table: read_table(self.folder, table)[0] for table in TABLES}

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
        raise BundleError(f"read {path}", f"not JSON: {error}", DAMAGED) from None
    if not isinstance(meta, dict):
        raise SchemaError(f"read {path}", "not a JSON object", DAMAGED)
    version = meta.get("schema_version")
    if isinstance(version, int) and version > schema.SCHEMA_VERSION:
        raise SchemaError(
            f"read {path}",
            f"field schema_version is {version}, this labkit reads up to {schema.SCHEMA_VERSION}",
            "install the newer labkit that wrote it",
        )
    _check(path, meta, _META_FIELDS)
    _check(path, meta["host"], _HOST_FIELDS, "host")
    _check(path, meta["verdict"], _VERDICT_FIELDS, "verdict")
    for name, arm in meta["arms"].items():
        _check(path, arm, _ARM_FIELDS, f"arms[{name!r}]")
    for index, level in enumerate(meta["levels"]):
        _check(path, level, _LEVEL_FIELDS, f"levels[{index}]")
    for name, value, known in (
        ("kind", meta["kind"], KINDS),
        ("verdict.word", meta["verdict"]["word"], WORDS),
    ):
        if value not in known:
            raise SchemaError(f"read {path}", f"field {name} is {value!r}", f"one of {', '.join(known)}")
    return meta


def _check(path: Path, found: Any, fields: dict[str, _Kind], where: str = "") -> None:
    """Refuse an object of ``run.json`` that lacks a field or holds another type in it."""
    if not isinstance(found, dict):
        raise SchemaError(f"read {path}", f"field {where} should be an object, found {found!r:.80}", DAMAGED)
    for name, kind in fields.items():
        value = found.get(name)
        # JSON tells true from 1, Python's isinstance does not
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            field = f"{where}.{name}" if where else name
            seen = f"field {field} should be {wanted}, found {value!r:.80}"
            raise SchemaError(f"read {path}", seen, DAMAGED)
