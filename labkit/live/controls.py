"""The frame of every live view: Run, Stop, one control, what answers, what happens, and how much of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import anywidget
import ipywidgets
import traitlets


class Slider(anywidget.AnyWidget):
    """A slider over whole numbers with an accessible name; its value changes when the thumb is let go."""

    _esm = files("labkit.live").joinpath("slider.js").read_text()
    _css = ".labkit-slider label { display: flex; gap: 6px; align-items: center; margin: 2px }"

    description = traitlets.Unicode().tag(sync=True)
    min = traitlets.Int(1).tag(sync=True)
    max = traitlets.Int(1).tag(sync=True)
    value = traitlets.Int(1).tag(sync=True)


class Controls:
    """Buttons, one control and three lines of text, to be placed above whatever a view shows.

    No button is ever disabled, because a disabled one loses the keyboard's focus. What the reader does may
    arrive in any thread of the kernel (JupyterLab uses subshells); it is passed on to the loop that this was
    made in.

    Attributes:
        widgets: the row of controls, the status and the numbers, from top to bottom.
    """

    def __init__(
        self,
        *,
        run: Callable[[], None],
        stop: Callable[[], None],
        badge: str,
        control: Any = None,
        steer: Callable[[Any], None] | None = None,
    ) -> None:
        """Make them; needs a running loop.

        Args:
            run, stop: called in the loop when a button is pressed.
            badge: one line on what answers, always in sight.
            control: a widget with a ``value``, or None for a view without a choice.
            steer: called in the loop with the control's new value whenever that changes.
        """
        self._control = control
        self._loop = asyncio.get_running_loop()
        self._status = ipywidgets.HTML()
        self._numbers = ipywidgets.HTML()
        buttons = [self._button("Run", run), self._button("Stop", stop)]
        chosen = [] if control is None else [control]
        if control is not None and steer is not None:
            control.observe(lambda change: self._loop.call_soon_threadsafe(steer, change["new"]), "value")
        badge_line = ipywidgets.HTML(f'<span class="labkit-badge">{escape(badge)}</span>')
        row = ipywidgets.Box([*buttons, *chosen, badge_line], layout={"flex_flow": "row wrap"})
        self.widgets: Sequence[ipywidgets.Widget] = [row, self._status, self._numbers]

    def _button(self, word: str, press: Callable[[], None]) -> ipywidgets.Button:
        button = ipywidgets.Button(description=word)
        button.on_click(lambda _: self._loop.call_soon_threadsafe(press))
        return button

    @property
    def value(self) -> Any:
        """What the control says now; None without one."""
        return None if self._control is None else self._control.value

    def say(self, sentence: str) -> None:
        """Set the status, which screen readers speak: not for what changes with every sample."""
        said = f'<div role="status" style="white-space: pre-wrap">{escape(sentence)}</div>'
        if self._status.value != said:
            self._status.value = said

    def count(self, parts: Sequence[str], points: int) -> None:
        """Set the numbers, for the eye only.

        Args:
            points: how much the view has seen; tests in a browser wait for it to grow.
        """
        self._numbers.value = f'<span data-points="{points}">{escape(" · ".join(parts))}</span>'
