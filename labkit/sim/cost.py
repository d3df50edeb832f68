"""How long one step of an engine takes: physical terms, each ideal time times a fitted coefficient.

A step runs the whole model over some tokens: one of each answer that is written, many of a prompt that is
read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from labkit.sim.hardware import Device, Model

TERMS = ("step", "weights", "compute", "sequence", "request", "kv", "attention", "link")
"""step, sequence, request: seconds a step, an answer in it, a prompt begun in it (scheduling, sampling);
weights, kv: reading weights, and keys and values, from memory; compute: the matrix products; attention: each
prompt token with those before it; link: two all-reduces a layer between devices (tensor parallelism)."""


class Work(NamedTuple):
    """What one step has to do.

    ``tokens`` go through the model; ``sequences`` answers get a token; ``requests`` prompts are begun; keys
    and values of ``kv`` tokens are read for answers; ``pairs`` of a prompt token and one before it are looked
    at.
    """

    tokens: float
    sequences: float
    requests: float
    kv: float
    pairs: float


@dataclass(frozen=True)
class Cost:
    """Seconds a step, on ``ranks`` devices that share each layer.

    Matrix products hide under the reading of the weights up to ``ridge`` tokens, where a roofline bends.
    """

    device: Device
    model: Model
    coefficients: Mapping[str, float]
    ridge: float
    ranks: int = 1

    def ideal(self, work: Work) -> dict[str, float]:
        """Seconds of each of :data:`TERMS` at coefficient 1; plain counts for those without physics."""
        device, model, ranks = self.device, self.model, self.ranks
        memory, flops = ranks * device.bandwidth_gb_s * 1e9, ranks * device.tflops * 1e12
        sent = 2 * (ranks - 1) / ranks * work.tokens * model.hidden * 2 / (device.link_gb_s * 1e9)
        return {
            "step": 1.0,
            "weights": model.weight_bytes / memory,
            "compute": 2 * model.parameters * max(0.0, work.tokens - self.ridge) / flops,
            "sequence": work.sequences,
            "request": work.requests,
            "kv": model.kv_bytes * work.kv / memory,
            "attention": 4 * model.layers * model.heads * model.head_dim * work.pairs / flops,
            "link": 2 * model.layers * (device.link_latency_us * 1e-6 + sent) if ranks > 1 else 0.0,
        }

    def seconds(self, work: Work) -> float:
        """Time of a step with this work."""
        return sum(self.coefficients[name] * seconds for name, seconds in self.ideal(work).items())
