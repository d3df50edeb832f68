"""The glossary's file and its page."""

from __future__ import annotations

from pathlib import Path

import glossary
import pytest
from lesson import LINK

from labkit.errors import SchemaError


def test_page_is_up_to_date() -> None:
    assert glossary.PAGE.read_text() == glossary.page()
    assert glossary.main(["--check"]) == 0


def test_stale_page_is_told_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(glossary, "PAGE", tmp_path / "glossary.md")
    assert glossary.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().out
    assert glossary.main([]) == 0
    assert glossary.main(["--check"]) == 0


def test_links_within_the_page_lead_to_a_term() -> None:
    anchors = [term.anchor for term in glossary.terms()]
    assert len(set(anchors)) == len(anchors)
    for found in LINK.finditer(glossary.page()):
        if found["target"].startswith("#"):
            assert found["target"][1:] in anchors


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [("KV cache", "kv-cache"), ("`Lab.check`, again?", "labcheck-again"), ("a-b", "a-b")],
)
def test_anchor_is_the_one_of_github(heading: str, anchor: str) -> None:
    assert glossary.anchor(heading) == anchor


@pytest.mark.parametrize(
    ("term", "seen"),
    [
        ('id = "slot"', "field text"),
        ('id = "slot"\ntext = "x"\nform = ["y"]', "field form is not known"),
        ('id = "slot"\ntext = "x"\nforms = ["Slot"]', "has 'slot' twice"),
    ],
)
def test_wrong_file_is_refused(term: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = f'schema_version = 1\n[[section]]\nid = "All"\n[[section.term]]\n{term}\n'
    (tmp_path / "glossary.toml").write_text(written)
    monkeypatch.setattr("labkit.paths.data", lambda: tmp_path)
    with pytest.raises(SchemaError, match=seen):
        glossary.terms.__wrapped__()
