"""Shared beginnings: whole blocks are reused, by usage and by the engine's counters; also in a replay."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from synthetic import make_run

from labkit import designs, prefixes, queueing, recorded
from labkit.arms import Arm
from labkit.budget import Budget
from labkit.bundle import Run
from labkit.designs import Load, design
from labkit.engines.simulated import SimulatedOllama, SimulatedVLLM
from labkit.errors import UsageError
from labkit.experiments import Progress
from labkit.judges.base import by_users
from labkit.replay import Replay
from labkit.sides import Missing
from labkit.workload import THREE, Workload

pytestmark = pytest.mark.xdist_group("prefixes")  # all read the same runs, which take some seconds to measure

MODEL = "smollm2:135m"
BUDGET = Budget("test", (1,), (1,), rounds=1, max_s=60, repeats=1)
ASKED = Workload("prefixes", output_tokens=4, total_tokens=300)
SHARING = Load((64, 127, 128, 256), sharing=True)
POOL: dict[str, Any] = {"kv_cache_gib": 0.09, "max_model_len": 2048}


def arms(engine: SimulatedVLLM) -> list[Arm]:
    """With vLLM's own choice, and without a cache."""

    def arm(name: str, **settings: Any) -> Arm:
        async def start(_say: Any) -> None:
            await engine.start(**POOL, **settings)

        return Arm(name, engine, MODEL, settings=settings, start=start)

    return [arm("default"), arm("off", prefix_caching=False)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of each kind, measured once on simulated engines."""
    folder = tmp_path_factory.mktemp("runs")

    async def measure() -> dict[str, Run]:
        vllm, ollama = SimulatedVLLM(time_scale=5), SimulatedOllama(time_scale=5)
        try:
            await vllm.start(**POOL)
            await ollama.start()
            one = [Arm("Ollama", ollama, MODEL)]
            several = Load((1, 2, 3), workloads=tuple(THREE.values()))
            plans = {
                "vllm": (arms(vllm), SHARING, ASKED),
                "ollama": (one, SHARING, ASKED),
                "workloads": (arms(vllm), several, THREE["agent"]),
            }
            return {
                name: await design(
                    name, sides, load, workload=asked, budget=BUDGET, seed=1, folder=folder / name
                ).run()
                for name, (sides, load, asked) in plans.items()
            }
        finally:
            await vllm.stop()
            await ollama.stop()

    return asyncio.run(measure())


def test_vllm_reuses_whole_blocks_and_without_its_cache_nothing(runs: dict[str, Run]) -> None:
    rows = {(row["arm"], row["level"]): row for row in prefixes.table(runs["vllm"]).to_dicts()}
    assert [rows["default", level]["cached_tokens"] for level in SHARING.levels] == [0, 0, 128, 256]
    assert [rows["off", level]["cached_tokens"] for level in SHARING.levels] == [0, 0, 0, 0]
    for (_, level), row in rows.items():
        assert (row["shared_tokens"], row["prompt_tokens"], row["warm"]) == (level, 300, 3)
        assert row["block_size"] == 128
        reused = prefixes.whole_blocks(level, row["block_size"], row["prompt_tokens"])
        assert row["cached_min"] == row["cached_max"] == (reused if row["arm"] == "default" else 0)
    assert rows["default", 256]["ttft_warm_ms_p50"] < rows["default", 64]["ttft_warm_ms_p50"]
    assert {row["caching"] for row in rows.values()} == {None, False}


def test_usage_and_counters_are_two_sources_of_one_number(runs: dict[str, Run]) -> None:
    for row in prefixes.table(runs["vllm"]).filter(arm="default").to_dicts():
        assert (row["hits"], row["queries"]) == (3 * row["cached_tokens"], 4 * row["prompt_tokens"])
    counted = prefixes.workloads(runs["workloads"]).filter(arm="default")
    assert counted["hits"].to_list() == counted["cached_tokens"].to_list()
    assert counted["queries"].to_list() == counted["prompt_tokens"].to_list()


def test_ollama_reuses_token_by_token_and_counts_nothing(runs: dict[str, Run]) -> None:
    table = prefixes.table(runs["ollama"])
    assert table["cached_tokens"].to_list() == table["shared_tokens"].to_list() == list(SHARING.levels)
    assert table["hits"].null_count() == table["block_size"].null_count() == table.height


def test_each_workload_has_its_name_and_its_share(runs: dict[str, Run]) -> None:
    table = prefixes.workloads(runs["workloads"])
    assert table["workload"].to_list() == 2 * list(THREE)
    assert set(table["questions"]) == {designs.ASKED}
    on = dict(table.filter(arm="default").select("workload", "cached_share").iter_rows())
    assert on["system prompt"] > on["documents"] > 0
    assert table.filter(arm="off")["cached_share"].to_list() == [0, 0, 0]
    groups = prefixes.answers(runs["workloads"]).filter(workload="documents")["group"]
    assert set(groups) == {"document 1", "document 2", "document 3"}


@pytest.mark.parametrize(("shared", "reused"), [(127, 0), (128, 128), (255, 128), (299, 256), (300, 256)])
def test_whole_blocks(shared: int, reused: int) -> None:
    assert prefixes.whole_blocks(shared, 128, 300) == reused


def test_the_last_token_of_a_prompt_is_computed_even_if_it_ends_a_block() -> None:
    assert prefixes.whole_blocks(256, 128, 256) == 128


def test_a_missing_count_is_none_unless_the_engine_tells_others(runs: dict[str, Run]) -> None:
    """vLLM may leave the field out where nothing was cached; an engine that never says is another thing."""
    run = runs["vllm"]
    missing = pl.when(pl.col("cached_tokens") > 0).then("cached_tokens").alias("cached_tokens")
    assert prefixes.table(replace(run, requests=run.requests.with_columns(missing))).equals(
        prefixes.table(run)
    )
    silent = runs["ollama"].requests.with_columns(cached_tokens=pl.lit(None, pl.Int64))
    assert prefixes.table(replace(runs["ollama"], requests=silent))["cached_tokens"].null_count() == 4


def test_a_run_without_an_answer_gives_an_empty_table(runs: dict[str, Run]) -> None:
    nothing = replace(runs["vllm"], requests=runs["vllm"].requests.clear())
    assert prefixes.table(nothing).equals(prefixes.EMPTY)


def test_other_runs_are_refused_and_these_are_no_runs_by_users(runs: dict[str, Run], tmp_path: Path) -> None:
    by = make_run(tmp_path / "run", rates={"vllm": {1: 10.0}})
    for table in (prefixes.table, prefixes.workloads):
        with pytest.raises(Missing):
            table(by)
    assert designs.plain(by)
    for run in runs.values():
        assert not designs.plain(run)
        with pytest.raises(Missing, match="its levels are what was asked"):
            by_users(run)
    assert queueing.load_words(runs["vllm"], 128) == "one user, 128 tokens shared"
    assert queueing.load_words(runs["workloads"], 2) == "one user, documents"
    assert "shared tokens" in runs["vllm"]._repr_html_()
    assert "documents" in runs["workloads"]._repr_html_()


@pytest.mark.parametrize("name", ["vllm", "workloads"])
async def test_a_replay_tells_the_same(runs: dict[str, Run], name: str) -> None:
    told: list[Progress] = []
    run = runs[name]
    again = await Replay(run, sorted(recorded.levels_of(run.meta)), speed=math.inf).run(told.append)
    table = prefixes.table if name == "vllm" else prefixes.workloads
    assert table(again).equals(table(run))
    words = {str(progress.step) for progress in told if progress.step}
    assert {"default: 128 tokens shared", "off: agent"} & words


def test_recordings_are_told_apart_by_what_was_asked(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [recorded.keep(run, tmp_path / name) for name, run in runs.items()]
    monkeypatch.setattr(recorded, "recordings", lambda: {run.path: run.meta for run in kept})
    vllm = [("vllm", {}), ("vllm", {"prefix_caching": False})]
    several = Load((1, 2, 3), workloads=tuple(THREE.values()))

    def found(load: Load, asked: Workload) -> str:
        return recorded.find(vllm, model=MODEL, workload=asked, load=load).path.name

    assert found(SHARING, ASKED) == "vllm"
    assert found(several, THREE["agent"]) == "workloads"
    with pytest.raises(UsageError, match="workloads=system prompt and documents and agent"):
        found(replace(several, workloads=(*list(THREE.values())[:2], Workload("x"))), THREE["agent"])
