"""Each rule for notebooks is met by the lesson of the tests, and each is seen when it is broken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nbformat
import notebook_rules
import prose_rules
import pytest
from lesson import Lesson, Rule
from nbformat import v4

SOURCE = nbformat.read(Path(__file__).parent / "fixtures" / "lesson.ipynb", as_version=4)
PLACE = Path(__file__).parents[1] / "notebooks" / "lesson.ipynb"
"""Where its links start from; it is not there."""

BADGE = {"labkit": {"depth": "live"}}
PICTURE = v4.new_output(
    "display_data", {"image/png": ""}, metadata={"image/png": {"alt": "A line."}, **BADGE}
)
FIGURE = v4.new_output("display_data", {notebook_rules.INTERACTIVE: {}})
GLOSSARY = prose_rules.GLOSSARY

Break = Callable[[Any], object]


def broken(change: Break, rules: Sequence[Rule]) -> list[str]:
    """The breaches of the lesson after this change."""
    notebook = copy.deepcopy(SOURCE)
    change(notebook)
    return notebook_rules.breaches(Lesson(notebook, PLACE), rules)


def cell(notebook: Any, name: str) -> Any:
    return next(cell for cell in notebook.cells if cell.id == name)


def source(name: str, text: str) -> Break:
    """Replaces one cell's source."""
    return lambda notebook: cell(notebook, name).update(source=text)


def changed(name: str, old: str, new: str) -> Break:
    """Replaces a piece of one cell's source."""

    def change(notebook: Any) -> None:
        found = cell(notebook, name)
        assert old in found.source
        found.source = found.source.replace(old, new)

    return change


def add(text: str) -> Break:
    """Puts a code cell in front of the last one."""
    return lambda notebook: notebook.cells.insert(-1, v4.new_code_cell(text))


def say(text: str) -> Break:
    """Puts prose in front of the last cell."""
    return lambda notebook: notebook.cells.insert(-1, v4.new_markdown_cell(text))


def last_first(notebook: Any) -> None:
    """Claims before everything."""
    at = notebook.cells.index(cell(notebook, "claims"))
    notebook.cells.insert(3, notebook.cells.pop(at))


def test_lesson_keeps_all_rules() -> None:
    assert notebook_rules.breaches(Lesson(SOURCE, PLACE), notebook_rules.SOURCE_RULES) == []


@pytest.mark.parametrize(
    ("change", "breach"),
    [
        (lambda notebook: notebook.metadata.pop("kernelspec"), "names no kernel"),
        (source("cell-0", "What is this?"), "no title"),
        (source("cell-0", "# What is this?"), "how many minutes"),
        (changed("cell-0", "about 1 minute", "MINUTES_LIVE minutes"), "still to be measured: MINUTES_LIVE"),
        (lambda notebook: cell(notebook, "cell-1").metadata.clear(), "no tag 'parameters'"),
        (changed("cell-1", "SEED = 0", ""), "does not set SEED"),
        (changed("cell-1", "GUESS_POINTS = 5", ""), "no parameter GUESS_"),
        (changed("cell-7", "GUESS_POINTS", "5"), "GUESS_POINTS is never used"),
        (changed("cell-2", "labkit.Lab(", "nothing("), "does not open the lab"),
        (source("look", "What is there?"), "no part 'Look'"),
        (last_first, "the part 'Claims' comes too early"),
        (changed("next", "**Next.**", "The end."), "what is next"),
        (source("cell-9", "1"), "no cell judges claims"),
        (lambda notebook: cell(notebook, "cell-1").outputs.append(PICTURE), "outputs or execution counts"),
        (lambda notebook: cell(notebook, "cell-1").update(execution_count=1), "outputs or execution counts"),
        (lambda notebook: notebook.metadata.update(widgets={}), "widget state"),
        (add("!pip install labkit"), "shell command in a cell: !"),
        (add("%pip install labkit"), "shell command in a cell: %pip"),
        (add("%%bash\nls"), "shell command in a cell: %%bash"),
        (add('open("/home/me/run.json")'), "absolute path: /home/me/run.json"),
        (add('open("C:\\\\Users\\\\me")'), "absolute path: C:"),
        (changed("cell-6", "<details><summary>Hint</summary>Count them.</details>", ""), "without hint"),
        (source("cell-7", "ANSWER = GUESS_POINTS"), "without check"),
        (lambda notebook: cell(notebook, "cell-8").metadata.clear(), "without folded solution"),
        (source("cell-8", "ANSWER = 5"), "gives it away: ANSWER = 5"),
    ],
)
def test_breach_is_seen(change: Break, breach: str) -> None:
    found = broken(change, notebook_rules.SOURCE_RULES)
    assert len(found) == 1
    assert breach in found[0]


