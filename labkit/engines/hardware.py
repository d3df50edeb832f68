"""What the hardware offers to an engine: GPUs and the processor's instruction sets."""

from __future__ import annotations

import hashlib
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

COMPILED_FOR = re.compile(
    r"(sse|ssse|avx|fma|bmi|amx)"
    r"|(f16c|abm|lzcnt|popcnt|movbe|gfni|aes|vaes|pclmulqdq|vpclmulqdq|sha_ni|xop|tbm)$"
)
"""Flags that decide which instructions a compiler emits for ``-march=native``."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as the driver describes it."""

    name: str
    memory_gib: float
    driver: str


def gpus() -> list[Gpu]:
    """NVIDIA GPUs of this machine; empty without a driver or without the ``engines`` extra."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [
            Gpu(
                str(pynvml.nvmlDeviceGetName(handle)),
                round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30, 1),
                driver,
            )
            for handle in handles
        ]
    finally:
        pynvml.nvmlShutdown()


def cpu_flags() -> frozenset[str]:
    """Instruction-set flags as the Linux kernel names them; empty elsewhere."""
    with suppress(FileNotFoundError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in {"flags", "Features"}:
                return frozenset(value.split())
    return frozenset()


def cpu_key() -> str:
    """Short name of what a natively compiled program needs: another key, another build."""
    machine = platform.machine()
    flags = cpu_flags()
    if machine in {"x86_64", "AMD64"}:
        flags = frozenset(flag for flag in flags if COMPILED_FOR.match(flag))
    return f"{machine}-{hashlib.sha256(' '.join(sorted(flags)).encode()).hexdigest()[:8]}"
