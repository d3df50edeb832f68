"""From a load, a promise, a price and evidence to a decision that says what it stands on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import polars as pl

from labkit import costs
from labkit.bundle import Run
from labkit.calibration import Calibrated
from labkit.decision import Row, changes, decision, side_by_side
from labkit.document import Block, Document, Heading, Items, Table, Text
from labkit.errors import UsageError
from labkit.figures.base import conditions
from labkit.options import Need, Option, Prices, comparable, measured_options, predicted_options
from labkit.slo import Slo

TITLE = "A plan for serving a language model"
FILE = "plan"


@dataclass(frozen=True)
class Plan:
    """The plan; shows itself in a notebook and saves itself as Markdown and as a page.

    Attributes:
        options: one for each arm and basis; those that decide are in ``deciding``.
        decision: in a sentence or two.
        changes: what would change it, a sentence each.
        rows: the decision table: what, ollama, vllm, origin.
    """

    need: Need
    slo: Slo
    prices: Prices
    runs: tuple[Run, ...]
    fit: Calibrated | None
    options: tuple[Option, ...]
    deciding: tuple[Option, ...]
    decision: str
    changes: tuple[str, ...]
    rows: pl.DataFrame

    @property
    def badge(self) -> str:
        """The depth of what it stands on."""
        word = self.runs[0].kind
        note = {
            "simulated": "these runs are of labkit's own engines: the plan shows the way, not your engines",
            "recorded": "these runs were measured earlier, on the machine that is named below",
        }.get(word, "these runs were measured on real engines")
        return f"{word}: {note}"

    @property
    def table(self) -> pl.DataFrame:
        """The options: arm, basis, decides, users, low, high (of one machine), machines, per_million_output,
        per_million_all, per_month, per_user_month, evidence."""
        return pl.DataFrame(
            [
                {
                    "arm": option.arm,
                    "basis": option.basis,
                    "decides": option in self.deciding,
                    "unit": option.unit,
                    "users": option.users,
                    "low": option.low,
                    "high": option.high,
                    "machines": option.machines(self.need.amount),
                    **self._costs(option),
                    "evidence": option.evidence,
                }
                for option in self.options
            ],
            infer_schema_length=None,
        )

    def _costs(self, option: Option) -> dict[str, float | None]:
        prices, machines = self.prices, option.machines(self.need.amount)
        if machines is None or not option.tokens_per_s or not option.all_tokens_per_s:
            return dict.fromkeys(("per_million_output", "per_million_all", "per_month", "per_user_month"))
        month = machines * prices.per_hour * costs.HOURS
        share = costs.per_user_month(
            machines * prices.per_hour, self.need.amount, active_share=prices.active_share
        )
        return {
            "per_million_output": costs.per_million_tokens(
                option.tokens_per_s, prices.per_hour, prices.utilisation
            ),
            "per_million_all": costs.per_million_tokens(
                option.all_tokens_per_s, prices.per_hour, prices.utilisation
            ),
            "per_month": month,
            "per_user_month": share if self.need.users else None,
        }

    def document(self) -> Document:
        """Title and sections, for both forms."""
        return Document(TITLE, list(self._blocks()))

    def markdown(self) -> str:
        """The plan as Markdown."""
        return self.document().markdown()

    def html(self) -> str:
        """The plan as a page that needs nothing else."""
        return self.document().html()

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write ``plan.md`` and ``plan.html``; returns their paths.

        Raises:
            UsageError: the folder cannot be written to.
        """
        return self.document().save(Path(folder), FILE)

    def __repr__(self) -> str:
        return "\n".join([self.badge, self.decision, *self.changes])

    def _repr_html_(self) -> str:
        changes = "".join(f"<li>{escape(line)}</li>" for line in self.changes)
        table = self.table.drop("evidence", "unit")
        return (
            f"<p>{escape(self.badge)}</p><p><b>{escape(self.decision)}</b></p>"
            f"{table._repr_html_()}<ul>{changes}</ul>{self.rows._repr_html_()}"
        )

    def _blocks(self) -> Iterator[Block]:
        yield Text(self.badge)
        yield Heading("Decision")
        yield Text(self.decision, strong=True)
        yield Heading("What was entered")
        yield Table(("what", "value"), self._entered())
        yield Heading("What one machine holds, and what it costs")
        yield Table(*self._held())
        yield Text(
            "Prices are in the currency of the price that was entered. Costs of a million tokens are those "
            "of a machine that works at the largest load within the promise for the entered share of the "
            "paid time; output tokens are those that were written, all tokens those of the questions too."
        )
        yield Items([option.sentence for option in self.options])
        yield Heading("Side by side")
        yield Table(tuple(self.rows.columns), self.rows.rows())
        yield Heading("What would change the decision")
        yield Items(self.changes)
        yield Heading("Evidence")
        for run in self.runs:
            first, *rest = conditions(run)
            lines = [first.replace("**", ""), *(line.removeprefix("- ") for line in rest)]
            yield Text(f"Run {run.path.name}: {lines[0]}")
            yield Items(lines[1:])
        if self.fit is not None:
            first, *rest = repr(self.fit).splitlines()
            yield Text(f"Predictions: {first}")
            yield Items(rest)

    def _entered(self) -> list[tuple[str, str]]:
        need, prices = self.need, self.prices
        asked = need.prompt_tokens and f"{need.prompt_tokens} tokens in, {need.output_tokens} out"
        return [
            ("load", str(need)),
            ("questions and answers", asked or "as in the runs"),
            ("promise", str(self.slo)),
            ("price of a machine and hour", f"{prices.per_hour:g}"),
            ("share of the paid time at work", f"{prices.utilisation:.0%}"),
            ("share of it in which one person waits for an answer", f"{prices.active_share:.0%}"),
        ]

    def _held(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        money = "per_million_output", "per_million_all", "per_month", "per_user_month"
        head = (
            *("arm", "basis", "decides", f"{self.need.unit} of one machine", "interval", "machines"),
            *("million output tokens", "million tokens in all", "machines for a month", "person and month"),
        )
        lines = []
        for row in self.table.iter_rows(named=True):
            high = "open" if row["high"] is None else f"below {row['high']:.3g}"
            lines.append(
                (
                    *(row["arm"], row["basis"], "yes" if row["decides"] else "no"),
                    *(f"{row['users']:.3g}", f"{row['low']:.3g} to {high}"),
                    "none are enough" if row["machines"] is None else str(row["machines"]),
                    *("–" if row[name] is None else f"{row[name]:,.2f}" for name in money),
                )
            )
        return head, lines


def plan(
    runs: Sequence[Run],
    need: Need,
    slo: Slo,
    prices: Prices,
    *,
    fit: Calibrated | None = None,
    rows: Sequence[Row] = (),
    seed: int = 0,
) -> Plan:
    """Decide from runs, and from predictions where no run has the needed lengths.

    An arm is judged by its measurement if that asked for about the needed lengths, else by its prediction.

    Args:
        fit: for predictions (:func:`labkit.calibration.fit`); without it there are none.
        rows: further rows of the decision table.

    Raises:
        UsageError: no run, runs of several depths, machines or models, or none that fits the load.
    """
    comparable(runs)
    measured = measured_options(runs, need, slo)
    predicted = predicted_options(runs, fit, need, slo, seed) if fit is not None else []
    by_arm = {option.arm: option for option in predicted}
    by_arm |= {option.arm: option for option in measured if option.fitting}
    deciding = tuple(by_arm.values())
    if not deciding:
        raise _nothing(need, measured, runs)
    options = (*measured, *predicted)
    return Plan(
        need,
        slo,
        prices,
        tuple(runs),
        fit,
        options,
        deciding,
        decision(deciding, need, slo) + _doubts(runs),
        tuple(changes(deciding, options, need, slo, runs)),
        _table([*side_by_side(deciding, runs, prices, need), *rows]),
    )


def _doubts(runs: Sequence[Run]) -> str:
    """What to know of the runs before anybody relies on them; empty if nothing."""
    doubtful = ("suspect", "contaminated")
    told = [f"{run.path.name} is {run.verdict.word}" for run in runs if run.verdict.word in doubtful]
    return f" Measure again before you rely on it: {', '.join(told)}." if told else ""


def _nothing(need: Need, measured: Sequence[Option], runs: Sequence[Run]) -> UsageError:
    """The error where no arm can be judged."""
    if not measured:
        came = ", ".join(sorted({str(run.arrivals["arrivals"]) for run in runs}))
        seen = f"requests came in another way in all runs: {came}"
        return UsageError(
            f"plan for {need}", seen, "give users for closed loops, a rate for open ones, or fit a simulator"
        )
    answered = [option for option in measured if None not in option.lengths]
    if not answered:
        seen = f"no whole answer came in {', '.join(run.path.name for run in runs)}"
        return UsageError(f"plan for {need}", seen, "measure again, or give other runs")
    has = "; ".join(f"{o.arm} {o.lengths[0]:.0f} in, {o.lengths[1]:.0f} out" for o in answered)
    return UsageError(
        f"plan for {need.prompt_tokens} tokens in, {need.output_tokens} out",
        f"the runs had other lengths ({has}), and there is no prediction",
        "measure them with Workload(prompt_words=…, output_tokens=…), or fit a simulator to runs",
    )


def _table(rows: Sequence[Row]) -> pl.DataFrame:
    return pl.DataFrame([vars(row) for row in rows], schema=dict.fromkeys(vars(rows[0]), pl.String))
