"""The headline notebook in a real JupyterLab, against real engines, as far as its first figure.

The cells below it are run live by ``ci/live`` and in the browser by ``test_notebooks``.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import papermill
import pytest

from tests.browser.jupyter import REPOSITORY, Lesson

SOURCE = REPOSITORY / "notebooks" / "05_the_gap.ipynb"
FIRST_POINT_S = 300
"""Both engines start from cold on two cores before the first level is measured."""

FIGURE = "labkit.figures.gap(run)"
BOTH_MEASURED = re.compile(r"step [5-9] of")
"""Both warm-ups and the first level of both engines are through; with less there is nothing to compare."""

pytestmark = [pytest.mark.browser, pytest.mark.engines]


def to_the_figure(notebook: Path) -> None:
    """Leave out what comes after the first figure."""
    lesson = nbformat.read(notebook, as_version=4)
    last = next(number for number, cell in enumerate(lesson.cells) if cell.source == FIGURE)
    lesson.cells = lesson.cells[: last + 1]
    nbformat.write(lesson, notebook)


async def test_the_gap_grows_stops_and_grows_again(lesson: Lesson, tmp_path: Path) -> None:
    before = SOURCE.read_bytes()
    notebook = tmp_path / f"{SOURCE.stem}_live.ipynb"
    chosen = {"MODE": "live", "BUDGET": "smoke"}
    papermill.execute_notebook(SOURCE, notebook, chosen, prepare_only=True)
    to_the_figure(notebook)
    await lesson.open(notebook)
    await lesson.run_all()
    first = await lesson.points_above(0, FIRST_POINT_S)
    await lesson.points_above(first, FIRST_POINT_S)
    await lesson.page.locator("[role=status]", has_text=BOTH_MEASURED).wait_for(timeout=FIRST_POINT_S * 1000)
    await lesson.button("Stop").scroll_into_view_if_needed()
    assert await lesson.page.locator(".labkit-badge", has_text="live: ").first.is_visible()
    await lesson.shot("growing")

    await lesson.click("Stop")
    await lesson.idle()
    assert await lesson.errors() == []
    assert all(cell["execution_count"] for cell in await lesson.cells())
    stopped = await lesson.stands_still()
    await lesson.shot("stopped")

    await lesson.click("Run")
    await lesson.points_above(stopped, FIRST_POINT_S)
    await lesson.click("Stop")
    await lesson.click("Stop")  # twice does no harm
    await lesson.stands_still()

    await lesson.page.set_viewport_size({"width": 600, "height": 900})
    chart = lesson.page.locator(".js-plotly-plot").first
    await chart.scroll_into_view_if_needed()
    await lesson.shot("narrow")
    box = await chart.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 600
    assert await lesson.errors() == []
    assert SOURCE.read_bytes() == before
