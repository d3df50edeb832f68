"""Ollama's scheduler: fixed slots a model, two queues, and models that come and go.

A request whose model is loaded waits for one of its slots, first come first served and without bound. One
whose model is not waits in the bounded load queue. A slot remembers what it last held: a prompt that begins
like it is read from where they part, from an idle slot or the host's prompt cache, never from a busy slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from labkit.sim.cost import Cost
from labkit.sim.request import Refused, Request, work_of

HOST_CACHED = 64
"""Prompts that the host's cache keeps; the real one is bounded by bytes (8 GiB)."""


@dataclass
class Slot:
    """A fixed part of a model's memory, its request if it is busy, and what it holds."""

    request: Request | None = None
    tokens: tuple[int, ...] = ()
    used_s: float = 0.0


@dataclass
class Runner:
    """A loaded model: the ``llama-server`` below Ollama."""

    context: int
    slots: list[Slot]
    keep_alive_s: float
    expires_s: float = inf
    waiting: deque[Request] = field(default_factory=deque)
    host_cache: list[tuple[int, ...]] = field(default_factory=list)
    plan: list[tuple[Request, int]] = field(default_factory=list)
    ends_s: float = inf
    begins_s: float = 0.0  # when the prompts that were admitted last have been handed over

    @property
    def busy(self) -> list[Request]:
        """Those that have a slot."""
        return [slot.request for slot in self.slots if slot.request is not None]

    @property
    def next_s(self) -> float:
        """When its step ends, or may begin; infinite if nobody wants anything."""
        return self.begins_s if self.ends_s == inf and self.busy else self.ends_s


