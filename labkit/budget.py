"""How much is measured: one table that decides levels, lengths and repeats for every experiment."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """One row of the table.

    Attributes:
        users_cpu: users per level on a CPU host.
        users_gpu: users per level on a GPU host.
        rounds: a level ends when every user has had this many whole answers …
        max_s: … or after this many seconds; None means no limit.
        repeats: times that each level is measured.
    """

    name: str
    users_cpu: tuple[int, ...]
    users_gpu: tuple[int, ...]
    rounds: int
    max_s: float | None
    repeats: int

    def users(self, device: str) -> list[int]:
        """Levels for a device as an engine names it ("cpu", "cuda:0 …")."""
        return list(self.users_cpu if device.startswith("cpu") else self.users_gpu)


def _doubling(top: int) -> tuple[int, ...]:
    return tuple(2**i for i in range(top.bit_length()))


BUDGETS = {
    b.name: b
    for b in (
        Budget("smoke", (1, 4, 8), (1, 16), rounds=1, max_s=15, repeats=1),
        Budget("short", _doubling(16), _doubling(64), rounds=2, max_s=60, repeats=1),
        Budget("normal", _doubling(32), _doubling(128), rounds=2, max_s=120, repeats=3),
        Budget("long", _doubling(64), _doubling(256), rounds=3, max_s=None, repeats=5),
    )
}
"""smoke: CI on real engines; short: a class; normal: a learner at home; long: recorded bundles."""


def budget(name: str) -> Budget:
    """The budget of this name.

    Raises:
        UsageError: no such budget; names those there are.
    """
    try:
        return BUDGETS[name]
    except KeyError:
        raise UsageError(f"use budget {name!r}", "no such budget", f"one of {', '.join(BUDGETS)}") from None
