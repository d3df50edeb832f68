"""The frame of every live view: Run, Stop, one control, what answers, what happens, and how much of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import anywidget
import ipywidgets
import traitlets

_CSS = """
.labkit-input { margin: 2px 10px 2px 2px; line-height: 28px }
.labkit-input label { display: flex; gap: 6px; align-items: center }
.labkit-input select { max-width: 100%; font: inherit; color: var(--jp-ui-font-color1, inherit);
  background: var(--jp-layout-color1, inherit); border: 1px solid var(--jp-border-color1, currentcolor) }
"""


class _Input(anywidget.AnyWidget):
    """A control of the browser's own.

    It tells the kernel in messages of its own. After an update of a widget's state the browser waits until
    the kernel has acknowledged it before it sends the next, and ipykernel 7.4 does not acknowledge one that
    comes while a cell awaits: ipywidgets' own controls are then heard once and never again.
    """

    _esm = files("labkit.live").joinpath("inputs.js").read_text()
    _css = _CSS

    description = traitlets.Unicode().tag(sync=True)
    labels = traitlets.List(trait=traitlets.Unicode(), allow_none=True, default_value=None).tag(sync=True)
    chosen = traitlets.Int().tag(sync=True)
    value = traitlets.Any()

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        self.on_msg(lambda _widget, chosen, _buffers: self.set_trait("chosen", chosen))


class Slider(_Input):
    """A slider over whole numbers; its value changes when the thumb is let go."""

    min = traitlets.Int().tag(sync=True)
    max = traitlets.Int().tag(sync=True)

    def __init__(self, description: str, *, min: int, max: int, value: int) -> None:
        """Show it at its first value."""
        super().__init__(description=description, min=min, max=max, chosen=value)
        traitlets.link((self, "chosen"), (self, "value"))


class Choice(_Input):
    """A list of words to choose one from, each of which stands for a value."""

    def __init__(self, description: str, options: Mapping[str, Any], value: Any) -> None:
        """Show it with the word of this value."""
        self._values = list(options.values())
        super().__init__(description=description, labels=list(options), chosen=self._values.index(value))

    @traitlets.observe("chosen")
    def _choose(self, _change: object) -> None:
        self.value = self._values[self.chosen]

    @property
    def label(self) -> str:
        """The chosen word; may be set."""
        return str(self.labels[self.chosen])

    @label.setter
    def label(self, word: str) -> None:
        self.chosen = self.labels.index(word)


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
