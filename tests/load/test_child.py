"""What the load process costs and says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .server import Talk, content, load, plan, serving, stream, whole

HEAVY = ("polars", "numpy", "httpx", "aiohttp", "openai", "psutil", "ipykernel")


def test_it_imports_nothing_heavy() -> None:
    script = f"import sys, labkit.load.child; print([m for m in {HEAVY} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


async def test_health(tmp_path: Path) -> None:
    async with serving(whole) as server:
        health = (await load(plan(server.url, tmp_path, users=2, seconds=0.3))).health
    assert 0 <= health.loop_lag_p50_ms <= health.loop_lag_p99_ms <= health.loop_lag_max_ms
    assert health.cpu_s > 0
    assert health.rss_mib > 0
    assert health.send_late_p99_ms >= 0
    assert health.rows_lost == health.retries == 0


async def test_coalesced_chunks_are_counted(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:  # one write for all four chunks
        await talk.send(stream(*map(content, "abc"), content("d", "stop")))

    async with serving(script) as server:
        found = await load(plan(server.url, tmp_path))
    assert [coalesced for *_, coalesced in found.tokens] == [0, 1, 1, 1]
    assert found.health.coalesced_share == 0.75


async def test_a_file_of_the_reader_named_like_a_module_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('imported the wrong file')")
    monkeypatch.chdir(tmp_path)
    async with serving(whole) as server:
        assert (await load(plan(server.url, tmp_path))).tally.ok == 1


async def test_plans_larger_than_a_pipe(tmp_path: Path) -> None:
    async with serving(whole) as server:
        given = plan(server.url, tmp_path, requests=2)
        given.prompts[0].messages[0]["content"] = "x" * 3_000_000
        assert (await load(given)).tally.ok == 2
    assert len(server.bodies[0]["messages"][0]["content"]) == 3_000_000
