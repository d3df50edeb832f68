"""Runs of vLLM with one rank and with several, in which the test chooses speeds and pools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from synthetic import make_run

from labkit.bundle import Run
from labkit.parallel import Shape

ONE, BOTH, RANKS = "vllm, one", "vllm, both", "vllm, ranks"
CORES: dict[str, dict[str, Any]] = {
    ONE: {"cpu_threads": 1},
    BOTH: {"cpu_threads": 2},
    RANKS: {"cpu_threads": 2, "tensor_parallel_size": 2},
}
GPUS: dict[str, dict[str, Any]] = {
    ONE: {"tensor_parallel_size": 1, "kv_cache_gib": 1.0},
    RANKS: {"tensor_parallel_size": 2, "kv_cache_gib": 1.0},
}
POOLS = {ONE: 1000, BOTH: 1000, RANKS: 2000}
RATES = {ONE: 100.0, BOTH: 200.0, RANKS: 150.0}

SMALL = Shape(layers=3, width=64, heads=12, kv_heads=4, head_dim=16, inner=128, vocabulary=1000, tied=True)
CONFIG = {
    "num_hidden_layers": 24,
    "hidden_size": 896,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
}


def parallel_run(
    folder: Path,
    rates: Mapping[str, float] = RATES,
    *,
    settings: Mapping[str, dict[str, Any]] = CORES,
    pools: Mapping[str, int | None] = POOLS,
    itl: Mapping[str, float] | None = None,
    ttft: Mapping[str, float] | None = None,
    users: int = 8,
    **more: Any,
) -> Run:
    """Each arm alone and with ``users``, with so many total tokens/s then."""
    arms = [arm for arm in settings if arm in rates]
    run = make_run(
        folder,
        rates={arm: {1: 10.0, users: rates[arm]} for arm in arms},
        itl={arm: dict.fromkeys((1, users), seconds) for arm, seconds in (itl or {}).items()},
        ttft={arm: {1: seconds} for arm, seconds in (ttft or {}).items()},
        facts={arm: {"kv_tokens": pools.get(arm), "kv_bytes": 2**30} for arm in arms},
        **more,
    )
    path = run.path / "run.json"
    meta = orjson.loads(path.read_bytes())
    for arm in arms:
        meta["arms"][arm]["settings"] = settings[arm]
    path.write_bytes(orjson.dumps(meta))
    return Run.load(run.path)
