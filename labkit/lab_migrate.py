"""What a lab measures with a proxy in front: requests moved between engines as they come, added latency.

The proxies live as long as the run that they are measured in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

from labkit import recorded
from labkit.arms import Arm
from labkit.budget import Budget
from labkit.bundle import Run
from labkit.depths import ENGINES, PAIRS, Depth, Running
from labkit.designs import Load
from labkit.engines.base import Engine
from labkit.engines.base import Progress as Say
from labkit.engines.fronts.front import Front, program
from labkit.engines.fronts.litellm import LiteLLM
from labkit.engines.fronts.nginx import Nginx
from labkit.engines.fronts.nginx_config import check_share
from labkit.engines.fronts.route import Route
from labkit.engines.fronts.splitter import Splitter
from labkit.engines.models import assert_same_prompt
from labkit.engines.ollama_store import ollama_store
from labkit.errors import ModelError, UsageError
from labkit.experiments import OnProgress
from labkit.live.lanes import LanesView
from labkit.live.view import Chart, RunView
from labkit.sweeps import Asked, Job, Measuring, Order, Replaying, Settings, Side
from labkit.workload import Workload

ANSWERS = {"smoke": 24, "short": 60, "normal": 160, "long": 320}
"""At each share, by budget. At 10 % the 95 % interval is then 3 to 28 %, 5 to 20, 6 to 16, or 7 to 14."""

QUESTIONS = {"smoke": 16, "short": 40, "normal": 80, "long": 160}
"""Put by each way to an engine."""

SHORT = Workload("short answers", output_tokens=8)
"""What moves is requests, so many short ones say more than few long ones."""


class Migration(ABC):
    """The part of a lab that puts a proxy in front of the engines."""

    _depth: Depth
    budget: Budget
    seed: int

    @abstractmethod
    def _show(self, name: str, job: Job, chart: Chart) -> RunView: ...

    def shift(
        self,
        shares: Sequence[float] = (10, 50, 100, 0),
        *,
        users: int = 4,
        sticky: bool = False,
        answers: int | None = None,
        name: str = "shift",
        **asked: Unpack[Asked],
    ) -> RunView:
        """Move requests from Ollama to vLLM behind nginx while users ask without a pause; shows the view.

        The share begins at 0. Simulated, labkit's own splitter stands for nginx. Both engines compute at once
        on one machine here, so what this measures is where requests go and whether one is lost, not speed.

        Args:
            shares: for vLLM, in per cent, one after the other; the last is the roll-back.
            users: of the closed loop.
            sticky: all requests of a user go to one engine, so a share counts users.
            answers: at each share (default: see :data:`ANSWERS`).
            asked: see :class:`Asked`; one setting for each engine.

        Raises:
            UsageError: an impossible share or setting; or nothing like it was recorded.
            NotInstalled: an engine or nginx is missing. What happens later is told by the view.
        """
        shares = tuple(check_share(share) for share in shares)
        if not shares:
            raise UsageError("move requests to vLLM", "no share is given", "such as [10, 50, 100, 0]")
        behind = {engine: self._settings(engine, asked) for engine in ENGINES}
        load, budget = self._rounds(users, answers, ANSWERS, len(shares) + 1)
        sides = [Side("nginx", {"sticky": sticky, **behind})]
        order = self._order(name, sides, replace(load, shares=shares), budget, asked)
        job = self._depth.job(order) if self._depth.name == "recorded" else self._shifting(order)
        return self._show(name, job, LanesView(rows=2 * users, panels=1))

    def gateway(
        self, *, questions: int | None = None, name: str = "gateway", **asked: Unpack[Asked]
    ) -> RunView:
        """Ask one vLLM the same questions directly, through nginx and through LiteLLM; see :meth:`shift`.

        One user asks. There is no imitation of LiteLLM: simulated, the recorded run is replayed.

        Args:
            questions: by each way (default: see :data:`QUESTIONS`).

        Raises:
            UsageError, NotInstalled: as :meth:`shift`.
        """
        settings = self._settings("vllm", asked)
        sides = [Side(way, settings) for way in ("vllm", "nginx", "litellm")]
        load, budget = self._rounds(1, questions, QUESTIONS, 1)
        order = self._order(name, sides, load, budget, asked)
        if self._depth.name == "live":
            job: Job = self._passing(order)
        else:
            same = [(side.engine, side.settings) for side in sides]
            found = recorded.find(same, model=order.model, workload=order.workload, load=load)
            job = Replaying(found, load.levels)
        return self._show(name, job, LanesView(rows=2, panels=len(sides)))

    def _settings(self, engine: str, asked: Asked) -> dict[str, Any]:
        given: Settings | Sequence[Settings] | None = {
            "ollama": asked.get("ollama"),
            "vllm": asked.get("vllm"),
        }[engine]
        if isinstance(given, Sequence):
            seen = f"{len(given)} settings for {engine}, which is not started anew here"
            raise UsageError("measure behind a proxy", seen, "give one")
        return self._depth.settings(engine, given)

    def _rounds(
        self, users: int, asked: int | None, usual: dict[str, int], times: int
    ) -> tuple[Load, Budget]:
        """So many answers so many times; what the budget decides is not in the load, so that a recording of
        any budget has the same."""
        each = usual[self.budget.name] if asked is None else asked
        rounds = -(-each * times // users) if users > 0 else 1
        budget = replace(self.budget, rounds=rounds, repeats=1, max_s=None)
        return Load((users,), rounds=None if asked is None else rounds), budget

    def _order(self, name: str, sides: list[Side], load: Load, budget: Budget, asked: Asked) -> Order:
        pair = asked.get("pair", "fair")
        if pair not in PAIRS:
            raise UsageError(f"measure {name}", f"there is no {pair!r}", f"one of {', '.join(PAIRS)}")
        return Order(name, sides, load, PAIRS[pair], asked.get("workload") or SHORT, budget, self.seed)

    def _there(self, order: Order) -> Running:
        """The depth, once it is known that it has these engines.

        Raises:
            NotInstalled: it has not.
        """
        assert isinstance(self._depth, Running)  # noqa: S101  # the recorded one replays
        self._depth.job(order)
        return self._depth

    def _shifting(self, order: Order) -> Job:
        settings = order.sides[0].settings
        behind = replace(order, sides=[Side(engine, settings[engine]) for engine in ENGINES])
        depth = self._there(behind)
        if depth.name == "live":
            program("nginx", "nginx")
        engines = [depth.engines[engine] for engine in ENGINES]
        return _Fronted(order, depth, engines, partial(_shifted, depth, behind, order.sides[0]))

    def _passing(self, order: Order) -> Job:
        behind = replace(order, sides=order.sides[:1])
        depth = self._there(behind)
        for name, title in (("nginx", "nginx"), ("litellm", "LiteLLM")):
            program(name, title)
        return _Fronted(order, depth, [depth.engines["vllm"]], partial(_ways, depth, behind))


_Started = list[Front | Route]
"""What a run has to stop in the end."""


class _Fronted(Measuring):
    """A measurement through proxies, which end with it."""

    def __init__(
        self,
        order: Order,
        depth: Running,
        engines: Sequence[Engine],
        arms: Callable[[_Started, Order, Say], Awaitable[list[Arm]]],
    ) -> None:
        self._started: _Started = []
        super().__init__(order, depth.badge, engines, partial(arms, self._started))

    async def start(self, value: Any, report: OnProgress) -> Run:
        """See :class:`Job`."""
        try:
            return await super().start(value, report)
        finally:
            while self._started:
                await self._started.pop().stop()


async def _shifted(
    depth: Running, behind: Order, side: Side, started: _Started, _order: Order, say: Say
) -> list[Arm]:
    """Both engines, under one model name, behind a proxy that sends all to Ollama."""
    ollama, vllm = await depth.arms(behind, say)
    await _one_name(ollama, vllm)
    engines = {"ollama": ollama.engine, "vllm": vllm.engine}
    question = behind.workload.prompts(1, "token count")[0].messages
    await assert_same_prompt([(engine, vllm.model) for engine in engines.values()], question)
    kind = Splitter if depth.name == "simulated" else Nginx
    front = kind(engines, sticky=side.settings["sticky"])
    started.append(front)
    await front.start(progress=say)
    return [Arm(front.name, front, vllm.model, vllm.source, side.settings)]


async def _one_name(ollama: Arm, vllm: Arm) -> None:
    """Give Ollama's model the name that vLLM has for it, so that clients need one name only.

    Raises:
        ModelError: another model has that name in Ollama.
    """
    if ollama.model == vllm.model:
        return
    async with ollama_store(ollama.engine) as store:
        await store.alias(ollama.model, vllm.model)
        own, other = await store.stored(ollama.model), await store.stored(vllm.model)
    if own is None or other is None or own.blob != other.blob:
        raise ModelError(
            f"serve {ollama.model} under vLLM's name {vllm.model}",
            "another model has that name in this Ollama",
            f"ollama rm {vllm.model}, if nobody needs it",
        )


async def _ways(depth: Running, behind: Order, started: _Started, _order: Order, say: Say) -> list[Arm]:
    """One vLLM: itself, and each proxy in front of it, started when it is measured."""
    [vllm] = await depth.arms(behind, say)
    engines = {"vllm": vllm.engine}
    route = Route(vllm.engine)
    started.append(route)
    ways: dict[str, Front | None] = {
        "vLLM": None,
        "vLLM through nginx": Nginx(engines, share=100),
        "vLLM through LiteLLM": LiteLLM(engines, vllm.model),
    }
    return [
        Arm(name, route, vllm.model, vllm.source, vllm.settings, partial(route.take, front))
        for name, front in ways.items()
    ]
