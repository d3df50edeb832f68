from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from labkit.budget import BUDGETS, budget
from labkit.errors import UsageError
from labkit.sim.server import tokens
from labkit.workload import THREE, Prompt, Workload


def common(first: Prompt, second: Prompt) -> int:
    """Tokens with which two prompts begin alike, by the rule that counts these words as SmolLM2 does."""
    pairs = zip(tokens.encode(first.messages), tokens.encode(second.messages), strict=False)
    return next(i for i, (one, other) in enumerate(pairs) if one != other)


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
def test_impossible_lengths_are_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        Workload(**bad)


@pytest.mark.parametrize("shared", [9, 127, 128, 384])
def test_counted_prompts_share_so_many_tokens_and_not_one_more(shared: int) -> None:
    prompts = Workload("p", total_tokens=448, shared_tokens=shared).prompts(8, "x")
    assert {len(tokens.encode(prompt.messages)) for prompt in prompts} == {448}
    assert {common(prompts[i], prompts[j]) for i in range(8) for j in range(i)} == {shared}
    other = Workload("p", total_tokens=448, shared_tokens=shared).prompts(1, "y")[0]
    assert common(prompts[0], other) < 9


@pytest.mark.parametrize(
    "bad",
    [
        {"total_tokens": 448, "shared_tokens": 8},
        {"total_tokens": 448, "shared_tokens": 442},
        {"total_tokens": 14},
        {"documents": 3},
        {"document_words": 100},
    ],
)
def test_what_cannot_be_shared_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Workload(**bad)


def test_more_questions_than_first_words_are_refused() -> None:
    with pytest.raises(UsageError, match="ask 109 at most"):
        Workload(total_tokens=448, shared_tokens=64).prompts(110, "x")


def test_one_system_prompt_is_shared_by_all() -> None:
    first, *others = THREE["system prompt"].prompts(4, "x")
    assert all(common(first, other) > 400 for other in others)
    assert {message["role"] for message in first.messages} == {"system", "user"}


def test_documents_come_before_their_questions_in_turn() -> None:
    prompts = THREE["documents"].prompts(6, "x")
    assert [prompt.group for prompt in prompts] == 2 * ["document 1", "document 2", "document 3"]
    assert common(prompts[0], prompts[3]) > 300
    assert common(prompts[0], prompts[1]) < 30


def test_an_agent_resends_all_that_was_said() -> None:
    prompts = THREE["agent"].prompts(8, "x")
    for before, after in pairwise(prompts[:6]):
        assert after.messages[: len(before.messages)] == before.messages
        assert [message["role"] for message in after.messages[-2:]] == ["assistant", "user"]
    assert [prompt.group for prompt in prompts[5:]] == ["conversation 1", "conversation 2", "conversation 2"]
    assert len(prompts[6].messages) == len(prompts[0].messages)


def test_a_number_in_the_own_system_message_is_new_in_each_question() -> None:
    last = Workload(system="Be kind. Ticket {number}", own_prompts=("one?",)).prompts(3, "x")
    first = Workload(system="Ticket {number}. Be kind", own_prompts=("one?",)).prompts(3, "x")
    assert len({prompt.messages[0]["content"] for prompt in last}) == 3
    assert common(last[0], last[1]) > common(first[0], first[1])
    lengths = {len(tokens.encode(prompt.messages)) for prompt in last}
    assert len(lengths) == 1


def test_a_workload_in_short_names_what_is_set() -> None:
    assert Workload("w", system_words=9, own_prompts=("a",)).in_short() == {
        "name": "w",
        "output_tokens": 64,
        "own_prompts": ["a"],
        "system_words": 9,
    }


def test_budgets_double_up_to_their_top_and_depend_on_the_device() -> None:
    assert budget("short").users("cpu") == [1, 2, 4, 8, 16]
    assert budget("normal").users("cuda:0 NVIDIA A100")[-1] == 128
    assert all(b.users("cpu")[0] == 1 for b in BUDGETS.values())


def test_an_unknown_budget_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="smoke, short, normal, long"):
        budget("huge")
