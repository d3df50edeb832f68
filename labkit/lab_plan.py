"""The part of a lab that predicts from the reader's own runs and turns them into a plan."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import polars as pl

from labkit import calibration, paths, planning, predict
from labkit.budget import Budget
from labkit.bundle import Run
from labkit.calibration import LONG_IN, USERS, Calibrated
from labkit.decision import Row
from labkit.depths import ENGINES, Depth
from labkit.designs import Load
from labkit.live.view import RunView
from labkit.options import Need, Prices
from labkit.planning import Plan
from labkit.predict import Lengths
from labkit.slo import Slo
from labkit.sweeps import Asked
from labkit.workload import Workload

FEW = 4
"""Users up to which a class measures what its fit lacks."""


class Plans(ABC):
    """Prediction and plan, the same at each depth."""

    _depth: Depth
    budget: Budget
    seed: int

    @abstractmethod
    def _measure(self, name: str, engines: Sequence[str], load: Load, view: str, asked: Asked) -> RunView: ...

    async def calibrated(
        self, engines: Sequence[str] = ENGINES, *, held_out: Sequence[int] = ()
    ) -> Calibrated:
        """Fit a simulator to the runs of this depth that there are; nothing is measured.

        Of them it sees the levels with 1, 4 and 16 users alone; so 2 and 8 users, for instance, are unseen.
        In the simulated depth it is fitted to simulated runs, which its basis says.

        Args:
            held_out: further numbers of users that it must not see.

        Raises:
            CalibrationRefused: no run can be used, or they show too little; says why.
        """
        recorded = self._depth.name == "recorded"
        folder = paths.data() / "runs" if recorded else paths.runs()
        runs = [run for run in calibration.kept(folder) if run.kind == self._depth.name]
        simulated = self._depth.name == "simulated"
        return await asyncio.to_thread(
            calibration.fit, runs, engines, held_out=held_out, simulated=simulated, seed=self.seed
        )

    def fill(self, fit: Calibrated, *, name: str = "long_in") -> RunView | None:
        """Measure what a fit lacks to tell reading from writing, as far as the budget says: long questions.

        At the smallest budget that is nothing, at "short" it is few users, else as many as a calibration
        wants. Calibrate again afterwards.

        Returns:
            The view; None if nothing is lacking, or nothing can be measured, as in the recorded depth.

        Raises:
            NotInstalled: as :meth:`Lab.sweep`.
        """
        lacking = {
            engine: set(users)
            for engine in fit.engines
            for workload, users in fit.found.missing(engine)
            if workload == LONG_IN
        }
        top = {"smoke": 0, "short": FEW}.get(self.budget.name, max(USERS))
        users = sorted(user for user in set().union(*lacking.values()) if user <= top)
        if self._depth.name == "recorded" or not users:
            return None
        return self._measure(name, list(lacking), Load(tuple(users)), "gap", {"workload": LONG_IN})

    def predict(
        self,
        fit: Calibrated,
        engine: str,
        users: Sequence[int],
        *,
        workload: Workload | None = None,
        prompt_tokens: int | None = None,
        output_tokens: int | None = None,
        **settings: Any,
    ) -> pl.DataFrame:
        """What an engine would do for so many users, each asking as often as in a measurement of this lab.

        Args:
            workload: or ``prompt_tokens`` and ``output_tokens``; default: lengths as the fit saw them.
            settings: of the engine, such as ``num_parallel=4``.

        Returns:
            See :func:`labkit.predict.sweep`.

        Raises:
            UsageError: as :func:`labkit.predict.sweep`.
        """
        lengths = None
        if workload is None and prompt_tokens is None and (source := fit.source(engine)) is not None:
            lengths = Lengths.seen(source.run, source.arm)
        return predict.sweep(
            fit.profile,
            engine,
            users,
            settings=settings,
            workload=workload,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            lengths=lengths,
            rounds=self._questions_each(fit, engine),
            seed=self.seed,
        )

    def _questions_each(self, fit: Calibrated, engine: str) -> int:
        """Questions of each user: the budget's, or as many as there are in the recordings."""
        source = fit.source(engine)
        if self._depth.name != "recorded" or source is None:
            return self.budget.rounds
        users = fit.users(engine)[-1]
        asked = [record["planned"] for record in source.run.meta["levels"] if record["level"] == users]
        return int(max(asked)) // users

    def plan(
        self,
        runs: Sequence[Run],
        *,
        slo: Slo,
        users: int | None = None,
        rate: float | None = None,
        price_per_hour: float,
        fit: Calibrated | None = None,
        prompt_tokens: int | None = None,
        output_tokens: int | None = None,
        utilisation: float = 1.0,
        active_share: float = 1.0,
        rows: Sequence[Row] = (),
    ) -> Plan:
        """A plan for the learner's own load from these runs, and from predictions where there is a fit.

        Args:
            users: at once; or ``rate``, requests a second.
            prompt_tokens, output_tokens: of their questions and answers; default: those of the runs.
            rows: further rows of the decision table.

        Raises:
            UsageError: see :func:`labkit.planning.plan`.
        """
        need = Need(users, rate, prompt_tokens, output_tokens)
        prices = Prices(price_per_hour, utilisation, active_share)
        return planning.plan(runs, need, slo, prices, fit=fit, rows=rows, seed=self.seed)
