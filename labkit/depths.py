"""The three depths: which of them a lab has and why, and what answers in each.

* live: the real engines;
* simulated: labkit's own engines, over real HTTP;
* recorded: no engine, but runs that were measured earlier.

All engines of one run are of one depth.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from labkit import paths, recorded
from labkit.arms import Arm, asked_name
from labkit.engines import hardware, install, models
from labkit.engines.absent import AbsentEngine
from labkit.engines.base import Progress as Say
from labkit.engines.managed import ManagedEngine
from labkit.engines.ollama import Ollama
from labkit.engines.simulated import SimulatedOllama, SimulatedVLLM
from labkit.engines.vllm import VLLM
from labkit.errors import NotInstalled, UsageError
from labkit.sim import profile as profiles
from labkit.sim.server.clock import SCALES
from labkit.sweeps import Job, Measuring, Order, Replaying, Side

MODES = ("auto", "live", "simulated", "recorded")
ENGINES = ("ollama", "vllm")

PACE_TRIES = 3
"""Starts of a simulated server that was slower than it should be, on a machine that is busy now and then."""

PAIRS = {"fair": "smollm2:135m", "4bit": "labkit/smollm2:135m-q4_1", "tp": "labkit/smollm2:135m-12h"}
"""Rows of ``data/models.toml``: 16 bit on both sides, or Ollama's side in 4 bit, or vLLM's with attention
heads that two ranks can share."""


class Depth(ABC):
    """What answers in a lab.

    Attributes:
        name: live | simulated | recorded.
        why: why not deeper; empty for live.
        badge: one line on what answers.
        found: one line for each thing that there is to answer.
        device: "cpu" or "cuda": whose levels the budget measures.
        engines: by name, to be started and asked by hand.
    """

    name: ClassVar[str]
    why: str = ""
    badge: str
    found: Sequence[str]
    device: str = "cpu"
    engines: Mapping[str, ManagedEngine | AbsentEngine]

    @abstractmethod
    def job(self, order: Order, *, steered: bool = False) -> Job:
        """Prepare a measurement.

        Args:
            steered: its control is the number of users, also while they are at it.

        Raises:
            LabkitError: it cannot be had at this depth.
        """

    def settings(self, name: str, asked: Mapping[str, Any] | None) -> dict[str, Any]:
        """What an engine is started with: what is asked for, else what was last asked for by hand."""
        return dict(self.engines[name].asked if asked is None else asked)

    def runs(self, experiment: str) -> list[Path]:
        """Folders that may hold a run of an experiment of this name, the newest first."""
        return sorted(paths.runs().glob(f"{experiment}-[0-9]*"), reverse=True)


class Running(Depth):
    """A depth with engines that run."""

    engines: Mapping[str, ManagedEngine]

    def __init__(self) -> None:
        self._swept: dict[str, dict[str, Any]] = {}  # settings that sweeps have started engines with
        self._by_hand: dict[str, dict[str, Any]] = {}  # and those that the learner has

    def job(self, order: Order, *, steered: bool = False) -> Job:
        """See :meth:`Depth.job`."""
        engines = [self.engines[name] for name in dict.fromkeys(side.engine for side in order.sides)]
        return Measuring(order, self.badge, engines, self.arms, steered=steered)

    def settings(self, name: str, asked: Mapping[str, Any] | None) -> dict[str, Any]:
        """See :meth:`Depth.settings`."""
        present = self.engines[name].asked
        if present != self._swept.get(name, {}):
            self._by_hand[name] = present
        return dict(self._by_hand.get(name, {}) if asked is None else asked)

    @abstractmethod
    async def arms(self, order: Order, say: Say) -> list[Arm]:
        """What to measure; engines with one arm are started, those with more when each is measured."""

    def _later(self, order: Order, side: Side, served: str, source: str | None, **more: Any) -> Arm:
        """An arm whose engine is started anew for it, named after what tells it from the others."""
        engine = self.engines[side.engine]

        async def start(say: Say) -> None:
            await self._started(side.engine, {**side.settings, **more}, say)

        name = asked_name(side.engine, order.apart(side))
        return Arm(name, engine, served, source, side.settings, start)

    async def _started(self, name: str, settings: Mapping[str, Any], say: Say) -> ManagedEngine:
        engine = self.engines[name]
        await engine.start(progress=say, **settings)
        self._swept[name] = engine.asked
        return engine


class Live(Running):
    """The real engines, here or at a URL."""

    name = "live"
    badge = "live: real engines answer"

    def __init__(self, urls: Mapping[str, str | None], api_key: str | None) -> None:
        """Find them.

        Raises:
            NotInstalled: there is none.
        """
        super().__init__()
        self._urls = urls
        self._where = _find(urls)
        if not any(self._where.values()):
            raise _not_installed("open the lab with real engines", ENGINES)
        self.found = [f"{name}: {where or 'not installed'}" for name, where in self._where.items()]
        self.device = "cuda" if hardware.gpus() else "cpu"
        self.engines = {
            "ollama": Ollama(urls["ollama"], api_key=api_key),
            "vllm": VLLM(urls["vllm"], api_key=api_key),
        }

    def job(self, order: Order, *, steered: bool = False) -> Job:
        """See :meth:`Depth.job`."""
        asked = list(dict.fromkeys(side.engine for side in order.sides))
        if missing := [name for name in asked if self._where[name] is None]:
            raise _not_installed(f"measure {', '.join(asked)}", missing)
        if order.load.stall_s is not None and (given := [name for name in asked if self._urls[name]]):
            raise UsageError(
                f"hold {', '.join(given)} for {order.load.stall_s:g} s",
                "labkit did not start this server",
                "let labkit start one: unset LABKIT_OLLAMA_URL and LABKIT_VLLM_URL",
            )
        return super().job(order, steered=steered)

    async def arms(self, order: Order, say: Say) -> list[Arm]:
        found = [await self._arm(side, order, say) for side in order.sides]
        if order.model == PAIRS["fair"]:
            models.assert_same_weights([files for _, files in found if files is not None])
        return [arm for arm, _ in found]

    async def _arm(self, side: Side, order: Order, say: Say) -> tuple[Arm, models.ModelSide | None]:
        name, settings = side.engine, side.settings
        first = order.first(name) is side
        if name == "ollama":
            engine = await self._started(name, settings, say) if first else self.engines[name]
            files = await models.ensure(order.model, engine=engine, progress=say)
            if order.shares(name):
                return self._later(order, side, files.served_name, files.source), files
            return await _ollama_arm(engine, files.served_name, files.source, settings, say), files
        # a server that was named by its URL has its files already, and nobody here can look at them
        own = None if self._urls[name] is not None else await models.ensure(order.model, progress=say)
        source = own.source if own else None
        served = models.find(order.model).vllm.name
        if order.shares(name):
            return self._later(order, side, served, source, model=order.model), own
        engine = await self._started(name, {**settings, "model": order.model}, say)
        return Arm("vLLM", engine, served, source, settings), own


class Simulated(Running):
    """Labkit's own engines: nothing to install, and no model files."""

    name = "simulated"

    def __init__(self, why: str) -> None:
        """Prepare them; they start when something is measured."""
        super().__init__()
        self.why = why
        ollama, vllm = SimulatedOllama(), SimulatedVLLM()
        self._simulated = {"ollama": ollama, "vllm": vllm}
        self._slowed = False
        self.engines = self._simulated
        self.badge = self._badge(vllm.profile)
        self.found = ["ollama: simulated", "vllm: simulated"]

    def job(self, order: Order, *, steered: bool = False) -> Job:
        """See :meth:`Depth.job`."""
        made = super().job(order, steered=steered)
        made.badge = self._badge(self._profile(order.model))
        return made

    def _profile(self, model: str) -> str:
        """Of the vLLM that serves this model: the one that it has, if that is of this model."""
        served, present = models.find(model).vllm.name, self._simulated["vllm"].profile
        return present if profiles.load(present).model.name == served else profiles.BY_MODEL[served]

    def _badge(self, profile: str) -> str:
        return f"simulated: labkit's own engines answer, from profile {profile}"

    async def arms(self, order: Order, say: Say) -> list[Arm]:
        """See :meth:`Running.arms`. All servers of a run go at one pace, the slowest that one chose."""
        self._simulated["vllm"].profile = self._profile(order.model)
        await self._agree(order, say)
        arms = []
        for side in order.sides:
            engine = self.engines[side.engine]
            model = order.model if side.engine == "ollama" else models.find(order.model).vllm.name
            if order.shares(side.engine):
                arms.append(self._later(order, side, model, None))
            elif side.engine == "ollama":
                arms.append(await _ollama_arm(engine, model, None, side.settings, say))
            else:
                await engine.load(model)
                arms.append(Arm("vLLM", engine, model, None, side.settings))
        return arms

    async def _agree(self, order: Order, say: Say) -> None:
        """Start the first server of each engine at a pace that all can keep.

        One that is to be started anew in the middle of a run must come up at the pace that the run began
        with. So it is not the fastest there: the machine may be a little slower then.
        """
        firsts = [order.first(name) for name in dict.fromkeys(side.engine for side in order.sides)]
        if self._slowed:
            self._pace(None)
        self._slowed = False
        while True:
            scales = set()
            for side in firsts:
                engine = await self._started(side.engine, side.settings, say)
                scales.add((await engine.facts()).time_scale)
            if len(scales) > 1:
                self._pace(min(scales))
            elif order.shared and not self._slowed:
                self._slowed = True
                self._pace(max((scale for scale in SCALES if scale < min(scales)), default=1.0))
            else:
                return

    def _pace(self, scale: float | None) -> None:
        for simulated in self._simulated.values():
            simulated.time_scale = scale

    async def _started(self, name: str, settings: Mapping[str, Any], say: Say) -> ManagedEngine:
        """See :meth:`Running._started`; once more if it came up slower than the others are."""
        engine = await super()._started(name, settings, say)
        wanted = self._simulated[name].time_scale
        for _ in range(PACE_TRIES):
            if wanted is None or (await engine.facts()).time_scale == wanted:
                break
            await engine.restart(progress=say)
        return engine


