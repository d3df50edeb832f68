"""Virtual time on the wall clock: nothing adds up, nobody stops the others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from math import inf

import pytest

from labkit.sim.request import Refused, Request
from labkit.sim.server.clock import LINUX, SCALES, Alarm, KernelAlarm, LoopAlarm, Pump, fitting_scale

STEP_S = 0.05


class Metronome:
    """Writes a token of every request every :data:`STEP_S` while there is one; takes two at most."""

    def __init__(self) -> None:
        self.next_s = inf
        self.requests: list[Request] = []

    def submit(self, request: Request, now: float) -> None:
        if len(self.requests) == 2:
            raise Refused
        request.sent_s = now
        self.requests.append(request)

    def cancel(self, request: Request) -> None:
        self.requests.remove(request)

    def begin(self, now: float, until: float = 0.0) -> None:
        if self.next_s == inf and self.requests:
            self.next_s = now + STEP_S

    def end(self) -> list[Request]:
        wrote = list(self.requests)
        for request in wrote:
            request.token_s.append(self.next_s)
            if request.left == 0:
                request.ended_s = self.next_s
                self.requests.remove(request)
        self.next_s = inf
        return wrote


@pytest.fixture
async def engine() -> Metronome:
    return Metronome()


@pytest.fixture
async def pump(engine: Metronome) -> AsyncIterator[Pump]:
    pump = Pump(engine, 10.0, lambda _wrote: None)
    yield pump
    pump.close()


def request(tokens: int = 5) -> Request:
    return Request(0, (1,), tuple(range(tokens)))


async def ended(pump: Pump, one: Request) -> None:
    over = asyncio.Event()
    pump.submit([one], lambda request: over.set() if request.ended_s is not None else None)
    async with asyncio.timeout(10):
        await over.wait()


async def test_steps_follow_each_other_in_virtual_time_however_late_we_wake(pump: Pump) -> None:
    one, over = request(), asyncio.Event()

    def slow(heard: Request) -> None:
        time.sleep(2 * STEP_S / pump.scale)
        if heard.ended_s is not None:
            over.set()

    pump.submit([one], slow)
    async with asyncio.timeout(10):
        await over.wait()
    assert one.token_s == pytest.approx([one.sent_s + STEP_S * n for n in range(1, 6)], abs=1e-9)


async def test_an_idle_engine_begins_when_the_request_comes(pump: Pump) -> None:
    await ended(pump, request())
    await asyncio.sleep(2 * STEP_S / pump.scale)
    second = request(1)
    before = pump.now
    await ended(pump, second)
    assert second.sent_s >= before
    assert second.token_s == [second.sent_s + STEP_S]


async def test_a_request_comes_in_when_it_comes_even_during_a_step(pump: Pump) -> None:
    first, second = request(2), request(1)
    pump.submit([first], lambda _request: None)
    await asyncio.sleep(0)
    await ended(pump, second)
    assert first.sent_s < second.sent_s < second.token_s[0] == first.token_s[0]


async def test_an_owner_that_fails_loses_its_request_and_the_others_go_on(
    pump: Pump, engine: Metronome, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_request: Request) -> None:
        raise RuntimeError("owner at fault")

    bad, good = request(), request()
    with caplog.at_level(logging.ERROR):
        pump.submit([bad], fail)
        await ended(pump, good)
    assert "owner at fault" in caplog.text
    assert len(bad.token_s) == 1
    assert engine.requests == []


async def test_cancelled_requests_write_no_more(pump: Pump, engine: Metronome) -> None:
    gone, other = request(), request()
    pump.submit([gone], lambda _request: None)
    pump.cancel(gone)
    pump.cancel(gone)
    await ended(pump, other)
    assert gone.token_s == []


async def test_what_comes_together_is_taken_or_refused_together(pump: Pump, engine: Metronome) -> None:
    with pytest.raises(Refused):
        pump.submit([request(), request(), request()], lambda _request: None)
    assert engine.requests == []


async def test_the_scale_is_as_wanted_or_one_of_few() -> None:
    assert await fitting_scale() in SCALES
    assert await fitting_scale(1e9) in SCALES
    assert await fitting_scale(1.0) == 1.0


@pytest.mark.parametrize("kind", [KernelAlarm, LoopAlarm])
async def test_an_alarm_rings_at_the_time_that_was_set_last_and_never_before(kind: type[Alarm]) -> None:
    if kind is KernelAlarm and not LINUX:
        pytest.skip("a timer of the Linux kernel")
    rung = asyncio.Event()
    alarm = kind(rung.set)
    due = time.perf_counter() + 0.02
    for at in (due + 60, due, inf, due):
        alarm.set(at)
    async with asyncio.timeout(10):
        await rung.wait()
    assert time.perf_counter() >= due - 1e-3  # the loop's own timers may be early by their resolution
    rung.clear()
    alarm.set(0.0)
    async with asyncio.timeout(10):
        await rung.wait()
    alarm.set(time.perf_counter() + 60)
    alarm.close()
