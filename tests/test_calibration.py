"""Which cells earlier runs have, and ``labkit calibrate`` where they have all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labkit import calibration, paths
from labkit.bundle import Run
from labkit.calibration import CELLS, LONG_IN, LONG_OUT, SHARED, USERS
from labkit.cli import main
from labkit.sim import profile
from labkit.workload import Workload
from tests.sim import truth

SHAPES = {"short": LONG_OUT, "long": LONG_IN}


def plain(workload: Workload) -> dict[str, Any]:
    """As it is in a ``run.json``."""
    return dict(json.loads(json.dumps(workload.as_dict())))


def run(engine: str, shape: str, *, started: str = "2026-01-01", slots: int = 4, **options: Any) -> Run:
    made = truth.run(engine, shape, workload=plain(SHAPES[shape]), **options)
    made.meta["started_at"] = started
    made.meta["arms"][made.arms[0]]["facts"]["slots"] = slots
    return made


def test_without_runs_every_cell_is_missing() -> None:
    found = calibration.look([], ("vllm",))
    assert found.missing("vllm") == list(CELLS)


def test_cells_that_are_there_are_not_measured_again() -> None:
    found = calibration.look([run("vllm", "short"), run("vllm", "long", users=(1, 16))], ("vllm",))
    assert found.missing("vllm") == [(LONG_IN, (4,)), (SHARED, (1, 4))]


def test_other_levels_of_a_run_are_not_used() -> None:
    found = calibration.look([run("vllm", "short", users=(1, 2, 4, 16, 32))], ("vllm",))
    assert [source.users for source in found.sources] == [USERS]


def test_another_shape_is_no_cell() -> None:
    other = run("vllm", "short")
    other.meta["workload"] = plain(Workload(output_tokens=65))
    assert calibration.look([other], ("vllm",)).sources == []


def test_the_run_that_served_most_at_once_goes_first_then_the_newest() -> None:
    runs = [
        run("ollama", "short", slots=1, started="2026-03-01"),
        run("ollama", "short", slots=4, started="2026-01-01"),
        run("ollama", "short", slots=4, started="2026-02-01"),
    ]
    (source,) = calibration.look(runs, ("ollama",)).sources
    assert source.run.meta["started_at"] == "2026-02-01"


def test_a_run_that_must_not_be_used_is_left_out_with_the_reason() -> None:
    found = calibration.look([run("vllm", "short", drift=1.5)], ("vllm",))
    assert found.sources == []
    assert "changed by" in found.refused[0]


def test_a_level_that_did_not_come_whole_is_no_cell() -> None:
    made = run("vllm", "short")
    levels = [{**record, "ok": 1} if record["level"] == 16 else record for record in made.meta["levels"]]
    found = calibration.look([replace(made, meta={**made.meta, "levels": levels})], ("vllm",))
    assert [source.users for source in found.sources] == [(4, 1)]


def test_the_shell_fits_a_profile_to_runs_that_have_every_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    assert main(["calibrate", "--runs", str(paths.data() / "calibration"), "--name", "mine"]) == 0
    said = capsys.readouterr().out
    assert "90 % bands" in said
    assert "not moved by these runs" in said
    mine = profile.load("mine")
    assert mine.basis == "measured"
    assert mine.engines["vllm"].coefficients != profile.load(profile.DEFAULT).engines["vllm"].coefficients


def test_an_unknown_prior_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    assert main(["calibrate", "--runs", str(tmp_path), "--prior", "nope"]) == 2
    assert "no such profile" in capsys.readouterr().err
