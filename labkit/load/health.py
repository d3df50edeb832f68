"""How well the load process keeps up: a ticker that notes by how much it is late."""

from __future__ import annotations

import resource
import sys
from array import array
from asyncio import AbstractEventLoop, TimerHandle
from pathlib import Path
from time import perf_counter

PERIOD_S = 0.01  # an idle load process costs about 2 % of a core with it, half of that for the ticks


class Ticker:
    """Wakes every 10 ms and notes its lateness.

    A loop that stands still for two seconds takes one late tick in that time, and percentiles over the ticks
    taken would hide the stall. So every tick that was missed counts too, with the lateness it would have had.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: TimerHandle | None = None
        self._due = 0.0
        self._lags = array("d")
        self.missed = 0

    def start(self) -> None:
        self._due = perf_counter() + PERIOD_S
        self._timer = self._loop.call_later(PERIOD_S, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        now = perf_counter()
        late = 0
        while self._due <= now:  # not at all if the loop's coarse timer fired early
            self._lags.append(now - self._due)
            self._due += PERIOD_S
            late += 1
        self.missed += max(late - 1, 0)
        self._timer = self._loop.call_later(self._due - now, self._tick)

    def lag_ms(self, quantile: float) -> float:
        """A quantile of the lateness in ms by the wall clock; 0 before the first tick."""
        return quantile_of(self._lags, quantile) * 1e3


def quantile_of(values: array[float], quantile: float) -> float:
    """The value below which this share lies (nearest rank); 0 when there are none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(int(quantile * len(ordered)), len(ordered) - 1)]


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far.

    Linux hands ``ru_maxrss`` of the parent on to its child, so the child's own mark is read there.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