def test_lesson_without_exercise() -> None:
    found = broken(source("cell-6", "## Something else"), notebook_rules.SOURCE_RULES)
    assert found == ["no part 'Exercise'", "no exercise"]


@pytest.mark.parametrize("text", ["a = b != c", "f'{x!r}'", "https://host/usr/x", "1 % pip", "'a/tmp/b'"])
def test_what_only_looks_like_a_breach(text: str) -> None:
    assert broken(add(text), notebook_rules.SOURCE_RULES) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Two slots are enough.", ["slots"]),
        ("A slot, then another slot.", ["slot"]),
        (f"A slot, and a [slot]({GLOSSARY}#slot).", ["slot"]),
        (f"Read on [KV cache]({GLOSSARY}#kv-cache), then KV caches and a KV block.", ["KV block"]),
        ("**TTFT** in bold, *time to first token* in words", ["TTFT"]),
        ("Quantised to p50", ["Quantised", "p50"]),
        ("| a table | with goodput |", ["goodput"]),
        ("<details><summary>Hint</summary>\n\nThe knee.\n\n</details>", ["knee"]),
        (f"One token of [slots]({GLOSSARY}#slot) and lanes", ["token", "lanes"]),
    ],
)
def test_first_use_without_a_link_is_seen(text: str, words: list[str]) -> None:
    found = broken(say(text), [prose_rules.terms_are_linked_where_they_first_appear])
    assert [breach.partition("[")[2].partition("]")[0] for breach in found] == words


@pytest.mark.parametrize(
    "text",
    [
        "Only `slot` in code\n\n```\nslot\n```",
        "### A slot in a heading",
        f"A [slot]({GLOSSARY}#slot) and more slots",
        f"[`keep_alive`]({GLOSSARY}#keep-alive), in short keep-alive",
        f"[Slots]({GLOSSARY}#slot) first",
        "slotted, one-slot, tokenise, Slo, a gauged thing",
        "A verdict: it was linked in a cell before.",
        "The level, the run and the model are everyday words.",
        "See [the slot's file](../README.md).",
    ],
)
def test_what_is_no_first_use(text: str) -> None:
    assert broken(say(text), [prose_rules.terms_are_linked_where_they_first_appear]) == []


@pytest.mark.parametrize(
    ("text", "breach"),
    [
        ("[x](06_nowhere.ipynb)", "a dead link: 06_nowhere.ipynb"),
        ("[x](../docs/measuring.md#nothing)", "not there: ../docs/measuring.md#nothing"),
        (f"[x]({GLOSSARY}#no-such-word)", f"not there: {GLOSSARY}#no-such-word"),
        ("![picture](../docs/none.png)", "a dead link: ../docs/none.png"),
    ],
)
def test_link_that_leads_nowhere_is_seen(text: str, breach: str) -> None:
    (found,) = broken(say(text), [prose_rules.links_lead_somewhere])
    assert found.endswith(breach)


@pytest.mark.parametrize(
    "text",
    [
        "[x](../docs/measuring.md#levels-budgets-and-verdicts)",
        "[x](https://example.org/gone)",
        "[x](../README.md)",
        "`[x](nowhere.md)`",
    ],
)
def test_link_that_leads_somewhere(text: str) -> None:
    assert broken(say(text), [prose_rules.links_lead_somewhere]) == []


def test_link_within_the_notebook(tmp_path: Path) -> None:
    def found(text: str) -> list[str]:
        cells = [v4.new_markdown_cell(f"# A title\n\n[x]({text})")]
        lesson = Lesson(v4.new_notebook(cells=cells), tmp_path / "lesson.ipynb")
        lesson.path.touch()
        return notebook_rules.breaches(lesson, [prose_rules.links_lead_somewhere])

    assert found("#A-title") == []
    assert found("#A-tale") == ["a link to a heading that is not there: #A-tale"]


