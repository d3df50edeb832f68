"""The one place where readings of the clock become times of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunClock:
    """Readings of ``time.perf_counter`` as times of a run.

    Attributes:
        t0: the reading at the start of the run.
        scale: seconds of the run in one second of the wall clock: 1 on real engines, more on simulated ones,
            which do in a quarter of the time, say, what the real one needs.
    """

    t0: float
    scale: float = 1.0

    def at(self, reading: float) -> float:
        """A reading as seconds since the start of the run."""
        return (reading - self.t0) * self.scale

    def lasting(self, wall: float) -> float:
        """A duration by the wall clock as one of the run, in the same unit."""
        return wall * self.scale
