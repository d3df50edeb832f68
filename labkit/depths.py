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
from labkit.engines import hardware, install, models
from labkit.engines.absent import AbsentEngine
from labkit.engines.base import Progress as Say
from labkit.engines.managed import ManagedEngine
from labkit.engines.ollama import Ollama
from labkit.engines.simulated import SimulatedOllama, SimulatedVLLM
from labkit.engines.vllm import VLLM
from labkit.errors import NotInstalled, UsageError
from labkit.experiments import Arm
from labkit.sweeps import Job, Measuring, Order, Replaying

MODES = ("auto", "live", "simulated", "recorded")
ENGINES = ("ollama", "vllm")

PAIRS = {"fair": "smollm2:135m", "4bit": "labkit/smollm2:135m-q4_1"}
"""Rows of ``data/models.toml``: 16 bit on both sides, or Ollama's side in 4 bit."""


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
    def sweep(self, order: Order) -> Job:
        """Prepare a sweep.

        Raises:
            LabkitError: it cannot be had at this depth.
        """

    def settings(self, name: str, asked: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a sweep starts an engine with: what it asks for, else what was last asked for by hand."""
        return dict(self.engines[name].asked if asked is None else asked)

    def runs(self, experiment: str) -> list[Path]:
        """Folders that may hold a run of an experiment of this name, the newest first."""
        return sorted(paths.runs().glob(f"{experiment}-[0-9]*"), reverse=True)


class _Running(Depth):
    """A depth with engines that run."""

    engines: Mapping[str, ManagedEngine]

    def __init__(self) -> None:
        self._swept: dict[str, dict[str, Any]] = {}  # settings that sweeps have started engines with
        self._by_hand: dict[str, dict[str, Any]] = {}  # and those that the learner has

    def sweep(self, order: Order) -> Job:
        """See :meth:`Depth.sweep`."""
        return Measuring(order, self.badge, [self.engines[name] for name in order.settings], self.arms)

    def settings(self, name: str, asked: Mapping[str, Any] | None) -> dict[str, Any]:
        """See :meth:`Depth.settings`."""
        present = self.engines[name].asked
        if present != self._swept.get(name, {}):
            self._by_hand[name] = present
        return dict(self._by_hand.get(name, {}) if asked is None else asked)

    @abstractmethod
    async def arms(self, order: Order, say: Say) -> list[Arm]:
        """Start the engines; what to measure on them."""

    async def _started(self, name: str, settings: Mapping[str, Any], say: Say) -> ManagedEngine:
        engine = self.engines[name]
        await engine.start(progress=say, **settings)
        self._swept[name] = engine.asked
        return engine


class Live(_Running):
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

    def sweep(self, order: Order) -> Job:
        """See :meth:`Depth.sweep`."""
        if missing := [name for name in order.settings if self._where[name] is None]:
            raise _not_installed(f"sweep over {', '.join(order.settings)}", missing)
        return super().sweep(order)

    async def arms(self, order: Order, say: Say) -> list[Arm]:
        sides = [await self._arm(name, order, say) for name in order.settings]
        if order.model == PAIRS["fair"]:
            models.assert_same_weights([files for _, files in sides if files is not None])
        return [arm for arm, _ in sides]

    async def _arm(self, name: str, order: Order, say: Say) -> tuple[Arm, models.ModelSide | None]:
        settings = order.settings[name]
        if name == "ollama":
            engine = await self._started(name, settings, say)
            model = await models.ensure(order.model, engine=engine, progress=say)
            return await _ollama_arm(engine, model.served_name, model.source, settings, say), model
        # a server that was named by its URL has its files already, and nobody here can look at them
        given = self._urls[name] is not None
        files = None if given else await models.ensure(order.model, progress=say)
        engine = await self._started(name, {**settings, "model": order.model}, say)
        served = models.find(order.model).vllm.name
        return Arm("vLLM", engine, served, files.source if files else None, settings), files


class Simulated(_Running):
    """Labkit's own engines: nothing to install, and no model files."""

    name = "simulated"

    def __init__(self, why: str) -> None:
        """Prepare them; they start when something is measured."""
        super().__init__()
        self.why = why
        ollama, vllm = SimulatedOllama(), SimulatedVLLM()
        self._simulated = {"ollama": ollama, "vllm": vllm}
        self.engines = self._simulated
        self.badge = f"simulated: labkit's own engines answer, from profile {vllm.profile}"
        self.found = ["ollama: simulated", "vllm: simulated"]

    async def arms(self, order: Order, say: Say) -> list[Arm]:
        """See :meth:`_Running.arms`. All servers of a run go at one pace, the slowest that one chose."""
        while True:
            started = [await self._started(name, settings, say) for name, settings in order.settings.items()]
            scales = {(await engine.facts()).time_scale for engine in started}
            if len(scales) == 1:
                break
            for simulated in self._simulated.values():
                simulated.time_scale = min(scales)
        arms = []
        for engine, settings in zip(started, order.settings.values(), strict=True):
            if engine.name == "ollama":
                arms.append(await _ollama_arm(engine, order.model, None, settings, say))
            else:
                await engine.load(order.model)
                arms.append(Arm("vLLM", engine, order.model, None, settings))
        return arms


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

    def sweep(self, order: Order) -> Job:
        """See :meth:`Depth.sweep`."""
        found = recorded.find(order.settings, model=order.model, workload=order.workload, users=order.users)
        return Replaying(found, order.users)

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
