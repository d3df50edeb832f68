"""Exercises: every solution is right, every wrong answer is recognised, and nothing is ever raised."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import make_run

from labkit import exercises
from labkit.bundle import Run
from labkit.errors import SchemaError, UsageError
from labkit.sides import Missing
from labkit.verdict import Verdict
from labkit.workload import Workload
from tests.exercises.gallery import assert_recognised

USERS = (1, 2, 4, 8, 16, 32)
OLLAMA = dict.fromkeys(USERS, 62.0)
VLLM = {1: 20.0, 2: 30.0, 4: 50.0, 8: 100.0, 16: 150.0, 32: 200.0}
FASTER = dict.fromkeys(USERS, 110.0)  # passed between 8 and 16 users instead of 4 and 8
SLOWER = dict.fromkeys(USERS, 40.0)  # between 2 and 4
FOUR_BIT = {"ollama": {"quantisation": "Q4_1", "model_digest": "cc"}}
SAME_TOP = {**FASTER, 16: 62.0, 32: 62.0}

Runs = Run | list[Run]


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def one(name: str, ollama: Any = OLLAMA, vllm: Any = VLLM, **more: Any) -> Run:
        return make_run(tmp_path / name, rates={"ollama": ollama, "vllm": vllm}, **more)

    return one


@pytest.fixture
def runs(make: Any) -> dict[str, Runs]:
    first = make("first")
    return {
        "crossing": first,
        "from the first": make("from the first", vllm={users: 90.0 + users for users in USERS}),
        "never": make("never", vllm=dict.fromkeys(USERS, 50.0)),
        "not sure": make("not sure", OLLAMA | {32: [60, 190]}, VLLM | {32: [180, 220]}),
        "early but unsure": make("early", OLLAMA | {8: [50, 99]}, VLLM | {8: [90, 110], 16: [90, 180]}),
        "few slots for vllm": make("both wait", in_line={"vllm": {32: 28.0}}),
        "no queue": make("no queue", slots=32, queue={"ollama": {32: 0.0}}, in_line={"vllm": {32: 0.0}}),
        "smaller file": [first, make("4 bit", FASTER | {32: 80.0}, facts=FOUR_BIT)],
        "up": [first, make("up", FASTER, slots=4)],
        "up, same at the top": [first, make("top", SAME_TOP, slots=4)],
        "down": [first, make("down", SLOWER, workload=Workload(own_prompts=("Who are you?",)))],
        "same": [first, make("same", dict.fromkeys(USERS, 66.0), slots=2)],
    }


EXPECTED: dict[tuple[str, str], float | str] = {
    ("gap-crossover", "crossing"): 8,
    ("gap-crossover", "from the first"): 1,
    ("gap-crossover", "never"): "never",
    ("gap-crossover", "not sure"): 8,
    ("gap-crossover", "early but unsure"): 8,
    ("gap-who-waits", "crossing"): "ollama",
    ("gap-who-waits", "few slots for vllm"): "both",
    ("gap-who-waits", "no queue"): "neither",
    ("gap-4bit", "smaller file"): 110 / 62,
    ("gap-own", "up"): "up",
    ("gap-own", "up, same at the top"): "up",
    ("gap-own", "down"): "down",
    ("gap-own", "same"): "same",
}


def test_every_solution_is_right(runs: dict[str, Runs]) -> None:
    for (exercise, name), answer in EXPECTED.items():
        found = exercises.solution(exercise, runs[name])
        assert found == (pytest.approx(answer, rel=0.02) if exercise == "gap-4bit" else answer), name
        verdict = exercises.check(exercise, runs[name], answer)
        assert verdict.ok, (name, verdict)


def test_every_mistake_is_recognised_and_explained(runs: dict[str, Runs]) -> None:
    assert_recognised(EXPECTED, runs)


@pytest.mark.parametrize(("answer", "ok"), [(3.9, False), (4, True), (5.5, True), ("8", True), (9, False)])
def test_the_crossover_is_right_within_one_tested_step(make: Any, answer: Any, ok: bool) -> None:
    assert exercises.check("gap-crossover", make("run"), answer).ok is ok


def test_a_lead_that_is_never_sure_accepts_both_readings(runs: dict[str, Runs]) -> None:
    assert exercises.check("gap-crossover", runs["not sure"], "never").ok
    assert not exercises.check("gap-crossover", runs["crossing"], "never").ok


def test_a_wrong_answer_shows_the_numbers_at_that_level(make: Any) -> None:
    verdict = exercises.check("gap-crossover", make("run"), 1.5)
    assert "vLLM 30.0 and Ollama 62.0 tokens/s" in verdict.reason


def test_waiting_is_told_in_shares_and_gauges(runs: dict[str, Runs]) -> None:
    reason = exercises.check("gap-who-waits", runs["few slots for vllm"], "both").reason
    assert "of Ollama's TTFT at 32 users is waiting" in reason
    assert "vLLM had 28 requests waiting" in reason


@pytest.mark.parametrize("answer", [None, "", "many", True, float("nan"), math.inf, -1, 0, [], {}, 10**400])
@pytest.mark.parametrize("exercise", ["gap-crossover", "gap-who-waits"])
def test_no_answer_is_a_sentence(make: Any, exercise: str, answer: Any) -> None:
    verdict = exercises.check(exercise, make("run"), answer)
    assert (verdict.ok, verdict.title) == (False, "No answer yet")


@pytest.mark.parametrize("exercise", ["nothing", "", None, 3, [], "GAP-OWN"])
def test_an_unknown_exercise_is_a_sentence(make: Any, exercise: Any) -> None:
    verdict = exercises.check(exercise, make("run"), 4)
    assert not verdict.ok
    assert "gap-crossover" in verdict.reason


@pytest.mark.parametrize("run", [None, 3, "run", [], [None], {}])
@pytest.mark.parametrize(("exercise", "answer"), [("gap-crossover", 4), ("gap-own", "up")])
def test_no_run_is_a_sentence(exercise: str, run: Any, answer: Any) -> None:
    verdict = exercises.check(exercise, run, answer)
    assert not verdict.ok
    assert "run the measuring cell first" in verdict.reason


@pytest.mark.parametrize(
    "made",
    [
        {"rates": {"ollama": {1: 60.0}}},
        {"rates": {"vllm": {1: 60.0}}},
        {"rates": {"ollama": {1: 60.0}, "vllm": {2: 60.0}}},
        {"rates": {"ollama": {1: 60.0}, "vllm": {1: 60.0}}, "unfinished": {"ollama": {1: 1.0}}},
        {"rates": {}},
    ],
)
@pytest.mark.parametrize("exercise", ["gap-crossover", "gap-who-waits", "gap-own"])
def test_a_run_that_cannot_tell_is_a_sentence(tmp_path: Path, exercise: str, made: dict[str, Any]) -> None:
    run = make_run(tmp_path / "run", **made)
    answer = {"gap-crossover": 1, "gap-who-waits": "ollama", "gap-own": "up"}[exercise]
    verdict = exercises.check(exercise, [run, run] if exercise == "gap-own" else run, answer)
    assert (verdict.ok, verdict.title) == (False, "These measurements cannot tell")


@pytest.mark.parametrize(("exercise", "answer"), [("gap-crossover", 2), ("gap-who-waits", "ollama")])
def test_a_contaminated_run_is_not_judged(make: Any, exercise: str, answer: Any) -> None:
    verdict = exercises.check(
        exercise, make("run", verdict=Verdict("contaminated", ["someone else"])), answer
    )
    assert (verdict.ok, verdict.title) == (False, "These measurements cannot tell")
    assert "someone else" in verdict.reason


def own(first: Run, second: Run) -> str:
    verdict = exercises.check("gap-own", [first, second], "up")
    assert not verdict.ok
    return verdict.reason


def test_two_runs_must_differ_in_a_setting(make: Any) -> None:
    first = make("first")
    assert "the same run" in own(first, first)
    assert "is noise" in own(first, make("again"))


def test_two_runs_must_serve_the_same_files(make: Any) -> None:
    first = make("first")
    smaller = make("4 bit", slots=4, facts={"ollama": {"model_digest": "cc", "quantisation": "Q4_1"}})
    assert "4-bit" in own(first, smaller)
    unknown = [
        make(name, slots=n, facts={"vllm": {"model_digest": None}}) for name, n in (("a", 1), ("b", 2))
    ]
    assert "an unknown file" in own(*unknown)


def four_bit(first: Run, second: Run) -> str:
    verdict = exercises.check("gap-4bit", [first, second], 2)
    assert not verdict.ok
    return verdict.reason


def test_the_effect_of_a_file_needs_another_file_and_nothing_else(make: Any) -> None:
    first = make("first")
    assert "16 and 16 bits" in four_bit(first, make("same file"))
    assert "slots differ too" in four_bit(first, make("slots", FASTER, slots=4, facts=FOUR_BIT))
    unknown = {"ollama": {"quantisation": None}}
    assert "16 and None bits" in four_bit(first, make("unknown", FASTER, facts=unknown))
    said = {"profile": "cpu-x", "basis": "measured", "time_scale": 8.0, "band": {}}
    simulated = [
        make(
            name, kind="simulated", facts={"ollama": {**more, "simulated": said}, "vllm": {"simulated": said}}
        )
        for name, more in (("one", {}), ("two", FOUR_BIT["ollama"]))
    ]
    assert "profile cpu-x" in four_bit(*simulated)


def test_two_runs_must_come_from_one_machine_and_one_kind(make: Any) -> None:
    first, second = make("first"), make("second", slots=4)
    elsewhere = replace(second, meta={**second.meta, "host": {**second.meta["host"], "cpu": "another"}})
    assert "different machines" in own(first, elsewhere)
    assert "simulated" in own(first, make("simulated", slots=4, kind="simulated"))
    foreign = make("foreign", slots=4, verdict=Verdict("contaminated", ["someone else"]))
    assert "someone else" in own(first, foreign)


def test_two_changes_at_once_are_pointed_out(make: Any) -> None:
    second = make("second", FASTER, slots=4, workload=Workload(own_prompts=("Hello?",)))
    reason = exercises.check("gap-own", [make("first"), second], "up").reason
    assert "More than one thing was changed" in reason


def test_a_missing_run_raises_only_for_the_solution(make: Any) -> None:
    with pytest.raises(Missing):
        exercises.solution("gap-own", make("run"))
    with pytest.raises(UsageError):
        exercises.solution("gap-what", make("other"))


def test_verdicts_and_exercises_show_themselves(make: Any) -> None:
    verdict = exercises.check("gap-crossover", make("run"), 8)
    assert 'role="status"' in verdict._repr_html_()
    assert str(verdict).startswith("✓ Right (live run)")
    html = exercises.load()["gap-crossover"]._repr_html_()
    assert html.count("<details>") == 2


GOOD = (Path(__file__).parents[2] / "data" / "exercises" / "05_the_gap.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('kind = "number"', 'kind = "essay"', ("exercise gap-crossover, field kind", "essay")),
        ('rule = "widest"', 'rule = "wider"', ("wrong 3, field rule", "wider")),
        ('id = "gap-own"', 'id = "gap-mine"', ("field id", "gap-mine")),
        ('options = ["never"]', "", ("field options",)),
        ('options = ["up", "down", "same"]', "options = []", ("exercise gap-own, field options",)),
        ("hint =", "hints =", ("field hints", "not known")),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    (tmp_path / "x.toml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(SchemaError) as error:
        exercises.load(tmp_path)
    assert all(word in str(error.value) for word in ("x.toml", *words)), str(error.value)


def test_an_id_used_twice_is_named(tmp_path: Path) -> None:
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text(GOOD)
    with pytest.raises(SchemaError, match=r"b\.toml[\s\S]*gap-crossover is there twice"):
        exercises.load(tmp_path)
