from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from labkit import schema
from labkit.bundle import Recorder, Run
from labkit.errors import BundleError, SchemaError, UsageError
from labkit.verdict import Verdict


def write_rows(folder: Path, arm: str = "a", level: int = 2, requests: int = 4) -> None:
    """What a load process leaves behind: an issue row and a final row a request, five tokens each."""
    with (folder / "requests.rows").open("ab") as rows, (folder / "tokens.rows").open("ab") as tokens:
        for i in range(requests):
            label = {"id": i, "engine": "e", "arm": arm, "level": level, "repeat": 0, "warmup": False}
            sent = {"intended_s": i * 0.1, "sent_s": i * 0.1, "queue_basis": "unknown"}
            rows.write(json.dumps({**label, **sent, "outcome": "unfinished"}).encode() + b"\n")
            end = {
                "first_token_s": i * 0.1 + 0.05,
                "end_s": i * 0.1 + 0.25,
                "output_tokens": 5,
                "outcome": "ok",
            }
            rows.write(json.dumps({**label, **sent, **end}).encode() + b"\n")
            for k in range(5):
                tokens.write(schema.TOKEN.pack(i, i * 0.1 + 0.05 * (k + 1), 1, 0))


def level_record(arm: str = "a", level: int = 2, **changes: Any) -> dict[str, Any]:
    record = {
        "arm": arm, "level": level, "repeat": 0, "warmup": False, "drift": False,
        "started_s": 0.0, "ended_s": 1.0, "ok": 4, "tokens": 20, "planned": 4,
    }  # fmt: skip
    return {**record, **changes}


def recorder(folder: Path, digest: str = "d1", *, arm: str = "a", seed: int = 1, **settings: Any) -> Recorder:
    facts = {"engine": "e", "model_digest": digest, "quantisation": "F16"}
    arms = {arm: {"engine": "e", "settings": settings, "facts": facts}}
    return Recorder(folder, kind="live", arms=arms, workload={"name": "w"}, seed=seed)


@pytest.fixture
def finished(tmp_path: Path) -> Run:
    writer = recorder(tmp_path / "run")
    write_rows(writer.folder)
    writer.gauge("e", "a", {"running": 2.0, "waiting": None})
    writer.level(level_record())
    return writer.finish(Verdict("clean"))


def test_a_finished_run_comes_back_as_it_was(finished: Run) -> None:
    run = Run.load(finished.path)
    assert run.partial is None
    assert list(run.requests.columns) == list(schema.REQUESTS)
    assert run.requests["outcome"].to_list() == ["ok"] * 4
    assert len(run.tokens) == 20
    assert run.gauges.select("name", "value").to_dicts() == [{"name": "running", "value": 2.0}]
    assert not list(run.path.glob("*.rows"))
    (row,) = run.summary().to_dicts()
    assert (row["planned"], row["ok"], row["tokens_per_s"]) == (4, 4, 20.0)
    assert row["ttft_ms_p50"] == pytest.approx(50)
    assert row["itl_ms_p50"] == pytest.approx(50)


def test_a_run_that_was_broken_off_keeps_every_row_and_says_so(tmp_path: Path) -> None:
    writer = recorder(tmp_path / "run")
    write_rows(writer.folder)
    label = {"id": 9, "engine": "e", "arm": "a", "level": 2, "outcome": "unfinished"}
    with (writer.folder / "requests.rows").open("ab") as rows:
        rows.write(json.dumps(label).encode() + b'\n{"id": 10, "arm')
    with (writer.folder / "tokens.rows").open("ab") as tokens:
        tokens.write(b"torn")
    run = Run.load(writer.folder)
    assert run.partial is not None
    assert "broken off" in run.partial
    assert "cut short" in run.partial
    assert run.requests["outcome"].to_list() == ["ok"] * 4 + ["unfinished"]
    assert len(run.tokens) == 20
    run._repr_html_()


def test_warm_up_and_drift_levels_are_not_results(tmp_path: Path) -> None:
    writer = recorder(tmp_path / "run")
    write_rows(writer.folder)
    writer.level(level_record(drift=True))
    assert writer.finish(Verdict("clean")).summary().is_empty()


