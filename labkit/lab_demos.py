"""What a lab shows that is no load run: start-up logs, refusals, evictions, the life of a model, a pull.

Each gives a :class:`~labkit.transcript.Transcript`: live and simulated it happens now, recorded it is read
from ``data/transcripts``. Where labkit has no imitation the recorded one stands in, and says so.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from labkit import transcript
from labkit.demos import evictions, lifecycle, pull, startup, weights
from labkit.depths import PAIRS, Depth
from labkit.engines import models
from labkit.engines.vllm import VLLM
from labkit.errors import UsageError
from labkit.live.controls import Choice
from labkit.live.pull import PullView
from labkit.sweeps import SPEEDS
from labkit.transcript import Transcript


class Demos:
    """The part of a lab that shows what an engine does beside answering."""

    _depth: Depth
    _pull: ClassVar[PullView | None] = None  # the newest of this kernel

    async def start_log(self, engine: str = "vllm") -> Transcript:
        """How vLLM started, phase by phase, from its log; starts it if it is not running.

        A simulated server goes through no such phases: there it is the recorded log, which says so.

        Raises:
            UsageError: another engine.
            EngineError: labkit did not start this server and does not know its log.
            NotInstalled, StartFailed: it is not running and cannot be started.
        """
        if engine != "vllm":
            raise UsageError(f"read the start-up log of {engine!r}", "only vLLM's is read", "say 'vllm'")
        if self._depth.name != "live":
            return transcript.recorded("start_log_vllm")
        vllm = cast("VLLM", self._depth.engines["vllm"])
        await models.ensure(PAIRS["fair"], progress=say)
        await vllm.start(model=PAIRS["fair"], progress=say, **vllm.asked)
        return await startup.start_log(vllm)

    async def refusal(self, *, vllm: Mapping[str, Any]) -> Transcript:
        """Start a vLLM with settings that do not fit, and keep what it says. Other servers are left alone.

        Raises:
            UsageError: it starts all the same; or this refusal was not recorded.
            NotInstalled, StartFailed: see :func:`labkit.demos.startup.refusal`.
        """
        if self._depth.name == "recorded":
            return recorded_as_asked("refusal", **vllm)
        return await startup.refusal(self._depth.name, vllm, say)

    async def evictions(self, *, max_loaded_models: int | None = 3) -> Transcript:
        """Load four models one after the other into an Ollama that keeps so many in memory.

        Args:
            max_loaded_models: None sets no number, which leaves it to Ollama.

        Raises:
            UsageError: this number was not recorded.
            ModelError, NotInstalled, StartFailed: see :func:`labkit.demos.evictions.evictions`.
        """
        if self._depth.name == "recorded":
            return recorded_as_asked("evictions", max_loaded_models=max_loaded_models)
        return await evictions.evictions(self._depth.name, say, max_loaded_models=max_loaded_models)

    def pull(self) -> PullView:
        """Pull a model into an Ollama of its own with an empty folder; shows the view and starts at once.

        What happens later, also a download that breaks off, is told by the view and by its ``result()``.

        Raises:
            UsageError: none was recorded.
        """
        if Demos._pull is not None:
            Demos._pull.stop()
        if self._depth.name == "recorded":
            found = transcript.recorded("pull")
            view = PullView(
                lambda speed, news, _say: pull.replay(found, speed, news),
                badge=found.title,
                control=Choice("Replay speed", SPEEDS, 1.0),
            )
        else:
            kind = self._depth.name
            view = PullView(lambda _none, news, say: pull.pull(kind, news, say), badge=self._depth.badge)
        Demos._pull = view
        view.show()
        return view

    async def _end_pull(self) -> None:
        """Stop a pull that is running, and wait until its server and its folder are gone."""
        if Demos._pull is not None:
            Demos._pull.stop()
            await asyncio.wait({Demos._pull.task})

    async def lifecycle(
        self, prompt: str = lifecycle.PROMPT, keep_alive: str = lifecycle.KEEP_ALIVE
    ) -> Transcript:
        """Load a model, ask it, unload it, let it expire, and ask it through both APIs, each timed.

        Args:
            keep_alive: how long it is to stay after the third answer, in Ollama's notation ("2s", "5m").

        Raises:
            UsageError: nobody recorded this prompt with this keep-alive.
            EngineError: Ollama refuses it.
            ModelError, NotInstalled, StartFailed: see :func:`labkit.demos.lifecycle.lifecycle`.
        """
        if self._depth.name == "recorded":
            return recorded_as_asked("lifecycle", prompt=prompt, keep_alive=keep_alive)
        return await lifecycle.lifecycle(self._depth.name, say, prompt=prompt, keep_alive=keep_alive)

    async def weights_file(self, model: str = PAIRS["fair"]) -> Path:
        """The file with a model's weights as Ollama has it; where none runs, its head as labkit ships it.

        Raises:
            UsageError: unknown model.
            ModelError, NotInstalled, StartFailed: see :func:`labkit.demos.weights.blob`.
        """
        return await weights.blob(model, say) if self._depth.name == "live" else weights.excerpt(model)

    async def gguf(self, model: str = PAIRS["fair"]) -> Transcript:
        """What that file says of itself, its size and its digest; where there is no file, as recorded.

        Raises:
            UsageError: unknown model, or not recorded.
            ModelError, NotInstalled, StartFailed: see :func:`labkit.demos.weights.blob`.
        """
        if self._depth.name != "live":
            return transcript.recorded(f"gguf_{weights.slug(model)}")
        return await asyncio.to_thread(weights.transcribe, await weights.blob(model, say), model)


def say(line: str) -> None:
    """Progress of what a cell waits for."""
    sys.stdout.write(f"{line}\n")


def recorded_as_asked(name: str, **asked: Any) -> Transcript:
    """The recorded transcript of what is asked for.

    Raises:
        UsageError: there is none; says of what there is one.
    """
    there = transcript.recordings(name)
    for found in there:
        if found.about["asked"] == asked:
            return found
    known = "; or ".join(_settings(found.about["asked"]) for found in there)
    raise UsageError(
        f"find a recorded {name} with {_settings(asked)}",
        f"recorded is {known or 'none at all'}",
        "ask for that, or MODE = 'simulated', which needs no engines",
    )


def _settings(asked: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in asked.items())
