"""Which checkpoint is which: an Ollama tag, its original repository, and quantised forms that vLLM serves.

>>> mapping.find("llama3.1:8b").repo
'meta-llama/Llama-3.1-8B-Instruct'

``data/model_map.toml`` has the map, and says of each entry how sure it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from labkit import paths, records
from labkit.errors import UsageError
from labkit.records import Record
from labkit.transcript import Event, Transcript

FORMS = ("awq", "gptq", "fp8")
SURE = ("seen", "named", "likely", "unverified")
CHECKED = "2026-11"
"""When the public pages behind the map were read."""


@dataclass(frozen=True)
class Form:
    """One quantised repository of a model, and how sure it is that it is there."""

    form: str
    repo: str
    sure: str


@dataclass(frozen=True)
class Checkpoint:
    """One model; the fields are explained at the top of ``data/model_map.toml``."""

    tag: str
    quantisation: str
    size: str
    digest: str
    repo: str
    licence: str
    gate: str
    mirror: str
    forms: tuple[Form, ...]
    note: str

    def named(self, form: str) -> str:
        """Its repositories of one form, with a mark on those that were not seen."""
        return ", ".join(
            one.repo if one.sure == "seen" else f"{one.repo} ({one.sure})"
            for one in self.forms
            if one.form == form
        )


def load(path: Path | None = None) -> dict[str, Checkpoint]:
    """The map by tag, in the file's order.

    Raises:
        SchemaError: a field is missing or wrong; names the file, the model and the field.
    """
    return {row.tag: row for row in map(_checkpoint, _file(path).records("model"))}


def absent(path: Path | None = None) -> dict[str, str]:
    """Names that are passed around and were found nowhere, with the reason."""
    return {one.get("id", str): one.get("because", str) for one in _file(path).records("absent")}


def find(tag: str) -> Checkpoint:
    """The row of one tag.

    Raises:
        UsageError: not in the map; lists what is.
    """
    rows = load()
    if tag not in rows:
        raise UsageError(
            f"find the repository of {tag!r}",
            f"the map has {', '.join(rows)}",
            "name one of these, or look the model up with its publisher",
        )
    return rows[tag]


def known(repo: str) -> str:
    """In a sentence: what the map says of a repository's name."""
    for row in load().values():
        if repo == row.repo:
            return f"{repo} is the original of {row.tag}: {row.licence}, {row.gate}."
        if repo == row.mirror:
            return f"{repo} is a copy of {row.repo}. {row.note}"
        for one in row.forms:
            if repo == one.repo:
                return f"{repo} is the {one.form.upper()} form of {row.tag} ({one.sure})."
    if repo in (missing := absent()):
        return f"{repo} was not found. {missing[repo]}"
    return f"{repo} is not in the map, which says nothing on whether it is there."


def table() -> pl.DataFrame:
    """The map for people, one row a tag."""
    return pl.DataFrame(
        [
            {
                "tag": row.tag,
                "quantisation": row.quantisation,
                "size": row.size,
                "repository": row.repo,
                "licence": row.licence,
                "gate": row.gate,
                **{form: row.named(form) for form in FORMS},
                "note": row.note,
            }
            for row in load().values()
        ]
    )


def transcript() -> Transcript:
    """The map as evidence: "form" for each repository (original, awq, gptq, fp8), "absent" for the others."""
    events: list[Event] = []
    for row in load().values():
        original = Form("original", row.repo, "seen")
        events += [
            _event("form", tag=row.tag, form=one.form, repo=one.repo, sure=one.sure)
            for one in (original, *row.forms)
        ]
    events += [_event("absent", repo=repo, because=because) for repo, because in absent().items()]
    return Transcript("model_map", "recorded", {"date": CHECKED}, tuple(events))


def _event(what: str, **fields: Any) -> Event:
    return {"t_s": 0.0, "what": what, **fields}


def _file(path: Path | None) -> Record:
    file = records.read(path or paths.data() / "model_map.toml")
    file.no_others("schema_version", "model", "absent")
    return file


def _checkpoint(record: Record) -> Checkpoint:
    texts = ("quantisation", "size", "repo", "licence", "gate")
    may_be_empty = ("digest", "mirror", "note")
    record.no_others("id", *texts, *may_be_empty, *FORMS)
    return Checkpoint(
        tag=record.get("id", str),
        forms=tuple(_form(form, one) for form in FORMS for one in record.records(form)),
        **{name: record.get(name, str) for name in texts},
        **{name: _maybe(record, name) for name in may_be_empty},
    )


def _form(form: str, record: Record) -> Form:
    record.no_others("repo", "sure")
    return Form(form, record.get("repo", str), record.one_of("sure", SURE))


def _maybe(record: Record, name: str) -> str:
    return "" if record.data.get(name) == "" else record.get(name, str)