class Ollama:
    """One server; ``next_s`` is when the next step or load ends, infinite if there is none."""

    def __init__(
        self, cost: Cost, *, slots: int, context: int, load_s: float, hop_s: float,
        hop_token_s: float, keep_alive_s: float, max_queue: int, max_models: int,
    ) -> None:  # fmt: skip
        """A prompt is handed over to the model's process, which splits it into tokens: that takes ``hop_s``,
        and ``hop_token_s`` for each token of all that are handed over together."""
        self.cost, self.slots, self.context = cost, slots, context
        self.load_s, self.keep_alive_s, self.hop_s, self.hop_token_s = (
            load_s,
            keep_alive_s,
            hop_s,
            hop_token_s,
        )
        self.max_queue, self.max_models = max_queue, max_models
        self.runners: dict[str, Runner] = {}
        self.queue: deque[Request] = deque()  # for loading
        self.loading: tuple[Request, float] | None = None

    @property
    def next_s(self) -> float:
        """When something happens next."""
        loaded = self.loading[1] if self.loading else inf
        return min([loaded, *(runner.next_s for runner in self.runners.values())])

    def submit(self, request: Request, now: float) -> None:
        """Put it into the queue where it belongs. Raises :class:`Refused` if that is the full load queue."""
        request.sent_s = now
        self.unload_expired(now)
        if (runner := self._runner(request)) is not None:
            runner.waiting.append(request)
        elif len(self.queue) >= self.max_queue:
            raise Refused
        else:
            self.queue.append(request)
            self._load(now)

    def cancel(self, request: Request) -> None:
        """Its client is gone: its slot is free."""
        if self.loading is not None and self.loading[0] is request:
            self.loading = None
        for queue in (self.queue, *(runner.waiting for runner in self.runners.values())):
            if request in queue:
                queue.remove(request)
        for runner in self.runners.values():
            runner.plan = [(other, new) for other, new in runner.plan if other is not request]
            self._leave(runner, request)

    def begin(self, now: float, until: float = 0.0) -> None:
        """Start a step of each model that has work and none in progress; all of them share the device."""
        self._load(now)
        for runner in self.runners.values():
            if runner.ends_s < inf:
                continue
            self._admit(runner, now)
            runner.plan, budget, begun = [], batch(runner.context * self.slots), 0
            for request in sorted(runner.busy, key=lambda r: not r.token_s):  # answers first, then prompts
                if request.admitted_s is None:
                    if runner.begins_s > now:
                        continue
                    request.admitted_s, begun = now, begun + 1
                new = min(request.known - request.computed, budget)
                if new > 0:
                    runner.plan.append((request, new))
                    budget -= new
            if runner.plan:
                sharing = sum(bool(other.plan) for other in self.runners.values())
                runner.ends_s = now + sharing * self.cost.seconds(work_of(runner.plan, begun))

    def end(self) -> list[Request]:
        """What ends at ``next_s`` is over. Returns the requests that got a token."""
        now, wrote = self.next_s, []
        if self.loading is not None and self.loading[1] <= now:
            wrote += self._loaded(self.loading[0], now)
        for runner in self.runners.values():
            if runner.ends_s <= now:
                wrote += self._end(runner, now)
        return wrote

    def unload_expired(self, now: float) -> None:
        """Forget the models that nobody used for as long as they were to be kept."""
        for model, runner in list(self.runners.items()):
            if runner.expires_s <= now and not runner.busy and not runner.waiting:
                del self.runners[model]

    def _loaded(self, first: Request, now: float) -> list[Request]:
        """The model is there for all who want it so; those that want no answer have what they came for."""
        self.loading = None
        context = first.context or self.context
        runner = Runner(context, [Slot() for _ in range(self.slots)], self.keep_alive_s)
        self.runners[first.model] = runner
        served = [first, *(request for request in self.queue if self._runner(request) is runner)]
        self.queue = deque(request for request in self.queue if request not in served)
        for request in served:
            request.load_s = now - request.sent_s
            self._use(runner, request, now)
            if request.answer:
                runner.waiting.append(request)
            else:
                request.ended_s = now
        return [request for request in served if request.ended_s is not None]

    def _use(self, runner: Runner, request: Request, now: float) -> None:
        """Keep the model for as long as was asked for last."""
        if request.keep_alive_s is not None:
            runner.keep_alive_s = request.keep_alive_s
        runner.expires_s = now + runner.keep_alive_s

    def _end(self, runner: Runner, now: float) -> list[Request]:
        wrote = []
        for request, new in runner.plan:
            request.computed += new
            if request.computed == request.known:
                request.token_s.append(now)
                wrote.append(request)
            if request.left == 0:
                request.ended_s = now
                self._leave(runner, request)
                self._use(runner, request, now)
        runner.plan, runner.ends_s = [], inf
        return wrote

    def _runner(self, request: Request) -> Runner | None:
        """The loaded model that it wants, with the context that it wants."""
        runner = self.runners.get(request.model)
        return runner if runner and request.context in (None, runner.context) else None

    def _load(self, now: float) -> None:
        """Begin to load what the queue's first wants, if an idle model can make room for it."""
        if self.loading is not None or not self.queue:
            return
        model = self.queue[0].model
        if model in self.runners or len(self.runners) >= self.max_models:
            victims = [model] if model in self.runners else sorted(self.runners, key=self._staying)
            idle = [name for name in victims if not (self.runners[name].busy or self.runners[name].waiting)]
            if not idle:
                return
            del self.runners[idle[0]]
        self.loading = (self.queue.popleft(), now + self.load_s)

    def _staying(self, model: str) -> tuple[float, str]:
        """The order of eviction: shortest keep-alive first, then by name; not least recently used."""
        return self.runners[model].keep_alive_s, model

    def _admit(self, runner: Runner, now: float) -> None:
        while runner.waiting and (free := [slot for slot in runner.slots if slot.request is None]):
            request = runner.waiting.popleft()
            alike, best = _most_alike([slot.tokens for slot in free], request.prompt)
            slot = free[best]
            if alike <= 0.1 * len(request.prompt):
                slot = min(free, key=lambda s: s.used_s)
                alike, _ = _most_alike([slot.tokens], request.prompt)
            hosted, _ = _most_alike(runner.host_cache, request.prompt)
            request.cached = min(max(hosted, alike), len(request.prompt) - 1)
            runner.host_cache = [*runner.host_cache, slot.tokens][-HOST_CACHED:]
            request.computed, slot.request = request.cached, request
            start = runner.begins_s if runner.begins_s > now else now + self.hop_s
            runner.begins_s = start + self.hop_token_s * len(request.prompt)

    def _leave(self, runner: Runner, request: Request) -> None:
        for slot in runner.slots:
            if slot.request is request:
                slot.tokens = (request.prompt + request.answer)[: request.computed]
                slot.request, slot.used_s = None, request.ended_s or slot.used_s


def batch(context: int) -> int:
    """Tokens a step, by the context of all slots together; what Ollama asks of ``llama-server``."""
    return 512 if context <= 4096 else 1024 if context <= 32768 else 2048


def _most_alike(held: Sequence[tuple[int, ...]], prompt: tuple[int, ...]) -> tuple[int, int]:
    """Tokens of the longest common beginning, and whose it is (the first one's if there is none)."""
    length, best = 0, 0
    for index, tokens in enumerate(held):
        if tokens[: length + 1] == prompt[: length + 1]:  # else it is no longer than what was found
            length, best = _common(tokens, prompt), index
    return length, best


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Length of the common beginning."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))
