"""The load process: reads a plan, keeps the load, writes rows, tells the parent ten times a second.

It lives only while its standard input is open: the end of it means that the parent is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import select
import signal
import sys
from array import array
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Protocol

import orjson

from labkit.clock import RunClock
from labkit.load.connection import Pool, Target
from labkit.load.exchange import Exchange
from labkit.load.health import Ticker, peak_rss_mib, quantile_of
from labkit.load.plan import ClientHealth, Plan, Tally
from labkit.load.rows import RowWriter
from labkit.load.schedule import schedule_of

FRAME_S = 0.1
_LINGER_S = 0.05  # for a server to end its reply after the last word
_WARM_S = 10.0  # for connections to open before the level starts; later ones are opened by their requests
_CLOSE_S = 2.0  # what does not close within this time is abandoned
_EVENTS = 20_000  # events kept for a parent that does not read; the counters go on
_TOKEN_EVENTS = 500  # of these in one frame: they are for drawing, and a fast GPU makes thousands


class Backend(Protocol):
    """What carries requests to the server."""

    connections: int
    retries: int

    async def warm(self, count: int) -> None: ...

    def send(self, exchange: Exchange) -> None: ...

    async def close(self) -> None: ...


class Level:
    """One level of load: issues requests by the plan and accounts for each of them.

    Inside, times are readings of the clock; what leaves here, to rows or to the parent, is time of the run.
    """

    def __init__(self, plan: Plan, rows: RowWriter, backend: Backend) -> None:
        self._plan = plan
        self._timers = plan.in_wall_time()
        self._rows = rows
        self._backend = backend
        self._loop = asyncio.get_running_loop()
        self._schedule = schedule_of(self._timers, self._loop, self._issue, partial(self.end, "unfinished"))
        self._flying: dict[int, Exchange] = {}
        self._outcomes = {"ok": 0, "failed": 0, "cancelled": 0, "unfinished": 0}
        self._planned = 0
        self._tokens = 0
        self._chunks = 0
        self._coalesced = 0
        self._unmetered = 0
        self._started = 0.0
        self._ended = 0.0
        self._late = array("d")
        self._clock = RunClock(plan.t0, plan.time_scale)
        self.events: list[tuple[str, int, float]] = []
        self._drawn = 0  # token events in it
        self.over: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        """Open the connections, keep the load, and return when the level is over and all is closed."""
        wanted = min(self._plan.users, self._plan.requests or self._plan.users)
        warming = self._loop.create_task(self._backend.warm(wanted))
        await asyncio.wait(
            (warming, self.over),
            timeout=min(_WARM_S, self._timers.timeout_s),
            return_when=asyncio.FIRST_COMPLETED,
        )
        warming.cancel()
        if not self.over.done():
            gc.freeze()  # what start-up made lives to the end: no collection need look at it
            if not self._clock.t0:
                self._clock = RunClock(perf_counter(), self._plan.time_scale)
            start = max(perf_counter(), self._clock.t0)
            self._schedule.start(start)
            if self._timers.seconds is not None:
                self._loop.call_at(self._loop.time() + self._timers.seconds, self.end, "unfinished")
        await self.over
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._backend.close(), _CLOSE_S)

    def end(self, outcome: str) -> None:
        """The level is over; what is in flight gets this outcome. Only the first call counts."""
        if self.over.done():
            return
        self.over.set_result(None)
        now = perf_counter()
        for exchange in list(self._flying.values()):
            exchange.break_off(outcome, now)

    def _issue(self, user: int | None, intended: float) -> None:
        if self.over.done():
            return
        prompt = self._plan.prompts[self._planned % len(self._plan.prompts)]
        request_id = self._plan.first_id + self._planned
        exchange = Exchange(
            self, self._plan.protocol, prompt, request_id=request_id, user=user, intended_s=intended
        )
        self._planned += 1
        self._started = self._started or intended
        self._flying[request_id] = exchange
        exchange.deadline = self._loop.call_later(self._timers.timeout_s, self._expire, exchange)
        self._backend.send(exchange)
        self._rows.request(exchange.row(self._plan, self._clock))

    def _expire(self, exchange: Exchange) -> None:
        late = f"deadline: not answered within {self._plan.timeout_s:g} s"
        exchange.break_off("failed", perf_counter(), late)

    # exchange.Owner

    def on_sent(self, exchange: Exchange) -> None:
        sent = exchange.sent_s or 0.0
        self._late.append(sent - exchange.intended_s)
        self._event("sent", exchange, sent)

    def on_token(self, exchange: Exchange, now: float, tokens: int, coalesced: bool) -> None:
        self._rows.token(exchange.id, self._clock.at(now), tokens, coalesced)
        self._tokens += tokens
        self._chunks += 1
        if coalesced:
            self._coalesced += 1
        if exchange.answer.chunks == 0:
            self._event("first", exchange, now)
        elif self._drawn < _TOKEN_EVENTS:
            self._drawn += 1
            self._event("token", exchange, now)

    def on_done(self, exchange: Exchange) -> None:
        """All was said. A server that leaves the reply open must not hold the user until the deadline."""
        if exchange.deadline is not None:
            exchange.deadline.cancel()
        exchange.deadline = self._loop.call_later(_LINGER_S, self._expire, exchange)

    def on_end(self, exchange: Exchange) -> None:
        now = exchange.end_s or 0.0
        self._ended = max(self._ended, now)
        del self._flying[exchange.id]
        if exchange.deadline is not None:
            exchange.deadline.cancel()
        self._outcomes[exchange.outcome] += 1
        self._tokens += exchange.answer.corrected
        if exchange.outcome == "ok" and exchange.answer.unmetered:
            self._unmetered += 1
        self._rows.request(exchange.row(self._plan, self._clock))
        self._event("end", exchange, now)
        self._schedule.ended(exchange.user, now, failed=exchange.outcome == "failed")

    def _event(self, kind: str, exchange: Exchange, now: float) -> None:
        if len(self.events) < _EVENTS:
            self.events.append((kind, exchange.id, self._clock.at(now)))

    # for the parent

    def tally(self) -> Tally:
        """The account so far; in flight counts as unfinished."""
        outcomes = {**self._outcomes, "unfinished": self._outcomes["unfinished"] + len(self._flying)}
        return Tally(
            planned=self._planned,
            **outcomes,
            tokens=self._tokens,
            unmetered=self._unmetered,
            started_s=max(self._clock.at(self._started), 0.0),
            ended_s=max(self._clock.at(perf_counter() if self._flying else self._ended), 0.0),
        )

    def frame(self) -> dict[str, Any]:
        """What the parent is told; takes the events."""
        events, self.events, self._drawn = self.events, [], 0
        return {
            "t_s": self._clock.at(perf_counter()) if self._clock.t0 else 0.0,
            "tally": asdict(self.tally()),
            "in_flight": len(self._flying),
            "events": events,
        }

    def health(self, ticker: Ticker) -> ClientHealth:
        """How well this process kept up."""
        lasting = self._clock.lasting
        return ClientHealth(
            loop_lag_p50_ms=lasting(ticker.lag_ms(0.5)),
            loop_lag_p99_ms=lasting(ticker.lag_ms(0.99)),
            loop_lag_max_ms=lasting(ticker.lag_ms(1.0)),
            missed_ticks=ticker.missed,
            coalesced_share=self._coalesced / self._chunks if self._chunks else 0.0,
            send_late_p99_ms=lasting(quantile_of(self._late, 0.99) * 1e3),
            cpu_s=process_time(),
            rss_mib=peak_rss_mib(),
            rows_lost=self._rows.lost,
            connections=self._backend.connections,
            retries=self._backend.retries,
        )


class Reports:
    """Frames to the parent, one JSON object a line.

    A parent that does not read never blocks the load: while a frame is stuck in the pipe, the next ones are
    not made, and what they would hold waits for its turn.
    """

    def __init__(self, out: int) -> None:
        self._out = out
        self._unsent = b""
        os.set_blocking(out, False)

    def send(self, level: Level) -> None:
        """Send a frame, unless the one before is still stuck."""
        if self._push():
            self._unsent = orjson.dumps(level.frame(), option=orjson.OPT_APPEND_NEWLINE)
            self._push()

    def last(self, level: Level, ticker: Ticker) -> None:
        """Send the last frame; wait for a slow parent, but not for ever."""
        frame = {**level.frame(), "health": asdict(level.health(ticker))}
        self._unsent += orjson.dumps(frame, option=orjson.OPT_APPEND_NEWLINE)
        poll = select.poll()
        poll.register(self._out, select.POLLOUT)
        until = perf_counter() + _CLOSE_S
        while not self._push() and perf_counter() < until:
            poll.poll((until - perf_counter()) * 1e3)

    def _push(self) -> bool:
        """Write what fits; whether nothing is left."""
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._out, self._unsent) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:  # the parent is gone; its closed end of our input ends the level
            self._unsent = b""
        return True


async def _run(plan: Plan, *, stopped: bool) -> None:
    loop = asyncio.get_running_loop()
    rows = RowWriter(Path(plan.rows))
    reports = Reports(sys.stdout.fileno())
    target = Target.of(plan)
    level = Level(plan, rows, _backend(plan, target))
    ticker = Ticker(loop)

    def hear() -> None:
        """The parent said stop, or is gone: either ends the level."""
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
        level.end("cancelled")

    def report() -> None:
        if not level.over.done():
            rows.flush()
            reports.send(level)
            loop.call_later(FRAME_S, report)

    loop.add_reader(sys.stdin.fileno(), hear)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, level.end, "cancelled")
    if stopped:
        level.end("cancelled")
    ticker.start()
    loop.call_later(FRAME_S, report)
    await level.run()
    ticker.stop()
    rows.close()
    reports.last(level, ticker)


def _backend(plan: Plan, target: Target) -> Backend:
    if plan.url.startswith("https:"):
        from labkit.load.tls import TlsPool  # aiohttp costs a quarter of a second, and few need it

        return TlsPool(target)
    return Pool(target)


def main() -> int:
    """Entry of ``python -m labkit.load``: the plan is the first line of standard input."""
    # Unbuffered, so that the loop sees what follows the plan; a quick "stop" may come in the same read.
    said = b""
    while b"\n" not in said and (piece := os.read(sys.stdin.fileno(), 2**20)):
        said += piece
    line, _, stop = said.partition(b"\n")
    plan = Plan.from_dict(orjson.loads(line))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(plan, stopped=bool(stop)))
    except OSError as error:
        print(f"rows folder {plan.rows}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _loop_factory() -> Any:
    """uvloop where it exists: half the CPU of asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
