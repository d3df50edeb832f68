"""Users and the clock: simulated engines under load in virtual time, as fast as the machine can count."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from math import inf
from typing import Protocol

from labkit.sim.request import Refused, Request


class Engine(Protocol):
    """What both simulated engines offer."""

    @property
    def next_s(self) -> float:
        """When :meth:`end` is to be called next."""

    def submit(self, request: Request, now: float) -> None:
        """A request comes in."""

    def begin(self, now: float, until: float = 0.0) -> None:
        """Start what can be started; nothing else comes in before ``until``."""

    def end(self) -> list[Request]:
        """What ends at ``next_s`` is over; the requests that got a token."""


Then = Callable[[Request, float], "tuple[float, Request] | None"]
"""What a user sends, and when, after a request has ended or was refused."""


def drive(
    engine: Engine, first: Iterable[tuple[float, Request]], then: Then, *, stop_s: float = inf
) -> list[Request]:
    """Send the ``first`` requests at their times, and what ``then`` says after each; until nothing is left to
    do, or ``stop_s``. Returns all requests in the order they were sent; those that were refused have no
    ``admitted_s`` and an ``ended_s``, those that are cut off have no ``ended_s``."""
    ids = count()
    due = [(at, next(ids), request) for at, request in first]
    heapq.heapify(due)
    sent: list[Request] = []
    while due or engine.next_s < inf:
        now = min(due[0][0] if due else inf, engine.next_s)
        if now > stop_s:
            break
        over: list[Request] = []
        if engine.next_s <= now:
            over += [request for request in engine.end() if request.ended_s is not None]
        while due and due[0][0] <= now:
            request = heapq.heappop(due)[2]
            sent.append(request)
            try:
                engine.submit(request, now)
            except Refused:
                request.sent_s = request.ended_s = now
                over.append(request)
        for request in over:
            if (following := then(request, now)) is not None:
                heapq.heappush(due, (max(following[0], now), next(ids), following[1]))
        engine.begin(now, due[0][0] if due else stop_s)
    return sent


TURN_S = 2e-4
"""Between the end of an answer and the same user's next question, and between two users at a start."""


def closed_loop(engine: Engine, requests: Sequence[Request], users: int, start_s: float) -> list[Request]:
    """Let ``users`` send these in turn, each its next one after the answer to the one before, as often as all
    others; those that are sent, in order."""
    rounds, asked, sender, left = len(requests) // users, [1] * users, {}, iter(requests)
    first = []
    for user, request in zip(range(users), left, strict=False):
        sender[request.id] = user
        first.append((start_s + user * TURN_S, request))

    def then(request: Request, now: float) -> tuple[float, Request] | None:
        user = sender[request.id]
        if asked[user] == rounds:
            return None
        asked[user] += 1
        following = next(left)
        sender[following.id] = user
        return now + TURN_S, following

    return drive(engine, first, then)
