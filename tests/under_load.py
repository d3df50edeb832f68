"""What the tests of faults under load have in common, on real engines and on simulated ones."""

from __future__ import annotations

from collections.abc import Callable

from labkit.bundle import Run
from labkit.experiments import Progress
from labkit.schema import OUTCOMES


def assert_accounted(run: Run) -> None:
    """Every planned request is in one bucket."""
    assert run.requests["outcome"].is_in(OUTCOMES).all()
    for record in run.meta["levels"]:
        assert record["planned"] == sum(record[word] for word in OUTCOMES)


def once_under_load(act: Callable[[], None]) -> Callable[[Progress], None]:
    """Does it when tokens flow at the measured level."""
    done = False

    def hear(progress: Progress) -> None:
        nonlocal done
        measuring = progress.step is not None and progress.step.phase == "measure"
        if not done and measuring and progress.frame and progress.frame.tokens:
            done = True
            act()

    return hear
