"""A run of a model on one device and shared by several: which arm is which, and what the sharing costs."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from labkit.bundle import Run
from labkit.parallel import NUMBER_BYTES, Shape, ranks_of
from labkit.sides import Missing


@dataclass(frozen=True)
class Arms:
    """The arms of a run that belong together: one device alone, as much in one rank, and shared by ranks.

    Attributes:
        one: one device.
        whole: one rank with all that the ranks have together; None on GPUs, where there is no such thing.
        split: the ranks.
    """

    one: str
    whole: str | None
    split: str


def arms_of(run: Run) -> Arms:
    """Which arm of a run is which.

    Raises:
        Missing: it has no arm with ranks, or none without.
    """
    settings = {name: arm["settings"] for name, arm in run.meta["arms"].items() if arm["engine"] == "vllm"}
    split = next((name for name, given in settings.items() if ranks_of(given) > 1), None)
    alone = [name for name, given in settings.items() if ranks_of(given) == 1]
    if split is None or not alone:
        raise Missing("No run of vLLM with one rank and with several was given")
    threads = settings[split].get("cpu_threads")
    whole = next((name for name in alone if threads and settings[name].get("cpu_threads") == threads), None)
    one = next((name for name in alone if name != whole), None)
    if one is None:
        raise Missing("No arm of one device was given")
    return Arms(one, whole, split)


def price(run: Run, shape: Shape) -> pl.DataFrame:
    """What a step of the ranks takes longer than it would without talk, and what that is for each all-reduce.

    Without talk: the step of one rank with as many cores; on GPUs that of one GPU, divided by the ranks. What
    else several processes do beside one counts as talk here.

    Returns:
        One row a level: level, quiet_ms and split_ms (ITL p50 without and with the talk), extra_ms,
        reduces (of all layers in a step), each_us (extra time for each of them), each_kib (what a rank adds
        to each).

    Raises:
        Missing: see :func:`arms_of`.
    """
    found, summary = arms_of(run), run.summary()
    ranks = ranks_of(run.meta["arms"][found.split]["settings"])
    steps = {
        arm: dict(summary.filter(arm=arm).select("level", "itl_ms_p50").iter_rows())
        for arm in (found.whole or found.one, found.split)
    }
    alone, split = steps.values()
    rows = []
    for level in sorted(alone.keys() & split.keys()):
        if alone[level] is None or split[level] is None:
            continue
        quiet = alone[level] / (1 if found.whole else ranks)
        extra = split[level] - quiet
        sent = level * shape.width * NUMBER_BYTES / 1024
        rows.append((level, quiet, split[level], extra, shape.reduces, extra / shape.reduces * 1000, sent))
    names = ["level", "quiet_ms", "split_ms", "extra_ms", "reduces", "each_us", "each_kib"]
    return pl.DataFrame(rows, schema=names, orient="row")
