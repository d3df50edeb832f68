"""What an order of a measurement knows of its sides."""

from __future__ import annotations

from labkit import budget
from labkit.designs import Load
from labkit.sweeps import Order, Side
from labkit.workload import Workload


def order(*sides: Side) -> Order:
    return Order("any", sides, Load((1,)), "m", Workload(), budget.budget("smoke"), 0)


def test_a_side_is_told_apart_by_what_the_others_of_its_engine_do_not_have() -> None:
    small = {"kv_cache_gib": 0.1, "max_model_len": 2048}
    sides = Side("vllm", small), Side("vllm", {**small, "prefix_caching": False}), Side("ollama", small)
    assert [order(*sides).apart(side) for side in sides] == [{}, {"prefix_caching": False}, {}]


def test_slots_are_always_told() -> None:
    sides = [Side("ollama", {"num_parallel": 4, "context": context}) for context in (2048, 4096)]
    assert [order(*sides).apart(side) for side in sides] == [side.settings for side in sides]
