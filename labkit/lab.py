"""The surface that notebooks see: one lab, its engines, experiments that show themselves, checks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any, ClassVar

import ipywidgets
from IPython.display import display

from labkit import budget as budgets
from labkit import claims, exercises, experiments, paths
from labkit.budget import Budget
from labkit.bundle import Run
from labkit.device import holding
from labkit.engines import hardware, install, models, process
from labkit.engines.managed import ManagedEngine
from labkit.engines.ollama import Ollama
from labkit.engines.vllm import VLLM
from labkit.errors import BundleError, NotInstalled, UsageError
from labkit.experiments import Arm, Experiment, OnProgress, Progress
from labkit.live.gap import GapView
from labkit.live.view import RunView
from labkit.workload import Workload

MODES = ("auto", "live", "simulated", "recorded")
ENGINES = ("ollama", "vllm")

PAIRS = {"fair": "smollm2:135m", "4bit": "labkit/smollm2:135m-q4_1"}
"""Rows of ``data/models.toml``: 16 bit on both sides, or Ollama's side in 4 bit."""


class Lab:
    """Finds the engines, says what it found, and runs experiments on them in the notebook's background.

    Engines start when an experiment needs them, stay up between cells and end with the kernel.

    Attributes:
        ollama, vllm: the engines, also to be started, restarted and asked by hand.
        budget: levels, lengths and repeats of every experiment.
        depth: what answers: "live", the real engines.
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
            mode: auto | live | simulated | recorded (default: ``LABKIT_MODE``, else auto).
            budget: smoke | short | normal | long (default: ``LABKIT_BUDGET``, else short).
            ollama_url, vllm_url: servers that run already (default: ``LABKIT_OLLAMA_URL``,
                ``LABKIT_VLLM_URL``, else labkit starts its own).
            api_key: bearer token for both (default: ``LABKIT_API_KEY``).

        Raises:
            UsageError: unknown mode or budget, or a mode that this version does not have.
            NotInstalled: an engine is missing; the fix names the command.
        """
        self.budget: Budget = budgets.budget(budget or os.environ.get("LABKIT_BUDGET") or "short")
        self.seed = seed
        _check_mode(mode or os.environ.get("LABKIT_MODE") or "auto")
        self.depth = "live"
        urls = {
            "ollama": ollama_url or os.environ.get("LABKIT_OLLAMA_URL"),
            "vllm": vllm_url or os.environ.get("LABKIT_VLLM_URL"),
        }
        self._urls = urls
        self._found = {name: url or install.FINDERS[name]() for name, url in urls.items()}
        if not any(self._found.values()):
            raise _missing("open the lab with real engines", *self._found)
        self._swept: dict[str, dict[str, Any]] = {}  # settings that sweeps have started engines with
        self._by_hand: dict[str, dict[str, Any]] = {}  # and those that the learner has
        self.ollama = Ollama(urls["ollama"], api_key=api_key)
        self.vllm = VLLM(urls["vllm"], api_key=api_key)
        self.ollama.say = self.vllm.say = _say
        display(self, metadata={"labkit": {"depth": self.depth}})  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        found = "; ".join(f"{name}: {where or 'not installed'}" for name, where in self._found.items())
        return (
            f"labkit, {self.depth}: real engines. {found}. "
            f"Budget {self.budget.name}: users {self._users()}. Seed {self.seed}."
        )

    def _repr_html_(self) -> str:
        found = "".join(
            f"<li>{name}: {escape(str(where or 'not installed'))}</li>" for name, where in self._found.items()
        )
        return (
            f"<p><b>{self.depth}</b>: real engines on this machine answer</p><ul>{found}"
            f"<li>budget <b>{self.budget.name}</b>: users {self._users()}, seed {self.seed}</li></ul>"
        )

    def levels(self) -> list[int]:
        """Numbers of users that the budget measures on this machine."""
        return self.budget.users("cuda" if hardware.gpus() else "cpu")

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
            users: levels (default: :meth:`levels`); the view's control cuts them off at the top.
            pair: "fair" or "4bit", see :data:`PAIRS`.
            workload: default: stories of 64 tokens.
            ollama, vllm: settings to start the engines with (default: those that the engine was last
                started with by hand, as by ``await lab.ollama.restart(num_parallel=4)``, else labkit's).
            name: of the experiment; a view of this name that is still running is stopped first.

        Raises:
            UsageError: unknown engine or pair, or no users. What happens later is told by the view.
        """
        levels = sorted(set(users if users is not None else self.levels()))
        if unknown := set(engines) - set(ENGINES):
            raise UsageError(f"sweep over {unknown.pop()}", "no such engine", f"one of {', '.join(ENGINES)}")
        if missing := [name for name in engines if self._found[name] is None]:
            raise _missing(f"sweep over {', '.join(engines)}", *missing)
        if pair not in PAIRS:
            raise UsageError(f"sweep over the pair {pair!r}", "no such pair", f"one of {', '.join(PAIRS)}")
        if not levels or min(levels) < 1:
            raise UsageError(f"sweep over users {levels}", "a level has at least one user", "users=[1, 4]")
        asked = {"ollama": ollama, "vllm": vllm}
        sides = [
            _Side(
                engine,
                self._settings(engine, asked[engine.name]),
                given=self._urls[engine.name] is not None,
            )
            for engine in self._engines(engines)
        ]
        job = _Sweep(self, name, sides, levels, PAIRS[pair], workload or Workload())
        if earlier := Lab._views.get(name):
            earlier.stop()
        view = RunView(job.start, job.halt, control=_users_up_to(levels), chart=GapView(levels))
        Lab._views[name] = view
        view.show()
        return view

    def last_run(self, name: str) -> Run:
        """The newest whole run of an experiment of this name, also of an earlier notebook.

        Raises:
            UsageError: there is none.
        """
        for folder in sorted(paths.runs().glob(f"{name}-[0-9]*"), reverse=True):
            with contextlib.suppress(BundleError):  # a damaged or newer one is not the one that is meant
                run = Run.load(folder)
                if run.partial is None:
                    return run
        raise UsageError(
            f"find the last run of {name}", f"no whole one in {paths.runs()}", "run its notebook first"
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
            for engine in self._engines(ENGINES):
                await engine.stop()

    def _settings(self, engine: ManagedEngine, asked: Mapping[str, Any] | None) -> dict[str, Any]:
        if asked is not None:
            return dict(asked)
        if engine.asked != self._swept.get(engine.name, {}):
            self._by_hand[engine.name] = engine.asked
        return dict(self._by_hand.get(engine.name, {}))

    def _engines(self, names: Sequence[str]) -> list[ManagedEngine]:
        known: dict[str, ManagedEngine] = {"ollama": self.ollama, "vllm": self.vllm}
        return [known[name] for name in names]

    def _users(self) -> str:
        return ", ".join(map(str, self.levels()))


@dataclass(frozen=True)
class _Side:
    engine: ManagedEngine
    settings: dict[str, Any]
    given: bool  # named by its URL: it has its files already, and nobody here can look at them


@dataclass
class _Sweep:
    """What a view's Run does: models, engines, then the experiment."""

    lab: Lab
    name: str
    sides: list[_Side]
    users: list[int]
    model: str
    workload: Workload
    experiment: Experiment | None = None

    async def start(self, top: int, report: OnProgress) -> Run:
        """Measure the levels up to ``top``."""
        urls = [side.engine.url for side in self.sides]
        # held from here on: starting an engine takes as much of the machine as measuring one
        async with _turn(report), holding(urls, owner=self.name, on_wait=lambda line: report(Progress(line))):
            arms, files = zip(*[await self._arm(side, report) for side in self.sides], strict=True)
            if self.model == PAIRS["fair"]:
                models.assert_same_weights([side for side in files if side is not None])
            self.experiment = experiments.sweep(
                arms,
                [level for level in self.users if level <= top],
                workload=self.workload,
                budget=self.lab.budget,
                seed=self.lab.seed,
                folder=paths.runs() / f"{self.name}-{datetime.now():%Y%m%d-%H%M%S-%f}",
            )
            return await self.experiment.run(report, held=True)

    def halt(self) -> None:
        """End the experiment early and keep what came."""
        if self.experiment is not None:
            self.experiment.stop()

    async def _arm(self, side: _Side, report: OnProgress) -> tuple[Arm, models.ModelSide | None]:
        engine = side.engine

        def say(line: str) -> None:
            report(Progress(line))

        if engine.name == "ollama":
            await engine.start(progress=say, **side.settings)
            self.lab._swept["ollama"] = engine.asked
            model = await models.ensure(self.model, engine=engine, progress=say)
            await engine.load(model.served_name, progress=say)
            slots = (await engine.facts()).slots
            name = f"Ollama, {slots} slot{'' if slots == 1 else 's'}" if slots else "Ollama"
            return Arm(name, engine, model.served_name, model.source, side.settings), model
        files = None if side.given else await models.ensure(self.model, progress=say)
        await engine.start(model=self.model, progress=say, **side.settings)
        served = models.find(self.model).vllm.name
        self.lab._swept["vllm"] = engine.asked
        return Arm("vLLM", engine, served, files.source if files else None, side.settings), files


@contextlib.asynccontextmanager
async def _turn(report: OnProgress) -> AsyncIterator[None]:
    """One measurement of a kernel at a time: an engine is never restarted under another one's load."""
    mine = asyncio.current_task()
    assert mine is not None  # noqa: S101  # a coroutine of a view always runs in a task
    before = set(Lab._running)
    Lab._running.add(mine)
    try:
        if before:
            report(Progress("waiting for the measurement before this one to end"))
            await asyncio.wait(before)
        yield
    finally:
        Lab._running.discard(mine)


def _users_up_to(levels: list[int]) -> ipywidgets.Dropdown:
    """The control of a sweep: the level at which the next run ends."""
    return ipywidgets.Dropdown(
        options=levels,
        value=levels[-1],
        description="Users up to",
        style={"description_width": "initial"},
        layout={"width": "auto"},
    )


def _say(line: str) -> None:
    """Progress of what a cell starts or stops by hand."""
    sys.stdout.write(f"{line}\n")


def _missing(tried: str, *names: str) -> NotInstalled:
    return NotInstalled(
        tried,
        f"not on this machine: {', '.join(names)}",
        "make engines; or name servers that run already in LABKIT_OLLAMA_URL and LABKIT_VLLM_URL",
    )


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise UsageError(f"open the lab in mode {mode!r}", "no such mode", f"one of {', '.join(MODES)}")
    if mode in ("simulated", "recorded"):
        raise UsageError(
            f"open the lab in mode {mode!r}",
            "this version measures real engines only",
            "use mode 'live', after `make engines`",
        )
