"""vLLM's scheduler: before every step it chooses anew who is worked on, token by token.

Those that are running come first, then those that wait, first come first served, as far as the limits on
sequences and tokens a step and the free KV blocks allow. A long prompt is read in pieces beside the answers
of others. Blocks are taken when they are needed; if there are none, the youngest running request loses its
own and is read again later (preemption with recompute).
"""

from __future__ import annotations

from collections import deque
from math import inf

from labkit.sim.blocks import BlockPool, chain
from labkit.sim.cost import Cost
from labkit.sim.request import Refused, Request, work_of


class VLLM:
    """One engine core; ``next_s`` is when the step in progress ends, infinite if there is none."""

    def __init__(
        self, cost: Cost, pool: BlockPool, *, seqs: int, budget: int, max_queue: int | None = None
    ) -> None:
        """At most ``seqs`` requests and ``budget`` tokens a step, ``max_queue`` unfinished (None: any)."""
        self.cost, self.pool = cost, pool
        self.seqs, self.budget, self.max_queue = seqs, budget, max_queue
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in order of admission
        self.preemptions = 0
        self.next_s = inf
        self.ends: list[float] = []  # of the steps in progress: several if nothing changes in between
        self.plan: list[tuple[Request, int]] = []  # who is worked on, and how many of its tokens

    def submit(self, request: Request, now: float) -> None:
        """Put it into the queue. Raises :class:`Refused` if that is bounded and full."""
        if self.max_queue is not None and len(self.waiting) + len(self.running) >= self.max_queue:
            raise Refused
        request.sent_s = now
        request.chain = chain(request.prompt + request.answer, self.pool.size)
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """Its client is gone: what it held is free."""
        if request in self.waiting:
            self.waiting.remove(request)
        elif request in self.running:
            self._leave(request)
            self.plan = [(other, new) for other, new in self.plan if other is not request]

    def begin(self, now: float, until: float = 0.0) -> None:
        """Start a step if there is work and none in progress. Where no prompt is read and no answer ends in
        between, all steps up to the first that ends at or after ``until`` are one."""
        if self.next_s < inf:
            return
        self.plan = []
        undisturbed = self._plan_running()
        admitted = self._plan_waiting(now) if undisturbed else 0
        if not self.plan:
            return
        work = work_of(self.plan, admitted)
        seconds = self.cost.seconds(work)
        self.ends = [now + seconds]
        # a piece of a prompt may be one token long, and looks like an answer's in ``work``
        all_write = all(request.computed + new == request.known for request, new in self.plan)
        if all_write and not work.pairs and not admitted and self.ends[0] < until:
            more = self.cost.seconds(work._replace(kv=work.kv + work.sequences)) - seconds
            for step in range(1, self._repeatable()):  # each reads one more token of every answer
                self.ends.append(self.ends[-1] + seconds + step * more)
                if self.ends[-1] >= until:
                    break
            for request, _ in self.plan:
                self._grow(request, request.computed + len(self.ends))
        self.next_s = self.ends[-1]

    def end(self) -> list[Request]:
        """The step is over: tokens are written. Returns the requests that got one."""
        wrote = []
        for request, new in self.plan:
            request.computed += new + len(self.ends) - 1
            if request.computed == request.known + len(self.ends) - 1:
                request.token_s += self.ends
                wrote.append(request)
            full = min(request.computed // self.pool.size, len(request.chain))
            for index in range(request.filled, full):
                self.pool.fill(request.blocks[index], request.chain[index])
            request.filled = full
            if request.left == 0:
                request.ended_s = self.next_s
                self._leave(request)
        self.plan, self.next_s = [], inf
        return wrote

    def _plan_running(self) -> bool:
        """The running ones first; False if one had to give way to another."""
        budget, preempted, index = self.budget, self.preemptions, 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            new = min(request.known - request.computed, budget)
            while not self._grow(request, request.computed + new):
                self._preempt()
                if index == len(self.running):  # it was the youngest itself
                    return False
            self.plan.append((request, new))
            budget, index = budget - new, index + 1
        return self.preemptions == preempted

    def _plan_waiting(self, now: float) -> int:
        """Admit who waits, in order, as long as there is room; how many were."""
        budget, admitted = self.budget - sum(new for _, new in self.plan), 0
        while self.waiting and budget > 0 and len(self.running) < self.seqs:
            request = self.waiting[0]
            # the last token is always computed: its result is the next one
            request.blocks = self.pool.share(request.chain[: (request.known - 1) // self.pool.size])
            request.filled, cached = len(request.blocks), len(request.blocks) * self.pool.size
            new = min(request.known - cached, budget)
            if not self._grow(request, cached + new):
                self._free(request)
                break
            self.running.append(self.waiting.popleft())
            if request.admitted_s is None:
                request.admitted_s, request.cached = now, cached
            request.computed = cached
            self.plan.append((request, new))
            budget, admitted = budget - new, admitted + 1
        return admitted

    def _repeatable(self) -> int:
        """Steps until the first answer ends, if there are blocks for all of them; else one."""
        steps, size = min(request.left for request, _ in self.plan), self.pool.size
        wanted = sum(-(-(request.computed + steps) // size) - len(request.blocks) for request, _ in self.plan)
        return steps if wanted <= self.pool.free else 1

    def _grow(self, request: Request, tokens: int) -> bool:
        """Blocks for so many tokens; False, and nothing changed, if there are not enough."""
        taken = self.pool.take(max(0, -(-tokens // self.pool.size) - len(request.blocks)))
        request.blocks += taken or []
        return taken is not None

    def _preempt(self) -> None:
        request = self.running[-1]
        self._leave(request)
        request.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(request)

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        self._free(request)

    def _free(self, request: Request) -> None:
        self.pool.give_back(request.blocks)
        request.blocks, request.filled, request.computed = [], 0, 0
