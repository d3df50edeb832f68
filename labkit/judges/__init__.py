"""What a run or a transcript says about a claim: one function per claim, one module per notebook.

Each looks at the learner's own numbers and gives a word and a reason made of those numbers. Limits are stated
where they are used, with why. What a run lacks is raised as :class:`labkit.sides.Missing` and becomes "not
measurable here".
"""

from labkit.judges import (
    decide,
    first_look,
    gap,
    migrate,
    package,
    parallel,
    prefix,
    pull,
    serve,
    slots,
    under_load,
)
from labkit.judges.base import HELD, NOT_HELD, NOT_HERE, Case, Judge, Reader

__all__ = ["HELD", "JUDGES", "NOT_HELD", "NOT_HERE", "READERS", "Case"]

JUDGES: dict[str, Judge] = {
    **first_look.JUDGES,
    **under_load.JUDGES,
    **slots.JUDGES,
    **serve.JUDGES,
    **gap.JUDGES,
    **migrate.JUDGES,
    **decide.JUDGES,
    **prefix.JUDGES,
    **parallel.JUDGES,
}
"""Claims that a run can decide."""

READERS: dict[str, tuple[str, Reader]] = {
    **pull.READERS,
    **slots.READERS,
    **migrate.READERS,
    **serve.READERS,
    **package.READERS,
    **prefix.READERS,
    **decide.READERS,
}
"""Claims that a transcript can decide: its name, and the function. A claim that neither can decide
says why in ``data/claims.toml``."""
