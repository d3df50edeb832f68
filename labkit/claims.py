"""The article's claims as data, and what runs say about each: held, did not hold, not measurable here.

>>> claims.judge(["C13", "C33"], run)   # in a notebook: a table
>>> claims.published("C12")             # figures of others, with the conditions they were measured under
>>> print(claims.page())                # all of them, as Markdown
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
from labkit.judges import JUDGES, NOT_HERE, READERS, Case
from labkit.records import Record
from labkit.sides import Missing, NoArm
from labkit.transcript import Transcript

VERDICTS = ("TRUE", "PARTLY", "OUTDATED", "MISLEADING", "FALSE", "OPINION", "UNVERIFIED")
NOTEBOOKS = (
    "00_start_here",
    "01_ollama_pull",
    "02_ollama_under_load",
    "03_tuning_num_parallel",
    "04_vllm_serve",
    "05_the_gap",
    "06_prefix_caching",
    "07_tensor_parallel",
    "08_migrate",
    "09_decide_and_plan",
)
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
    not_measurable: str | None
    published: tuple[Figure, ...]

    @property
    def check(self) -> str:
        """What the course's own check found, when, and on what."""
        return f"Checked {self.checked} on {', '.join(self.versions)}: {self.verdict}. {self.because}"

    def age(self, today: datetime.date) -> int:
        """Days since it was checked."""
        return (today - self.checked).days


@dataclass(frozen=True)
class Judgement:
    """What runs say about one claim: "held", "did not hold" or "not measurable here", and why."""

    id: str
    statement: str
    word: str
    reason: str


class Judgements(list[Judgement]):
    """Judgements of one table, shown as a table in a notebook and as text elsewhere."""

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


def judge(ids: Sequence[str], evidence: Run | Transcript | Sequence[Run | Transcript]) -> Judgements:
    """Judge claims on runs and transcripts, each on the first that can decide it.

    A claim that none of them can decide is "not measurable here", with what it would take and with what the
    course's own check found. A run in which other load was on an engine decides nothing.

    Raises:
        UsageError: no such claim.
    """
    given = (evidence,) if isinstance(evidence, Run | Transcript) else tuple(evidence)
    claims = [_known(claim_id) for claim_id in ids]
    about = f"Judged on {'; '.join(_described(one) for one in given) or 'nothing'}"
    if any(one.kind == "simulated" for one in given):
        about += ". What holds for the imitation need not hold for the engine"
    return Judgements([_judgement(claim, given) for claim in claims], about)


def _described(one: Run | Transcript) -> str:
    if isinstance(one, Transcript):
        return f"the transcript {one.title}"
    text = f"a {one.kind} run of {one.meta['started_at']}, verdict {one.verdict.word}"
    return f"{text}, not whole: {one.partial}" if one.partial else text


def _judgement(claim: Claim, given: Sequence[Run | Transcript]) -> Judgement:
    if claim.not_measurable is not None:
        return Judgement(claim.id, claim.statement, NOT_HERE, f"{claim.not_measurable} {claim.check}")
    missing: list[Missing] = []
    for one in given:
        try:
            found = _read(claim, one) if isinstance(one, Transcript) else _decided(claim, one, given)
        except Missing as reason:
            missing.append(reason)
            continue
        if found is not None:
            return Judgement(claim.id, claim.statement, *found)
    # that a run is of the other engine is worth saying only where nothing else is
    told = [reason for reason in missing if not isinstance(reason, NoArm)] or missing
    reasons = dict.fromkeys(f"{reason}." for reason in told or [_needs(claim)])
    return Judgement(claim.id, claim.statement, NOT_HERE, " ".join([*reasons, claim.check]))


def _read(claim: Claim, transcript: Transcript) -> tuple[str, str] | None:
    name, reader = READERS.get(claim.id, (None, None))
    return reader(transcript) if reader and name == transcript.name else None


def _decided(claim: Claim, run: Run, given: Sequence[Run | Transcript]) -> tuple[str, str] | None:
    judge = JUDGES.get(claim.id)
    if judge is None:
        return None
    if run.verdict.word == "contaminated":
        raise Missing(f"The run is contaminated: {'; '.join(run.verdict.reasons)}")
    runs = tuple(one for one in given if isinstance(one, Run) and one.verdict.word != "contaminated")
    return judge(Case(run, runs, tuple(figure.value for figure in claim.published)))


def _needs(claim: Claim) -> Missing:
    takes = ["a run"] if claim.id in JUDGES else []
    takes += [f"the transcript {READERS[claim.id][0]}"] if claim.id in READERS else []
    return Missing(f"It takes {' or '.join(takes)} to decide this")


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
        notebook=record.one_of("notebook", NOTEBOOKS),
        measure=record.get("measure", str),
        not_measurable=record.get("not_measurable", str) if "not_measurable" in record.data else None,
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
