"""Claims: the data file, the table in a notebook, the page, and which notebook treats which claim."""

from __future__ import annotations

import ast
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from judges.sweeps import BASE, OLLAMA, VLLM
from synthetic import make_run

from labkit import claims, claims_page, cli
from labkit.bundle import Run
from labkit.errors import BundleError, SchemaError, UsageError
from labkit.judges import JUDGES, NOT_HERE, READERS
from labkit.verdict import Verdict

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


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
    decided = {claim for claim, word in words.items() if word != NOT_HERE}
    assert decided == {"C06", "C09", "C33", "C35", "C36", "C80"}


def test_a_level_without_a_whole_answer_is_a_reason(tmp_path: Path) -> None:
    everything = dict.fromkeys(OLLAMA, 1.0)
    run = make_run(tmp_path / "run", **BASE, unfinished={"ollama": everything, "vllm": everything})
    found = claims.judge(list(JUDGES), run)
    assert {one.id for one in found if one.word != NOT_HERE} == {"C09", "C84"}


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


def test_all_claims_are_there() -> None:
    assert list(claims.load()) == [f"C{number:02}" for number in range(1, 89)]


def test_a_claim_is_judged_or_says_why_it_cannot_be() -> None:
    judged = JUDGES.keys() | READERS.keys()
    told = {claim.id for claim in claims.load().values() if claim.not_measurable}
    assert not judged & told
    assert judged | told == claims.load().keys()


@pytest.mark.parametrize(
    "ids", [range(1, 12), range(17, 31), range(64, 69)], ids=lambda ids: f"C{ids[0]:02} to C{ids[-1]:02}"
)
def test_the_first_notebooks_treat_the_first_claims(ids: range) -> None:
    found = claims.load()
    assert {found[f"C{number:02}"].notebook for number in ids} <= set(claims.NOTEBOOKS[:5])


def test_a_claim_that_nothing_decides_shows_how_it_was_checked(tmp_path: Path) -> None:
    (found,) = claims.judge(["C10"], make_run(tmp_path / "run", **BASE))
    claim = claims.load()["C10"]
    assert found.word == NOT_HERE
    for part in (claim.not_measurable, str(claim.checked), *claim.versions, claim.verdict, claim.because):
        assert part
        assert part in found.reason


def test_a_claim_that_is_not_decided_here_shows_it_too(tmp_path: Path) -> None:
    (found,) = claims.judge(["C34"], make_run(tmp_path / "run", **BASE))
    assert found.word == NOT_HERE
    assert found.reason.endswith(claims.load()["C34"].check)


def test_a_simulated_run_speaks_of_the_imitation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **BASE, kind="simulated")
    assert "imitation" in claims.judge(["C33"], run).about
    assert "imitation" not in claims.judge(["C33"], make_run(tmp_path / "live", **BASE)).about


def test_nothing_given_is_no_crash() -> None:
    (found,) = claims.judge(["C33"], [])
    assert found.word == NOT_HERE


def asked_in(notebook: Path) -> Iterator[str]:
    """Ids in the lists that a notebook gives to ``lab.claims``."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        for call in ast.walk(ast.parse(cell.source, mode="exec", type_comments=False)):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "lab.claims":
                yield from ast.literal_eval(call.args[1])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_asks_about_each_claim_that_it_treats(notebook: Path) -> None:
    asked = list(asked_in(notebook))
    treated = {claim.id for claim in claims.load().values() if claim.notebook == notebook.stem}
    assert treated <= set(asked) <= claims.load().keys()
    assert len(asked) == len(set(asked))


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "claims.md").read_text() == claims_page.page(), (
        "labkit claims --page > docs/claims.md"
    )


def test_the_page_has_every_claim_with_its_check() -> None:
    text = claims_page.page()
    for claim in claims.load().values():
        assert f"### {claim.id}: {claim.verdict}\n\n> {claim.statement}\n\n{claim.because}" in text
        assert f"Checked {claim.checked} on {', '.join(claim.versions)}" in text
    assert "793 tokens/s" in text


def test_the_table_tells_the_age_in_days() -> None:
    found = claims.load()["C04"]
    text = claims_page.table([found], found.checked + datetime.timedelta(days=17))
    assert text.splitlines()[1].split()[:5] == ["C04", "OUTDATED", str(found.checked), "17", found.notebook]


def listed(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """Ids that the command prints."""
    assert cli.main(["claims", *options]) == 0
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys) == list(claims.load())
    assert listed(capsys, "--notebook", "06") == ["C69", "C70", "C71", "C72"]
    assert listed(capsys, "--stale", "-1") == list(claims.load())
    assert listed(capsys, "--stale", "100000") == []


def test_the_command_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["claims", "--page"]) == 0
    assert capsys.readouterr().out == claims_page.page()


def test_the_command_knows_no_other_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["claims", "--notebook", "77"]) == 2
    assert "00_start_here" in capsys.readouterr().err


GOOD = (ROOT / "data" / "claims.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('verdict = "PARTLY"', 'verdict = "MAYBE"', ("claim C02, field verdict", "MAYBE")),
        ('notebook = "05_the_gap"', "", ("claim C12, field notebook",)),
        ('notebook = "05_the_gap"', 'notebook = "05"', ("claim C12, field notebook", "05_the_gap")),
        ('evidence = ["documented"]', 'evidence = ["rumour"]', ("field evidence", "rumour")),
        ("checked = 2026-11-23", 'checked = "yesterday"', ("field checked", "date")),
        ('id = "C13"', 'id = "C12"', ("field id", "twice")),
        ("value = 793", 'value = "many"', ("claim C12, published 1, field value",)),
        ("value = 793", "value = true", ("field value",)),
        ('not_measurable = "It is history, which no run shows."', 'not_measurable = ""', ("not_measurable",)),
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
