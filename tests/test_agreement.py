"""Agreement of answers: what counts as the same, as right, and as shared."""

from __future__ import annotations

from dataclasses import replace

import pytest
from moved import AGREEMENT

from labkit import agreement
from labkit.errors import UsageError


def test_pairs_are_compared_engine_by_engine_and_with_themselves() -> None:
    rows = {row["compared"]: row for row in agreement.agreement(AGREEMENT).to_dicts()}
    assert list(rows) == ["ollama with vllm", "ollama with itself", "vllm with itself"]
    assert (rows["ollama with vllm"]["same"], rows["ollama with vllm"]["questions"]) == (1, 3)
    assert rows["ollama with vllm"]["words_until_apart"] == 3.5  # 5 words of one text, 2 of the other
    assert rows["ollama with itself"]["words_until_apart"] is None
    assert rows["vllm with itself"]["same"] == 2


def test_without_a_second_turn_only_the_engines_are_compared() -> None:
    once = [{k: v for k, v in event.items() if not k.endswith("_again")} for event in AGREEMENT.events]
    assert agreement.agreement(replace(AGREEMENT, events=tuple(once))).height == 1


def test_scores_count_words_and_not_parts_of_words() -> None:
    assert agreement.scores(AGREEMENT).rows() == [("ollama", 1, 2), ("vllm", 2, 2)]


@pytest.mark.parametrize(
    ("text", "wanted", "right"),
    [("It is paris!", "Paris", True), ("Parisian", "Paris", False), ("15", "5", False), ("= 5.", "5", True)],
)
def test_right(text: str, wanted: str, right: bool) -> None:
    assert agreement.right(text, wanted) == right


def test_texts_are_laid_side_by_side() -> None:
    rows = agreement.texts(AGREEMENT)
    assert rows["same"].to_list() == [False, True, False]
    assert rows["words_shared"].to_list() == [5, 1, 2]


def test_a_transcript_of_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match=r"lab\.agreement"):
        agreement.scores(replace(AGREEMENT, events=()))


def test_every_scored_question_has_a_wanted_word_that_its_prompt_does_not_give_away() -> None:
    scored = [one for one in agreement.QUESTIONS if one.wanted is not None]
    assert len(scored) >= 10
    assert not any(agreement.right(one.prompt, one.wanted or "") for one in scored)
