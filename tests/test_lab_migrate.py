"""What a lab does with a proxy in front: a shift on simulated engines, refusals, and what is replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labkit import migration, recorded
from labkit.engines import install, process
from labkit.errors import NotInstalled, UsageError
from labkit.lab import Lab

URLS = {"ollama_url": "http://127.0.0.1:9", "vllm_url": "http://127.0.0.1:9"}


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "runs"))


async def test_a_simulated_shift_moves_the_load_and_leaves_no_proxy() -> None:
    lab = Lab("simulated", "smoke")
    run = await lab.shift((100, 0), answers=24, users=2).result()
    assert (run.kind, run.arms) == ("simulated", ["splitter"])
    assert migration.account(run)["lost"] == 0
    assert set(run.requests["outcome"]) == {"ok"}
    assert migration.phases(run)["wanted"].to_list() == [0, 100, 0]
    behind = run.meta["arms"]["splitter"]["facts"]["behind"]
    assert [behind[name]["engine"] for name in ("ollama", "vllm")] == ["ollama", "vllm"]
    assert not process.states("splitter")
    await lab.close()


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"shares": (10, 120)}, "0 to 100"),
        ({"shares": ()}, "no share"),
        ({"users": 0}, "a level is 1"),
        ({"vllm": [{}, {"max_num_seqs": 4}]}, "2 settings for vllm"),
        ({"ollama": {"slots": 3}}, "slots"),
        ({"pair": "odd"}, "no 'odd'"),
    ],
)
async def test_what_cannot_be_shifted_is_refused_at_once(asked: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        await Lab("simulated", "smoke").shift(**asked).result()


@pytest.mark.parametrize(("method", "missing"), [("shift", "nginx"), ("gateway", "litellm")])
def test_a_missing_proxy_is_said_before_anything_starts(
    method: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(install.FINDERS, "nginx", lambda: Path("/usr/sbin/nginx"))
    monkeypatch.setitem(install.FINDERS, missing, lambda: None)
    with pytest.raises(NotInstalled, match=f"labkit engines install {missing}"):
        getattr(Lab("live", "smoke", **URLS), method)()


@pytest.mark.parametrize("mode", ["simulated", "recorded"])
def test_a_gateway_without_engines_is_a_recorded_one(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "recordings", dict)
    with pytest.raises(UsageError, match=r"find a recorded run of .*: vllm \+ nginx \+ litellm"):
        Lab(mode, "smoke").gateway()
