"""The lanes view and its slider in a real browser: names, keyboard, themes, a narrow window."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from tests.browser.jupyter import PAINTED, Lesson

CELLS = (
    'import labkit\n\nlab = labkit.Lab("simulated", budget="long")',
    'view = lab.sweep(["ollama"], users=[4], rounds=200, view="lanes", name="steered")',
    "run = await view.result()",
    "view.show()",
    "await lab.close()",
)
ACTIVE = "window.jupyterapp.shell.currentWidget.content.activeCellIndex"
OWN_WIDTH = "element => [element.clientWidth, element.scrollWidth, element.getBoundingClientRect().right]"

pytestmark = pytest.mark.browser


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    path = tmp_path / "lanes.ipynb"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


async def test_lanes_are_steered_read_and_stopped_without_a_mouse(lesson: Lesson, notebook: Path) -> None:
    page = lesson.page
    await lesson.open(notebook)
    await lesson.run_all()
    lanes = page.locator(".labkit-lanes canvas").first
    await page.locator(".labkit-lanes .counts", has_text="4 users").first.wait_for()

    slider = page.get_by_role("slider", name="Users").first
    await slider.press("ArrowLeft")
    active = await page.evaluate(ACTIVE)  # the slider's own cell, since it has the focus
    await slider.press("ArrowLeft")
    await page.locator(".labkit-lanes .counts", has_text="2 users: ").first.wait_for()
    await lesson.shot("steered")

    said = "Requests over time, a bar each. Ollama, 1 slot, 2 users:"
    await page.get_by_role("img", name=said).first.wait_for()
    assert await page.evaluate(ACTIVE) == active
    await lesson.button("Stop").press("Enter")
    await lesson.idle()
    assert await lesson.errors() == []

    chosen = page.locator(".labkit-lanes .chosen").first
    told = []
    for key in ("Home", "ArrowDown", "ArrowUp", "Escape"):
        await lanes.press(key)
        await page.evaluate(PAINTED)
        told.append(await chosen.inner_text())
    first, second, again, nothing = told
    assert "waiting (reported)" in first
    assert (again, nothing) == (first, "")
    assert second not in (first, "")
    assert await page.evaluate(ACTIVE) == active

    both = page.locator(".labkit-lanes canvas")
    assert await both.count() == 2
    assert await both.first.get_attribute("aria-label") == await both.last.get_attribute("aria-label")

    for theme in ("Dark", "Light"):
        await lesson.theme(theme)
        await page.set_viewport_size({"width": 600, "height": 900})
        await lanes.scroll_into_view_if_needed()
        await lesson.shot(f"narrow-{theme.lower()}")
        inner, needed, right = await page.locator(".labkit-lanes").first.evaluate(OWN_WIDTH)
        assert needed <= inner
        assert right <= 600
