"""The fit: finds a truth that is known, leaves alone what it cannot see, refuses what it must not be fed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from labkit.errors import CalibrationRefused
from labkit.sim import profile
from labkit.sim.calibrate import Source, calibrate
from labkit.sim.cost import Work
from labkit.sim.profile import Profile
from labkit.sim.rerun import measured, rerun

from . import truth

PRIOR = profile.load("cpu-2core-roofline")
STEPS = [Work(1, 1, 0, 200, 0), Work(4, 4, 0, 500, 0), Work(60, 1, 1, 0, 1800), Work(250, 1, 1, 0, 31000)]
"""Of kinds that the runs show; the largest batch that Ollama's four slots can have is four."""


def sources(engine: str, **options: object) -> list[Source]:
    return [Source(run := truth.run(engine, shape, **options), run.arms[0]) for shape in truth.SHAPES]


@pytest.mark.parametrize("engine", ["vllm", "ollama"])
def test_a_known_truth_is_found_from_quite_another_prior(engine: str) -> None:
    made = calibrate(sources(engine), PRIOR)
    ours, theirs = made.profile.cost(engine), truth.known(engine).cost(engine)
    for work in STEPS:
        assert ours.seconds(work) == pytest.approx(theirs.seconds(work), rel=0.06)
    assert made.profile.basis == "measured"


def test_levels_that_were_not_seen_are_predicted() -> None:
    made = calibrate(sources("vllm"), PRIOR)
    unseen = truth.run("vllm", "short", users=(2, 8, 32))
    told, there = rerun(unseen, unseen.arms[0], made.profile), measured(unseen, unseen.arms[0])
    for key, row in there.items():
        for column in ("tokens_per_s", "itl_ms_p50", "ttft_ms_p50"):
            assert told[key][column] == pytest.approx(row[column], rel=0.06), (key, column)


def test_what_the_runs_cannot_move_keeps_the_priors_value() -> None:
    made = calibrate(sources("vllm"), PRIOR)
    assert "link" in made.kept["vllm"]
    assert made.profile.engines["vllm"].coefficients["link"] == PRIOR.engines["vllm"].coefficients["link"]
    assert made.profile.engines["ollama"] == PRIOR.engines["ollama"]


def test_one_shape_leaves_more_to_the_prior_than_two() -> None:
    both = sources("vllm")
    assert len(calibrate(both[:1], PRIOR).kept["vllm"]) >= len(calibrate(both, PRIOR).kept["vllm"])


def test_noise_widens_the_bands() -> None:
    quiet, loud = (
        calibrate(sources("vllm", noise=noise, repeats=3), PRIOR).profile.engines["vllm"].band
        for noise in (0.0, 0.15)
    )
    assert loud["tokens_per_s"] > quiet["tokens_per_s"]
    assert loud["itl"] > quiet["itl"]


def test_the_same_runs_give_the_same_profile() -> None:
    first, second = (calibrate(sources("vllm"), PRIOR, seed=3).profile for _ in range(2))
    assert first == second


def test_a_drifting_run_is_refused_with_the_numbers() -> None:
    with pytest.raises(CalibrationRefused, match=r"changed by -2\d%"):
        calibrate(sources("vllm", drift=1.3), PRIOR)


def test_a_contaminated_run_is_refused() -> None:
    (source, *_) = sources("vllm")
    source.run.meta["verdict"] = {"word": "contaminated", "reasons": ["vllm arm: the engine served 9, not 4"]}
    with pytest.raises(CalibrationRefused, match="served 9"):
        calibrate([source], PRIOR)


def test_a_simulated_run_is_refused() -> None:
    with pytest.raises(CalibrationRefused, match="simulated itself"):
        calibrate(sources("vllm", kind="simulated"), PRIOR)


def test_a_run_without_steps_to_see_is_refused() -> None:
    source = sources("vllm")[0]
    with pytest.raises(CalibrationRefused, match="measure more"):
        calibrate([replace(source, users=(3,))], PRIOR)


def test_a_profile_survives_its_file(tmp_path: object) -> None:
    path = tmp_path / "again.toml"  # type: ignore[operator]
    path.write_text(profile.dump(PRIOR))
    assert _plain(profile.read(path)) == _plain(PRIOR)


def _plain(given: Profile) -> Profile:
    return replace(given, name="")
