"""The article's claims as data, and what a run says about each: held, did not hold, not measurable here.

>>> claims.judge(["C13", "C33"], run)   # in a notebook: a table
>>> claims.published("C12")             # figures of others, with the conditions they were measured under
"""

from __future__ import annotations

import datetime
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from labkit import paths, records
from labkit.bundle import Run
from labkit.errors import UsageError
from labkit.judges import JUDGES, NOT_HERE, Case
from labkit.records import Record
from labkit.sides import Missing

VERDICTS = ("TRUE", "PARTLY", "OUTDATED", "MISLEADING", "FALSE", "OPINION", "UNVERIFIED")
EVIDENCE = ("source", "history", "measured", "documented", "secondary", "none")


@dataclass(frozen=True)
class Figure:
    """A figure that somebody else published. It belongs to its conditions and predicts nothing."""

    what: str
    value: float
    unit: str
    conditions: str
    source: str
    date: datetime.date

    def __str__(self) -> str:
        return (
            f"{self.what}: {self.value:g} {self.unit}, published {self.date} by {self.source}. "
            f"Conditions: {self.conditions}."
        )


@dataclass(frozen=True)
class Claim:
    """One claim; the fields are explained at the top of ``data/claims.toml``."""

    id: str
    statement: str
    verdict: str
    because: str
    evidence: tuple[str, ...]
    checked: datetime.date
    versions: tuple[str, ...]
    notebook: str
    measure: str
    published: tuple[Figure, ...]


@dataclass(frozen=True)
class Judgement:
    """What one run says about one claim: "held", "did not hold" or "not measurable here", and why."""

    id: str
    statement: str
    word: str
    reason: str


class Judgements(list[Judgement]):
    """Judgements of one run, shown as a table in a notebook and as text elsewhere."""

    def __init__(self, found: Iterable[Judgement], about: str) -> None:
        super().__init__(found)
        self.about = about

    def __repr__(self) -> str:
        lines = [self.about]
        for one in self:
            lines += [f"{one.id}  {one.word}: {one.statement}", textwrap.indent(one.reason, "     ")]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{name}</th>' for name in ("claim", "it says", "here", "because"))
        rows = "".join(
            f'<tr><th scope="row">{one.id}</th><td style="text-align:left">{escape(one.statement)}</td>'
            f'<td><b>{one.word}</b></td><td style="text-align:left">{escape(one.reason)}</td></tr>'
            for one in self
        )
        return f"<table><caption>{escape(self.about)}</caption><tr>{head}</tr>{rows}</table>"


def load(path: Path | None = None) -> dict[str, Claim]:
    """All claims by id, in the file's order.

    Args:
        path: another file than the course's own.

    Raises:
        SchemaError: a field is missing or wrong; names the file, the claim and the field.
    """
    file = records.read(path or paths.data() / "claims.toml")
    claims: dict[str, Claim] = {}
    for record in file.records("claim"):
        claim = _claim(record)
        if claim.id in claims:
            raise record.error("id", f"{claim.id} is there twice")
        claims[claim.id] = claim
    return claims


def published(claim_id: str) -> str:
    """The published figures behind a claim, each with its conditions, source and date.

    Raises:
        UsageError: no such claim, or no figure was published for it.
    """
    figures = _known(claim_id).published
    if not figures:
        raise UsageError(f"quote the figures of {claim_id}", "none are recorded for this claim", "")
    return "\n".join(str(figure) for figure in figures)


def judge(ids: Sequence[str], run: Run) -> Judgements:
    """Judge claims on a run.

    A claim that the run cannot decide is "not measurable here", with what it would take; so is every claim
    if other load was on an engine while it was measured.

    Raises:
        UsageError: no such claim.
    """
    claims = [_known(claim_id) for claim_id in ids]
    about = f"Judged on a {run.kind} run of {run.meta['started_at']}, verdict {run.verdict.word}"
    if run.partial:
        about += f"; not whole: {run.partial}"
    return Judgements([_judgement(claim, run) for claim in claims], about)


def _judgement(claim: Claim, run: Run) -> Judgement:
    if claim.id not in JUDGES:
        word, reason = NOT_HERE, "A load run cannot decide this; see how it was checked."
    elif run.verdict.word == "contaminated":
        word, reason = NOT_HERE, f"The run is contaminated: {'; '.join(run.verdict.reasons)}."
    else:
        try:
            case = Case(run, tuple(figure.value for figure in claim.published))
            word, reason = JUDGES[claim.id](case)
        except Missing as missing:
            word, reason = NOT_HERE, f"{missing}."
    return Judgement(claim.id, claim.statement, word, reason)


def _known(claim_id: str) -> Claim:
    claims = load()
    if claim_id not in claims:
        raise UsageError(f"find claim {claim_id!r}", f"there are {', '.join(claims)}", "name one of these")
    return claims[claim_id]


def _claim(record: Record) -> Claim:
    record.no_others(*Claim.__dataclass_fields__)
    evidence = record.texts("evidence")
    if not set(evidence) <= set(EVIDENCE):
        raise record.error("evidence", f"is {list(evidence)}, known are {', '.join(EVIDENCE)}")
    return Claim(
        id=record.get("id", str),
        statement=record.get("statement", str),
        verdict=record.one_of("verdict", VERDICTS),
        because=record.get("because", str),
        evidence=evidence,
        checked=record.get("checked", datetime.date),
        versions=record.texts("versions"),
        notebook=record.get("notebook", str),
        measure=record.get("measure", str),
        published=tuple(_figure(figure) for figure in record.records("published")),
    )


def _figure(record: Record) -> Figure:
    record.no_others(*Figure.__dataclass_fields__)
    return Figure(
        what=record.get("what", str),
        value=record.number("value"),
        unit=record.get("unit", str),
        conditions=record.get("conditions", str),
        source=record.get("source", str),
        date=record.get("date", datetime.date),
    )
