"""What a lab measures of shared beginnings: how long they are, in which workloads, and what engines keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack, cast

from labkit import depths
from labkit.budget import Budget
from labkit.demos import reuse
from labkit.depths import ENGINES, PAIRS, Depth
from labkit.designs import Load
from labkit.device import holding
from labkit.errors import UsageError
from labkit.lab_demos import recorded_as_asked, say
from labkit.live.view import RunView
from labkit.sweeps import Asked, Order, Side
from labkit.transcript import Transcript
from labkit.workload import THREE, Workload

AROUND = {"cpu": 128, "cuda": 256}
"""Tokens whose multiples the shared lengths lie around: vLLM's block on a CPU, sixteen of its usual ones on
a GPU, since one of 16 tokens saves less time there than can be seen."""

MULTIPLES = 3
"""How many of these."""

SHORT = 8
"""Tokens of an answer where the time to its first is what counts."""


class Prefixes(ABC):
    """The part of a lab that asks questions which begin alike."""

    _depth: Depth
    budget: Budget
    seed: int

    @abstractmethod
    def _measure(self, name: str, engines: Sequence[str], load: Load, view: str, asked: Asked) -> RunView: ...

    def prefixes(
        self,
        engines: Sequence[str] = ("vllm",),
        shared: Sequence[int] | None = None,
        *,
        tokens: int | None = None,
        rounds: int | None = None,
        view: str = "prefix",
        name: str = "prefixes",
        **asked: Unpack[Asked],
    ) -> RunView:
        """Ask questions of one length that have so many tokens in common; see :meth:`Lab.sweep`.

        One user asks. The first question of each level is new from its beginning, and so fills the cache; the
        others share it. The shared text is new at each level and in every run.

        Args:
            shared: levels, tokens that the questions have in common, the chat template's included (default:
                around multiples of vLLM's usual block on this kind of device).
            tokens: length of each question (default: half a block more than the longest default level).
            rounds: questions of each level (default: :data:`labkit.designs.COLD_AND_WARM`).
            view: "prefix": TTFT and cached tokens against shared tokens; "lanes": each request.
            asked: see :class:`Asked`; without a workload of its own.

        Raises:
            UsageError, NotInstalled: as :meth:`Lab.sweep`; or a length that cannot be shared.
        """
        if asked.get("workload") is not None:
            raise UsageError("share a beginning", "a workload was given", "leave it out: lab.workloads()")
        block = AROUND["cpu" if self._depth.device.startswith("cpu") else "cuda"]
        levels = tuple(sorted(set(self._lengths(block) if shared is None else shared)))
        workload = Workload(
            "prefixes", output_tokens=SHORT, total_tokens=tokens or MULTIPLES * block + block // 2
        )
        load = Load(levels, rounds=rounds, sharing=True)
        for level in levels:
            load.workload(level, workload)  # one that cannot be shared is refused before an engine starts
        return self._measure(name, engines, load, view, {**asked, "workload": workload})

    def _lengths(self, block: int) -> list[int]:
        """One short of each whole block, all of it, and half of the next; at the end no half.

        At the smallest budget no halves and one block less, which shows the same steps in less time.
        """
        if self.budget.name == "smoke":
            return [at for end in range(block, MULTIPLES * block, block) for at in (end - 1, end)]
        blocks = range(block, (MULTIPLES + 1) * block, block)
        lengths = [block // 2, *(at for end in blocks for at in (end - 1, end, end + block // 2))]
        return lengths[:-1]

    def workloads(
        self,
        engines: Sequence[str] = ("vllm",),
        *,
        workloads: Mapping[str, Workload] | None = None,
        rounds: int | None = None,
        name: str = "workloads",
        **asked: Unpack[Asked],
    ) -> RunView:
        """Ask the questions of one workload after the other, one user all of them; see :meth:`Lab.sweep`.

        Args:
            workloads: by the name that figures call them (default: :data:`labkit.workload.THREE`); each is a
                level, from 1 on.
            rounds: questions of each (default: :data:`labkit.designs.ASKED` times the budget's).
            asked: see :class:`Asked`; without a workload of its own.

        Raises:
            UsageError, NotInstalled: as :meth:`Lab.sweep`.
        """
        if asked.get("workload") is not None:
            raise UsageError("compare workloads", "one was given", "name it in workloads={...}")
        several = tuple(
            replace(one, name=called) for called, one in (THREE if workloads is None else workloads).items()
        )
        levels = tuple(range(1, len(several) + 1))
        load = Load(levels, rounds=rounds, workloads=several)
        return self._measure(name, engines, load, "lanes", {**asked, "workload": several[0]})

    async def reuse(self, engine: str, *, text: str | None = None, **settings: Any) -> Transcript:
        """Ask the lab's own engine questions that begin alike; see :func:`labkit.demos.reuse.reuse`.

        Args:
            engine: "vllm" or "ollama"; started anew if it runs with other settings.
            text: of your own, which the questions have in common (default: common words).
            settings: to start it with, beside :data:`labkit.demos.reuse.SETTINGS`.

        Raises:
            UsageError: another engine, an empty text; or nobody recorded this.
            EngineError: it refuses a question; quotes it.
            NotInstalled, StartFailed, ModelError: it cannot be started.
        """
        if engine not in ENGINES:
            raise UsageError(f"see what {engine!r} reuses", "no such engine", f"one of {', '.join(ENGINES)}")
        if text is not None and not text.strip():
            raise UsageError(f"see what {engine} reuses", "the text is empty", "leave it out, or write some")
        given = {**reuse.SETTINGS[engine], **settings}
        if self._depth.name == "recorded":
            return recorded_as_asked("reuse", engine=engine, text=text, **given)
        depth = cast("depths.Live | depths.Simulated", self._depth)
        order = Order(
            "reuse", [Side(engine, given)], Load((1,)), PAIRS["fair"], Workload(), self.budget, self.seed
        )
        async with holding([depth.engines[engine].url], owner="reuse", on_wait=say):
            (arm,) = await depth.arms(order, say)
            return await reuse.reuse(depth.name, arm, say, text=text)
