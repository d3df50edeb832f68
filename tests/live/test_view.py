"""The live view, driven by an experiment that the test plays."""

from __future__ import annotations

import asyncio
import re
import threading
import traceback
from dataclasses import replace
from pathlib import Path

import ipywidgets
import pytest
from synthetic import make_run

from labkit.bundle import Run
from labkit.engines.base import Gauges
from labkit.errors import ExperimentStopped, LabkitError, StartFailed
from labkit.experiments import Arm, OnProgress, Progress, Step
from labkit.live.controls import Slider
from labkit.live.gap import GapView
from labkit.live.lanes import LanesView
from labkit.live.view import RunView
from labkit.load.plan import Tally
from labkit.load.process import Frame

STEP = Step(Arm("vllm", None, "m"), 4, 0, {})  # type: ignore[arg-type]  # no engine is asked anything


class Played:
    """An experiment whose samples and end the test gives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values: list[int] = []
        self.runs = 0
        self.halts = 0
        self.cancels = 0
        self.report: OnProgress
        self.started = asyncio.Event()
        self.end: asyncio.Future[None]

    async def start(self, users: int, on_progress: OnProgress) -> Run:
        self.values.append(users)
        self.report = on_progress
        self.end = asyncio.get_running_loop().create_future()
        self.started.set()
        try:
            await self.end
        except asyncio.CancelledError:
            self.cancels += 1
            raise
        return self.run(users)

    def run(self, users: int) -> Run:
        rates = {"ollama": {1: 40, users: 41}, "vllm": {1: 15, users: 90}}
        self.runs += 1
        return make_run(self.folder / str(self.runs), rates=rates)

    def halt(self) -> None:
        self.halts += 1
        self.end.set_result(None)

    def sample(self, number: int) -> None:
        frame = Frame(number / 10, Tally(planned=4, ok=1, unfinished=3, tokens=9 * number), 3, 9, [])
        self.report(Progress(str(STEP), 2, 6, 30.0, STEP, frame))


@pytest.fixture
async def played(tmp_path: Path) -> Played:
    return Played(tmp_path)


@pytest.fixture
async def view(played: Played) -> RunView:
    control = ipywidgets.Dropdown(options=[4, 8], value=4, description="Users up to")
    view = RunView(
        played.start, played.halt, control=control, chart=GapView([1, 4, 8]), badge="live: <real> engines"
    )
    await played.started.wait()
    played.started.clear()
    return view


def button(view: RunView, word: str) -> ipywidgets.Button:
    (found,) = (w for w in view.widget.children[0].children if getattr(w, "description", "") == word)
    return found


def status(view: RunView) -> str:
    return str(view.widget.children[1].value)


def points(view: RunView) -> int:
    found = re.search(r'data-points="(\d+)"', view.widget.children[2].value)
    assert found
    return int(found[1])


async def press(view: RunView, word: str) -> None:
    """Click, and let the loop take the click."""
    button(view, word).click()
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_it_starts_at_once_and_the_result_comes_without_a_click(played: Played, view: RunView) -> None:
    played.end.set_result(None)
    run = await view.result()
    assert run.arms == ["ollama", "vllm"]
    assert "Done. Verdict: clean." in status(view)


async def test_the_badge_is_in_sight_while_it_runs(played: Played, view: RunView) -> None:
    badge = view.widget.children[0].children[3].value
    assert "live: &lt;real&gt; engines" in badge
    played.end.set_result(None)
    await view.result()
    assert view.widget.children[0].children[3].value == badge


async def test_status_is_spoken_and_says_phase_step_and_time_left(played: Played, view: RunView) -> None:
    played.sample(1)
    assert 'role="status"' in status(view)
    assert "vllm: 4 users · step 3 of 6 · about 30 s left" in status(view)
    assert "planned 4 · ok 1 · failed 0 · cancelled 0 · unfinished 3" in view.widget.children[2].value
    played.end.set_result(None)
    await view.result()


async def test_the_numbers_say_what_the_engine_says_of_itself(played: Played, view: RunView) -> None:
    frame = Frame(0.1, Tally(), 3, 9, [])
    read = Gauges(running=3, waiting=1, kv_use=0.25)
    played.report(Progress(str(STEP), 2, 6, None, STEP, frame, read))
    assert "in the engine: 3 running, 1 waiting · KV cache 25% in use" in view.widget.children[2].value
    played.report(Progress(str(STEP), 2, 6, None, STEP, frame, Gauges()))
    assert "engine" not in view.widget.children[2].value
    played.end.set_result(None)
    await view.result()


async def test_the_control_steers_a_run_that_is_going_on_and_no_other(played: Played) -> None:
    control, steered = Slider("Users", min=1, max=8, value=2), []
    view = RunView(
        played.start,
        played.halt,
        control=control,
        chart=LanesView(),
        badge="live",
        steer=steered.append,
    )
    await played.started.wait()
    control.value = 5
    await asyncio.sleep(0)
    assert steered == [5]
    played.end.set_result(None)
    await view.result()
    control.value = 6
    await asyncio.sleep(0)
    assert steered == [5]


async def test_points_grow_with_samples_and_levels_and_stand_still_after_stop(
    played: Played, view: RunView
) -> None:
    before = points(view)
    played.sample(1)
    played.report(Progress(str(STEP), 3, 6, None, STEP, run=played.run(4)))
    assert points(view) == before + 1 + 4
    await press(view, "Stop")
    await view.result()
    stopped = points(view)
    await press(view, "Stop")
    assert points(view) == stopped


async def test_stop_keeps_what_came_and_twice_is_harmless(played: Played, view: RunView) -> None:
    played.sample(1)
    button(view, "Stop").click()
    await press(view, "Stop")
    assert (await view.result()).arms == ["ollama", "vllm"]
    assert (played.halts, played.cancels) == (1, 0)
    assert "Stopped early; what was measured is kept." in status(view)


async def test_stop_before_the_first_sample_cancels_the_start(played: Played, view: RunView) -> None:
    played.report(Progress("vLLM: loading weights"))
    assert "vLLM: loading weights" in status(view)
    await press(view, "Stop")
    with pytest.raises(ExperimentStopped, match="before the first sample"):
        await view.result()
    assert (played.halts, played.cancels) == (0, 1)


async def test_stop_when_idle_is_ignored_and_no_button_is_ever_disabled(
    played: Played, view: RunView
) -> None:
    assert not button(view, "Stop").disabled
    played.end.set_result(None)
    await view.result()
    await press(view, "Stop")
    assert "Nothing is running" in status(view)
    assert not button(view, "Stop").disabled
    assert not button(view, "Run").disabled


async def test_run_while_running_is_ignored_with_a_sentence(played: Played, view: RunView) -> None:
    await press(view, "Run")
    assert "running already" in status(view)
    played.end.set_result(None)
    await view.result()
    assert played.values == [4]


async def test_run_repeats_with_the_controls_new_value_and_replaces_the_result(
    played: Played, view: RunView
) -> None:
    played.sample(1)
    played.end.set_result(None)
    first = await view.result()
    before = points(view)
    view.widget.children[0].children[2].value = 8
    await press(view, "Run")
    await played.started.wait()
    played.sample(1)
    played.end.set_result(None)
    second = await view.result()
    assert played.values == [4, 8]
    assert second.path != first.path
    assert points(view) > before


async def test_a_click_may_come_from_any_thread(played: Played, view: RunView) -> None:
    played.sample(1)
    await asyncio.to_thread(button(view, "Stop").click)
    await view.result()
    assert played.halts == 1
    assert threading.current_thread() is threading.main_thread()


async def test_an_error_is_said_and_raised_without_labkits_inside(played: Played, view: RunView) -> None:
    played.end.set_exception(StartFailed("start vLLM", "the port is taken by <nc>", "stop it"))
    with pytest.raises(LabkitError) as caught:
        await view.result()
    assert "port is taken by &lt;nc&gt;" in status(view)
    assert len(traceback.extract_tb(caught.value.__traceback__)) == 2  # this cell, result()


async def test_interrupting_the_wait_stops_the_run(played: Played, view: RunView) -> None:
    played.sample(1)
    waiting = asyncio.create_task(view.result())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert played.halts == 1
    assert (await view.result()).arms == ["ollama", "vllm"]


def test_the_chart_shows_the_running_level_and_then_its_final_points(tmp_path: Path) -> None:
    chart = GapView([1, 4, 8])
    for number in range(40):
        chart.take(Progress(str(STEP), step=STEP, frame=Frame(number / 10, Tally(), 3, 9, [])))
    chart.draw()
    now, _, *lines = chart.widget.data
    assert (list(now.x), list(now.y), lines) == ([4], [pytest.approx(90)], [])
    for level in (4, 8):
        rates = {"ollama": {1: 40}, "vllm": {1: 15, level: 90}}
        run = make_run(tmp_path / str(level), rates=rates)
        chart.take(Progress(str(STEP), step=STEP, run=run))
        chart.draw()
        now, _, *lines = chart.widget.data
        assert len(now.x) == 0
        assert [list(line.x) for line in lines] == [[1]] * 3 + [[1, level]] * 3
        assert chart.points == 3


def test_the_warm_up_is_no_point() -> None:
    chart = GapView([1, 4, 8])
    step = replace(STEP, phase="warm-up")
    for number in range(4):
        chart.take(Progress(str(step), step=step, frame=Frame(number / 10, Tally(), 1, 9, [])))
    chart.draw()
    assert len(chart.widget.data[0].x) == 0


async def test_the_chart_has_no_button_to_the_vendors_cloud(played: Played, view: RunView) -> None:
    assert view.widget.children[3]._config["showSendToCloud"] is False
    await press(view, "Stop")
    with pytest.raises(ExperimentStopped):
        await view.result()
