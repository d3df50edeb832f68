"""The machine a run was measured on, as far as it matters for reading the run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil


def describe() -> dict[str, Any]:
    """Facts for ``run.json``: OS, CPU, memory, Python. No host name and no user."""
    return {
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
    }


def busy_s() -> float:
    """CPU seconds that our cores together have spent at work since boot, with those that other virtual
    machines took from this one."""
    per_core = psutil.cpu_times(percpu=True)
    if hasattr(os, "sched_getaffinity"):  # a container's neighbours are not our business
        per_core = [per_core[core] for core in os.sched_getaffinity(0)]
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, kind, 0.0) for times in per_core for kind in kinds))


def core_ids() -> list[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cores() -> int:
    """Cores that this process may run on, which under a container can be fewer than the machine has."""
    return len(core_ids())


def cpu_model() -> str:
    """The processor's name as the kernel gives it, else its architecture."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class CpuWatch:
    """Sees what share of the machine's CPU other programs take, from its making on.

    Args:
        engine_s: CPU seconds that the engine has used so far, None if that cannot be known.
    """

    def __init__(self, engine_s: Callable[[], float | None]) -> None:
        self._engine_s = engine_s
        self._start = self._read()

    def others(self, load_s: float) -> float | None:
        """Share that was neither the engine's, nor this process's, nor the load process's ``load_s``."""
        (began, busy_before, ours_before), (now, busy, ours) = self._start, self._read()
        if ours is None or ours_before is None:
            return None
        theirs = (busy - busy_before) - (ours - ours_before) - load_s
        return max(0.0, theirs / ((now - began) * cores()))

    def _read(self) -> tuple[float, float, float | None]:
        ours = self._engine_s()
        return time.perf_counter(), busy_s(), None if ours is None else ours + time.process_time()
