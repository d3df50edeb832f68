"""Who sends when: users of a closed loop, or arrivals of an open one, and when the level is over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from itertools import count, repeat
from random import Random
from time import perf_counter

from labkit.load.plan import Plan

BACKOFF_S = 0.25
"""Pause of a user whose request failed, by the wall clock: a dead server is asked again, but not thousands of
times a second."""

Issue = Callable[[int | None, float], None]
"""Send the next request, for this user (None in an open loop), intended at this time."""


class Schedule(ABC):
    """Calls ``issue`` when a request is due, and ``over`` when no more will come and all have ended.

    Takes the plan in wall time (:meth:`Plan.in_wall_time`).
    """

    def __init__(self, plan: Plan, loop: AbstractEventLoop, issue: Issue, over: Callable[[], None]) -> None:
        self._plan = plan
        self._loop = loop
        self._issue_now = issue
        self._over = over
        self._issued = 0
        self._ended = 0

    @abstractmethod
    def start(self, at: float) -> None:
        """Begin the level at this time."""

    def ended(self, user: int | None, now: float, *, failed: bool) -> None:
        """A request of this user ended."""
        self._ended += 1
        if self._exhausted and self._ended == self._issued:
            self._over()

    @property
    def _exhausted(self) -> bool:
        """No more requests will be issued."""
        return self._issued == self._plan.requests

    def _issue(self, user: int | None, intended: float) -> None:
        self._issued += 1
        self._issue_now(user, intended)

    def _at(self, when: float, call: Callable[[], None]) -> None:
        """Call at this time, never before it: the loop's timers are coarse and may fire early."""
        wait = when - perf_counter()
        if wait <= 0:
            call()
        else:
            self._loop.call_later(wait, self._at, when, call)


class ClosedLoop(Schedule):
    """Each user sends, waits for the whole answer, thinks, sends again, until it has had its rounds."""

    def __init__(self, plan: Plan, loop: AbstractEventLoop, issue: Issue, over: Callable[[], None]) -> None:
        super().__init__(plan, loop, issue, over)
        limits = [plan.requests, plan.rounds and plan.rounds * plan.users]
        self._limit = min((limit for limit in limits if limit is not None), default=None)
        self._asked = [0] * plan.users

    @property
    def _exhausted(self) -> bool:
        return self._issued == self._limit

    def start(self, at: float) -> None:
        for user in range(self._plan.users):
            self._free(user, at + self._plan.ramp_s * user / self._plan.users)

    def _free(self, user: int, when: float) -> None:
        """The user sends again at this time, if there is anything left to ask."""

        def send() -> None:
            if not self._exhausted:
                self._asked[user] += 1
                self._issue(user, when)

        if self._asked[user] != self._plan.rounds:
            self._at(when, send)

    def ended(self, user: int | None, now: float, *, failed: bool) -> None:
        super().ended(user, now, failed=failed)
        if user is not None:
            self._free(user, now + max(self._plan.think_s, BACKOFF_S if failed else 0.0))


class OpenLoop(Schedule):
    """Requests arrive by the clock, whether or not the server keeps up."""

    def __init__(self, plan: Plan, loop: AbstractEventLoop, issue: Issue, over: Callable[[], None]) -> None:
        super().__init__(plan, loop, issue, over)
        self._offsets = arrivals(plan)
        self._last_sent = False

    def start(self, at: float) -> None:
        self._next(at)

    def _next(self, start: float) -> None:
        """Wait for the next arrival. Overdue ones go out at once, each with the time it was meant for."""
        offset = next(self._offsets, None)
        if offset is None:
            self._last_sent = True
            return

        def send() -> None:
            self._issue(None, start + offset)
            if not self._exhausted:
                self._loop.call_soon(self._next, start)

        self._at(start + offset, send)

    @property
    def _exhausted(self) -> bool:
        return self._last_sent or super()._exhausted


def arrivals(plan: Plan) -> Iterator[float]:
    """Seconds from the start of the level to each arrival of an open loop.

    A burst is ``users`` requests at once; with a rate a burst comes every ``users / rate`` seconds, without
    one there is a single burst.
    """
    if plan.arrivals == "burst":
        pause = plan.users / plan.rate if plan.rate else None
        for number in count():
            yield from repeat(number * (pause or 0.0), plan.users)
            if pause is None:
                return
    rate = plan.rate or 0.0  # Plan has checked it
    if plan.arrivals == "constant":
        yield from (number / rate for number in count())
    draw = Random(plan.seed)
    at = 0.0
    while True:
        at += draw.expovariate(rate)
        yield at


def schedule_of(plan: Plan, loop: AbstractEventLoop, issue: Issue, over: Callable[[], None]) -> Schedule:
    """The schedule that the plan asks for."""
    kind = ClosedLoop if plan.arrivals == "closed" else OpenLoop
    return kind(plan, loop, issue, over)
