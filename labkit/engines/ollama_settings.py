"""Ollama's settings as labkit offers them: names, limits, the server's environment, known causes of death."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from labkit.engines.causes import Cause
from labkit.engines.settings import Settings, setting

DEFAULT_SLOTS = 1
"""What Ollama 0.34.0 does by itself; real ones say it, simulated ones have to be told."""

DURATION = re.compile(r"-?\d+|(-?\d+(\.\d+)?(ms|s|m|h))+")
"""What Ollama reads as a time: whole seconds, or Go's notation ("90s", "1h30m"); negative is for ever."""


@dataclass(frozen=True)
class OllamaSettings(Settings):
    """How an Ollama server is started.

    Field names are the CLI flags; ``num_parallel`` becomes ``OLLAMA_NUM_PARALLEL`` and so on.
    """

    title: ClassVar[str] = "Ollama"

    num_parallel: int | None = setting(
        1,
        "requests that one model works on at a time (slots); None: what Ollama does by itself",
        low=1,
        high=512,
    )
    max_loaded_models: int | None = setting(
        None, "models kept in memory at a time (default: Ollama's own, three a GPU, three on a CPU)", low=1
    )
    max_queue: int = setting(512, "requests that may wait for a model to load; more get status 503", low=1)
    keep_alive: str = setting(
        "24h", "how long an idle model stays loaded (Ollama's own default is 5m; 0 unloads, -1 never does)"
    )
    context_length: int = setting(
        4096, "tokens one request may use, prompt and answer together; each slot gets as many", low=64
    )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """See :meth:`Settings.of`."""
        settings = super().of(given)
        if not DURATION.fullmatch(settings.keep_alive):
            raise cls.refuse(
                "keep_alive", settings.keep_alive, "it must be a time", "write 90s, 5m, 24h, 0 or -1"
            )
        return settings

    def environment(self, port: int, folder: Path) -> dict[str, str]:
        """Variables of the server: loopback only, no cloud, files (also its key) under ``folder``."""
        env = {
            "OLLAMA_HOST": f"127.0.0.1:{port}",
            "OLLAMA_MODELS": str(folder / "models"),
            "HOME": str(folder),
            "OLLAMA_NO_CLOUD": "1",
            "OLLAMA_NOPRUNE": "1",  # a second server must not sweep away what a first one is just importing
        }
        for name, value in self.as_dict().items():
            env[f"OLLAMA_{name.upper()}"] = "" if value is None else str(value)
        return env


CAUSES: tuple[Cause, ...] = (
    Cause(
        r"llama-server binary not found|llama-quantize.*(not found|no such file)",
        "this Ollama is incomplete: the programs beside it are missing",
        "labkit engines install ollama",
    ),
    Cause(
        r"model requires more system memory|failed to allocate .* buffer",
        "the model with this context and these slots does not fit into memory",
        "ask for less: a smaller num_parallel, context_length or model",
    ),
)
"""Why Ollama's servers die or fail to load, by what their log says; looked for before the common causes."""
