"""Virtual time on the wall clock: an engine's steps end when their time has come, however late we wake.

Virtual seconds are wall seconds times the time scale. A step begins when the one before it has ended in
virtual time, not when somebody noticed: lateness delays what a client sees by that much, and never adds up.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import struct
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import inf
from statistics import median
from time import perf_counter
from typing import Protocol

from labkit.sim import drive
from labkit.sim.request import Refused, Request

LAG_S = 1e-3
"""Simulated time by which a client may see a token too late."""

READ_S = 0.1e-3
"""Wall time allowed from waking up to a token in the client's hands; 0.07 ms on an idle 2-core machine."""

SCALES = (10.0, 5.0, 2.0, 1.0)
"""Time scales to choose from: few, so that two servers on one machine choose the same."""

ABSOLUTE = 1
"""Flag of ``timerfd_settime``: the time is a reading of the clock."""

WATCHED = 1000
"""Steps after which it is judged whether the machine keeps up."""

TOO_MANY = 0.05
"""Share of them that may be late."""

log = logging.getLogger(__name__)


class Engine(drive.Engine, Protocol):
    """What the pump needs of a simulated engine."""

    def cancel(self, request: Request) -> None:
        """Its client is gone."""


class Alarm(ABC):
    """Calls ``ring`` in the event loop at a given reading of ``time.perf_counter``."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()

    @abstractmethod
    def set(self, due: float) -> None:
        """Ring then, and not at the time that was set before; infinite is never."""

    @abstractmethod
    def close(self) -> None:
        """Never ring again."""


class KernelAlarm(Alarm):
    """By a timer of the Linux kernel: the loop's own timers are a whole millisecond coarse there."""

    def __init__(self, ring: Callable[[], None]) -> None:
        super().__init__(ring)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop.add_reader(self._timer, self._rung)

    def set(self, due: float) -> None:
        """See :meth:`Alarm.set`."""
        at = (0, 0) if due == inf else divmod(max(1, round(due * 1e9)), 10**9)
        self._libc.timerfd_settime(self._timer, ABSOLUTE, struct.pack("4l", 0, 0, *at), None)

    def close(self) -> None:
        """See :meth:`Alarm.close`."""
        self._loop.remove_reader(self._timer)
        os.close(self._timer)

    def _rung(self) -> None:
        try:
            os.read(self._timer, 8)
        except BlockingIOError:  # it was set anew in this very moment
            return
        self._ring()


class LoopAlarm(Alarm):
    """By the loop's own timers, which are fine enough elsewhere."""

    _timer: asyncio.TimerHandle | None = None

    def set(self, due: float) -> None:
        """See :meth:`Alarm.set`."""
        self.close()
        if due < inf:
            self._timer = self._loop.call_later(max(0.0, due - perf_counter()), self._ring)

    def close(self) -> None:
        """See :meth:`Alarm.close`."""
        if self._timer is not None:
            self._timer.cancel()


LINUX = sys.platform == "linux"
ALARM: type[Alarm] = KernelAlarm if LINUX else LoopAlarm


class Pump:
    """Runs an engine on the wall clock and tells each request's owner of its tokens."""

    def __init__(self, engine: Engine, scale: float, on_step: Callable[[Sequence[Request]], None]) -> None:
        """``on_step`` hears of each step that ended before the owners do."""
        self.scale = scale
        self.started = perf_counter()
        self._engine = engine
        self._on_step = on_step
        self._owners: dict[Request, Callable[[Request], None]] = {}
        self._steps = self._late = 0
        self._alarm = ALARM(self._ring)

    @property
    def now(self) -> float:
        """Virtual time."""
        return (perf_counter() - self.started) * self.scale

    def wall(self, virtual: float) -> float:
        """The reading of ``time.perf_counter`` at a virtual time."""
        return self.started + virtual / self.scale

    def submit(self, requests: Sequence[Request], owner: Callable[[Request], None]) -> None:
        """Hand in requests that came together; ``owner`` is called with each that got a token or ended.

        Raises:
            Refused: the engine's queue is full; none of them was taken.
        """
        now = self._advance()
        for index, request in enumerate(requests):
            try:
                self._engine.submit(request, now)
            except Refused:
                for taken in requests[:index]:
                    self.cancel(taken)
                raise
            self._owners[request] = owner
        self._begin(now)

    def cancel(self, request: Request) -> None:
        """Nobody waits for it any more; nothing happens if it has ended."""
        if self._owners.pop(request, None) is not None:
            now = self._advance()
            if request.ended_s is None:
                self._engine.cancel(request)
                self._begin(now)

    def close(self) -> None:
        """No more steps."""
        self._alarm.close()

    def _ring(self) -> None:
        self._advance()
        self._alarm.set(self.wall(self._engine.next_s))

    def _begin(self, now: float) -> None:
        self._engine.begin(now)
        self._alarm.set(self.wall(self._engine.next_s))

    def _advance(self) -> float:
        """Do everything that was due until now; returns the time that it is."""
        now = self.now
        while (ended := self._engine.next_s) <= now:
            self._watch(now - ended > LAG_S)
            wrote = self._engine.end()
            self._on_step(wrote)
            for request in wrote:
                self._tell(request)
            self._engine.begin(ended)  # planning takes a moment: tokens go out before it
        return now

    def _watch(self, late: bool) -> None:
        self._steps, self._late = self._steps + 1, self._late + late
        if self._steps == WATCHED:
            if self._late > TOO_MANY * WATCHED:
                log.warning(
                    "%d of %d steps were noticed more than %g simulated ms late: this machine is too busy "
                    "for time scale %g",
                    *(self._late, self._steps, LAG_S * 1e3, self.scale),
                )
            self._steps = self._late = 0

    def _tell(self, request: Request) -> None:
        owner = self._owners.get(request)
        if owner is None:
            return
        if request.ended_s is not None:
            del self._owners[request]
        try:
            owner(request)
        except Exception:  # one owner's fault must not stop the engine for all others
            log.exception("request %d failed", request.id)
            if self._owners.pop(request, None) is not None:
                self._engine.cancel(request)


async def fitting_scale(wanted: float = inf) -> float:
    """The time scale to use, at least 1: with it clients can see each token within :data:`LAG_S` of its time.

    Args:
        wanted: taken if it is not too much for this machine; else it is the highest fitting one of SCALES.
    """
    most = max(1.0, min(SCALES[0], LAG_S / (await _lateness() + READ_S)))
    return wanted if wanted <= most else next(scale for scale in SCALES if scale <= most)


async def _lateness(samples: int = 50, pause_s: float = 2e-3) -> float:
    """By how much an alarm usually rings too late, in seconds."""
    rung = asyncio.Event()
    alarm = ALARM(rung.set)
    late = []
    for _ in range(samples):
        rung.clear()
        due = perf_counter() + pause_s
        alarm.set(due)
        await rung.wait()
        late.append(perf_counter() - due)
    alarm.close()
    return median(late)
