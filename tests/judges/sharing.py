"""What runs with shared beginnings, and transcripts of what is reused, say of the claims of notebook 06."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefix_runs import OFF, ON, flat, level, prefix_run, reuse, staircase, workloads_run
from prefix_runs import Question as Q

from labkit.bundle import Run
from labkit.judges import HELD, NOT_HELD, NOT_HERE
from labkit.transcript import Transcript

Build = Callable[[Path], Run | Transcript]


def run(arms: dict[str, Any], **more: Any) -> Build:
    return lambda folder: prefix_run(folder / "run", arms, **more)


def told(**given: Any) -> Build:
    return lambda _folder: reuse(**given)


BOTH = run({ON: staircase(), OFF: flat()})
LONG = {448: level(1750.0, 70.0, 384)}
SLOW = {448: level(6000.0, 300.0, 384)}
SILENT = {256: [Q(900.0, None)] * 4}
SWITCHED = {ON: {"prefix_caching": True}}

BUILT: list[tuple[str, str, str, Build]] = [
    ("C69", NOT_HELD, "took 256 of the 256 tokens", BOTH),
    ("C69", NOT_HELD, "with --no-enable-prefix-caching it was 0", BOTH),
    ("C69", HELD, "took 0 of the", run({ON: flat()})),
    ("C69", HELD, "took 0 of the", run({ON: SILENT}, counted={256: (0, 4 * 448)})),
    ("C69", NOT_HERE, "No answer of vLLM says", run({ON: SILENT})),
    ("C69", NOT_HERE, "without a word on", run({OFF: flat()})),
    ("C69", NOT_HERE, "without a word on", run({ON: staircase()}, settings=SWITCHED)),
    ("C70", HELD, "At all 4 lengths every later question took each whole block of 128", BOTH),
    ("C70", HELD, "with 255 shared, the last 127 were read again", BOTH),
    (
        "C70",
        NOT_HELD,
        "With 255 tokens shared, whole blocks of 128 are 128",
        run({ON: {255: level(900, 900, 0)}}),
    ),
    ("C70", NOT_HERE, "share a whole block", run({ON: staircase([64, 127])})),
    ("C70", NOT_HERE, "share a whole block", run({OFF: flat()})),
    ("C71", HELD, "from 1,750 to 70 ms, 25.0 times as fast", run({ON: LONG})),
    ("C71", NOT_HELD, "from 6,000 to 300 ms", run({ON: SLOW})),
    ("C71", NOT_HELD, "no gain beyond the noise", run({ON: {128: level(2000, 1990, 128)}})),
    ("C71", NOT_HERE, "no second to begin with", BOTH),
    ("C71", HELD, "653 of 661 tokens from the cache of ollama, TTFT went from 3,000 to 60 ms", told()),
    ("C71", NOT_HELD, "from 3,000 to 900 ms", told(idle_s=0.9)),
    ("C71", NOT_HERE, "no second to begin with", told(cold_s=0.5)),
    ("C72", NOT_HELD, "took 653 of 661 tokens; while the slot that had read it was busy, 3 of 661", told()),
    ("C72", HELD, "took 3 of 661", told(idle=3)),
    ("C72", NOT_HERE, "does not say", told(idle=None)),
    ("C72", NOT_HERE, "vllm's transcript, not Ollama's", told(engine="vllm")),
    *[
        (claim, NOT_HERE, "lab.prefixes()", lambda folder: workloads_run(folder / "w", {ON: {"a": [Q(1.0)]}}))
        for claim in ("C70", "C71")
    ],
]