def test_a_level_with_many_unfinished_requests_is_a_lower_bound(tmp_path: Path) -> None:
    writer = recorder(tmp_path / "run")
    write_rows(writer.folder)
    label = {"id": 9, "engine": "e", "arm": "a", "level": 2, "repeat": 0, "warmup": False}
    with (writer.folder / "requests.rows").open("ab") as rows:
        rows.write(json.dumps({**label, "outcome": "unfinished", "queue_basis": "unknown"}).encode() + b"\n")
    writer.level(level_record(planned=5))
    (row,) = writer.finish(Verdict("clean")).summary().to_dicts()
    assert row["lower_bound"] is True
    assert row["planned"] == row["ok"] + row["failed"] + row["cancelled"] + row["unfinished"] == 5


def test_a_level_with_many_failed_requests_is_a_lower_bound(tmp_path: Path) -> None:
    writer = recorder(tmp_path / "run")
    write_rows(writer.folder)
    label = {"id": 9, "engine": "e", "arm": "a", "level": 2, "repeat": 0, "warmup": False}
    with (writer.folder / "requests.rows").open("ab") as rows:
        rows.write(json.dumps({**label, "outcome": "failed", "queue_basis": "unknown"}).encode() + b"\n")
    writer.level(level_record(planned=5))
    assert writer.finish(Verdict("clean")).summary()["lower_bound"].to_list() == [True]


def test_a_killed_writers_last_level_is_derived_from_its_rows(tmp_path: Path) -> None:
    writer = recorder(tmp_path / "run")
    write_rows(writer.folder)
    label = {"id": 4, "engine": "e", "arm": "a", "level": 2, "repeat": 0, "warmup": False}
    with (writer.folder / "requests.rows").open("ab") as rows:  # in flight at the kill, with one token
        rows.write(json.dumps({**label, "intended_s": 0.4, "outcome": "unfinished"}).encode() + b"\n")
    with (writer.folder / "tokens.rows").open("ab") as tokens:
        tokens.write(schema.TOKEN.pack(4, 1.0, 1, 0))
    run = Run.load(writer.folder)
    (record,) = run.meta["levels"]
    assert (record["started_s"], record["ended_s"], record["tokens"]) == (0.0, 1.0, 21)
    assert record["broken"]
    (row,) = run.summary().to_dicts()
    assert (row["planned"], row["ok"], row["unfinished"], row["tokens_per_s"]) == (5, 4, 1, 21.0)


def test_a_level_with_a_record_is_not_derived_again(tmp_path: Path) -> None:
    writer = recorder(tmp_path / "run")
    write_rows(writer.folder)
    writer.level(level_record())
    assert Run.load(writer.folder).meta["levels"] == [level_record()]


