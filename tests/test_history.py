"""The defaults' history: complete, in order, and checked as it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit import history
from labkit.errors import SchemaError, UsageError

GOOD = (Path(__file__).parent.parent / "data" / "defaults.toml").read_text()


def test_the_eras_are_in_order_and_each_has_its_source() -> None:
    eras = history.eras("OLLAMA_NUM_PARALLEL")
    assert eras["since"].is_sorted()
    assert eras["value"].to_list()[-1] == "1"
    assert all(eras["source"].str.contains(r"[0-9a-f]{9}"))


def test_an_unknown_setting_is_told_what_there_is() -> None:
    with pytest.raises(UsageError, match="OLLAMA_NUM_PARALLEL"):
        history.eras("OLLAMA_NUM_PARALEL")


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('seen = "history"', 'seen = "heard"', "seen"),
        ("since = 2024-05-06", 'since = "2024"', "since"),
        ("versions =", "version =", "version"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, old: str, new: str, field: str) -> None:
    path = tmp_path / "defaults.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(SchemaError, match=rf"field {field}\b"):
        history.eras("OLLAMA_NUM_PARALLEL", path)
