"""What stands for an engine in the recorded depth, where none runs."""

from __future__ import annotations

from typing import Any

from labkit.engines.base import Engine, EngineFacts, Gauges, Progress, Served, quiet
from labkit.engines.ollama_settings import OllamaSettings
from labkit.engines.settings import Settings
from labkit.engines.vllm_settings import VLLMSettings
from labkit.errors import EngineError

_SETTINGS: dict[str, type[Settings]] = {"ollama": OllamaSettings, "vllm": VLLMSettings}


class AbsentEngine(Engine):
    """Takes settings as an engine does, for the next sweep to look for a recording that has them.

    It answers nothing.

    Attributes:
        asked: settings of the last start or restart.
        say: where progress goes that no receiver was named for.
    """

    url = ""
    protocol = ""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: dict[str, Any] = {}
        self.say: Progress = quiet

    async def start(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        """Keep the settings.

        Raises:
            UsageError: unknown setting or impossible value.
        """
        given = {name: value for name, value in settings.items() if name != "model"}
        _SETTINGS[self.name].of(given)
        self.asked = given
        progress = self.say if progress is quiet else progress
        told = ", ".join(f"{name}={value!r}" for name, value in given.items()) or "labkit's defaults"
        progress(f"{self.name}: nothing is started; the next sweep looks for a recording with {told}")
        return await self.facts()

    async def restart(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        """Keep the settings, changed by these."""
        return await self.start(progress=progress, **{**self.asked, **settings})

    async def stop(self, *, progress: Progress = quiet) -> None:
        """There is nothing to stop."""

    async def ready(self) -> bool:
        """It never answers."""
        return False

    async def load(self, model: str, *, progress: Progress = quiet) -> float:
        """Raises EngineError."""
        raise EngineError(
            f"load {model} into {self.name}",
            "no engine runs in the recorded depth",
            "MODE = 'simulated' needs nothing more; 'live' takes `make engines`",
        )

    async def facts(self) -> EngineFacts:
        """Its name and no more."""
        return EngineFacts(self.name, "recorded", self.url)

    async def gauges(self) -> Gauges:
        """No reading."""
        return Gauges()

    async def served(self) -> Served:
        """No count."""
        return Served()

    def cpu_s(self) -> float | None:
        """Unknown."""
        return None

    def log_tail(self, n: int = 20) -> list[str]:
        """There is no log."""
        return []

    def alive(self) -> bool:
        """There is no process."""
        return False