def test_neighbours_are_linked(tmp_path: Path) -> None:
    names = ["00_one.ipynb", "01_two.ipynb", "02_three.ipynb"]
    for name in names:
        (tmp_path / name).touch()

    def found(name: str, text: str) -> list[str]:
        lesson = Lesson(v4.new_notebook(cells=[v4.new_markdown_cell(text)]), tmp_path / name)
        return notebook_rules.breaches(lesson, [prose_rules.neighbours_are_linked])

    assert found(names[0], "[x](01_two.ipynb) [y](../README.md)") == []
    assert found(names[0], "[x](01_two.ipynb)") == ["no link to the overview, ../README.md"]
    assert found(names[1], "[x](00_one.ipynb)") == ["no link to 02_three.ipynb"]
    assert found(names[2], "[x](../README.md)") == ["no link to 01_two.ipynb"]
    assert found("notes.ipynb", "") == []


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("It takes 130 ms.", "130 ms"),
        ("It takes 0.5&nbsp;s.", "0.5&nbsp;s"),
        ("a 3-second pause", None),
        ("vLLM writes 793 tok/s.", "793 tok/s"),
        ("with 41 tokens a second", "41 tokens a second"),
        ("**270 MB** on disk", "270 MB"),
        ("2.5 GiB", "2.5 GiB"),
        ("1,024 MiB", "1,024 MiB"),
        ("35 % faster", "35 %"),
        ("19× as fast", "19×"),
        ("20 times faster", "20 times faster"),
        ("[12 ms](../README.md)", "12 ms"),
        ("- 10 to 15 s", "15 s"),
        ("An SLO of 2 s, or 2.0 seconds", None),  # SLO_S = 2.0
        ("a stall of 3 s", None),  # stall_s=3
        ("loads of 50 % and 120 %", None),  # offered=[50, 120]
        ("16-bit weights, 4 users, 64 tokens, C12, 2026, 05_the_gap, 3 times", None),
        ("`--timeout 90 s` in code", None),
        ("one in twenty, within two seconds", None),
    ],
)
def test_measured_figure_in_prose_is_seen(text: str, figure: str | None) -> None:
    def change(notebook: Any) -> None:
        say(text)(notebook)
        add("SLO_S = 2.0\nview = lab.arrivals(stall_s=3, offered=[50, 120], vllm={'a': 7})\nawait view")(
            notebook
        )

    found = broken(change, [prose_rules.no_measured_figure])
    assert [breach.partition(": ")[2] for breach in found] == ([repr(figure)] if figure else [])


def test_header_may_say_what_is_needed() -> None:
    table = "# Title\n\n| | |\n|---|---|\n| Needs | 6 GiB of memory |\n"
    assert broken(source("cell-0", table), [prose_rules.no_measured_figure]) == []
    assert broken(source("cell-0", f"{table}\nIt has 6 GiB."), [prose_rules.no_measured_figure]) != []


@pytest.mark.parametrize(
    ("outputs", "breach"),
    [
        ([FIGURE, PICTURE], None),
        ([FIGURE], "a figure without PNG twin"),
        ([v4.new_output("display_data", {"image/png": ""}, metadata=BADGE)], "a picture without alt text"),
        (
            [v4.new_output("display_data", {"image/png": ""}, metadata={"image/png": {"alt": "A line."}})],
            "a picture that does not say its depth",
        ),
    ],
)
def test_figures_have_twins_and_badges(outputs: list[Any], breach: str | None) -> None:
    found = broken(
        lambda notebook: cell(notebook, "cell-1").update(outputs=outputs), notebook_rules.EXECUTED_RULES
    )
    assert [line.partition(":")[0] for line in found] == ([breach] if breach else [])


def test_command_counts_and_refuses_an_empty_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert notebook_rules.main([str(tmp_path / "notebooks")]) == 1
    assert "0 notebooks" in capsys.readouterr().out
    for folder in ("notebooks", "docs"):
        (tmp_path / folder).mkdir()
    for page in (Path("README.md"), Path("docs", "glossary.md")):
        (tmp_path / page).write_text((PLACE.parents[1] / page).read_text())
    nbformat.write(SOURCE, tmp_path / "notebooks" / "lesson.ipynb")
    assert notebook_rules.main([str(tmp_path / "notebooks")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "goodput" in shown[0]
    assert "verdict" not in shown[0]
    assert shown[1].startswith("notebook rules: 1 notebooks, ")
    assert shown[1].endswith(" rules each, 0 breaches")
    cells = [v4.new_markdown_cell("Hm"), v4.new_code_cell("1")]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "notebooks" / "b.ipynb")
    assert notebook_rules.main([str(tmp_path / "notebooks")]) == 1
