"""Servers that behave like Ollama and vLLM on the machine of a profile: nothing to install, no model files.

They speak the engines' HTTP API (:mod:`labkit.sim.server`) and are started, found, used and stopped like real
ones, but never instead of them: state files, logs and ports are their own.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, Self

from labkit import paths
from labkit.engines import process
from labkit.engines.base import Gauges
from labkit.engines.managed import ManagedEngine
from labkit.engines.ollama import Ollama, OllamaSettings
from labkit.engines.settings import Settings
from labkit.engines.vllm import VLLM, VLLMSettings
from labkit.engines.wanted import Command, Wanted
from labkit.errors import UsageError
from labkit.sim import profile as profiles

START_DEADLINE_S = 30.0
"""It takes well under a second on an idle core."""


class Simulated(ManagedEngine):
    """What the two have in common.

    Attributes:
        profile: of which machine and model (:mod:`labkit.sim.profile`).
        time_scale: how much faster than the real engine it is to go; None: as fast as the load process can
            follow. What it does is in its facts.
    """

    simulated = True

    def __init__(
        self,
        *,
        owner: process.Owner = "kernel",
        port: int | None = None,
        api_key: str | None = None,
        profile: str = profiles.DEFAULT,
        time_scale: float | None = None,
    ) -> None:
        super().__init__(owner=owner, port=port, api_key=api_key)
        self.profile = profile
        self.time_scale = time_scale

    @classmethod
    def attached(cls, state: process.ServerState) -> Self:
        """See :meth:`ManagedEngine.attached`."""
        engine = super().attached(state)
        engine.profile, engine.time_scale = engine._asked.pop("profile"), engine._asked.pop("time_scale")
        return engine

    def _simulation(self, given: Mapping[str, Any], settings: Settings, model: str | None) -> Wanted:
        """What to start. Profile and pace are in the state file beside the settings: a server fits by all."""
        scale = self.time_scale
        if scale is not None and not 1 <= scale < math.inf:
            raise UsageError(
                f"simulate with time_scale={scale!r}",
                "it must be a number, 1 (as fast as the real engine) or more",
                "leave it out to go as fast as can be measured",
            )
        beside = {"profile": self.profile, "time_scale": scale}
        return Wanted(given, settings.as_dict() | beside, model, partial(self._serve, settings))

    def _serve(self, settings: Settings, port: int) -> Command:
        options = {
            "engine": self.name,
            "profile": self.profile,
            "port": port,
            "time-scale": self.time_scale or "auto",
            "settings": json.dumps(settings.as_dict()),
        }
        argv = [sys.executable, "-P", "-m", "labkit.sim.server"]
        argv += [f"--{name}={value}" for name, value in options.items()]
        return Command(argv, {"PYTHONPATH": paths.import_path()}, START_DEADLINE_S)


class SimulatedOllama(Simulated, Ollama):
    """A simulated Ollama; like the real one it loads its model by :meth:`load`."""

    title = "simulated Ollama"
    default_port = 21434

    def _wanted(self, settings: dict[str, Any]) -> Wanted:
        profiles.load(self.profile)
        return self._simulation(settings, OllamaSettings.of(settings), None)

    async def gauges(self) -> Gauges:
        """None: the real one's are read from its child, which this one has not."""
        return Gauges()


class SimulatedVLLM(Simulated, VLLM):
    """A simulated vLLM; it serves the model of its profile."""

    title = "simulated vLLM"
    default_port = 28000

    def _wanted(self, settings: dict[str, Any]) -> Wanted:
        profile = profiles.load(self.profile)
        given = dict(settings)
        model = given.pop("model", None) or profile.model.name
        if model != profile.model.name:
            raise UsageError(
                f"simulate vLLM with model={model!r}",
                f"the profile {profile.name} is of {profile.model.name}",
                f"leave the model out, or name another profile: {', '.join(profiles.names())}",
            )
        wanted = VLLMSettings.of(given).resolved("cpu" if profile.kind == "cpu" else "cuda")
        if profile.kind == "cpu" and profile.threads is not None:
            wanted.environment("cpu", range(profile.threads))  # refuses ranks and threads without a core
        return self._simulation(given, wanted, model)
