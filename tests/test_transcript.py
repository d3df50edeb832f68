"""Transcripts: kept and read again, shown as tables, and refused with file and field where they are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labkit import paths, transcript
from labkit.errors import BundleError, SchemaError, UsageError
from labkit.transcript import Transcript

EVENTS = (
    {"t_s": 0.0, "what": "load", "model": "a", "loaded": ["a"]},
    {"t_s": 1, "what": "unload", "took_s": 0.5},
    {"t_s": 2.5, "what": "load", "model": "b", "loaded": ["a", "b"]},
)
TRANSCRIPT = Transcript("loads", "live", {"engine": "ollama", "version": "0.34.0"}, EVENTS)


def test_events_are_found_by_what_they_are() -> None:
    assert [event["model"] for event in TRANSCRIPT.of("load")] == ["a", "b"]
    assert TRANSCRIPT.one("unload")["took_s"] == 0.5
    with pytest.raises(UsageError, match="there are load, unload"):
        TRANSCRIPT.one("nothing")


def test_a_table_has_the_fields_of_the_events_it_is_of() -> None:
    assert TRANSCRIPT.table().shape == (3, 5)
    loads = TRANSCRIPT.table("load")
    assert loads.columns == ["t_s", "what", "model", "loaded"]
    assert loads["loaded"].to_list() == ['["a"]', '["a","b"]']


def test_it_says_of_itself_what_it_is() -> None:
    assert TRANSCRIPT.title == "live: loads · ollama 0.34.0"
    simulated = Transcript("loads", "simulated", {"model": "m", "time_scale": 4.0}, ())
    assert simulated.title == "simulated: loads · m · at 4 times real time"
    assert "loads" in TRANSCRIPT._repr_html_()
    assert "loads" in repr(TRANSCRIPT)


def test_a_kept_one_is_recorded_and_has_no_path_of_this_machine(tmp_path: Path) -> None:
    said = Transcript("loads", "live", {}, ({"t_s": 0.0, "what": "log", "text": f"{paths.home()}/x"},))
    kept = Transcript.load(transcript.keep(said, tmp_path))
    assert kept.kind == "recorded"
    assert kept.one("log")["text"] == "LABKIT_HOME/x"
    assert transcript.keep(said, tmp_path, number=2).name == "loads-2.json"


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    assert Transcript.load(TRANSCRIPT.save(tmp_path / "new" / "x.json")) == TRANSCRIPT


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": 3}, "name"),
        ({"kind": "dreamt"}, "kind"),
        ({"about": None}, "about"),
        ({"events": {}}, "events"),
        ({"events": [{"t_s": 0.0}]}, r"events\[0\].what"),
        ({"events": [{"t_s": True, "what": "x"}]}, r"events\[0\].t_s"),
        ({"schema_version": 99}, "schema_version"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    path = TRANSCRIPT.save(tmp_path / "x.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SchemaError, match=f"field {field} ") as caught:
        Transcript.load(path)
    assert str(path) in caught.value.tried


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(BundleError, match=r"x\.json"):
        Transcript.load(tmp_path / "x.json")


def test_all_that_come_with_the_course_can_be_read() -> None:
    names = {path.stem for path in (paths.data() / "transcripts").glob("*.json")}
    assert {"pull", "lifecycle", "evictions", "start_log_vllm", "refusal"} <= names
    for name in names:
        assert transcript.recorded(name).kind == "recorded"
    with pytest.raises(UsageError, match=r"there are .*pull"):
        transcript.recorded("nothing")
