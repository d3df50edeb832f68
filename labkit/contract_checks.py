"""The contract's checks as data: what is asked of a server, and the few words that say what has to come back.

``data/contract.toml`` has the checks and explains these words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from labkit import paths, records
from labkit.records import Record

ENGINES = ("ollama", "vllm")
METHODS = ("GET", "POST")
FACT = re.compile(r"status|type|text|(json|stream)(\.(\*\.)?\w+)*")

_QUOTED = 160  # characters of an unexpected value that are shown


@dataclass(frozen=True)
class Verb:
    """One kind of assertion: what it compares with, when it holds, and how it is said."""

    takes: str
    fits: Callable[[Any], bool]
    holds: Callable[[Any, Any], bool]
    says: Callable[[Any], str]


def _shown(value: Any) -> str:
    """A value as JSON, which tells 1 from true and from "1"; what is not there is "absent"."""
    return "absent" if value is None else json.dumps(value, ensure_ascii=False)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_whole, value)) and value[0] <= value[1]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


VERBS: Mapping[str, Verb] = {
    "equals": Verb(
        "a text, number or boolean",
        lambda value: isinstance(value, str | int | float),
        lambda found, value: _shown(found) == _shown(value),
        _shown,
    ),
    "contains": Verb(
        "a text",
        _is_text,
        lambda found, value: isinstance(found, str | list) and value in found,
        lambda value: f"contains {_shown(value)}",
    ),
    "lacks": Verb(
        "a text",
        _is_text,
        lambda found, value: isinstance(found, str) and value not in found,
        lambda value: f"lacks {_shown(value)}",
    ),
    "exists": Verb(
        "true or false",
        lambda value: isinstance(value, bool),
        lambda found, value: (found is not None) == value,
        lambda value: "present" if value else "absent",
    ),
    "count": Verb(
        "a whole number",
        _whole,
        lambda found, value: isinstance(found, list) and len(found) == value,
        lambda value: f"{value} members",
    ),
    "between": Verb(
        "two whole numbers, the smaller first",
        _is_range,
        lambda found, value: _whole(found) and value[0] <= found <= value[1],
        lambda value: f"between {value[0]} and {value[1]}",
    ),
}


@dataclass(frozen=True)
class Wanted:
    """What one fact of a reply has to be: a verb of :data:`VERBS` and its object."""

    verb: str
    value: Any

    def __str__(self) -> str:
        return VERBS[self.verb].says(self.value)

    def got(self, found: Any) -> str:
        """The expectation's own words if it holds, else the value itself, shortened."""
        if VERBS[self.verb].holds(found, self.value):
            return str(self)
        shown = _shown(found)
        return shown if len(shown) <= _QUOTED else shown[:_QUOTED] + "…"


@dataclass(frozen=True)
class Check:
    """One request and what each engine makes of it; fields as in ``data/contract.toml``.

    ``expected`` has, for each engine that the check is about, the facts of its reply.
    """

    id: str
    title: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any] | None
    long_prompt_words: int
    expected: Mapping[str, Mapping[str, Wanted]]


def load_checks() -> dict[str, Check]:
    """All checks by id, in the file's order.

    Raises:
        SchemaError: a field is missing or wrong; names the file, the check and the field.
    """
    file = records.read(paths.data() / "contract.toml")
    file.no_others("schema_version", "check")
    checks: dict[str, Check] = {}
    for record in file.records("check"):
        check = _check(record)
        if check.id in checks:
            raise record.error("id", f"{check.id} is there twice")
        checks[check.id] = check
    return checks


def _check(record: Record) -> Check:
    record.no_others("id", "title", "request", "headers", "body", "long_prompt_words", *ENGINES)
    method, _, path = record.get("request", str).partition(" ")
    if method not in METHODS or not path.startswith("/"):
        raise record.error("request", f"should be {' or '.join(METHODS)} and a path, found {method} {path}")
    expected = {engine: _expected(record, engine) for engine in ENGINES if engine in record.data}
    if not expected:
        raise record.error(" and ".join(ENGINES), "are both missing: nothing is expected")
    return Check(
        id=record.get("id", str),
        title=record.get("title", str),
        method=method,
        path=path,
        headers=record.get("headers", dict) if "headers" in record.data else {},
        body=record.get("body", dict) if "body" in record.data else None,
        long_prompt_words=record.get("long_prompt_words", int) if "long_prompt_words" in record.data else 0,
        expected=expected,
    )


def _expected(record: Record, engine: str) -> dict[str, Wanted]:
    table = record.record(engine)
    table.get("status", int)
    return {fact: _wanted(table, fact) for fact in table.data}


def _wanted(table: Record, fact: str) -> Wanted:
    if not FACT.fullmatch(fact):
        raise table.error(fact, "is no fact of a reply; these are status, type, text, json.… and stream.…")
    given = table.data[fact]
    if not isinstance(given, dict):
        given = {"equals": given}
    if len(given) != 1 or not given.keys() <= VERBS.keys():
        raise table.error(fact, f"should be a value or one of {', '.join(VERBS)}, found {given!r:.80}")
    ((verb, value),) = given.items()
    if not VERBS[verb].fits(value):
        raise table.error(fact, f"{verb} should have {VERBS[verb].takes}, found {value!r:.80}")
    return Wanted(verb, value)
