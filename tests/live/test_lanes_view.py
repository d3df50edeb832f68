"""The lanes view: what it keeps of the samples, and what it tells the browser."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from synthetic import make_run

from labkit.arms import Arm, Step
from labkit.bundle import Run
from labkit.experiments import Progress
from labkit.live.lanes import MOST_ROWS, MOST_TICKS, LanesView
from labkit.load.plan import Tally
from labkit.load.process import Frame

Event = tuple[str, int, float]
_FIELDS = (
    "panel", "number", "sent", "first", "end", "outcome", "tokens", "load", "wait", "basis", "prefill",
)  # fmt: skip


class Browser:
    """Reads the view's messages as lanes.js does."""

    def __init__(self, view: LanesView) -> None:
        self.messages: list[dict[str, Any]] = []
        self.lanes: dict[int, dict[str, Any]] = {}
        self.panels: list[dict[str, Any]] = []
        view.widget.send = self.take

    def take(self, news: dict[str, Any]) -> None:
        self.messages.append(news)
        if news["reset"]:
            self.lanes = {}
        self.panels = news["panels"]
        for request, *values in news["lanes"]:
            ticks = self.lanes.get(request, {}).get("ticks", [])
            self.lanes[request] = {**dict(zip(_FIELDS, values, strict=True)), "ticks": ticks}
        for request, *times in news["ticks"]:
            if request in self.lanes:
                self.lanes[request]["ticks"] += times
        for request in news["gone"]:
            self.lanes.pop(request, None)


@pytest.fixture
async def view() -> LanesView:
    return LanesView(rows=8, panels=2)


@pytest.fixture
def browser(view: LanesView) -> Browser:
    return Browser(view)


def step(arm: str = "ollama", level: int = 4, phase: str = "measure", repeat: int = 0) -> Step:
    engine: Any = SimpleNamespace(name=arm.partition(",")[0])
    return Step(Arm(arm, engine, "m"), level, repeat, {"arrivals": "burst"}, phase)


def sample(view: LanesView, of: Step, events: Sequence[Event], tokens: int = 0) -> None:
    """One frame, taken and drawn."""
    at = max((at for _, _, at in events), default=0.0)
    view.take(Progress(str(of), step=of, frame=Frame(at, Tally(), 0, tokens, list(events))))
    view.draw()


async def test_a_lane_grows_with_the_events_of_its_request(view: LanesView, browser: Browser) -> None:
    level = step()
    sample(view, level, [("sent", 7, 1.0), ("sent", 8, 1.0)])
    assert [(lane["number"], lane["first"]) for lane in browser.lanes.values()] == [(1, None), (2, None)]
    sample(view, level, [("first", 7, 1.5), ("token", 7, 1.6), ("token", 7, 1.7)], tokens=3)
    assert browser.lanes[7]["first"] == 1.5
    assert browser.lanes[7]["ticks"] == [1.6, 1.7]
    sample(view, level, [("end", 7, 1.7), ("end", 8, 2.0)])
    assert (browser.lanes[7]["outcome"], browser.lanes[8]["outcome"]) == ("", "no answer")
    assert browser.panels[0]["counts"] == [0, 0, 2, 1, 3]
    assert (browser.panels[0]["name"], browser.panels[0]["level"]) == ("ollama", "4 requests at once")
    assert view.points == 2


async def test_a_message_holds_only_what_is_news(view: LanesView, browser: Browser) -> None:
    level = step()
    sample(view, level, [("sent", 7, 1.0), ("sent", 8, 1.0), ("first", 8, 1.2)])
    sample(view, level, [("token", 8, 1.3)])
    sample(view, level, [])
    *_, tokens, nothing = browser.messages
    assert (tokens["lanes"], tokens["ticks"]) == ([], [[8, 1.3]])
    assert (nothing["lanes"], nothing["ticks"]) == ([], [])
    before = len(browser.messages)
    view.draw()
    assert len(browser.messages) == before


async def test_a_page_that_opens_late_gets_everything_once(view: LanesView, browser: Browser) -> None:
    level = step()
    sample(view, level, [("sent", 7, 1.0), ("first", 7, 1.2), ("token", 7, 1.3)])
    view.take(Progress("", step=level, frame=Frame(1.4, Tally(), 1, 1, [("token", 7, 1.4)])))
    await asyncio.to_thread(view.widget._handle_custom_msg, "hello", [])
    await asyncio.sleep(0)
    assert browser.messages[-1]["reset"]
    assert browser.lanes[7]["ticks"] == [1.3, 1.4]
    sample(view, level, [("token", 7, 1.5)])
    assert browser.lanes[7]["ticks"] == [1.3, 1.4, 1.5]


async def test_older_lanes_scroll_away_and_the_account_keeps_them(view: LanesView, browser: Browser) -> None:
    level = step(level=20)
    sample(view, level, [("sent", number, 1.0) for number in range(20)])
    assert list(browser.lanes) == list(range(12, 20))
    sample(view, level, [(kind, number, 2.0) for number in range(20) for kind in ("first", "end")])
    assert list(browser.lanes) == list(range(12, 20))
    assert browser.panels[0]["counts"] == [0, 0, 20, 0, 0]


