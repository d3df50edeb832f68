"""Ranks and cores of a simulated vLLM: what they share, what they pay for, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parallel_runs import BOTH, CORES, ONE, RANKS, parallel_run

from labkit import depths
from labkit.budget import budget
from labkit.designs import Load
from labkit.engines.simulated import SimulatedVLLM
from labkit.engines.vllm_settings import VLLMSettings
from labkit.errors import UsageError
from labkit.sim import profile
from labkit.sim.cost import Cost, Work
from labkit.sim.steps import observe
from labkit.sweeps import Order, Side
from labkit.workload import Workload

NAME = profile.BY_MODEL["smollm2:135m-12h"]
PADDED = profile.load(NAME)
READING, COMPUTING = Work(1, 1, 0, 0, 0), Work(500, 0, 1, 0, 0)


def whole(**given: Any) -> dict[str, Any]:
    return VLLMSettings.of(given).resolved("cpu").as_dict()


def cost(**given: Any) -> Cost:
    settings = whole(**given)
    cores, threads = PADDED.cores(settings), PADDED.threads
    assert cores is not None
    assert threads is not None
    return PADDED.cost("vllm", settings["tensor_parallel_size"], cores / threads)


def test_a_second_core_helps_with_computing_and_not_with_reading() -> None:
    one, two = (cost(cpu_threads=count) for count in (1, 2))
    assert one.seconds(READING) == two.seconds(READING)
    assert one.ideal(COMPUTING)["compute"] == pytest.approx(2 * two.ideal(COMPUTING)["compute"])


@pytest.mark.parametrize("work", [READING, COMPUTING])
def test_ranks_on_the_same_cores_lose_what_their_talk_costs(work: Work) -> None:
    both, ranks = cost(cpu_threads=2), cost(cpu_threads=2, tensor_parallel_size=2)
    talk = PADDED.engines["vllm"].coefficients["link"] * ranks.ideal(work)["link"]
    assert talk > 0
    assert ranks.seconds(work) == pytest.approx(both.seconds(work) + talk)


def test_facts_are_a_ranks_memory_and_the_tokens_of_all() -> None:
    one, ranks = (
        PADDED.facts("vllm", whole(**given)) for given in ({"cpu_threads": 1}, {"tensor_parallel_size": 2})
    )
    assert (one["threads"], ranks["threads"]) == (1, 2)
    assert (one["kv_tokens"], ranks["kv_tokens"]) == (34_944, 69_888)  # as the real engine told
    assert ranks["kv_bytes"] == pytest.approx(one["kv_bytes"], rel=0.01)


def test_other_threads_are_words_or_numbers() -> None:
    asked = ("all", "default", 1, 2, 64)
    assert [PADDED.cores(whole(cpu_threads=threads)) for threads in asked] == [2, 1, 1, 2, 2]
    assert profile.load("h100-llama-3.1-70b").cores(whole()) is None


@pytest.mark.parametrize("given", [{"cpu_threads": 4}, {"tensor_parallel_size": 4}])
def test_ranks_and_threads_without_a_core_are_refused(given: dict[str, int]) -> None:
    engine = SimulatedVLLM(profile=NAME)
    with pytest.raises(UsageError, match="2 cores may be used"):
        engine._wanted(given)


def test_a_fit_knows_ranks_and_cores(tmp_path: Path) -> None:
    run = parallel_run(tmp_path / "run", itl={ONE: 0.03, BOTH: 0.02, RANKS: 0.025})
    cores = run.meta["host"]["cores"]
    for name, threads in ((ONE, 1), (BOTH, 2), (RANKS, 2)):
        run.meta["arms"][name]["facts"]["threads"] = threads
    seen = {arm: {(one.ranks, one.share) for one in observe(run, arm)} for arm in CORES}
    assert seen == {ONE: {(1, 1 / cores)}, BOTH: {(1, 2 / cores)}, RANKS: {(2, 2 / cores)}}


@pytest.mark.parametrize(("pair", "name"), [("fair", profile.DEFAULT), ("tp", NAME)])
def test_a_simulated_lab_serves_the_profile_of_the_model(pair: str, name: str) -> None:
    order = Order("x", [Side("vllm", {})], Load((1,)), depths.PAIRS[pair], Workload(), budget("smoke"), 0)
    assert name in depths.Simulated("asked for").job(order).badge.split()
