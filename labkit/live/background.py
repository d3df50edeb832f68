"""Something that runs in the background of the notebook, with controls, and a result to await."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

import ipywidgets
from IPython.display import display

from labkit.errors import ExperimentStopped, LabkitError
from labkit.live.controls import Controls

T = TypeVar("T")


class BackgroundView(ABC, Generic[T]):
    """A view of a task. It starts at once; Run starts it again when it has ended, Stop ends it early.

    Subclasses set up what they show, then call :meth:`begin`.

    Attributes:
        controls: the frame; a subclass says in it what happens.
        widget: the box with everything.
    """

    def __init__(
        self, shown: Any, *, badge: str, control: Any = None, steer: Callable[[Any], None] | None = None
    ) -> None:
        """Lay it out.

        Args:
            shown: the widget below the controls.
            badge, control: see :class:`Controls`.
            steer: called with the control's new value when that changes while the task runs.
        """
        self._loop = asyncio.get_running_loop()
        self._steer = steer
        self._task: asyncio.Task[T]
        self._stopping = False
        self.controls = Controls(
            run=self._press_run, stop=self._press_stop, badge=badge, control=control, steer=self._steered
        )
        self.widget = ipywidgets.VBox([*self.controls.widgets, shown])

    @abstractmethod
    def start(self) -> Coroutine[Any, Any, T]:
        """The task from beginning to end; forgets what an earlier one left."""

    @abstractmethod
    def halt(self) -> bool:
        """Make the task return early with what came; False where it has nothing, so that it is cancelled."""

    @abstractmethod
    def ended(self, task: asyncio.Task[T]) -> None:
        """Say how it ended."""

    def begin(self) -> None:
        """Start the task."""
        self._stopping = False
        self._task = self._loop.create_task(self.start())
        self._task.add_done_callback(self.ended)

    def show(self) -> None:
        """Display the view; once more shows the same view twice."""
        forms = self.widget._repr_mimebundle_()
        forms["text/plain"] = "A live view; it needs a running notebook."
        display(forms, raw=True)  # type: ignore[no-untyped-call]

    @property
    def task(self) -> asyncio.Task[T]:
        """The newest one, going on or ended."""
        return self._task

    @property
    def stopping(self) -> bool:
        """Whether Stop was pressed since the task began."""
        return self._stopping

    async def result(self) -> T:
        """What the newest task returned, when it has ended. Interrupting the wait also stops the task.

        Raises:
            ExperimentStopped: Stop came before there was anything to keep.
            LabkitError: what broke it off.
        """
        try:
            await asyncio.wait({self._task})
        except asyncio.CancelledError:
            self.stop()
            raise
        if self._task.cancelled():
            raise ExperimentStopped("wait for the result", "stopped before the first sample", "press Run")
        error = self._task.exception()
        if isinstance(error, LabkitError):
            raise error.with_traceback(None) from None  # the reader's cell, not labkit's inside
        return self._task.result()

    def stop(self) -> None:
        """End it early and keep what came; harmless when nothing runs, and when called again."""
        if self._task.done() or self._stopping:
            return
        self._stopping = True
        self.controls.say("Stopping …")
        if not self.halt():
            self._task.cancel()

    def _press_run(self) -> None:
        if self._task.done():
            self.begin()
        else:
            self.controls.say("It is running already; Stop ends it.")

    def _press_stop(self) -> None:
        if self._task.done():
            self.controls.say("Nothing is running; Run starts it again.")
        self.stop()

    def _steered(self, value: Any) -> None:
        if self._steer is not None and not self._task.done() and not self._stopping:
            self._steer(value)
