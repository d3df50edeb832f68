"""All claims as a page in Markdown and as a table for the shell."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable

from labkit.claims import NOTEBOOKS, VERDICTS, Claim, load

_HEAD = """# The claims

Generated from `data/claims.toml` by `labkit claims --page`; do not edit.

The course answers to an article of 2026-06-12, "Ollama vs vLLM: Local Development vs Production Serving".
It makes 88 claims, here in our words. The notebooks put them to the test: at its end each has a table
that says of its claims *held*, *did not hold* or *not measurable here*, judged on your own runs. What our
own check found is on this page, with its date and the versions that it was made on. Engines change:
`labkit claims` tells how many days old each check is.

| verdict | means |
|---|---|
| TRUE | holds on what was checked |
| PARTLY | holds under a condition that the claim leaves out |
| OUTDATED | was true once |
| MISLEADING | true word by word, and suggests what is not |
| FALSE | does not hold |
| OPINION | nothing that could be measured or looked up |
| UNVERIFIED | depends on conditions, and nobody has shown it either way |

Evidence is *source* (read in the engine's code), *history* (its commits), *measured*, *documented* (an
official page), *secondary* (somebody else's text) or *none*. A claim marked ● is judged on your own
runs and on what you saw an engine do. One marked ○ cannot be, and says why.
"""


def page() -> str:
    """The page ``docs/claims.md``; the same on every day, so it has dates and no ages."""
    claims = load().values()
    found = Counter(claim.verdict for claim in claims)
    counts = ", ".join(f"{found[word]} {word}" for word in VERDICTS)
    parts = [_HEAD, f"In all: {counts}.\n"]
    for notebook in NOTEBOOKS:
        parts.append(f"## {notebook}\n")
        parts += [_entry(claim) for claim in claims if claim.notebook == notebook]
    return "\n".join(parts)


def _entry(claim: Claim) -> str:
    judged = "○" if claim.not_measurable else "●"
    lines = [
        f"### {claim.id}: {claim.verdict}\n",
        f"> {claim.statement}\n",
        f"{claim.because}\n",
        f"- {judged} To see it: {claim.measure}",
        *([f"- No run here decides it. {claim.not_measurable}"] if claim.not_measurable else []),
        f"- Checked {claim.checked} on {', '.join(claim.versions)}; evidence: {', '.join(claim.evidence)}",
        *(f"- {figure}" for figure in claim.published),
    ]
    return "\n".join(lines) + "\n"


def table(claims: Iterable[Claim], today: datetime.date) -> str:
    """One line a claim, with the age of its check in days."""
    rows = [("id", "verdict", "checked", "days", "notebook", "claim")]
    rows += [(c.id, c.verdict, str(c.checked), str(c.age(today)), c.notebook, c.statement) for c in claims]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join([*(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )
