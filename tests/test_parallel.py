"""Tensor parallelism: the arithmetic of shares and all-reduces, what a log tells, and plans for hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parallel_runs import BOTH, CONFIG, CORES, GPUS, ONE, RANKS, SMALL, parallel_run

from labkit import figures, multinode, parallel, sharing
from labkit.demos import ranks
from labkit.errors import UsageError
from labkit.lab import Lab
from labkit.parallel import Shape
from labkit.sides import Missing

LOG = """\
(EngineCore pid=7) INFO 11-28 15:08:20 [ompmultiprocessing.py:185] \tlocal_rank=0, core ids=[0]
(EngineCore pid=7) INFO 11-28 15:08:20 [ompmultiprocessing.py:185] \tlocal_rank=1, core ids=[1]
(Worker pid=9) INFO 11-28 15:08:42 [parallel_state.py:1906] world_size=2 rank=1 local_rank=1 \
distributed_init_method=file:///x backend=gloo
(Worker pid=8) INFO 11-28 15:08:43 [parallel_state.py:1906] world_size=2 rank=0 local_rank=0 \
distributed_init_method=file:///x backend=gloo
(Worker_TP0 pid=8) INFO 11-28 15:08:45 [cpu_worker.py:260] Explicitly set (1.0/16.84) GiB for KV cache
(Worker_TP1 pid=9) INFO 11-28 15:08:45 [cpu_worker.py:260] Explicitly set (1.0/16.84) GiB for KV cache
(EngineCore pid=7) INFO 11-28 15:08:45 [kv_cache_utils.py:2327] CPU KV cache size: 69,888 tokens, Maximum
"""
PNG = b"\x89PNG\r\n\x1a\n"
HOSTS = ["10.0.0.1", "10.0.0.2"]


def test_what_the_ranks_hold_adds_up_to_the_model() -> None:
    whole, part = parallel.share(SMALL, 1), parallel.share(SMALL, 4)
    norms = (2 * SMALL.layers + 1) * SMALL.width * parallel.NUMBER_BYTES / parallel.GIB  # each rank has these
    assert 4 * (part.weights_gib - norms) == pytest.approx(whole.weights_gib - norms)
    assert (4 * part.heads, 4 * part.kv_heads, 4 * part.kv_bytes) == (12, 4, whole.kv_bytes)
    assert (whole.kv_bytes, part.room) == (SMALL.kv_bytes, 4)


def test_more_ranks_than_kv_heads_keep_copies_and_no_more_tokens() -> None:
    four, twelve = parallel.share(SMALL, 4), parallel.share(SMALL, 12)
    assert (twelve.copies, twelve.kv_heads) == (3, 1)
    assert (twelve.kv_bytes, twelve.room) == (four.kv_bytes, four.room)
    assert twelve.weights_gib < four.weights_gib


@pytest.mark.parametrize(
    ("count", "changed", "words"),
    [
        (1, {}, ""),
        (2, {}, ""),
        (14, {}, "14 ranks do not divide the MLP's 4864"),
        (3, {}, "14 attention heads"),
        (7, {}, "2 KV heads"),
        (7, {"num_key_value_heads": 7, "intermediate_size": 700}, ""),
    ],
)
def test_what_does_not_fit_says_why(count: int, changed: dict[str, int], words: str) -> None:
    why = parallel.share(Shape.of({**CONFIG, **changed}), count).why
    assert bool(why) is bool(words)
    assert words in why


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({**CONFIG, "num_attention_heads": 0}, "num_attention_heads"),
        ({**CONFIG, "hidden_size": "896"}, "hidden_size"),
        ({name: value for name, value in CONFIG.items() if name != "vocab_size"}, "vocab_size"),
    ],
)
def test_a_config_without_a_shape_names_the_field(config: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError, match=field):
        parallel.shares(config)


def test_a_model_without_kv_heads_of_its_own_has_as_many_as_heads() -> None:
    plain = {name: value for name, value in CONFIG.items() if name != "num_key_value_heads"}
    assert Shape.of(plain).kv_heads == 14
    assert Shape.of({"text_config": plain}).heads == 14


def test_arms_are_for_the_device_and_one_device_is_too_few() -> None:
    assert [parallel.label(given) for given in parallel.arms("cpu", 2)] == [
        "1 core", "2 cores", "2 ranks, 1 core each",
    ]  # fmt: skip
    assert [parallel.label(given) for given in parallel.arms("cuda:0 NVIDIA", 4)] == ["1 rank", "2 ranks"]
    for device, what in (("cpu", "1 processor core"), ("cuda", "1 GPU")):
        with pytest.raises(UsageError, match=what):
            parallel.arms(device, 1)


def test_a_log_tells_cores_memory_and_tokens_of_each_rank() -> None:
    events = ranks.read(LOG)
    assert [(one["rank"], one["backend"]) for one in events if one["what"] == "joined"] == [
        (0, "gloo"), (1, "gloo"),
    ]  # fmt: skip
    assert [(one["rank"], one["cores"], one["kv_gib"]) for one in events if one["what"] == "rank"] == [
        (0, [0], 1.0), (1, [1], 1.0),
    ]  # fmt: skip
    assert events[-1]["kv_tokens"] == 69_888
    assert ranks.read("nothing of the kind") == []


def test_a_rank_on_a_gpu_tells_the_memory_that_is_set_aside_or_left() -> None:
    start = "(Worker_TP1 pid=9) INFO 11-28 15:08:45 [gpu_worker.py:492] "
    for said in ("Initial free memory 93.95 GiB, reserved 1.0 GiB memory for KV Cache as specified",
                 "Available KV cache memory: 1.0 GiB"):  # fmt: skip
        (event,) = ranks.read(f"{start}{said}\n")
        assert (event["what"], event["rank"], event["kv_gib"]) == ("rank", 1, 1.0)


def test_the_price_of_talk_is_what_the_same_cores_do_not_pay(tmp_path: Path) -> None:
    run = parallel_run(tmp_path / "run", itl={ONE: 0.030, BOTH: 0.020, RANKS: 0.026})
    row = sharing.price(run, SMALL).row(-1, named=True)
    assert (row["quiet_ms"], row["split_ms"], row["extra_ms"]) == pytest.approx((20, 26, 6))
    assert (row["reduces"], row["each_us"], row["each_kib"]) == pytest.approx((6, 1000, 1.0))
    gpus = parallel_run(tmp_path / "gpus", settings=GPUS, itl={ONE: 0.030, RANKS: 0.026})
    assert sharing.price(gpus, SMALL)["quiet_ms"][-1] == pytest.approx(15)


def test_a_run_without_ranks_has_no_price(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="several"):
        sharing.price(parallel_run(tmp_path / "run", {ONE: 1.0}), SMALL)


def test_figures_have_three_forms_and_say_their_depth(tmp_path: Path) -> None:
    run = parallel_run(tmp_path / "run", itl={ONE: 0.030, BOTH: 0.020, RANKS: 0.026})
    shown = [figures.ranks(run), figures.all_reduce(run, SMALL), figures.splits(SMALL, devices=3, talk=0.2)]
    for figure in shown:
        assert figure.png.startswith(PNG)
        assert figure.alt
        assert len(figure.plotly.data)
    assert {figure.depth for figure in shown[:2]} == {"live"}
    assert "2 ranks, 1 core each" in shown[0].alt
    assert "6 all-reduces" in shown[1].caption
    assert "computed, not measured" in shown[2].caption


def test_both_splits_hold_the_same_and_differ_in_time() -> None:
    data = figures.splits(SMALL, devices=4, talk=0.3).data
    ends = dict(data.group_by("way").max().select("way", "end").iter_rows())
    assert ends == pytest.approx({"split by layers": 1.0, "split by tensors": 0.25 + 0.3})
    with pytest.raises(UsageError, match="two devices at least"):
        figures.splits(SMALL, devices=1)


@pytest.mark.parametrize("way", multinode.WAYS)
def test_a_cluster_has_each_host_once_and_splits_tensors_inside(way: str) -> None:
    made = multinode.cluster(HOSTS, 4, "owner/name", SMALL, way=way)
    assert (made.ranks, made.stages) == (4, 2)
    assert {one.host for one in made.commands} == set(HOSTS)
    serving = [one for one in made.commands if one.argv[:2] == ("vllm", "serve")]
    answering = [one for one in serving if "--port" in one.argv]
    assert [one.host for one in answering] == [HOSTS[0]]
    for one in serving:
        assert one.argv[one.argv.index("--tensor-parallel-size") + 1] == "4"
        assert one.argv[one.argv.index("--pipeline-parallel-size") + 1] == "2"
    assert all("VLLM_API_KEY" in one.env for one in answering)
    assert ("--distributed-executor-backend" in answering[0].argv) is (way == "ray")
    assert {one.host: "--headless" in one.argv for one in serving}[HOSTS[0]] is False


def test_only_the_api_is_open_to_clients() -> None:
    made = multinode.cluster(HOSTS, 2, "owner/name", SMALL, port=9000)
    outside = [one.ports for one in made.openings if "host" not in one.of]
    assert outside == ["TCP 9000"]
    assert "0.0.0.0" not in str(made)
    assert "<pre>" in made._repr_html_()


def test_a_folder_with_a_space_would_be_quoted_and_an_option_is_no_model() -> None:
    command = multinode.Command("10.0.0.1", "x", ("vllm", "serve", "a b"), {"A": "b c"})
    assert str(command) == "A='b c' vllm serve 'a b'"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"hosts": ["10.0.0.1"]}, "one host needs no cluster"),
        ({"hosts": "10.0.0.1"}, "list of two"),
        ({"hosts": ["10.0.0.1", "10.0.0.1"]}, "twice"),
        ({"hosts": ["10.0.0.1", "gpu-2; rm"]}, "no IPv4 address"),
        ({"hosts": ["10.0.0.1", 167772162]}, "no IPv4 address"),
        ({"hosts": ["10.0.0.1", "127.0.0.1"]}, "cannot reach it"),
        ({"hosts": ["10.0.0.1", "8.8.8.8"]}, "open internet"),
        ({"gpus_each": 0}, "must be 1 to"),
        ({"gpus_each": 5}, "do not divide"),
        ({"port": 70_000}, "must be 1 to"),
        ({"model": "--help"}, "neither a repository"),
        ({"model": "a b"}, "neither a repository"),
        ({"way": "ssh"}, "no such way"),
        ({"hosts": [f"10.0.0.{n}" for n in range(1, 6)]}, "3 layers"),
    ],
)
def test_an_impossible_cluster_is_refused_in_a_sentence(changed: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"hosts": HOSTS, "gpus_each": 2, "model": "owner/name", "shape": SMALL, **changed}
    with pytest.raises(UsageError) as caught:
        multinode.cluster(**given)
    assert words in str(caught.value)


def test_the_settings_of_the_arms_are_those_that_a_run_is_known_by() -> None:
    assert parallel.arms("cpu", 2) == list(CORES.values())
    assert parallel.arms("cuda", 2) == list(GPUS.values())


@pytest.mark.parametrize("mode", ["simulated", "recorded"])
async def test_without_engines_the_arms_are_the_reference_machines_and_the_ranks_recorded(mode: str) -> None:
    lab = Lab(mode=mode, budget="smoke")
    assert lab.rank_arms() == list(CORES.values())
    told = await lab.ranks()
    shape = Shape.told(told)
    assert (told.kind, shape.heads, shape.kv_heads) == ("recorded", 12, 4)
    parts = told.of("rank")
    assert [one["heads"] for one in parts] == [6, 6]
    room = sum(one["kv_gib"] for one in parts) * parallel.GIB / shape.kv_bytes
    assert told.one("tokens")["kv_tokens"] == pytest.approx(room, rel=0.01)