def test_a_disk_that_fills_up_leaves_no_half_line_and_is_told_after_a_reload(tmp_path: Path) -> None:
    writer = recorder(tmp_path / "run")
    write_rows(writer.folder)
    writer.level(level_record())
    gauges = writer.folder / "gauges.rows"
    writer.gauge("e", "a", {"running": 2.0})
    size = gauges.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        writer.gauge("e", "a", {"running": 3.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert gauges.stat().st_size == size
    writer.gauge("e", "a", {"running": 4.0})
    assert writer.so_far().gauges["value"].to_list() == [2.0, 4.0]
    for run in (writer.finish(Verdict("clean")), Run.load(writer.folder)):
        assert run.partial is not None
        assert "not all could be written" in run.partial
        assert len(run.requests) == 4


def test_where_waiting_is_reported_for_some_only_its_basis_is_mixed(tmp_path: Path) -> None:
    for first, basis in (("reported", "mixed"), ("unknown", "unknown")):
        writer = recorder(tmp_path / basis)
        write_rows(writer.folder)
        rows = writer.folder / "requests.rows"
        rows.write_text(rows.read_text().replace('"unknown"', f'"{first}"', 2))
        writer.level(level_record())
        assert writer.finish(Verdict("clean")).summary()["queue_basis"].to_list() == [basis]


def test_runs_on_different_files_never_compare_as_equal(finished: Run, tmp_path: Path) -> None:
    other = recorder(tmp_path / "other", digest="d2")
    write_rows(other.folder)
    other.level(level_record())
    found = finished.compare(other.finish(Verdict("clean")))
    assert not found.same_files
    assert "a, model_digest: d1 / d2" in found.differences
    assert found.table["tokens_per_s_ratio"].to_list() == [1.0]
    again = finished.compare(finished)
    assert again.same_files
    assert again.differences == []


def test_files_of_unknown_digest_are_not_the_same_file(finished: Run) -> None:
    finished.meta["arms"]["a"]["facts"]["model_digest"] = None
    found = finished.compare(finished)
    assert not found.same_files
    assert found.differences == ["a, model file: not known to be the same"]


def test_settings_and_seed_are_conditions(finished: Run, tmp_path: Path) -> None:
    other = recorder(tmp_path / "other", seed=2, prefix_caching=False)
    write_rows(other.folder)
    other.level(level_record())
    found = finished.compare(other.finish(Verdict("clean")))
    assert found.differences == ["seed: 1 / 2", "a, asked for, prefix_caching: None / False"]


def test_the_one_arm_of_an_engine_is_compared_under_another_name(finished: Run, tmp_path: Path) -> None:
    other = recorder(tmp_path / "other", arm="b", slots=4)
    write_rows(other.folder, arm="b")
    other.level(level_record(arm="b"))
    found = finished.compare(other.finish(Verdict("clean")))
    assert found.same_files
    assert found.differences == ["a / b, asked for, slots: None / 4"]
    assert found.table.select("arm", "tokens_per_s_ratio").rows() == [("a / b", 1.0)]


def test_save_without_a_folder_leaves_the_bundle_where_it_is(finished: Run) -> None:
    assert finished.save() is finished


def test_save_copies_the_bundle_and_refuses_a_full_folder(finished: Run, tmp_path: Path) -> None:
    copy = finished.save(tmp_path / "copy")
    assert Run.load(copy.path).requests.equals(finished.requests)
    with pytest.raises(UsageError, match="not empty"):
        finished.save(tmp_path / "copy")


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"run\.json"):
        Run.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"schema_version": 99}, "schema_version"),
        ({"levels": "none"}, "levels"),
        ({"arms": None}, "arms"),
        ({"kind": "dreamt"}, "kind"),
        ({"seed": True}, "seed"),
        ({"levels": [{}]}, "levels[0].arm"),
        ({"levels": [3]}, "levels[0]"),
        ({"levels": [level_record(started_s="now")]}, "levels[0].started_s"),
        ({"host": {}}, "host.cpu"),
        ({"arms": {"a": 3}}, "arms['a']"),
        ({"arms": {"a": {"engine": "e", "settings": {}}}}, "arms['a'].facts"),
        ({"verdict": {}}, "verdict.word"),
        ({"verdict": {"word": "fine", "reasons": []}}, "verdict.word"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(finished: Run, change: dict[str, Any], word: str) -> None:
    path = finished.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SchemaError) as error:
        Run.load(finished.path)
    assert str(path) in str(error.value)
    assert word in str(error.value)


def test_damage_is_an_error_that_names_the_file(finished: Run, tmp_path: Path) -> None:
    for name, damage in (("run.json", b"{"), ("requests.parquet", b"PAR?")):
        copy = tmp_path / name
        shutil.copytree(finished.path, copy)
        (copy / name).write_bytes(damage)
        with pytest.raises(BundleError) as error:
            Run.load(copy)
        assert name in str(error.value)


@pytest.mark.parametrize("row", [b'{"id": "seven"}', b"5", b'{"id": 1}\n5'])
def test_a_row_that_is_none_is_an_error_that_names_the_file(tmp_path: Path, row: bytes) -> None:
    writer = recorder(tmp_path / "run")
    (writer.folder / "requests.rows").write_bytes(row + b"\n")
    with pytest.raises(BundleError, match=r"requests\.rows"):
        Run.load(writer.folder)


def test_a_missing_column_is_named(finished: Run) -> None:
    finished.requests.drop("sent_s").write_parquet(finished.path / "requests.parquet")
    with pytest.raises(SchemaError, match="sent_s"):
        Run.load(finished.path)
    finished.requests.cast({"sent_s": pl.String}).write_parquet(finished.path / "requests.parquet")
    with pytest.raises(SchemaError, match="sent_s"):
        Run.load(finished.path)
