"""The live view of a pull: a bar for each layer, and what Ollama says meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import ipywidgets

from labkit.demos.pull import News
from labkit.engines.base import Progress
from labkit.errors import LabkitError
from labkit.live.background import BackgroundView
from labkit.transcript import Event, Transcript

DRAW_PERIOD_S = 0.1
NAMED = 12
"""Characters of a digest that are shown, as many as ``ollama list`` shows."""


class PullView(BackgroundView[Transcript]):
    """A pull that runs in the background of the notebook."""

    def __init__(
        self,
        pull: Callable[[Any, News, Progress], Coroutine[Any, Any, Transcript]],
        *,
        badge: str,
        control: Any = None,
    ) -> None:
        """Start.

        Args:
            pull: the download from beginning to end, given the control's value, a receiver of its events, and
                one of what it waits for.
            badge, control: see :class:`labkit.live.controls.Controls`.
        """
        self._pull = pull
        self._layers: dict[str, _Bar] = {}
        self._box = ipywidgets.VBox()
        self._seen = 0
        super().__init__(self._box, badge=badge, control=control)
        self.begin()

    def start(self) -> Coroutine[Any, Any, Transcript]:
        """See :class:`BackgroundView`."""
        self._layers = {}
        self._box.children = ()
        self.controls.say("Starting …")
        return self._pull(self.controls.value, self._take, self.controls.say)

    def halt(self) -> bool:
        """A download that was stopped leaves nothing: its folder is removed."""
        return False

    def ended(self, task: asyncio.Task[Transcript]) -> None:
        """See :class:`BackgroundView`."""
        for bar in self._layers.values():
            bar.draw()
        if task.cancelled():
            self.controls.say("Stopped. What had come is removed; Run starts again.")
        elif (error := task.exception()) is not None:
            self.controls.say(str(error) if isinstance(error, LabkitError) else repr(error))
        else:
            self.controls.say("Done: every layer is here and has the digest that it was asked for by.")

    def _take(self, event: Event) -> None:
        self._seen += 1
        if event["what"] == "source":
            self.controls.say(f"From the {event['source']}: {event['says']}.")
        elif event["what"] == "status":
            self.controls.say(event["status"])
        elif event["what"] == "progress":
            self._progress(event)
        elif event["what"] == "layer":  # Ollama tells nothing of layers that come between two of its ticks
            bar = self._bar(event["digest"], event["bytes"])
            bar.completed = bar.total
            bar.name(event["kind"])
        done = sum(bar.completed for bar in self._layers.values())
        self.controls.count([f"layers {len(self._layers)}", size(done)], self._seen)

    def _progress(self, event: Event) -> None:
        bar = self._bar(event["digest"], event["total"])
        bar.completed = event["completed"]
        now = self._loop.time()
        if bar.completed == bar.total or now >= bar.next_draw:
            bar.next_draw = now + DRAW_PERIOD_S
            bar.draw()

    def _bar(self, digest: str, total: int) -> _Bar:
        if digest not in self._layers:
            self._layers[digest] = _Bar(digest, total)
            self._box.children = (*self._box.children, self._layers[digest].widget)
        return self._layers[digest]


class _Bar:
    """The bar of one layer; the words beside it say the same, for those who do not see it."""

    def __init__(self, digest: str, total: int) -> None:
        self.total = total
        self.completed = 0
        self.next_draw = 0.0
        self._digest = digest.removeprefix("sha256:")[:NAMED]
        self._kind = ""
        self._bar = ipywidgets.FloatProgress(min=0, max=total, tooltip=f"layer {self._digest}")
        self._words = ipywidgets.Label()
        self.widget = ipywidgets.Box([self._bar, self._words], layout={"flex_flow": "row wrap"})

    def name(self, kind: str) -> None:
        """What is in it, which the manifest says."""
        self._kind = kind
        self.draw()

    def draw(self) -> None:
        """Bring bar and words up to date."""
        self._bar.value = self.completed
        kind = f" ({self._kind})" if self._kind else ""
        share = self.completed / self.total if self.total else 1.0
        self._words.value = f"{self._digest}{kind}: {share:.0%} of {size(self.total)}"


def size(count: float) -> str:
    """Bytes in a unit that suits them; thousands, as shops and Ollama count."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count:.0f} B"
