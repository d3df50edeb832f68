"""The harness on a small lesson, and what every lesson gets from the course's JupyterLab settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.sentences import sentence
from tests.browser.jupyter import Lesson

LESSON = Path(__file__).parents[1] / "fixtures" / "lesson.ipynb"
NEWS = "jupyterapp.serviceManager.settings.fetch('@jupyterlab/apputils-extension:notification')"

pytestmark = pytest.mark.browser


async def test_lesson_runs_stops_and_runs_again(lesson: Lesson) -> None:
    before = LESSON.read_bytes()
    await lesson.open(LESSON)
    assert await lesson.points() == -1
    await lesson.run_all()
    assert await lesson.points_above(4) == 5
    await lesson.idle()
    await lesson.click("Run")
    await lesson.points_above(10)
    await lesson.click("Stop")
    stopped = await lesson.stands_still()
    await lesson.shot("stopped")
    await lesson.click("Run")
    await lesson.points_above(stopped)
    await lesson.click("Stop")
    assert await lesson.errors() == []
    assert all(cell["execution_count"] for cell in await lesson.cells())
    assert await lesson.page.locator(".js-plotly-plot").count() == 2
    assert LESSON.read_bytes() == before


async def test_first_cell_out_of_order_shows_a_sentence(lesson: Lesson) -> None:
    await lesson.open(LESSON)
    await lesson.run_cells(3, 3)
    await lesson.idle()
    shown = await lesson.page.locator(".jp-OutputArea-output").all_inner_texts()
    assert "\n".join(shown).strip() == sentence("task")
    assert await lesson.errors() == ["NameError: name 'task' is not defined"]


async def test_raising_cell_is_seen_and_no_news_pop_up(lesson: Lesson, tmp_path: Path) -> None:
    broken = tmp_path / "broken.ipynb"
    broken.write_text(LESSON.read_text().replace("await task", "1 / 0"))
    await lesson.open(broken)
    await lesson.run_all()
    await lesson.idle()
    assert await lesson.errors() == ["ZeroDivisionError: division by zero"]
    assert not all(cell["execution_count"] for cell in await lesson.cells())
    assert (
        await lesson.page.evaluate(f"async () => (await {NEWS}).schema.properties.fetchNews.default")
        == "false"
    )
    assert await lesson.page.locator(".Toastify__toast").count() == 0
