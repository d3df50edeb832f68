"""The lanes: each request a bar from sent to end, drawn while it waits, is read and is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import anywidget
import polars as pl
import traitlets

from labkit import metrics
from labkit.arms import Step
from labkit.bundle import Run
from labkit.experiments import Progress
from labkit.figures.base import COLOURS, INK
from labkit.figures.lanes import READING, WAITING, outcome_word
from labkit.load.process import Frame

MOST_ROWS = 64
"""Lanes of a panel: thinner ones could not be told apart."""

MOST_TICKS = 400
"""Tokens drawn of one request: more would lie on one another."""

_COLOURS = {**COLOURS, "waiting": WAITING, "prefill": READING}

_CSS = """
.labkit-lanes { width: 100%; min-width: 0; overflow: hidden; font-size: 11px;
  font-family: var(--jp-ui-font-family, sans-serif); color: var(--jp-ui-font-color1, inherit) }
.labkit-lanes canvas { width: 100%; display: block }
.labkit-lanes canvas:focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2);
  outline-offset: -2px }
.labkit-lanes .key { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 2px 0 }
.labkit-lanes .key i { display: inline-block; width: 18px; height: 9px; margin-right: 4px }
.labkit-lanes .hint { color: var(--jp-ui-font-color2, inherit) }
.labkit-lanes .chosen { min-height: 1.4em; font-weight: 600 }
.labkit-lanes .counts { white-space: pre-wrap; font-variant-numeric: tabular-nums }
"""


class _Lanes(anywidget.AnyWidget):
    """The browser's side: gets messages, each with what is news, and asks for all when it opens."""

    _esm = files("labkit.live").joinpath("lanes.js").read_text()
    _css = _CSS

    rows = traitlets.Int().tag(sync=True)
    places = traitlets.Int().tag(sync=True)
    colours = traitlets.Dict().tag(sync=True)


@dataclass
class _Lane:
    """One request; times are of the run. Load, wait and prefill are known when its level has ended."""

    panel: int
    number: int
    sent: float
    first: float | None = None
    end: float | None = None
    outcome: str = ""
    tokens: int = 0
    load: float | None = None
    wait: float | None = None
    basis: str = ""
    prefill: float | None = None
    settled: bool = False
    ticks: list[float] = field(default_factory=list)

    def told(self, request: int) -> list[Any]:
        """For the browser, in the order that lanes.js takes it apart."""
        split = (self.load, self.wait, self.basis, self.prefill)
        values = (self.sent, self.first, self.end, self.outcome, self.tokens, *split)
        return [request, self.panel, self.number, *(_rounded(value) for value in values)]


@dataclass
class _Panel:
    """The lanes of one arm, and its account since it was last emptied."""

    name: str
    place: int
    colour: str
    level: str = ""
    lanes: dict[int, _Lane] = field(default_factory=dict)
    marks: list[float] = field(default_factory=list)  # where a level began
    waiting: set[int] = field(default_factory=set)
    writing: set[int] = field(default_factory=set)
    latest: float = 0.0  # moment at which something happened
    first_id: int = 0
    sent: int = 0
    ended: int = 0
    not_whole: int = 0
    tokens: int = 0

    def told(self) -> dict[str, Any]:
        """For the browser."""
        counts = [len(self.waiting), len(self.writing), self.ended, self.not_whole, self.tokens]
        marks = [round(mark, 3) for mark in self.marks]
        return {
            "name": self.name,
            "colour": self.colour,
            "level": self.level,
            "marks": marks,
            "counts": counts,
        }


