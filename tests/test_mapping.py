"""The map of checkpoints: what it says of a name, and what its file has to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit import mapping, paths
from labkit.engines import models
from labkit.errors import SchemaError, UsageError

INVENTED = "meta-llama/Llama-3.1-8B-Instruct-AWQ"


def test_the_table_has_a_row_for_each_tag() -> None:
    rows = mapping.load()
    assert mapping.table()["tag"].to_list() == list(rows)
    assert "(named)" in rows["llama3.2:1b"].named("awq")
    assert rows["smollm2:135m"].named("awq") == ""


@pytest.mark.parametrize(
    ("repo", "words"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "is the original of llama3.1:8b"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct", "is a copy of meta-llama/Llama-3.1-8B-Instruct"),
        ("Qwen/Qwen2.5-0.5B-Instruct-AWQ", "is the AWQ form of qwen2.5:0.5b (seen)"),
        (INVENTED, "was not found"),
        ("nobody/nothing", "is not in the map"),
    ],
)
def test_a_repository_is_known_or_not(repo: str, words: str) -> None:
    assert words in mapping.known(repo)


def test_a_name_is_in_the_map_or_absent_and_never_both() -> None:
    events = mapping.transcript().events
    there = {event["repo"] for event in events if event["what"] == "form"}
    gone = {event["repo"] for event in events if event["what"] == "absent"}
    assert INVENTED in gone
    assert not there & gone


def test_an_unknown_tag_is_told_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"llama3\.1:8b"):
        mapping.find("gpt-9")


def test_models_of_the_course_are_in_the_map_by_the_same_digest() -> None:
    rows = mapping.load()
    for name, model in models.load_table().items():
        for source in model.sources:
            if isinstance(source, models.Registry) and source.tag in rows:
                assert rows[source.tag].digest == source.tag_digest, name


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('sure = "seen"', 'sure = "perhaps"', "not one of seen"),
        ('gate = "open"', 'gates = "open"', "gates"),
        ('licence = "MIT"', "licence = 3", "licence"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = (paths.data() / "model_map.toml").read_text()
    file = tmp_path / "map.toml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(SchemaError, match=words):
        mapping.load(file)
