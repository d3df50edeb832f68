"""Shares that are moved under load: phases, intervals, the account, and what a proxy adds."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from moved import gateway_run

from labkit import migration, recorded, tables
from labkit.arms import Arm, Step
from labkit.bundle import Recorder, Run
from labkit.depths import PAIRS
from labkit.designs import Load
from labkit.errors import EngineError, UsageError
from labkit.replay import Replay
from labkit.summary import caption
from labkit.verdict import Verdict
from labkit.workload import Workload
from tests.load.server import WHOLE, load, plan, serving, whole
from tests.small_engine import SmallEngine


class Moved(SmallEngine):
    """A proxy that notes its shares."""

    def __init__(self) -> None:
        super().__init__("nginx")
        self.shares: list[float] = []
        self.stuck_at: float | None = None

    async def shift(self, share: float) -> None:
        if share == self.stuck_at:
            raise EngineError(f"move to {share:g} %", "the proxy is stuck", "start it again")
        self.shares.append(share)


def bundle(folder: Path, rows: list[dict[str, Any]], *, sticky: bool = False, kind: str = "live") -> Run:
    """A run of one level with these requests, in which the share goes 0, 50, 0."""
    facts = {"engine": "nginx", "kind": "live", "model": "smollm2:135m", "url": "http://127.0.0.1:1"}
    settings = {"sticky": sticky, "ollama": {}, "vllm": {}}
    load = Load((2,), shares=(50, 0)).as_dict()
    recorder = Recorder(
        folder,
        kind=kind,
        arms={"nginx": {"engine": "nginx", "settings": settings, "facts": facts}},
        workload={**Workload().as_dict(), "experiment": "shift", "budget": "short", "load": load},
        seed=0,
    )
    common = {"engine": "nginx", "arm": "nginx", "level": 2, "repeat": 0, "warmup": False, "outcome": "ok"}
    made = [{**common, "id": n, "user": n % 2, "intended_s": r["sent_s"], **r} for n, r in enumerate(rows)]
    (folder / "requests.rows").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in made))
    gauges = [(0.0, "share_asked", 0), (0.1, "share", 0), (10.0, "share_asked", 50), (11.0, "share", 50)]
    gauges += [(20.0, "share_asked", 0), (20.5, "share", 0)]
    readings = [
        {"t_s": t, "engine": "nginx", "arm": "nginx", "name": name, "value": v} for t, name, v in gauges
    ]
    (folder / "gauges.rows").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in readings))
    level = {"arm": "nginx", "engine": "nginx", "level": 2, "repeat": 0, "warmup": False, "drift": False}
    recorder.level({**level, "started_s": 0.2, "ended_s": 30.0, "planned": len(rows), "ok": len(rows)})
    return recorder.finish(Verdict("clean"))


def sent(at_s: float, engine: str | None, **more: Any) -> dict[str, Any]:
    return {"sent_s": at_s, "end_s": at_s + 1, "served_by": engine, **more}


def test_a_request_belongs_to_the_share_that_was_active_when_it_was_sent(tmp_path: Path) -> None:
    rows = [sent(1, "ollama"), sent(9.9, "ollama"), sent(10.5, "vllm"), sent(12, "vllm"), sent(13, "ollama")]
    rows += [sent(19, None, outcome="failed"), sent(25, "ollama")]
    run = bundle(tmp_path / "run", rows)
    table = migration.phases(run)
    assert table.select("wanted", "planned", "ollama", "vllm", "ok", "failed", "n").rows() == [
        (0, 2, 2, 0, 2, 0, 2),
        (50, 3, 1, 1, 2, 1, 2),
        (0, 1, 1, 0, 1, 0, 1),
    ]
    assert table["measured"].to_list() == [0, 50, 0]
    assert all(low <= mid <= high for low, mid, high in table.select("low", "measured", "high").rows())
    assert migration.moving(run)["sent_s"].to_list() == [10.5]
    early = bundle(tmp_path / "early", [sent(0.05, "ollama"), *rows])
    assert migration.moving(early)["sent_s"].to_list() == [0.05, 10.5], "the share was not yet proved"
    account = migration.account(run)
    assert account["by_server"] == {"ollama": 4, "vllm": 2, None: 1}
    assert account["lost"] == 0


def test_where_users_stay_users_are_counted(tmp_path: Path) -> None:
    rows = [
        sent(12, "ollama"),
        sent(12.1, "vllm"),
        sent(13, "ollama"),
        sent(13.1, "vllm"),
        sent(14, "ollama"),
    ]
    table = migration.phases(bundle(tmp_path / "run", rows, sticky=True))
    assert table["n"].to_list() == [0, 2, 0]
    assert table["measured"].to_list() == [None, 50, None]


def test_a_run_without_shares_has_no_phases(tmp_path: Path) -> None:
    run = bundle(tmp_path / "run", [sent(1, "ollama")])
    stopped = Run(run.meta, run.requests, run.tokens, run.gauges.clear(), run.path)
    assert migration.phases(stopped).is_empty()  # before its first share
    assert migration.phases(stopped).columns == migration.phases(run).columns
    assert migration.moving(stopped).height == 1
    run.meta["workload"]["load"]["shares"] = []
    with pytest.raises(UsageError, match="no share was moved"):
        migration.phases(stopped)


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (2, 20), (20, 20), (1, 1), (50, 100)])
def test_the_interval_holds_its_proportion_and_stays_within_bounds(hits: int, n: int) -> None:
    low, high = migration.wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    assert high - low > 0


def test_the_interval_is_wilsons() -> None:
    # worked example: Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263
    low, high = migration.wilson(81, 263, z=1.959964)
    assert low == pytest.approx(0.2553, abs=1e-4)
    assert high == pytest.approx(0.3662, abs=1e-4)


def test_more_answers_make_it_narrower() -> None:
    widths = [high - low for low, high in (migration.wilson(n // 10, n) for n in (20, 80, 320))]
    assert all(one > other for one, other in pairwise(widths))


@pytest.mark.parametrize(("hits", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_what_is_no_proportion_has_no_interval(hits: int, n: int) -> None:
    with pytest.raises(UsageError, match="no proportion"):
        migration.wilson(hits, n)


async def test_shares_move_after_as_many_answers_each(tmp_path: Path) -> None:
    engine = Moved()
    step = Step(Arm("nginx", engine, "m"), 2, 0, {"users": 2, "rounds": 6}, shares=(10, 50))
    recorder = Recorder(tmp_path / "run", kind="live", arms={}, workload={}, seed=0)
    seen = []
    async with migration.shifting(step, recorder) as moves:
        for count in (0, 3, 4, 7, 8, 12):
            moves.ended(count)
            for _ in range(3):
                await asyncio.sleep(0)  # the walk takes its turn
            seen.append(list(engine.shares))
    assert seen == [[0], [0], [0, 10], [0, 10], [0, 10, 50], [0, 10, 50]]
    gauges, _ = tables.read_table(tmp_path / "run", "gauges")
    assert gauges.filter(pl.col("name") == "share")["value"].to_list() == [0, 10, 50]


async def test_a_proxy_that_fails_on_its_way_says_so_and_loses_nothing(tmp_path: Path) -> None:
    engine = Moved()
    engine.stuck_at = 50
    step = Step(Arm("nginx", engine, "m"), 2, 0, {"users": 2, "rounds": 6}, shares=(10, 50))
    recorder = Recorder(tmp_path / "run", kind="live", arms={}, workload={}, seed=0)
    async with migration.shifting(step, recorder) as moves:
        moves.ended(12)
        for _ in range(3):
            await asyncio.sleep(0)
    assert "stuck" in str(moves.failed)
    gauges, _ = tables.read_table(tmp_path / "run", "gauges")
    assert gauges.filter(pl.col("name") == "share")["value"].to_list() == [0, 10]
    assert gauges.filter(pl.col("name") == "share_asked")["value"].to_list() == [0, 10, 50]


async def test_a_proxy_that_cannot_begin_ends_the_level_with_its_error(tmp_path: Path) -> None:
    engine = SmallEngine("vllm")
    step = Step(Arm("vLLM", engine, "m"), 2, 0, {"users": 2, "rounds": 6}, shares=(10,))
    recorder = Recorder(tmp_path / "run", kind="live", arms={}, workload={}, seed=0)
    with pytest.raises(UsageError, match="no proxy"):
        async with migration.shifting(step, recorder):
            pass


def test_a_bundle_from_before_the_column_still_opens(tmp_path: Path) -> None:
    run = bundle(tmp_path / "run", [sent(1, "ollama")])
    path = run.path / "requests.parquet"
    pl.read_parquet(path).drop("served_by").write_parquet(path)
    again = Run.load(run.path)
    assert again.requests["served_by"].to_list() == [None]
    assert again.requests.columns == run.requests.columns


def test_a_recorded_shift_is_found_by_its_shares_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bundle(tmp_path / "run", [sent(1, "ollama")])
    kept = recorded.keep(run, tmp_path / "kept")
    monkeypatch.setattr(recorded, "recordings", lambda: {kept.path: kept.meta})
    asked = {"model": PAIRS["fair"], "workload": Workload()}
    same = [("nginx", {"sticky": False, "ollama": {}, "vllm": {}})]
    assert recorded.find(same, load=Load((2,), shares=(50, 0)), **asked).kind == "recorded"
    for sides, load_of in (
        (same, Load((2,), shares=(10, 0))),
        ([("nginx", {"sticky": True, "ollama": {}, "vllm": {}})], Load((2,), shares=(50, 0))),
        (same, Load((2,))),
    ):
        with pytest.raises(UsageError, match="find a recorded run"):
            recorded.find(sides, load=load_of, **asked)


async def test_the_load_says_whose_a_request_is_and_who_answered(tmp_path: Path) -> None:
    async def named(talk: Any) -> None:
        head, _, rest = WHOLE.partition(b"\r\n")
        await talk.send(head + b"\r\nX-Served-By: vllm\r\n" + rest)

    async with serving(named) as server:
        outcome = await load(plan(server.url, tmp_path, users=2, rounds=2, name_users=True))
    assert [row["served_by"] for row in outcome.rows] == ["vllm"] * 4
    assert sum("X-User: 1\r\n" in head for head in server.heads) == 2
    async with serving(whole) as server:
        outcome = await load(plan(server.url, tmp_path / "plain", users=2, rounds=1))
    assert not any("X-User" in head for head in server.heads)
    assert all("served_by" not in row for row in outcome.rows)


def test_a_caption_says_what_is_behind_a_proxy() -> None:
    behind = {"vllm": {"engine": "vllm", "version": "0.32.0", "quantisation": "bfloat16"}}
    facts = {"engine": "nginx", "version": "1.22.1", "model": "m", "behind": behind}
    assert caption({"facts": facts}) == "nginx 1.22.1, m, before vllm 0.32.0, bfloat16"


def test_a_question_that_one_way_did_not_answer_makes_no_pair(tmp_path: Path) -> None:
    table = migration.added(gateway_run(tmp_path / "run", failed=1))
    row = table.filter(arm="vLLM through LiteLLM").row(0, named=True)
    assert row["n"] == 19
    ends = [row[f"added_ttft_ms{end}"] for end in ("_low", "", "_high")]
    assert ends == [pytest.approx(12)] * 3, "each answer has its own partner, so all differ alike"


def test_nothing_is_added_to_what_was_not_answered(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no answer"):
        migration.added(gateway_run(tmp_path / "run", failed=20, only=["vLLM"]))


async def test_a_replay_has_the_shares_of_its_recording(tmp_path: Path) -> None:
    rows = [sent(1, "ollama"), sent(12, "vllm"), sent(13, "ollama"), sent(25, "ollama")]
    run = bundle(tmp_path / "run", rows, kind="recorded")
    again = await Replay(run, [2], speed=math.inf).run()
    assert migration.phases(again).equals(migration.phases(run))
    assert migration.account(again) == migration.account(run)