class LanesView:
    """A panel for each arm, in it a lane for each request in flight or recently ended, the newest below.

    While a level runs, the time before the first token is one piece; once it has ended, it is told apart into
    waiting and prefill. An arm that follows another one, or its own warm-up, begins with an empty panel.

    Attributes:
        widget: to be placed in a view.
        points: lanes so far.
    """

    period_s = 0.05  # every sample is drawn: a message holds only what is news

    def __init__(self, rows: int = 16, panels: int = 1) -> None:
        """Empty panels; needs a running loop.

        Args:
            rows: lanes that a panel has room for, at most :data:`MOST_ROWS`; older ones scroll away. For a
                burst its requests, for a closed loop about twice its users.
            panels: arms that room is made for at once.
        """
        self._rows = max(1, min(rows, MOST_ROWS))
        self._loop = asyncio.get_running_loop()
        self.widget = _Lanes(rows=self._rows, places=panels, colours=_COLOURS)
        self.widget.on_msg(lambda *_: self._loop.call_soon_threadsafe(self._send_all))
        self._panels: dict[str, _Panel] = {}
        self.clear()

    def clear(self) -> None:
        """Take all lanes away, for the next run."""
        self.points = 0
        self._panels.clear()
        self._step: Step | None = None
        self._begun = False  # the level has sent something
        self._now = 0.0
        self._forget()
        self._send_all()

    def _forget(self) -> None:
        """Nothing is news any more."""
        self._changed: set[int] = set()
        self._ticks: dict[int, list[float]] = {}
        self._gone: list[int] = []
        self._fresh = False

    def take(self, progress: Progress) -> None:
        """Keep what is news; cheap enough for every sample."""
        if progress.step is not None and progress.step is not self._step:
            self._turn(progress.step)
        if progress.frame is not None and self._step is not None:
            self._hear(self._step.arm.name, progress.frame)
        if progress.run is not None:
            self._settle(progress.run)

    def _turn(self, step: Step) -> None:
        """Another level is next."""
        before, self._step, self._begun, self._fresh = self._step, step, False, True
        name = step.arm.name
        if name not in self._panels:
            colour = COLOURS.get(step.arm.engine.name, INK)
            self._panels[name] = _Panel(name, len(self._panels), colour)
        elif before is None or before.arm.name != name or before.phase == "warm-up":
            self._empty(name)
        self._panels[name].level = str(step).removeprefix(f"{name}: ")

    def _empty(self, name: str) -> None:
        panel = self._panels[name]
        self._gone += panel.lanes
        self._panels[name] = _Panel(name, panel.place, panel.colour, panel.level)

    def _begin(self, name: str, at: float) -> None:
        """The first request of a level was sent."""
        self._begun = True
        panel = self._panels[name]
        if panel.lanes:
            drawn_from = next(iter(panel.lanes.values())).sent
            if at - panel.latest > panel.latest - drawn_from:  # most of the picture would be the pause
                self._empty(name)
        self._panels[name].marks.append(at)

    def _hear(self, name: str, frame: Frame) -> None:
        self._now, self._fresh = frame.t_s, True
        if not self._begun and (sent := [at for kind, _, at in frame.events if kind == "sent"]):
            self._begin(name, sent[0])
        panel = self._panels[name]
        panel.tokens += frame.tokens
        for kind, request, at in frame.events:
            panel.latest = at
            if kind == "sent":
                self._send(panel, request, at)
            elif kind == "first":
                panel.waiting.discard(request)
                panel.writing.add(request)
            elif kind == "end":
                panel.ended += 1
                panel.not_whole += request not in panel.writing
                panel.waiting.discard(request)
                panel.writing.discard(request)
            if (lane := panel.lanes.get(request)) is not None:
                self._change(request, lane, kind, at)

    def _send(self, panel: _Panel, request: int, at: float) -> None:
        if not panel.sent:
            panel.first_id = request
        panel.sent += 1
        panel.waiting.add(request)
        panel.lanes[request] = _Lane(panel.place, panel.sent, at)
        self.points += 1
        if len(panel.lanes) > self._rows:
            oldest = next(iter(panel.lanes))
            del panel.lanes[oldest]
            self._gone.append(oldest)

    def _change(self, request: int, lane: _Lane, kind: str, at: float) -> None:
        if kind == "token":
            lane.tokens += 1
            if len(lane.ticks) < MOST_TICKS:
                lane.ticks.append(at)
                self._ticks.setdefault(request, []).append(at)
            return
        if kind == "first":
            lane.first, lane.tokens = at, 1
        elif kind == "end":
            lane.end = at
            lane.outcome = "no answer" if lane.first is None else ""
        self._changed.add(request)

    def _settle(self, run: Run) -> None:
        """Of a level that has ended everything is known."""
        rows = metrics.estimate_queue(run.requests)
        for panel in self._panels.values():
            mine = rows.filter(pl.col("arm") == panel.name, pl.col("id") >= panel.first_id)
            panel.not_whole = int((mine["outcome"] != "ok").sum())
            for row in mine.iter_rows(named=True):
                lane = panel.lanes.get(row["id"])
                if lane is not None and not lane.settled:
                    _complete(lane, row, panel.latest)
                    self._changed.add(row["id"])

    def draw(self) -> None:
        """Bring the browser up to date."""
        if self._fresh or self._changed:
            self._tell(self._changed, self._ticks, reset=False)

    def _send_all(self) -> None:
        """For a page that has just opened, and for the next run."""
        ticks = {request: lane.ticks for request, lane in self._lanes().items()}
        self._tell(self._lanes(), ticks, reset=True)

    def _lanes(self) -> dict[int, _Lane]:
        return {request: lane for panel in self._panels.values() for request, lane in panel.lanes.items()}

    def _tell(self, changed: Iterable[int], ticks: dict[int, list[float]], *, reset: bool) -> None:
        lanes = self._lanes()
        self.widget.send(
            {
                "reset": reset,
                "t": round(self._now, 3),
                "panels": [panel.told() for panel in self._panels.values()],
                "lanes": [lanes[request].told(request) for request in sorted(changed) if request in lanes],
                "ticks": [[request, *(round(at, 3) for at in times)] for request, times in ticks.items()],
                "gone": self._gone,
            }
        )
        self._forget()


def _complete(lane: _Lane, row: dict[str, Any], latest: float) -> None:
    """What the row of a request adds to its events, or has in place of one that was lost."""
    lane.settled = True
    lane.first = row["first_token_s"] if lane.first is None else lane.first
    lane.end = next(end for end in (lane.end, row["end_s"], latest) if end is not None)
    lane.outcome = outcome_word(row["outcome"], row["http_status"])
    lane.tokens = row["output_tokens"] or lane.tokens
    if lane.first is not None and row["queue_s"] is not None:
        lane.load, lane.wait, lane.basis = row["load_s"], row["queue_s"], row["queue_basis"]
        lane.prefill = max(lane.first - lane.sent - (lane.load or 0.0) - lane.wait, 0.0)


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
