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
from labkit.errors import CalibrationRefused, SchemaError
from labkit.sim import profile
from labkit.sim.calibrate import FROM_SIMULATED
from labkit.workload import Workload
from tests.sim import truth

PRIOR = profile.load(profile.DEFAULT)
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
    found = calibration.look([], ("vllm",), PRIOR)
    assert found.missing("vllm") == list(CELLS)


def test_cells_that_are_there_are_not_measured_again() -> None:
    found = calibration.look([run("vllm", "short"), run("vllm", "long", users=(1, 16))], ("vllm",), PRIOR)
    assert found.missing("vllm") == [(LONG_IN, (4,)), (SHARED, (1, 4))]


def test_other_levels_of_a_run_are_not_used() -> None:
    found = calibration.look([run("vllm", "short", users=(1, 2, 4, 16, 32))], ("vllm",), PRIOR)
    assert [source.users for source in found.sources] == [USERS]


def test_another_shape_is_no_cell() -> None:
    other = run("vllm", "short")
    other.meta["workload"] = plain(Workload(output_tokens=65))
    assert calibration.look([other], ("vllm",), PRIOR).sources == []


def test_the_run_that_served_most_at_once_goes_first_then_the_newest() -> None:
    runs = [
        run("ollama", "short", slots=1, started="2026-03-01"),
        run("ollama", "short", slots=4, started="2026-01-01"),
        run("ollama", "short", slots=4, started="2026-02-01"),
    ]
    (source,) = calibration.look(runs, ("ollama",), PRIOR).sources
    assert source.run.meta["started_at"] == "2026-02-01"


def test_levels_that_are_held_out_are_not_seen() -> None:
    found = calibration.look([run("vllm", "short")], ("vllm",), PRIOR, held_out=(4,))
    assert [source.users for source in found.sources] == [(16, 1)]


@pytest.mark.parametrize(
    ("fact", "value"), [("model", "smollm2:135m-12h"), ("quantisation", "Q4_1"), ("quantisation", "fp8")]
)
def test_another_model_or_precision_is_no_cell(fact: str, value: str) -> None:
    other = run("vllm", "short")
    other.meta["arms"]["vllm arm"]["facts"][fact] = value
    assert calibration.look([other], ("vllm",), PRIOR).sources == []


@pytest.mark.parametrize("asked", [{"tensor_parallel_size": 2}, {"cpu_threads": 1}, {"eager": False}])
def test_steps_that_are_computed_in_another_way_are_no_cell(asked: dict[str, Any]) -> None:
    other = run("vllm", "short")
    other.meta["arms"]["vllm arm"]["settings"] = asked
    assert calibration.look([other], ("vllm",), PRIOR).sources == []


def test_a_fit_says_what_it_saw_what_it_left_and_what_is_missing() -> None:
    runs = [run("vllm", "short"), run("vllm", "long"), run("ollama", "short", drift=1.5)]
    made = calibration.fit(runs, ("vllm", "ollama"))
    assert made.users("vllm") == (1, 4, 16)
    assert made.users("ollama") == ()
    assert made.profile.basis == "measured"
    assert made.missing == [
        "vllm: shared prefix at 1, 4 users",
        "ollama: stories at 1, 4, 16 users",
        "ollama: long in at 1, 4, 16 users",
        "ollama: shared prefix at 1, 4 users",
    ]
    for said in (repr(made), made._repr_html_()):
        assert "own runs, measured" in said
        assert "ollama: no run of it could be used" in said
        assert "changed by" in said
        assert "these factors of a prediction" in said


def test_a_fit_to_simulated_runs_says_so_and_is_made_only_where_it_is_asked_for() -> None:
    runs = [run("vllm", "short", kind="simulated")]
    with pytest.raises(CalibrationRefused, match="simulated itself"):
        calibration.fit(runs, ("vllm",))
    made = calibration.fit(runs, ("vllm",), simulated=True)
    assert made.profile.basis == FROM_SIMULATED
    path = paths.folder("profiles") / "imitated.toml"
    path.write_text(profile.dump(made.profile))
    with pytest.raises(SchemaError, match="basis"):
        profile.load("imitated")


def test_without_a_run_that_can_be_used_there_is_no_fit() -> None:
    with pytest.raises(CalibrationRefused, match="measure one first"):
        calibration.fit([], ("vllm",))


def test_a_run_that_must_not_be_used_is_left_out_with_the_reason() -> None:
    found = calibration.look([run("vllm", "short", drift=1.5)], ("vllm",), PRIOR)
    assert found.sources == []
    assert "changed by" in found.refused[0]


def test_a_level_that_did_not_come_whole_is_no_cell() -> None:
    made = run("vllm", "short")
    levels = [{**record, "ok": 1} if record["level"] == 16 else record for record in made.meta["levels"]]
    found = calibration.look([replace(made, meta={**made.meta, "levels": levels})], ("vllm",), PRIOR)
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
