"""What an engine did or said that is no load run: a download, a load, a start-up log, a refusal.

A transcript is a list of events in the order in which they came. Those of the recorded depth are in
``data/transcripts``, one JSON file each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Self

import orjson
import polars as pl

from labkit import paths
from labkit.errors import BundleError, SchemaError, UsageError

SCHEMA_VERSION = 1
"""Version of the format; a reader refuses a larger one."""

KINDS = ("live", "simulated", "recorded")
Event = dict[str, Any]


@dataclass(frozen=True)
class Transcript:
    """One thing that an engine did, event by event.

    Attributes:
        name: of the transcript, such as "pull"; a file's name in ``data/transcripts``.
        kind: live | simulated | recorded, as of a run; computed, where it is arithmetic that nobody measured.
        about: engine, version, model, machine, date, and time_scale where it is simulated: what the events
            were seen on. Fields that are not known are left out.
        events: each with at least ``t_s``, seconds since the beginning (of a simulated engine in its own
            seconds), and ``what``; the other fields depend on what it is.
    """

    name: str
    kind: str
    about: Mapping[str, Any]
    events: tuple[Event, ...]

    def of(self, what: str) -> list[Event]:
        """The events of this kind, in their order."""
        return [event for event in self.events if event["what"] == what]

    def one(self, what: str) -> Event:
        """The first event of this kind.

        Raises:
            UsageError: there is none; names those that there are.
        """
        for event in self.of(what):
            return event
        there = ", ".join(dict.fromkeys(event["what"] for event in self.events)) or "no events"
        raise UsageError(f"find {what!r} in the transcript {self.name}", f"there are {there}", "name one")

    def table(self, what: str | None = None) -> pl.DataFrame:
        """The events as rows, all or those of one kind; columns in the order in which fields turn up.

        Lists and tables inside an event are written out as JSON.
        """
        events = list(self.events) if what is None else self.of(what)
        names = list(dict.fromkeys(name for event in events for name in event))
        rows = [{name: _plain(event.get(name)) for name in names} for event in events]
        return pl.DataFrame(rows, infer_schema_length=None)

    def save(self, path: Path) -> Path:
        """Write it as JSON; returns the path."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "kind": self.kind,
            "about": dict(self.about),
            "events": list(self.events),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read one.

        Raises:
            BundleError: no such file, or not JSON; names it.
            SchemaError: a newer format, or a field is missing or of the wrong type; names file and field.
        """
        try:
            given = orjson.loads(path.read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise BundleError(f"read {path}", str(error), "record it again or install labkit again") from None
        fields = dict(_fields(path, given))
        return cls(fields["name"], fields["kind"], fields["about"], tuple(fields["events"]))

    def __repr__(self) -> str:
        return f"{self.title}\n{self.table()}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.title)}</p>{self.table()._repr_html_()}"

    @property
    def title(self) -> str:
        """One line on what it is and where it was seen: the badge of what is made of it."""
        about = self.about
        parts = [f"{about['engine']} {about.get('version', '')}".strip() if "engine" in about else ""]
        parts += [str(about[name]) for name in ("model", "machine", "date") if name in about]
        if "time_scale" in about:
            parts.append(f"at {about['time_scale']:.3g} times real time")
        return f"{self.kind}: {self.name} · {' · '.join(filter(None, parts))}"


def keep(transcript: Transcript, folder: Path | None = None, *, number: int = 1) -> Path:
    """Keep a live transcript as a recorded one, which it says of itself from then on.

    Paths of this machine are taken out of its texts.

    Args:
        folder: another one than the course's own.
        number: of several with one name, with other settings each.
    """
    suffix = "" if number == 1 else f"-{number}"
    target = (folder or _home()) / f"{transcript.name}{suffix}.json"
    replace(transcript, kind="recorded").save(target)
    target.write_text(paths.neutral(target.read_text()))
    return target


def recorded(name: str) -> Transcript:
    """The transcript of this name that comes with the course.

    Raises:
        UsageError: there is none; lists those that there are.
    """
    path = _home() / f"{name}.json"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in _home().glob("*.json"))) or "none at all"
        raise UsageError(
            f"find the recorded transcript {name!r}",
            f"there are {there}",
            "MODE = 'simulated' needs no engines, 'live' the real ones",
        )
    return Transcript.load(path)


def recordings(name: str) -> list[Transcript]:
    """All transcripts of this name that come with the course: "lifecycle", "lifecycle-2" …"""
    found = [Transcript.load(path) for path in sorted(_home().glob(f"{name}*.json"))]
    return [one for one in found if one.name == name]


def _home() -> Path:
    return paths.data() / "transcripts"


def _plain(value: Any) -> Any:
    return orjson.dumps(value).decode() if isinstance(value, list | dict) else value


def _fields(path: Path, given: Any) -> Iterator[tuple[str, Any]]:
    kinds = {"schema_version": int, "name": str, "kind": str, "about": dict, "events": list}
    if not isinstance(given, dict):
        raise _wrong(path, "", "is no table")
    for name, kind in kinds.items():
        if not isinstance(given.get(name), kind):
            raise _wrong(path, name, f"should be {kind.__name__}, found {given.get(name)!r:.80}")
        yield name, given[name]
    if given["schema_version"] > SCHEMA_VERSION:
        raise _wrong(path, "schema_version", f"is {given['schema_version']}, read up to {SCHEMA_VERSION}")
    if given["kind"] not in KINDS:
        raise _wrong(path, "kind", f"is {given['kind']!r}, not one of {', '.join(KINDS)}")
    for number, event in enumerate(given["events"]):
        if not isinstance(event, dict) or not isinstance(event.get("what"), str):
            raise _wrong(path, f"events[{number}].what", "should be text")
        if isinstance(event.get("t_s"), bool) or not isinstance(event.get("t_s"), int | float):
            raise _wrong(path, f"events[{number}].t_s", "should be a number of seconds")


def _wrong(path: Path, field: str, seen: str) -> SchemaError:
    return SchemaError(f"read {path}", f"field {field} {seen}", "record it again or install labkit again")
