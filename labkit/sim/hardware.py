"""What a datasheet says of a device, and a model card of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One device. ``link_gb_s`` is what it can send to another one, after ``link_latency_us``."""

    name: str
    memory_gib: float
    bandwidth_gb_s: float
    tflops: float
    link_gb_s: float
    link_latency_us: float


@dataclass(frozen=True)
class Model:
    """The shape of a model; ``context`` is what it was trained for, in tokens.

    ``width``: numbers that stand for one token between two layers, where heads × head_dim is not that many.
    """

    name: str
    parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    bytes_per_weight: float
    context: int
    width: int | None = None

    @property
    def hidden(self) -> int:
        """Numbers that stand for one token between two layers."""
        return self.width or self.heads * self.head_dim

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token, 16 bit each."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    @property
    def weight_bytes(self) -> float:
        """All weights."""
        return self.parameters * self.bytes_per_weight
