"""What a lab shows of two engines that are asked the same: the contract, one client on both, agreement.

Live and simulated it happens now, on the lab's own engines; recorded it is read from ``data/transcripts``.
Labkit imitates no model, so of the agreement of answers, and of vLLM's installed package, the recorded
transcript stands in where nothing real runs, and says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

from labkit import agreement, transcript
from labkit.arms import Arm
from labkit.budget import Budget
from labkit.demos import clients, contract, package
from labkit.depths import ENGINES, PAIRS, Depth, Running
from labkit.designs import Load
from labkit.device import holding
from labkit.engines import install, models
from labkit.lab_demos import recorded_as_asked, say
from labkit.sweeps import Order, Side
from labkit.transcript import Transcript
from labkit.workload import Workload


class Answers:
    """The part of a lab that compares what the engines answer."""

    _depth: Depth
    budget: Budget
    seed: int

    async def contract(self) -> Transcript:
        """Ask both engines every check of their contract; see :func:`labkit.demos.contract.checked`.

        Raises:
            NotInstalled, StartFailed, EngineError: an engine is missing, does not start or does not answer.
        """
        if self._depth.name == "recorded":
            return transcript.recorded("contract")
        async with self._both("contract") as arms:
            return await contract.checked(self._depth.name, arms, say)

    async def clients(self, question: str = clients.QUESTION) -> Transcript:
        """Run one client in several versions against both engines; see :func:`labkit.demos.clients.moved`.

        Raises:
            UsageError: nobody recorded this question.
            NotInstalled, StartFailed, EngineError: see :meth:`contract`.
        """
        if self._depth.name == "recorded":
            return recorded_as_asked("clients", question=question)
        async with self._both("clients") as arms:
            return await clients.moved(self._depth.name, arms, say, question)

    async def both(self, path: str, body: Mapping[str, Any]) -> Transcript:
        """Send one request to both engines; see :func:`labkit.demos.contract.both`.

        Raises:
            UsageError: nobody recorded this request.
            NotInstalled, StartFailed, EngineError: see :meth:`contract`.
        """
        if self._depth.name == "recorded":
            return recorded_as_asked("both", path=path, body=dict(body))
        async with self._both("both") as arms:
            return await contract.both(self._depth.name, arms, path, body)

    async def agreement(self) -> Transcript:
        """Ask both engines the same questions at temperature 0; see :func:`labkit.agreement.compare`.

        Above budget smoke each engine is asked a second time, to see whether it agrees with itself.

        Raises:
            NotInstalled, StartFailed, EngineError: see :meth:`contract`.
        """
        if self._depth.name != "live":
            return transcript.recorded("agreement")
        async with self._both("agreement") as arms:
            return await agreement.compare("live", arms, say, again=self.budget.name != "smoke")

    async def package(self) -> Transcript:
        """What the installed vLLM says of itself; see :func:`labkit.demos.package.read`.

        Where none is installed it is the recorded one.
        """
        python = install.find_vllm() if self._depth.name == "live" else None
        return transcript.recorded("package") if python is None else package.read(python)

    @asynccontextmanager
    async def _both(self, owner: str) -> AsyncIterator[list[Arm]]:
        """Both engines with the fair pair's model, as a measurement would start them; holds the device."""
        depth = cast("Running", self._depth)
        sides = [Side(name, depth.settings(name, None)) for name in ENGINES]
        order = Order(owner, sides, Load((1,)), PAIRS["fair"], Workload(), self.budget, self.seed)
        urls = [depth.engines[name].url for name in ENGINES]
        model = models.find(order.model)
        names = {"ollama": model.ollama.name, "vllm": model.vllm.name}
        async with holding(urls, owner=owner, on_wait=say):
            arms = await depth.arms(order, say)
            # a simulated Ollama knows its model by several names; here it is asked by the real one's
            yield [replace(arm, model=names[arm.engine.name]) for arm in arms]
