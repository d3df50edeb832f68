"""What a lab does with several devices: which arms show tensor parallelism here, and what its ranks hold."""

from __future__ import annotations

from typing import cast

from labkit import host, parallel, transcript
from labkit.demos import ranks
from labkit.depths import PAIRS, Depth
from labkit.engines import hardware, models
from labkit.engines.vllm import VLLM
from labkit.lab_demos import say
from labkit.parallel import Settings
from labkit.sim import profile as profiles
from labkit.transcript import Transcript


class Parallel:
    """The part of a lab for tensor parallelism."""

    _depth: Depth

    def rank_arms(self) -> list[Settings]:
        """Settings of vLLM to compare, for ``sweep(["vllm"], vllm=…, pair="tp")``; see :func:`parallel.arms`.

        Recorded and simulated they are those of the machine that was recorded or is imitated.

        Raises:
            UsageError: this machine has one device only.
        """
        device = self._depth.device
        if self._depth.name != "live":
            stands_for = profiles.load(profiles.BY_MODEL[models.find(PAIRS["tp"]).vllm.name])
            return parallel.arms("cpu", stands_for.threads or 1)
        return parallel.arms(device, len(hardware.gpus()) if device == "cuda" else host.cores())

    async def ranks(self) -> Transcript:
        """What each rank of a vLLM with two ranks holds, from its log; starts it if it is not running.

        A simulated server has no ranks that could say something: there it is the recorded log.

        Raises:
            UsageError: this machine has one device only.
            EngineError: see :func:`labkit.demos.ranks.ranks`.
            NotInstalled, StartFailed: it is not running and cannot be started.
        """
        if self._depth.name != "live":
            return transcript.recorded("ranks")
        vllm = cast("VLLM", self._depth.engines["vllm"])
        await models.ensure(PAIRS["tp"], progress=say)
        await vllm.start(model=PAIRS["tp"], progress=say, **self.rank_arms()[-1])
        return await ranks.ranks(vllm)
