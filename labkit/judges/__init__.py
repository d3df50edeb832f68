"""What a run or a transcript says about a claim: one function per claim, one module per notebook.

Each looks at the learner's own numbers and gives a word and a reason made of those numbers. Limits are stated
where they are used, with why. What a run lacks is raised as :class:`labkit.sides.Missing` and becomes "not
measurable here".
"""

from labkit.judges import first_look, gap, pull, serve, slots, under_load
from labkit.judges.base import HELD, NOT_HELD, NOT_HERE, Case, Judge, Reader

__all__ = ["HELD", "JUDGES", "NOT_HELD", "NOT_HERE", "READERS", "Case"]

JUDGES: dict[str, Judge] = {
    **first_look.JUDGES,
    **under_load.JUDGES,
    **slots.JUDGES,
    **serve.JUDGES,
    **gap.JUDGES,
}
"""Claims that a run can decide."""

READERS: dict[str, tuple[str, Reader]] = {**pull.READERS, **slots.READERS}
"""Claims that a transcript can decide: its name, and the function. The other claims of ``data/claims.toml``
have other evidence."""
