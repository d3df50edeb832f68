"""The lab: which depth it has and why, what it refuses, and one sweep at each depth."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from IPython.testing.globalipapp import start_ipython
from IPython.utils.capture import capture_output
from synthetic import make_run

import labkit
from labkit.engines import process
from labkit.errors import EngineError, ExperimentStopped, NotInstalled, UsageError
from labkit.lab import Lab

URLS = {"ollama_url": "http://127.0.0.1:9", "vllm_url": "http://127.0.0.1:9"}


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MODE", "BUDGET", "OLLAMA_URL", "VLLM_URL"):
        monkeypatch.delenv(f"LABKIT_{name}", raising=False)
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_importing_labkit_stays_light() -> None:
    """The load process imports labkit and must start in a tenth of a second."""
    code = "import sys, labkit; sys.exit(any(m in sys.modules for m in ('polars', 'plotly', 'IPython')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_notebooks_surface_is_there_after_importing_labkit() -> None:
    assert labkit.Lab is Lab
    assert labkit.figures.gap
    with pytest.raises(AttributeError):
        labkit.nothing  # noqa: B018


def test_it_says_what_it_found_and_at_which_depth() -> None:
    start_ipython()
    with capture_output() as captured:
        lab = Lab(budget="smoke", **URLS)
    (shown,) = captured.outputs
    assert shown.metadata["labkit"]["depth"] == "live"
    for said in (shown.data["text/plain"], lab._repr_html_()):
        assert "127.0.0.1:9" in said
        assert "smoke" in said


def test_the_environment_fills_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("BUDGET", "smoke"),
        ("OLLAMA_URL", "http://127.0.0.1:9"),
        ("VLLM_URL", "http://b:9"),
    ):
        monkeypatch.setenv(f"LABKIT_{name}", value)
    lab = Lab()
    assert (lab.budget.name, lab.ollama.url, lab.vllm.url) == ("smoke", "http://127.0.0.1:9", "http://b:9")
    assert Lab(budget="long", **URLS).budget.name == "long"


@pytest.fixture
def no_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_what_an_engine_cannot_do_is_refused_before_it_is_started() -> None:
    with pytest.raises(UsageError, match="vLLM has its model from start to stop"):
        Lab("simulated").burst(cold=True)
    with pytest.raises(UsageError, match="labkit did not start this server"):
        Lab("live", **URLS).sweep(engines=["ollama"], stall_s=3)


@pytest.mark.usefixtures("no_engines")
def test_a_missing_engine_is_named_with_the_command_that_installs_it() -> None:
    lab = Lab("live", vllm_url=URLS["vllm_url"])
    assert "ollama: not installed" in repr(lab)
    with pytest.raises(NotInstalled, match="not on this machine: ollama") as caught:
        lab.sweep()
    assert "make engines" in caught.value.fix


@pytest.mark.usefixtures("no_engines")
def test_live_without_any_engine_is_refused() -> None:
    with pytest.raises(NotInstalled, match="ollama, vllm") as caught:
        Lab("live")
    assert "make engines" in caught.value.fix


@pytest.mark.usefixtures("no_engines")
@pytest.mark.parametrize("urls", [{}, {"vllm_url": URLS["vllm_url"]}])
def test_auto_simulates_both_engines_if_one_is_missing_and_says_why(urls: dict[str, str]) -> None:
    lab = Lab(budget="smoke", **urls)
    assert lab.depth == "simulated"
    assert "not installed here: ollama" in lab.why
    assert "make engines" in lab.why
    for said in (repr(lab), lab._repr_html_()):
        assert lab.why.replace("`", "") in said.replace("`", "")
        assert "simulated: labkit's own engines answer, from profile" in said.replace("&#x27;", "'").replace(
            "</b>", ""
        )


def test_auto_is_live_with_both_engines_and_needs_no_reason() -> None:
    lab = Lab(budget="smoke", **URLS)
    assert (lab.depth, lab.why) == ("live", "")


def test_simulated_engines_never_use_the_servers_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OLLAMA_URL", "VLLM_URL"):
        monkeypatch.setenv(f"LABKIT_{name}", "http://127.0.0.1:9")
    lab = Lab("simulated")
    assert lab.depth == "simulated"
    assert "simulated" in lab.why
    assert "http://127.0.0.1:9" not in {lab.ollama.url, lab.vllm.url}


def test_recorded_says_where_and_when_it_was_measured() -> None:
    start_ipython()
    with capture_output() as captured:
        Lab("recorded", **URLS)
    (shown,) = captured.outputs
    assert shown.metadata["labkit"]["depth"] == "recorded"
    assert "recorded: measured on" in shown.data["text/plain"]
    assert "the_gap_own: ollama num_parallel=4 + vllm" in shown.data["text/plain"]


def test_settings_of_a_start_by_hand_hold_until_a_sweep_names_others() -> None:
    depth = Lab(**URLS)._depth
    assert depth.settings("ollama", None) == {}
    depth.engines["ollama"]._asked = {"num_parallel": 4}  # as a restart by hand leaves it
    assert depth.settings("ollama", {"num_parallel": 8}) == {"num_parallel": 8}
    depth.engines["ollama"]._asked = depth._swept["ollama"] = {"num_parallel": 8}  # as that sweep leaves it
    assert depth.settings("ollama", None) == {"num_parallel": 4}


def test_a_mode_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="mode"):
        Lab("fast", **URLS)


@pytest.mark.parametrize(
    "wrong", [{"engines": ["llama.cpp"]}, {"pair": "8bit"}, {"users": []}, {"users": [0, 4]}]
)
async def test_an_impossible_sweep_is_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Lab(**URLS).sweep(**wrong)  # type: ignore[arg-type]


def test_last_run_is_the_newest_whole_one_of_that_name(runs: Path) -> None:
    lab = Lab(**URLS)
    with pytest.raises(UsageError, match="run its notebook first"):
        lab.last_run("the_gap")
    rates = {"ollama": {1: 40}, "vllm": {1: 15}}
    make_run(runs / "the_gap-20260101-000000-000000", rates=rates)
    newest = make_run(runs / "the_gap-20260102-000000-000000", rates=rates)
    make_run(runs / "the_gap-20260103-000000-000000", rates=rates, stopped=True)
    make_run(runs / "the_gap-other-20260104-000000-000000", rates=rates)
    make_run(runs / "the_gap-20260105-000000-000000", rates=rates, kind="simulated")
    assert lab.last_run("the_gap").path == newest.path
    assert Lab("simulated").last_run("the_gap").kind == "simulated"
    assert Lab("recorded").last_run("the_gap").kind == "recorded"


def test_check_shows_its_verdict_and_never_raises(tmp_path: Path) -> None:
    start_ipython()
    run = make_run(tmp_path / "run", rates={"ollama": {1: 40, 4: 41}, "vllm": {1: 15, 4: 60}})
    lab = Lab(**URLS)
    with capture_output() as captured:
        verdict = lab.check("no-such-exercise", run, answer=None)
    assert not verdict.ok
    assert len(captured.outputs) == 1


async def test_an_engine_that_does_not_answer_is_told_by_the_view_and_by_the_result() -> None:
    view = Lab(**URLS).sweep(users=[1])
    with pytest.raises(labkit.errors.LabkitError, match="Next:"):
        await view.result()


async def test_recorded_replays_at_the_speed_of_the_control_and_takes_settings_by_hand() -> None:
    lab = Lab("recorded", budget="smoke")
    view = lab.sweep(users=lab.levels())
    control = view.widget.children[0].children[2]
    assert (control.description, control.label) == ("Replay speed", "60×")
    control.label = "at once"
    run = await view.result()
    assert (run.kind, run.arms) == ("recorded", ["Ollama, 1 slot", "vLLM"])
    assert set(run.summary()["level"]) == set(lab.levels())
    assert "recorded: measured on" in view.widget.children[0].children[3].value
    await lab.ollama.restart(num_parallel=4)
    own = await lab.sweep(users=lab.levels()).result()
    assert own.arms == ["Ollama, 4 slots", "vLLM"]
    with pytest.raises(UsageError, match="num_parallel=7"):
        lab.sweep(ollama={"num_parallel": 7})
    with pytest.raises(UsageError, match="no such setting"):
        await lab.ollama.restart(slots=7)
    with pytest.raises(EngineError, match="no engine runs"):
        await lab.ollama.load("smollm2:135m")
    await lab.close()


@pytest.fixture
async def simulated() -> AsyncIterator[Lab]:
    lab = Lab("simulated", budget="smoke")
    yield lab
    await lab.close()
    assert process.states() == []


async def test_simulated_measures_both_engines_over_http_and_says_what_they_are(simulated: Lab) -> None:
    view = simulated.sweep(users=[1, 4])
    run = await view.result()
    assert (run.kind, run.arms) == ("simulated", ["Ollama, 1 slot", "vLLM"])
    assert "simulated: labkit" in view.widget.children[0].children[3].value
    assert {arm["facts"]["kind"] for arm in run.meta["arms"].values()} == {"simulated"}
    assert simulated.last_run("the_gap").path == run.path
    figure = labkit.figures.gap(run)
    assert figure.depth == "simulated"
    for arm in run.meta["arms"].values():
        assert arm["facts"]["simulated"]["profile"] in figure.caption
    assert "simulated run" in figure.alt
    own = await simulated.sweep(users=[1, 4], ollama={"num_parallel": 4}).result()
    assert own.arms == ["Ollama, 4 slots", "vLLM"]


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    lab = Lab(mode="live", budget="smoke")
    yield lab
    await lab.close()


@pytest.mark.engines
async def test_a_sweep_measures_both_real_engines_and_a_cell_run_twice_makes_one_load(lab: Lab) -> None:
    first = lab.sweep(users=[1, 4], ollama={"num_parallel": 1})
    second = lab.sweep(users=[1, 4], ollama={"num_parallel": 1})
    with pytest.raises(ExperimentStopped):
        await first.result()
    run = await second.result()
    assert run.arms == ["Ollama, 1 slot", "vLLM"]
    assert run.summary().select("arm", "level").rows() == [
        (arm, level) for arm in ("Ollama, 1 slot", "vLLM") for level in (1, 4)
    ]
    assert lab.last_run("the_gap").path == run.path
    third = lab.sweep(users=[1, 4])
    counting = asyncio.Event()
    third.widget.children[2].observe(lambda new: "planned 0" in new.new or counting.set(), "value")
    await counting.wait()
    third.stop()
    third.stop()
    stopped = await third.result()
    assert stopped.meta["state"] == "stopped"
    assert lab.last_run("the_gap").path == run.path
