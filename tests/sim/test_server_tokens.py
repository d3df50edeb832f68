"""Counting tokens without a tokenizer, and answers that are the same again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import paths
from labkit.bundle import Run
from labkit.sim.server import script, tokens
from labkit.workload import Workload

ASK = [{"role": "user", "content": "Write a long story about a clever fox."}]


@given(st.text())
def test_pieces_make_up_the_text(text: str) -> None:
    assert "".join(tokens.pieces(text)) == text


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("The capital of France is", ["The", " capital", " of", " France", " is"]),
        ("Story 42. Go", ["Story", " ", "4", "2", ".", " Go"]),
        ("it's\n\nSmolLM", ["it", "'s", "\n", "\n", "Smol", "LM"]),
    ],
)
def test_words_digits_and_marks(text: str, pieces: list[str]) -> None:
    assert tokens.pieces(text) == pieces


def test_a_system_message_takes_the_default_ones_place() -> None:
    own = [{"role": "system", "content": "Be brief."}, *ASK]
    assert "SmolLM" in tokens.chat(ASK)
    assert "SmolLM" not in tokens.chat(own)
    assert tokens.encode([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]) == tokens.encode(
        [{"role": "user", "content": "Hi"}]
    )


@pytest.mark.parametrize("limit", [None, 20])
def test_an_answer_sent_back_is_the_beginning_of_the_next_prompt(limit: int | None) -> None:
    prompt = tokens.encode(ASK)
    answer = script.write(prompt, limit)
    history = [*ASK, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "Go on."}]
    following = tokens.encode(history)
    assert following[: len(prompt) + len(answer.tokens)] == prompt + answer.tokens


def test_an_answer_says_what_it_is_and_is_the_same_again() -> None:
    prompt = tokens.encode(ASK)
    answer = script.write(prompt, None)
    assert answer == script.write(prompt, None)
    assert answer.text.startswith("This is a simulated answer.")
    assert script.SHORTEST <= len(answer.tokens) == len(answer.texts) <= script.LONGEST
    assert (answer.finish, answer.texts[-1]) == ("stop", "")
    assert script.write(prompt, None, choice=1).text != answer.text


def test_a_limit_cuts_and_ignoring_the_end_goes_up_to_it() -> None:
    prompt = tokens.encode(ASK)
    short, long = script.write(prompt, 7), script.write(prompt, 1000, ignore_eos=True)
    assert (len(short.tokens), short.finish) == (7, "length")
    assert (len(long.tokens), long.finish) == (1000, "length")
    assert long.text.startswith(short.text)
    assert script.write(prompt, 1000).finish == "stop"


def test_a_stop_word_ends_the_answer_before_it() -> None:
    stopped = script.write((1, 2), 64, stops=["no such word", " answer. It"])
    assert (stopped.text, stopped.finish, stopped.stop) == ("This is a simulated", "stop", " answer. It")
    assert len(stopped.tokens) == 7


def test_a_schema_binds_the_answer() -> None:
    schema = {
        "type": "object",
        "properties": {
            "word": {"enum": ["kumquat"]},
            "count": {"type": "integer", "minimum": 3},
            "parts": {"type": "array", "items": {"type": "boolean"}},
            "free": {"anyOf": [{"type": "null"}]},
        },
    }
    answer = script.write((1, 2), 64, schema=schema)
    assert json.loads(answer.text) == {"word": "kumquat", "count": 3, "parts": [True], "free": None}


RUNS = sorted(file.parent for file in (paths.data() / "calibration").glob("*/run.json"))


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_counts_are_near_those_of_the_real_tokenizer(folder: Path) -> None:
    run = Run.load(folder)
    told = run.meta["workload"]
    recipe = {key: told[key] for key in Workload.__dataclass_fields__ if key in told}  # as of then
    workload = Workload(**{**recipe, "own_prompts": tuple(recipe["own_prompts"])})
    errors = []
    for level in run.meta["levels"]:
        if level["warmup"] or level.get("drift"):
            continue
        rows = run.requests.filter(**{key: level[key] for key in ("arm", "level", "repeat", "warmup")}).sort(
            "id"
        )
        seed = f"{run.meta['seed']}/measure/{level['level']}/{level['repeat']}"
        prompts = workload.prompts(len(rows), seed)
        for prompt, real in zip(prompts, rows["prompt_tokens"], strict=True):
            if real is not None:
                errors.append(len(tokens.encode(prompt.messages)) / real - 1)
    assert len(errors) > 20
    assert sum(map(abs, errors)) / len(errors) < 0.01
    assert max(map(abs, errors)) < 0.06
