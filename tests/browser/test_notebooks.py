"""Each notebook of the course in a real JupyterLab, as a learner has it, on simulated engines."""

from __future__ import annotations

import re
from pathlib import Path

import papermill
import pytest

from tests.browser.jupyter import REPOSITORY, Lesson

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
EXPERIMENT = re.compile(r"^\w+ = lab\.(?:sweep|burst|arrivals|pull|prefixes|workloads|shift|gateway)\(", re.M)
RESULT = re.compile(r"await \w+\.result\(\)")
CHART = "canvas, .js-plotly-plot, .widget-hprogress"

ALL_CELLS_S = 300
RUNNING_S = 60
NARROW_PX = 600
READABLE = 4.5
"""Contrast that the WCAG ask for at level AA."""

REAL_PACE = "lab.ollama.time_scale = lab.vllm.time_scale = 1"
"""Simulated engines go as fast as can be measured; at their real pace there is time to press Stop."""

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
async def test_notebook_as_a_learner_has_it(lesson: Lesson, source: Path, tmp_path: Path) -> None:
    notebook = tmp_path / source.name
    chosen = {"MODE": "simulated", "BUDGET": "smoke"}
    papermill.execute_notebook(source, notebook, chosen, prepare_only=True)
    await lesson.open(notebook)
    cells = ["".join(cell["source"]) for cell in await lesson.cells()]
    first = next(number for number, cell in enumerate(cells) if EXPERIMENT.search(cell))
    result = next(number for number, cell in enumerate(cells) if number >= first and RESULT.search(cell))

    await lesson.look_at(first)
    await lesson.run_all()
    await lesson.points_above(await lesson.points_above(0, RUNNING_S), RUNNING_S)
    await lesson.idle(ALL_CELLS_S)
    await all_is_well(lesson)
    await lesson.look_at(first)
    await lesson.output(CHART).scroll_into_view_if_needed()
    assert await lesson.output(".labkit-badge", re.compile("^simulated: ")).is_visible()
    await lesson.shot("whole")
    await is_usable_narrow_and_dark(lesson)

    await lesson.execute(REAL_PACE)
    await stops_while_idle(lesson)
    await stops_while_a_cell_awaits(lesson, first, result)
    kept = "lab.pull(" not in cells[first]  # a pull that was stopped leaves nothing to await, and says so
    assert [error.partition(":")[0] for error in await lesson.errors()] == ["ExperimentStopped"] * (not kept)


async def all_is_well(lesson: Lesson) -> None:
    assert await lesson.errors() == []
    assert all(cell["execution_count"] for cell in await lesson.cells())


async def stops_while_idle(lesson: Lesson) -> None:
    seen = await lesson.points()
    await lesson.click("Run")
    await lesson.points_above(seen, RUNNING_S)
    await lesson.click("Stop")
    await said(lesson, "Stopped")
    await lesson.click("Stop")  # twice does no harm
    await said(lesson, "Nothing is running")
    await lesson.stands_still()
    await lesson.shot("stopped")


async def stops_while_a_cell_awaits(lesson: Lesson, first: int, result: int) -> None:
    await lesson.run_cells(first, result)
    await said(lesson, "^(?!Stopped|Nothing)")  # the new view, no longer the one before
    await lesson.points_above(0, RUNNING_S)
    await lesson.output(CHART).wait_for()
    await lesson.click("Stop")
    await said(lesson, "Stopped")
    await lesson.idle(RUNNING_S)


async def is_usable_narrow_and_dark(lesson: Lesson) -> None:
    await lesson.page.set_viewport_size({"width": NARROW_PX, "height": 900})
    for selector in ("button.widget-button", "[role=status]", CHART):
        shown = lesson.output(selector)
        await shown.scroll_into_view_if_needed()
        box = await shown.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= NARROW_PX
    await lesson.shot("narrow")
    await lesson.theme("Dark")
    for selector in ("[role=status]", "[data-points]", ".labkit-badge"):
        assert await lesson.contrast(lesson.output(selector)) >= READABLE
    await lesson.shot("narrow-dark")


async def said(lesson: Lesson, words: str) -> None:
    """Wait until the view says this."""
    status = lesson.output("[role=status]", re.compile(words))
    await status.wait_for(timeout=RUNNING_S * 1000)
