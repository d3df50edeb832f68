"""Profiles: all of the course's can be built; what the real engine would refuse is refused in its words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from labkit import paths
from labkit.engines.ollama_settings import OllamaSettings
from labkit.engines.vllm_settings import CAUSES, VLLMSettings
from labkit.errors import LabkitError, UsageError
from labkit.sim import profile
from labkit.sim.cost import Work

A100 = profile.load("a100-40gb-llama-3.1-8b")
H100_70B = profile.load("h100-llama-3.1-70b")


def vllm(**given: Any) -> dict[str, Any]:
    return VLLMSettings.of(given).resolved("cuda").as_dict()


@pytest.mark.parametrize("name", profile.names())
def test_every_profile_builds_both_engines(name: str) -> None:
    found = profile.load(name)
    ranks = 2 if "70b" in name else 1
    device = "cpu" if found.kind == "cpu" else "cuda"
    settings = VLLMSettings.of({"tensor_parallel_size": ranks}).resolved(device).as_dict()
    profile.build(found, "vllm", settings)
    profile.build(found, "ollama", OllamaSettings.of({}).as_dict())


def test_the_pool_is_what_the_real_engine_reports() -> None:
    # facts of the course: 1 GiB of KV space on a CPU is 46,592 tokens of this model, in blocks of 128
    found = profile.load("cpu-2core-roofline")
    assert found.pool_tokens(VLLMSettings.of({}).resolved("cpu").as_dict()) == 46_592


def test_an_unknown_profile_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"(?s)'nope'.*a100-40gb-llama-3.1-8b"):
        profile.load("nope")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"tensor_parallel_size": 3}, "tensor_parallel_size"),
        ({"max_model_len": 131_072, "kv_cache_gib": 1.0}, "max_model_len"),
        ({"max_model_len": 200_000}, "max_model_len"),
    ],
)
def test_what_the_engine_would_refuse_is_refused_in_its_words(given: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError, match=field) as caught:
        profile.build(A100, "vllm", vllm(**given))
    assert any(re.search(cause.pattern, str(caught.value)) for cause in CAUSES)


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="KV cache"):
        profile.build(H100_70B, "vllm", vllm())
    profile.build(H100_70B, "vllm", vllm(tensor_parallel_size=2))


def test_more_devices_are_faster_and_pay_for_talking() -> None:
    decode = Work(8, 8, 0, 8000, 0)
    one, two, four = (A100.cost("vllm", ranks).seconds(decode) for ranks in (1, 2, 4))
    assert one > two > four
    assert four > one / 4


def test_a_roofline_reads_its_weights_once_a_step() -> None:
    weights = 8.03e9 * 2 / 1555e9
    assert A100.cost("vllm").seconds(Work(1, 1, 0, 0, 0)) == pytest.approx(weights)
    assert A100.cost("vllm").seconds(Work(100, 100, 0, 0, 0)) == pytest.approx(weights)


def test_one_that_was_calibrated_here_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    text = profile.dump(A100).replace('"cuda:0 NVIDIA A100 40GB"', '"cuda:0 mine"')
    (paths.folder("profiles") / "a100-40gb-llama-3.1-8b.toml").write_text(text)
    assert profile.load("a100-40gb-llama-3.1-8b").kind == "cuda:0 mine"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('basis = "measured"', 'basis = "guessed"', "field basis"),
        ("[vllm.cost]\n", "[vllm.cost]\nwind = 1\n", "vllm, cost, field wind"),
        ("bandwidth_gb_s", "bandwidth", "device, field bandwidth_gb_s"),
    ],
)
def test_a_flaw_in_a_profile_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = profile.dump(profile.load("cpu-2core-roofline")).replace(
        '"from datasheets, not measured"', '"measured"'
    )
    (tmp_path / "bad.toml").write_text(text.replace(old, new))
    with pytest.raises(LabkitError, match=said):
        profile.read(tmp_path / "bad.toml")
