"""The surface that notebooks see: one lab, its engines, experiments that show themselves, checks."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, ClassVar, Unpack

from IPython.display import display

from labkit import budget as budgets
from labkit import claims, depths, designs, exercises, sentences
from labkit.budget import Budget
from labkit.bundle import Run
from labkit.depths import ENGINES, PAIRS
from labkit.designs import Load
from labkit.engines import process
from labkit.errors import BundleError, UsageError
from labkit.experiments import OnProgress, Progress
from labkit.lab_answers import Answers
from labkit.lab_demos import Demos, say
from labkit.lab_migrate import Migration
from labkit.lab_parallel import Parallel
from labkit.lab_plan import Plans
from labkit.lab_prefixes import Prefixes
from labkit.live.controls import Choice, Slider
from labkit.live.gap import GapView
from labkit.live.lanes import LanesView
from labkit.live.prefix import PrefixView
from labkit.live.settings import SettingsView
from labkit.live.view import Chart, RunView
from labkit.sweeps import Asked, Control, Job, Order, Settings, Side
from labkit.transcript import Transcript
from labkit.workload import Workload

VIEWS = ("gap", "settings", "lanes", "prefix")
MANY_LANES = 16


class Lab(Demos, Answers, Prefixes, Migration, Plans, Parallel):
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
        sentences.install()
        self.budget: Budget = budgets.budget(budget or os.environ.get("LABKIT_BUDGET") or "short")
        self.seed = seed
        urls = depths.addresses(ollama_url, vllm_url)
        self._depth = depths.choose(mode or os.environ.get("LABKIT_MODE") or "auto", urls, api_key)
        self.depth = self._depth.name
        self.why = self._depth.why
        self.ollama, self.vllm = (self._depth.engines[name] for name in ("ollama", "vllm"))
        self.ollama.say = self.vllm.say = say
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
        rounds: int | None = None,
        stall_s: float | None = None,
        view: str = "gap",
        name: str = "the_gap",
        **asked: Unpack[Asked],
    ) -> RunView:
        """Measure the engines with a closed loop of users, one number of users after the other.

        Shows the view and starts at once, as do :meth:`burst` and :meth:`arrivals`. With
        ``view="lanes"`` and one engine, the control is the number of users, and moving it while the load runs
        changes the load. Else it cuts the levels off at the top, or chooses one of the settings.

        Args:
            users: levels (default: :meth:`levels`).
            rounds: questions that each user asks (default: the budget's).
            stall_s: after the first answers of each level the engine stands still for so many seconds.
            view: "gap": total tokens/s and TTFT against users; "settings": against the settings of the
                engine; "lanes": each request.
            name: of the experiment; a view of this name that is still running is stopped first.
            asked: see :class:`Asked`.

        Raises:
            UsageError: something unknown or impossible; or nothing like it was recorded.
            NotInstalled: an engine is missing. What happens later is told by the view.
        """
        levels = tuple(sorted(set(users if users is not None else self.levels())))
        load = Load(levels, rounds=rounds, stall_s=stall_s)
        return self._measure(name, engines, load, view, asked)

    def burst(
        self,
        engines: Sequence[str] = ENGINES,
        requests: int | Sequence[int] = 8,
        *,
        cold: bool = False,
        name: str = "burst",
        **asked: Unpack[Asked],
    ) -> RunView:
        """Send so many requests at one moment; see :meth:`sweep`.

        Args:
            requests: a number, or several to be measured one after the other.
            cold: the model is unloaded before, so the first request has to load it.
            asked: see :class:`Asked`.

        Raises:
            UsageError, NotInstalled: as :meth:`sweep`.
        """
        levels = (requests,) if isinstance(requests, int) else tuple(sorted(set(requests)))
        return self._measure(name, engines, Load(levels, "burst", cold=cold), "lanes", asked)

    def arrivals(
        self,
        engines: Sequence[str] = ENGINES,
        offered: Sequence[int] = (50,),
        *,
        capacity: Run | float,
        requests: int = 20,
        pattern: str = "poisson",
        stall_s: float | None = None,
        name: str = "arrivals",
        **asked: Unpack[Asked],
    ) -> RunView:
        """Send requests by the clock, whether or not the engine keeps up; see :meth:`sweep`.

        Args:
            offered: levels, each a load in per cent of the capacity.
            capacity: answers a second that 100 % stand for, or a run with the same questions to read it off.
            requests: of each level.
            pattern: "poisson" (at random, as independent people come) or "constant".
            stall_s: after the first answers of each level the engine stands still for so many seconds.
            asked: see :class:`Asked`.

        Raises:
            UsageError, NotInstalled: as :meth:`sweep`.
        """
        full = designs.capacity(capacity, engines[0]) if isinstance(capacity, Run) else capacity
        load = Load(tuple(sorted(set(offered))), pattern, requests=requests, capacity=full, stall_s=stall_s)
        return self._measure(name, engines, load, "lanes", asked)

    def _measure(self, name: str, engines: Sequence[str], load: Load, view: str, asked: Asked) -> RunView:
        tried = f"measure {name}"
        pair = asked.get("pair", "fair")
        for word, known in ((pair, PAIRS), (view, VIEWS), *((engine, ENGINES) for engine in engines)):
            if word not in known:
                raise UsageError(tried, f"there is no {word!r}", f"one of {', '.join(known)}")
        if load.cold and "vllm" in engines:
            raise UsageError(
                tried, "vLLM has its model from start to stop", "engines=['ollama'], or cold=False"
            )
        settings = {"ollama": asked.get("ollama"), "vllm": asked.get("vllm")}
        sides = [
            Side(engine, self._depth.settings(engine, one))
            for engine in engines
            for one in _several(settings[engine])
        ]
        order = Order(
            name, sides, load, PAIRS[pair], asked.get("workload") or Workload(), self.budget, self.seed
        )
        job = self._depth.job(
            order, steered=view == "lanes" and load.by_users and load.arrivals == "closed" and len(sides) == 1
        )
        return self._show(name, job, _chart(view, order, job.control))

    def _show(self, name: str, job: Job, chart: Chart) -> RunView:
        if earlier := Lab._views.get(name):
            earlier.stop()
        shown = RunView(
            partial(_in_turn, job),
            job.halt,
            control=_widget(job.control),
            chart=chart,
            badge=job.badge,
            steer=job.steer if job.control.steers else None,
        )
        Lab._views[name] = shown
        shown.show()
        return shown

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

    def check(
        self, exercise_id: str, run: Run | Transcript | Sequence[Run | Transcript], answer: Any
    ) -> exercises.Verdict:
        """Judge an answer on the learner's own run; shows the verdict and returns it, never raises."""
        verdict = exercises.check(exercise_id, run, answer)
        display(verdict)  # type: ignore[no-untyped-call]
        return verdict

    def claims(
        self, run: Run | Transcript | Sequence[Run | Transcript], ids: Sequence[str]
    ) -> claims.Judgements:
        """What these runs and transcripts say about the article's claims, each judged on the first that can.

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
        await self._end_pull()
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


def _several(settings: Settings | Sequence[Settings] | None) -> list[Settings | None]:
    """An arm for each."""
    if settings is None or isinstance(settings, Mapping):
        return [settings]
    return list(settings)


def _chart(view: str, order: Order, control: Control) -> Chart:
    load = order.load
    if view == "gap":
        return GapView(load.levels)
    if view == "settings":
        return SettingsView()
    if view == "prefix":
        return PrefixView()
    if not load.by_users:
        return LanesView(rows=MANY_LANES, panels=len(order.sides))
    most = control.options[-1] if control.steers and isinstance(control.options, range) else load.levels[-1]
    rows = {"burst": most, "closed": 2 * most}.get(load.arrivals, MANY_LANES)
    return LanesView(rows=rows, panels=len(order.sides))


def _widget(control: Control) -> Any:
    if isinstance(control.options, range):
        ends = {"min": control.options.start, "max": control.options.stop - 1}
        return Slider(control.label, value=control.value, **ends)
    return Choice(control.label, control.options, control.value)
