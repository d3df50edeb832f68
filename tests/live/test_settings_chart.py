"""The settings chart while it is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import make_run

from labkit import budget, lab, sweeps
from labkit.arms import Arm, Step
from labkit.designs import Load
from labkit.experiments import Progress
from labkit.live.settings import SettingsView
from labkit.load.plan import Tally
from labkit.load.process import Frame
from labkit.sweeps import Order, Side
from labkit.workload import Workload

ARM = "ollama, 4 slots"
STEP = Step(Arm(ARM, None, "m"), 8, 0, {})  # type: ignore[arg-type]  # no engine is asked anything


def samples(chart: SettingsView, step: Step) -> None:
    for number in range(30):
        chart.take(Progress(str(step), step=step, frame=Frame(number / 10, Tally(), 3, 9, [])))
    chart.draw()


def test_it_grows_setting_by_setting_and_shows_the_running_one_where_the_engine_says(tmp_path: Path) -> None:
    chart = SettingsView()
    samples(chart, STEP)
    assert len(chart.widget.data[0].x) == 0  # its slots are not known yet
    names = {1: "ollama, 1 slot", 4: ARM}
    for known in ([1], [1, 4]):
        run = make_run(
            tmp_path / str(len(known)),
            rates={names[slots]: {8: 50.0 + slots} for slots in known},
            facts={names[slots]: {"slots": slots} for slots in known},
        )
        chart.take(Progress("", run=run))
        chart.draw()
        lines = chart.widget.data[3:]
        assert [list(line.x) for line in lines] == [known] * 3
        assert chart.points == len(known)
    samples(chart, STEP)
    now = chart.widget.data[0]
    assert (list(now.x), list(now.y)) == ([4], [pytest.approx(90)])
    assert chart.widget.layout.xaxis.ticktext == ("1", "4")
    chart.clear()
    assert (chart.points, len(chart.widget.data)) == (0, 3)


def test_the_axis_has_the_engines_own_word(tmp_path: Path) -> None:
    chart = SettingsView()
    run = make_run(tmp_path / "run", rates={"vllm": {8: 50.0}}, facts={"vllm": {"slots": 4}})
    chart.take(Progress("", run=run))
    chart.draw()
    assert chart.widget.layout.xaxis3.title.text == "max_num_seqs"


def test_the_dropdown_begins_with_all_settings_and_each_word_stands_for_one() -> None:
    sides = [Side("ollama", {"num_parallel": slots}) for slots in (1, None)]
    order = Order("slots", sides, Load((8,)), "m", Workload(), budget.budget("smoke"), 0)
    control, chosen = sweeps._choice(order, steered=False)
    dropdown = lab._widget(control)
    assert dropdown.label.startswith("all")
    assert chosen(dropdown.value).sides == sides
    for side, word in zip(sides, ("num_parallel=1", "num_parallel=None"), strict=True):
        dropdown.label = word
        assert chosen(dropdown.value).sides == [side]
