"""Typed settings of an engine: one dataclass each, whose field names are also the CLI flags."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self, get_args, get_type_hints

from labkit.errors import UsageError


def setting(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:
    """A field with its help text and limits."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True)
class Settings:
    """Base of the engines' settings; fields are made with :func:`setting`."""

    title: ClassVar[str]
    """The engine's name in sentences."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Settings from names and values, checked one by one.

        Raises:
            UsageError: unknown name, wrong type, or a value outside its limits; names the setting.
        """
        known = {item.name: item for item in fields(cls)}
        hints = get_type_hints(cls)
        for name, value in given.items():
            if name not in known:
                raise cls.refuse(name, value, "there is no such setting", f"known: {', '.join(known)}")
            if not _is_a(value, hints[name]):
                raise cls.refuse(name, value, f"it must be of type {_plain(hints[name])}")
            cls._check_limits(name, value, known[name].metadata)
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for state files and ``run.json``."""
        return asdict(self)

    @classmethod
    def refuse(cls, name: str, value: Any, seen: str, fix: str = "") -> UsageError:
        """The error for an impossible value."""
        return UsageError(f"start {cls.title} with {name}={value!r}", seen, fix)

    @classmethod
    def _check_limits(cls, name: str, value: Any, limits: Mapping[str, Any]) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        low, high = limits["low"], limits["high"]
        if (low is not None and value < low) or (high is not None and value > high):
            limit = f"at least {low}" + (f" and at most {high}" if high is not None else "")
            raise cls.refuse(name, value, f"it must be {limit}")


def _is_a(value: Any, hint: Any) -> bool:
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, bool):
        return bool in options
    return any(isinstance(value, (int, float) if option is float else option) for option in options)


def _plain(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)