async def test_memory_is_bounded_whatever_is_asked_for() -> None:
    view = LanesView(rows=1000)
    browser = Browser(view)
    level = step(level=500)
    sample(view, level, [("sent", number, 1.0) for number in range(500)])
    sample(view, level, [("first", 499, 2.0), *(("token", 499, 2 + k / 1000) for k in range(2000))])
    assert len(browser.lanes) == MOST_ROWS
    assert len(browser.lanes[499]["ticks"]) == MOST_TICKS


async def test_a_panel_begins_anew_after_the_warm_up_another_arm_or_a_long_pause(
    view: LanesView, browser: Browser
) -> None:
    sample(view, step(phase="warm-up"), [("sent", 1, 1.0), ("first", 1, 1.1), ("end", 1, 1.2)])
    sample(view, step(level=1), [("sent", 2, 1.4), ("first", 2, 1.5), ("end", 2, 2.4)])
    assert list(browser.lanes) == [2]
    sample(view, step(level=2), [("sent", 3, 2.6), ("first", 3, 2.7), ("end", 3, 3.6)])
    assert list(browser.lanes) == [2, 3]
    assert browser.panels[0]["marks"] == [1.4, 2.6]
    sample(view, step("vllm"), [("sent", 4, 9.0), ("end", 4, 9.9)])
    assert {request: lane["panel"] for request, lane in browser.lanes.items()} == {2: 0, 3: 0, 4: 1}
    sample(view, step(level=4), [("sent", 5, 11.0), ("end", 5, 12.0)])
    assert list(browser.lanes) == [4, 5]
    sample(view, step(level=8), [("sent", 6, 60.0)])
    assert list(browser.lanes) == [4, 6]
    assert browser.panels[0]["counts"] == [1, 0, 0, 0, 0]


async def test_another_run_begins_with_nothing(view: LanesView, browser: Browser) -> None:
    sample(view, step(), [("sent", 7, 1.0)])
    view.clear()
    assert (browser.lanes, browser.panels, view.points) == ({}, [], 0)


def replayed(view: LanesView, run: Run, arm: str, users: int) -> None:
    """The events of a level that has been measured, then what is known at its end."""
    level = step(arm, users)
    rows = run.requests.filter(~pl.col("warmup"), arm=arm, level=users)
    events = [
        (kind, row["id"], row[column])
        for row in rows.iter_rows(named=True)
        for kind, column in (("sent", "sent_s"), ("first", "first_token_s"), ("end", "end_s"))
        if row[column] is not None
    ]
    sample(view, level, sorted(events, key=lambda event: event[2]))
    view.take(Progress(str(level), step=level, run=run))
    view.draw()


async def test_when_a_level_has_ended_waiting_and_prefill_are_told_apart(
    view: LanesView, browser: Browser, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", rates={"ollama": {4: 40}, "vllm": {4: 60}})
    replayed(view, run, "ollama", 4)
    ollama = list(browser.lanes.values())
    assert {lane["basis"] for lane in ollama} == {"reported"}
    for lane in ollama:
        assert lane["wait"] + lane["prefill"] == pytest.approx(lane["first"] - lane["sent"], abs=0.002)
        assert (lane["outcome"], lane["tokens"]) == ("ok", 16)
    replayed(view, run, "vllm", 4)
    assert {lane["basis"] for lane in browser.lanes.values() if lane["panel"] == 1} == {"estimated"}


async def test_rows_stand_in_for_events_that_were_lost(
    view: LanesView, browser: Browser, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", rates={"ollama": {4: 40}})
    level = step()
    rows = run.requests.filter(~pl.col("warmup"))
    sample(view, level, [("sent", row["id"], row["sent_s"]) for row in rows.iter_rows(named=True)])
    view.take(Progress(str(level), step=level, run=run))
    view.draw()
    ends = [(lane["first"], lane["end"]) for lane in browser.lanes.values()]
    assert [end for _, end in ends] == pytest.approx(rows["end_s"].to_list(), abs=0.001)
    assert [first for first, _ in ends] == pytest.approx(rows["first_token_s"].to_list(), abs=0.001)


async def test_what_got_no_whole_answer_says_why(view: LanesView, browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates={"ollama": {4: 40}}, unfinished={"ollama": {4: 0.5}})
    (lost,) = {lane["outcome"] for lane in _lanes(view, browser, run) if lane["first"] is None}
    assert lost == "cut off"
    assert browser.panels[0]["counts"][3] == 4
    refused = run.requests.with_columns(
        outcome=pl.when(pl.col("outcome") == "unfinished").then(pl.lit("failed")).otherwise("outcome"),
        http_status=pl.when(pl.col("outcome") == "unfinished").then(503),
    )
    view.clear()
    changed = Run(run.meta, refused, run.tokens, run.gauges, run.path)
    assert {lane["outcome"] for lane in _lanes(view, browser, changed)} == {"ok", "503"}


def _lanes(view: LanesView, browser: Browser, run: Run) -> list[dict[str, Any]]:
    replayed(view, run, "ollama", 4)
    return list(browser.lanes.values())
