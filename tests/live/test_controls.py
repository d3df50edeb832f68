"""The controls, clicked as the browser does: from whatever thread the kernel handles the message in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ipywidgets

from labkit.live.controls import Choice, Controls, Slider


def controls(said: list[Any], **more: Any) -> Controls:
    return Controls(
        run=lambda: said.append("run"), stop=lambda: said.append("stop"), badge="live: <b>", **more
    )


def row(made: Controls) -> tuple[ipywidgets.Widget, ...]:
    return tuple(made.widgets[0].children)


async def elsewhere(act: Callable[[], None]) -> None:
    """Do it in another thread, and let the loop take what it passed on."""
    await asyncio.to_thread(act)
    await asyncio.sleep(0)


async def test_clicks_from_any_thread_arrive_in_the_loop_in_order() -> None:
    said: list[Any] = []
    run, stop, badge = row(controls(said))
    await elsewhere(run.click)
    await elsewhere(stop.click)
    await elsewhere(run.click)
    assert said == ["run", "stop", "run"]
    assert "live: &lt;b&gt;" in badge.value


async def test_a_change_of_the_control_steers_from_any_thread_and_is_its_value() -> None:
    said: list[Any] = []
    slider = Slider("Users", min=1, max=8, value=2)
    made = controls(said, control=slider, steer=said.append)
    assert made.value == 2
    await elsewhere(lambda: slider.set_trait("value", 5))
    assert (said, made.value) == ([5], 5)
    assert row(made)[2] is slider


async def test_what_the_browser_says_is_heard_each_time_and_a_word_stands_for_its_value() -> None:
    said: list[Any] = []
    choice = Choice("Speed", {"slow": 1.0, "any": None, "fast": 10.0}, 10.0)
    assert (choice.value, choice.label) == (10.0, "fast")
    controls(said, control=choice, steer=said.append)
    for nth in (1, 0):
        await elsewhere(lambda nth=nth: choice._handle_custom_msg(nth, []))
    assert said == [None, 1.0]
    choice.label = "fast"
    assert choice.value == 10.0


async def test_without_a_control_there_is_no_value() -> None:
    assert controls([]).value is None


async def test_status_is_for_screen_readers_and_numbers_are_not() -> None:
    made = controls([])
    made.say("started\n<i>twice")
    made.count(["ok 1", "<i>"], points=7)
    _, status, numbers = made.widgets
    assert 'role="status"' in status.value
    assert "started\n&lt;i&gt;twice" in status.value
    assert numbers.value == '<span data-points="7">ok 1 · &lt;i&gt;</span>'
