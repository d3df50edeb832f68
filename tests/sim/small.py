"""Small simulated engines and requests, and a vLLM that is checked at every step."""

from __future__ import annotations

from math import inf

from labkit.sim.blocks import BlockPool
from labkit.sim.cost import TERMS, Cost
from labkit.sim.hardware import Device, Model
from labkit.sim.ollama import Ollama
from labkit.sim.request import Request
from labkit.sim.vllm import VLLM

DEVICE = Device("test", 1, 100, 1, 10, 5)
MODEL = Model("tiny", 1e6, 2, 4, 2, 8, 2, 4096)
COST = Cost(DEVICE, MODEL, dict.fromkeys(TERMS, 1.0) | {"step": 0.01, "sequence": 1e-3, "request": 1e-3}, 1)
SIZE = 4


def request(number: int, prompt: int = 8, answer: int = 5, shared: int = 0, model: str = "m") -> Request:
    """A request whose prompt begins with ``shared`` tokens that all have in common."""
    own = 1000 * (number + 1)
    tokens = (*range(min(shared, prompt)), *range(own, own + max(0, prompt - shared)))
    return Request(number, tokens, tuple(range(own + 500, own + 500 + answer)), model=model)


def vllm(blocks: int = 64, seqs: int = 4, budget: int = 32, **more: int | None) -> VLLM:
    """A vLLM with a small pool."""
    return Watched(COST, BlockPool(blocks, SIZE), seqs=seqs, budget=budget, **more)


def ollama(
    slots: int = 2, max_models: int = 3, max_queue: int = 512, keep_alive_s: float = inf, hop_s: float = 0.0
) -> Ollama:
    """An Ollama that loads a model in a second."""
    return Ollama(
        COST,
        slots=slots,
        context=256,
        load_s=1.0,
        hop_s=hop_s,
        hop_token_s=0.0,
        keep_alive_s=keep_alive_s,
        max_queue=max_queue,
        max_models=max_models,
    )


class Watched(VLLM):
    """A vLLM that is checked whenever it has planned a step."""

    def begin(self, now: float, until: float = 0.0) -> None:
        """Plan, then look whether the plan keeps to the rules."""
        super().begin(now, until)
        assert sum(new for _, new in self.plan) <= self.budget
        assert len(self.running) <= self.seqs
        assert all(new > 0 for _, new in self.plan)
        held = {block for request in self.running for block in request.blocks}
        assert len(held) + self.pool.free == self.pool.total
        for running in self.running:
            assert len(running.blocks) * SIZE >= running.computed


def step_by_step(engine: VLLM | Ollama, requests: list[Request]) -> None:
    """Serve requests that are all there from the start, never more than a step at a time."""
    for item in requests:
        engine.submit(item, 0.0)
    engine.begin(0.0)
    while engine.next_s < inf:
        now = engine.next_s
        engine.end()
        engine.begin(now)