class Recorded(Depth):
    """Runs that were measured earlier; engines only take the settings that choose among them."""

    name = "recorded"

    def __init__(self, why: str) -> None:
        """Look at what there is."""
        self.why = why
        self.engines = {name: AbsentEngine(name) for name in ENGINES}
        there = recorded.recordings()
        self.badge = recorded.badge(list(there.values()))
        self.found = [f"{folder.name}: {recorded.describe(meta)}" for folder, meta in there.items()]

    def job(self, order: Order, *, steered: bool = False) -> Job:  # a replay cannot be
        """See :meth:`Depth.job`."""
        sides = [(side.engine, side.settings) for side in order.sides]
        found = recorded.find(sides, model=order.model, workload=order.workload, load=order.load)
        return Replaying(found, order.load.levels)

    def runs(self, experiment: str) -> list[Path]:
        """See :meth:`Depth.runs`. A replay leaves no folder; the recording has the experiment's name."""
        return [folder for folder in recorded.recordings() if folder.name == experiment]


def choose(mode: str, urls: Mapping[str, str | None], api_key: str | None = None) -> Depth:
    """The depth of a mode; "auto" takes the deepest that has both engines.

    Args:
        urls: see :func:`addresses`.

    Raises:
        UsageError: unknown mode.
        NotInstalled: live was asked for, and there is no engine.
    """
    if mode not in MODES:
        raise UsageError(f"open the lab in mode {mode!r}", "no such mode", f"one of {', '.join(MODES)}")
    if mode in ("simulated", "recorded"):
        why = f"not deeper, since mode {mode!r} was asked for"
    else:
        why = why_not_live(urls) if mode == "auto" else ""
    if mode == "recorded":
        return Recorded(why)
    return Simulated(why) if why else Live(urls, api_key)


