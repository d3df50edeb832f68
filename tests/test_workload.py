from __future__ import annotations

import pytest

from labkit.budget import BUDGETS, budget
from labkit.errors import UsageError
from labkit.workload import Workload


def test_the_same_seed_gives_the_same_prompts_and_another_gives_others() -> None:
    first, again, other = (Workload().prompts(20, seed) for seed in ("x", "x", "y"))
    assert first == again
    assert not {str(p.messages) for p in first} & {str(p.messages) for p in other}


def test_prompts_of_one_level_differ_from_their_start() -> None:
    texts = [p.messages[0]["content"] for p in Workload().prompts(50, "x")]
    assert len({text[:14] for text in texts}) == 50


def test_padding_reaches_the_number_of_words() -> None:
    (prompt,) = Workload(prompt_words=200).prompts(1, "x")
    assert len(prompt.messages[0]["content"].split()) == 200


def test_own_prompts_are_asked_in_turn_and_never_twice_the_same() -> None:
    texts = [p.messages[0]["content"] for p in Workload(own_prompts=("one?", "two?")).prompts(3, "x")]
    assert [text.split()[1] for text in texts] == ["one?", "two?", "one?"]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("bad", [{"output_tokens": 0}, {"prompt_words": -1}])
def test_impossible_lengths_are_refused_by_name(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        Workload(**bad)


def test_budgets_double_up_to_their_top_and_depend_on_the_device() -> None:
    assert budget("short").users("cpu") == [1, 2, 4, 8, 16]
    assert budget("normal").users("cuda:0 NVIDIA A100")[-1] == 128
    assert all(b.users("cpu")[0] == 1 for b in BUDGETS.values())


def test_an_unknown_budget_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="smoke, short, normal, long"):
        budget("huge")
