"""Claims: the data file, and judgements that go either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic import make_run

from labkit import claims
from labkit.bundle import Run
from labkit.errors import BundleError, SchemaError, UsageError
from labkit.judges import HELD, JUDGES, NOT_HELD, NOT_HERE
from labkit.verdict import Verdict
from labkit.workload import Workload

OLLAMA = {1: 60.0, 2: 62.0, 4: 62.0, 8: 62.0, 16: 62.0}
VLLM = {1: 40.0, 2: 50.0, 4: 100.0, 8: 150.0, 16: 200.0}
BASE: dict[str, Any] = {"rates": {"ollama": OLLAMA, "vllm": VLLM}}
A100 = {"device": "cuda:0 NVIDIA A100-PCIE-40GB", "model": "llama3.1:8b-instruct-fp16"}


def rates(ollama: dict[int, Any] | None = None, vllm: dict[int, Any] | None = None) -> dict[str, Any]:
    return {"rates": {"ollama": {**OLLAMA, **(ollama or {})}, "vllm": {**VLLM, **(vllm or {})}}}


def on_a100(vllm_peak: float) -> dict[str, Any]:
    facts = {"ollama": A100, "vllm": {**A100, "model": "meta-llama/Llama-3.1-8B-Instruct"}}
    return {"rates": {"ollama": {32: 40.0}, "vllm": {32: vllm_peak}}, "facts": facts}


CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    # claim, expected word, words of the reason, the run
    ("C12", NOT_HERE, "3.23 times", BASE),
    ("C12", HELD, "published", on_a100(760.0)),
    ("C12", NOT_HELD, "published", on_a100(200.0)),
    ("C12", NOT_HERE, "published", {**on_a100(760.0), "kind": "simulated"}),
    ("C13", HELD, "up to 16 users", BASE),
    ("C13", NOT_HELD, "flat from 8 users", rates(vllm={16: 152.0})),
    ("C13", NOT_HELD, "flat from 8 users", rates(vllm={8: [140, 160], 16: [155, 175]})),
    ("C13", NOT_HELD, "narrows between 8 and 16", rates(vllm={16: 120.0})),
    ("C13", NOT_HERE, "3 levels", {"rates": {"ollama": {1: 60, 4: 60}, "vllm": {1: 40, 4: 90}}}),
    ("C31", NOT_HELD, "with 1 slot a user waits", BASE),
    ("C31", HELD, "2 and 2", {**BASE, "slots": 2}),
    ("C31", HELD, "2 users were not measured", {"rates": {"ollama": {1: 60}, "vllm": {1: 40}}}),
    ("C31", NOT_HELD, "100% apart", {**BASE, "slots": 2, "ttft": {"vllm": {1: 0.2}}}),
    ("C31", NOT_HERE, "cut off", {**BASE, "slots": 2, "unfinished": {"ollama": {1: 0.5}}}),
    ("C31", NOT_HERE, "Neither 1 nor 2", {"rates": {"ollama": {4: 60}, "vllm": {4: 40}}}),
    ("C32", HELD, "by more than a little", BASE),
    ("C32", HELD, "narrowly", rates(vllm={1: 52.0})),
    ("C32", NOT_HELD, "vLLM is ahead", rates(vllm={1: 90.0})),
    ("C32", NOT_HELD, "beyond the noise", rates(vllm={1: 59.0})),
    ("C32", NOT_HELD, "beyond the noise", rates({1: [50, 70]}, {1: [45, 60]})),
    ("C32", NOT_HERE, "4 against 16 bit", {**BASE, "facts": {"ollama": {"quantisation": "Q4_1"}}}),
    (
        "C32",
        NOT_HELD,
        "4 against 16 bit",
        {**rates(vllm={1: 90.0}), "facts": {"ollama": {"quantisation": "Q4_1"}}},
    ),
    ("C32", NOT_HERE, "unknown", {**BASE, "facts": {"vllm": {"quantisation": None}}}),
    ("C33", HELD, "from 2 users on (1 slot)", BASE),
    ("C33", HELD, "judged at 8 users", {"rates": {"ollama": {1: 60, 4: 60, 8: 60}}, "slots": 4}),
    ("C33", NOT_HELD, "no queue", {**BASE, "queue": {"ollama": {16: 0.05}}}),
    ("C33", NOT_HELD, "no queue", {**BASE, "slots": 16, "queue": {"ollama": {16: 0.09}}}),
    ("C33", NOT_HERE, "neither with 16", {"rates": {"ollama": {1: 60, 4: 60}}, "slots": 4}),
    ("C33", NOT_HERE, "tells waiting from work", {**BASE, "unfinished": {"ollama": {16: 1.0}}}),
    ("C34", NOT_HERE, "3.23 at 16 users", BASE),
    ("C34", HELD, "5.00 at 128", rates({128: 60.0}, {128: 300.0})),
    ("C34", NOT_HELD, "2.00 at 128", rates({128: 60.0}, {128: 120.0})),
    ("C35", HELD, "vLLM's ITL", BASE),
    ("C35", HELD, "Ollama's ITL", {"rates": {"ollama": OLLAMA}}),
    ("C35", NOT_HELD, "2.00 times", {**BASE, "itl": {"ollama": {1: 0.01, 16: 0.02}}}),
    ("C35", NOT_HERE, "nothing was held back", {**BASE, "slots": 16}),
    ("C35", HELD, "above 8 users too many", {**BASE, "unfinished": {"ollama": {16: 0.5}}}),
    ("C36", HELD, "97% of Ollama's TTFT", BASE),
    ("C36", HELD, "or more of Ollama's", {**BASE, "unfinished": {"ollama": {16: 0.5}}}),
    ("C36", NOT_HELD, "1% of Ollama's TTFT", {**BASE, "queue": {"ollama": {16: 0.05}}}),
    ("C36", NOT_HERE, "nobody had to wait", {**BASE, "slots": 16}),
    (
        "C36",
        NOT_HERE,
        "too many answers",
        {**BASE, "queue": {"ollama": {16: 0.05}}, "unfinished": {"ollama": {16: 0.5}}},
    ),
]


@pytest.mark.parametrize(("claim", "word", "words", "made"), CASES, ids=lambda value: str(value)[:24])
def test_a_judgement_goes_the_way_of_the_run(
    tmp_path: Path, claim: str, word: str, words: str, made: dict[str, Any]
) -> None:
    (found,) = claims.judge([claim], make_run(tmp_path / "run", **made))
    assert (found.word, words in found.reason) == (word, True), found.reason


def test_every_claim_of_a_run_can_hold_and_fail() -> None:
    seen = {(claim, word) for claim, word, _, _ in CASES}
    assert seen == {(claim, word) for claim in JUDGES for word in (HELD, NOT_HELD, NOT_HERE)}


@pytest.fixture
def contaminated(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", **BASE, verdict=Verdict("contaminated", ["vllm served 90, sent 50"]))


def test_a_contaminated_run_judges_nothing(contaminated: Run) -> None:
    found = claims.judge(list(JUDGES), contaminated)
    assert {one.word for one in found} == {NOT_HERE}
    assert all("vllm served 90, sent 50" in one.reason for one in found)


def test_a_run_with_one_engine_judges_what_it_can(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates={"ollama": OLLAMA})
    words = {one.id: one.word for one in claims.judge(list(JUDGES), run)}
    assert [claim for claim, word in words.items() if word != NOT_HERE] == ["C33", "C35", "C36"]


def test_a_level_without_a_whole_answer_is_a_reason(tmp_path: Path) -> None:
    everything = dict.fromkeys(OLLAMA, 1.0)
    run = make_run(tmp_path / "run", **BASE, unfinished={"ollama": everything, "vllm": everything})
    assert {one.word for one in claims.judge(list(JUDGES), run)} == {NOT_HERE}


def test_a_stopped_run_says_so_above_the_table(tmp_path: Path) -> None:
    found = claims.judge(["C33"], make_run(tmp_path / "run", **BASE, stopped=True))
    assert "not whole" in found.about
    assert found.about in repr(found)


def test_the_first_arm_of_an_engine_is_judged_by_its_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates={"ollama, tuned": OLLAMA, "ollama": {1: 1.0}, "vllm": VLLM})
    assert "ollama, tuned" in claims.judge(["C33"], run)[0].reason


def test_the_table_is_escaped_and_complete(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rates={"ollama, <b>": OLLAMA, "vllm": VLLM})
    found = claims.judge(["C33", "C36"], run)
    html = found._repr_html_()
    assert "ollama, &lt;b&gt;" in html
    assert "<b>held</b>" in html
    assert all(one.id in html and one.id in repr(found) for one in found)


def test_published_figures_come_with_their_conditions() -> None:
    text = claims.published("C12")
    for part in ("793", "41", "A100-PCIE-40GB", "Llama-3.1-8B", "2025-08-08", "Red Hat"):
        assert part in text


@pytest.mark.parametrize("call", [lambda: claims.published("C13"), lambda: claims.published("C99")])
def test_no_published_figures_is_said(call: Any) -> None:
    with pytest.raises(UsageError):
        call()


def test_the_file_holds_every_claim_that_a_run_can_judge() -> None:
    assert JUDGES.keys() <= claims.load().keys()


def test_a_claim_that_no_run_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(JUDGES, "C13")
    (found,) = claims.judge(["C13"], make_run(tmp_path / "run", **BASE, workload=Workload(output_tokens=16)))
    assert found.word == NOT_HERE


GOOD = (Path(__file__).parent.parent / "data" / "claims.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('verdict = "PARTLY"', 'verdict = "MAYBE"', ("claim C13, field verdict", "MAYBE")),
        ('notebook = "05_the_gap"', "", ("claim C12, field notebook",)),
        ('evidence = ["documented"]', 'evidence = ["rumour"]', ("field evidence", "rumour")),
        ("checked = 2026-11-23", 'checked = "yesterday"', ("field checked", "date")),
        ('id = "C13"', 'id = "C12"', ("field id", "twice")),
        ("value = 793", 'value = "many"', ("claim C12, published 1, field value",)),
        ("value = 793", "value = true", ("field value",)),
        ('unit = "tokens/s"', 'unitt = "tokens/s"', ("field unitt", "not known")),
        ("schema_version = 1", "schema_version = 9", ("field schema_version", "9")),
        ("schema_version = 1", "", ("field schema_version",)),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "claims.toml"
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(SchemaError) as error:
        claims.load(file)
    assert all(word in str(error.value) for word in (str(file), *words)), str(error.value)


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "claims.toml").write_text("[[claim")
    with pytest.raises(BundleError, match=r"claims\.toml"):
        claims.load(tmp_path / "claims.toml")