def addresses(ollama_url: str | None = None, vllm_url: str | None = None) -> dict[str, str | None]:
    """Servers that run already, as given or as the environment names them; None for the others."""
    return {
        "ollama": ollama_url or os.environ.get("LABKIT_OLLAMA_URL"),
        "vllm": vllm_url or os.environ.get("LABKIT_VLLM_URL"),
    }


def why_not_live(urls: Mapping[str, str | None]) -> str:
    """What "auto" lacks for live, and the command that gets it; empty if both engines are there."""
    missing = [name for name, where in _find(urls).items() if where is None]
    if not missing:
        return ""
    return f"not live, since not installed here: {', '.join(missing)}; `make engines` installs both engines"


def _find(urls: Mapping[str, str | None]) -> dict[str, str | Path | None]:
    return {name: urls[name] or install.FINDERS[name]() for name in ENGINES}


def _not_installed(tried: str, names: Sequence[str]) -> NotInstalled:
    return NotInstalled(
        tried,
        f"not on this machine: {', '.join(names)}",
        "make engines; or name servers that run already in LABKIT_OLLAMA_URL and LABKIT_VLLM_URL; "
        "or MODE = 'simulated'",
    )


async def _ollama_arm(
    engine: ManagedEngine, model: str, source: str | None, settings: dict[str, Any], say: Say
) -> Arm:
    """Ollama with the model loaded, named after the slots that it has."""
    await engine.load(model, progress=say)
    slots = (await engine.facts()).slots
    name = f"Ollama, {slots} slot{'' if slots == 1 else 's'}" if slots else "Ollama"
    return Arm(name, engine, model, source, settings)
