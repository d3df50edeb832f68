"""The chart of shared beginnings while it is measured."""

from __future__ import annotations

from pathlib import Path

from prefix_runs import OFF, ON, flat, prefix_run, staircase

from labkit.arms import Arm, Step
from labkit.experiments import Progress
from labkit.live.prefix import PrefixView
from labkit.load.plan import Tally
from labkit.load.process import Frame

STEP = Step(Arm(ON, None, "m"), 128, 0, {})  # type: ignore[arg-type]  # no engine is asked anything


def test_it_grows_length_by_length_and_marks_whole_blocks(tmp_path: Path) -> None:
    chart = PrefixView()
    assert [len(line.x or ()) for line in chart.widget.data] == [0, 1]
    for known in (1, 3):
        arms = {ON: staircase([64, 128, 256][:known]), **({OFF: flat([64])} if known > 1 else {})}
        chart.take(Progress("", run=prefix_run(tmp_path / str(known), arms)))
        chart.draw()
        warm = [line for line in chart.widget.data if line.meta == "warm"]
        assert list(warm[0].x) == [64, 128, 256][:known]
        assert chart.points == known + (known > 1)
    assert len(warm) == 2
    assert {shape.x0 for shape in chart.widget.layout.shapes} == {128, 256}
    chart.clear()
    assert (chart.points, len(chart.widget.data)) == (0, 2)


def test_a_running_level_has_no_point() -> None:
    chart = PrefixView()
    for number in range(30):
        chart.take(Progress(str(STEP), step=STEP, frame=Frame(number / 10, Tally(), 1, 9, [])))
    chart.draw()
    assert len(chart.widget.data[0].x) == 0
