"""The surface that notebooks see: one lab, its engines, experiments that show themselves, checks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, ClassVar

import ipywidgets
from IPython.display import display

from labkit import budget as budgets
from labkit import claims, depths, exercises
from labkit.budget import Budget
from labkit.bundle import Run
from labkit.depths import ENGINES, PAIRS
from labkit.engines import process
from labkit.errors import BundleError, UsageError
from labkit.experiments import OnProgress, Progress
from labkit.live.gap import GapView
from labkit.live.view import RunView
from labkit.sweeps import Control, Job, Order
from labkit.workload import Workload


class Lab:
    """Finds what can answer, says what it found, and runs experiments in the notebook's background.

    Engines start when an experiment needs them, stay up between cells and end with the kernel.

    Attributes:
        ollama, vllm: the engines, also to be started, restarted and asked by hand. In the recorded depth they
            only take settings, and the next sweep looks for a recording that has them.
        budget: levels, lengths and repeats of every experiment.
        depth: what answers: "live", the real engines; "simulated", labkit's own; "recorded", runs that were
            measured earlier.
        why: why it is no deeper one; empty when live.
        seed: decides the prompts.
    """

    _views: ClassVar[dict[str, RunView]] = {}  # by experiment, over all labs of this kernel
    _running: ClassVar[set[asyncio.Task[Any]]] = set()

    def __init__(
        self,
        mode: str | None = None,
        budget: str | None = None,
        seed: int = 0,
        *,
        ollama_url: str | None = None,
        vllm_url: str | None = None,
        api_key: str | None = None,
    ) -> None:
        """Open the lab; quick, starts nothing.

        Args:
            mode: live | simulated | recorded, or auto: live if both engines are there, else simulated
                (default: ``LABKIT_MODE``, else auto).
            budget: smoke | short | normal | long (default: ``LABKIT_BUDGET``, else short).
            ollama_url, vllm_url: real servers that run already (default: ``LABKIT_OLLAMA_URL``,
                ``LABKIT_VLLM_URL``, else labkit starts its own).
            api_key: bearer token for both (default: ``LABKIT_API_KEY``).

        Raises:
            UsageError: unknown mode or budget.
            NotInstalled: mode is live, and no engine is there; the fix names the command.
        """
        self.budget: Budget = budgets.budget(budget or os.environ.get("LABKIT_BUDGET") or "short")
        self.seed = seed
        urls = depths.addresses(ollama_url, vllm_url)
        self._depth = depths.choose(mode or os.environ.get("LABKIT_MODE") or "auto", urls, api_key)
        self.depth = self._depth.name
        self.why = self._depth.why
        self.ollama, self.vllm = (self._depth.engines[name] for name in ("ollama", "vllm"))
        self.ollama.say = self.vllm.say = _say
        display(self, metadata={"labkit": {"depth": self.depth}})  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        return "\n".join([self._depth.badge, *self._told()])

    def _repr_html_(self) -> str:
        told = "".join(f"<li>{escape(line)}</li>" for line in self._told())
        badge = escape(self._depth.badge.removeprefix(self.depth))
        return f"<p><b>{self.depth}</b>{badge}</p><ul>{told}</ul>"

    def _told(self) -> list[str]:
        users = ", ".join(map(str, self.levels()))
        measured = f"budget {self.budget.name}: users {users}, seed {self.seed}"
        return [*filter(None, [self.why]), *self._depth.found, measured]

    def levels(self) -> list[int]:
        """Numbers of users that the budget measures on this machine, or on the one that it stands for."""
        return self.budget.users(self._depth.device)

    def sweep(
        self,
        engines: Sequence[str] = ENGINES,
        users: Sequence[int] | None = None,
        *,
        pair: str = "fair",
        workload: Workload | None = None,
        ollama: Mapping[str, Any] | None = None,
        vllm: Mapping[str, Any] | None = None,
        name: str = "the_gap",
    ) -> RunView:
        """Measure the engines at each number of users; shows the view and starts at once.

        Args:
            users: levels (default: :meth:`levels`). The view's control cuts them off at the top; where runs
                are replayed it sets the speed.
            pair: "fair" or "4bit", see :data:`PAIRS`.
            workload: default: stories of 64 tokens.
            ollama, vllm: settings to start the engines with (default: those that the engine was last
                started with by hand, as by ``await lab.ollama.restart(num_parallel=4)``, else labkit's).
            name: of the experiment; a view of this name that is still running is stopped first.

        Raises:
            UsageError: unknown engine or pair, or no users; or nothing like it was recorded.
            NotInstalled: an engine is missing. What happens later is told by the view.
        """
        levels = sorted(set(users if users is not None else self.levels()))
        if unknown := set(engines) - set(ENGINES):
            raise UsageError(f"sweep over {unknown.pop()}", "no such engine", f"one of {', '.join(ENGINES)}")
        if pair not in PAIRS:
            raise UsageError(f"sweep over the pair {pair!r}", "no such pair", f"one of {', '.join(PAIRS)}")
        if not levels or min(levels) < 1:
            raise UsageError(f"sweep over users {levels}", "a level has at least one user", "users=[1, 4]")
        asked = {"ollama": ollama, "vllm": vllm}
        order = Order(
            name,
            {engine: self._depth.settings(engine, asked[engine]) for engine in engines},
            levels,
            PAIRS[pair],
            workload or Workload(),
            self.budget,
            self.seed,
        )
        job = self._depth.sweep(order)
        if earlier := Lab._views.get(name):
            earlier.stop()
        view = RunView(
            partial(_in_turn, job),
            job.halt,
            control=_dropdown(job.control),
            chart=GapView(levels),
            badge=job.badge,
        )
        Lab._views[name] = view
        view.show()
        return view

    def last_run(self, name: str) -> Run:
        """The newest whole run of an experiment of this name and of this depth, also of an earlier notebook.

        Raises:
            UsageError: there is none.
        """
        for folder in self._depth.runs(name):
            with contextlib.suppress(BundleError):  # a damaged or newer one is not the one that is meant
                run = Run.load(folder)
                if run.partial is None and run.kind == self.depth:
                    return run
        raise UsageError(
            f"find the last run of {name}", f"there is no whole {self.depth} one", "run its notebook first"
        )

    def check(self, exercise_id: str, run: Run | Sequence[Run], answer: Any) -> exercises.Verdict:
        """Judge an answer on the learner's own run; shows the verdict and returns it, never raises."""
        verdict = exercises.check(exercise_id, run, answer)
        display(verdict)  # type: ignore[no-untyped-call]
        return verdict

    def claims(self, run: Run, ids: Sequence[str]) -> claims.Judgements:
        """What this run says about the article's claims.

        Raises:
            UsageError: unknown claim.
        """
        return claims.judge(ids, run)

    async def close(self) -> None:
        """Stop what is running, then the engines that this kernel started.

        Under ``labkit run`` the engines stay up for the next notebook and end with the runner.
        """
        for view in Lab._views.values():
            view.stop()
        if Lab._running:
            await asyncio.wait(Lab._running)
        if process.owner_pid() == os.getpid():
            for engine in (self.ollama, self.vllm):
                await engine.stop()


async def _in_turn(job: Job, value: Any, report: OnProgress) -> Run:
    """One measurement of a kernel at a time: an engine is never restarted under another one's load."""
    mine = asyncio.current_task()
    assert mine is not None  # noqa: S101  # a coroutine of a view always runs in a task
    before = set(Lab._running)
    Lab._running.add(mine)
    try:
        if before:
            report(Progress("waiting for the measurement before this one to end"))
            await asyncio.wait(before)
        return await job.start(value, report)
    finally:
        Lab._running.discard(mine)


def _dropdown(control: Control) -> ipywidgets.Dropdown:
    return ipywidgets.Dropdown(
        options=list(control.options.items()),
        value=control.value,
        description=control.label,
        style={"description_width": "initial"},
        layout={"width": "auto"},
    )


def _say(line: str) -> None:
    """Progress of what a cell starts or stops by hand."""
    sys.stdout.write(f"{line}\n")
