"""Do two servers write the same at temperature 0, and are their answers equally right?

Greedy decoding is not a promise of equal text: engines round differently, and one token that comes out
otherwise changes all that follow. So three things are told apart: whether the texts agree, whether each
engine agrees with itself when it is asked again, and how many questions with a known answer each gets right.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import polars as pl

from labkit.arms import Arm
from labkit.demos.contract import about_both, answer
from labkit.engines.base import Progress
from labkit.errors import UsageError
from labkit.transcript import Event, Transcript

OPEN_TOKENS, SCORED_TOKENS = 40, 12


@dataclass(frozen=True)
class Question:
    """A prompt; with ``wanted`` it is one of the scored ones, right if that word is in the answer."""

    prompt: str
    wanted: str | None = None


QUESTIONS = (
    Question("Write one sentence about the sea."),
    Question("Explain what a queue is in two sentences."),
    Question("Name three animals that live in the forest."),
    Question("Describe a winter morning in two sentences."),
    Question("Give one piece of advice to a new cook."),
    Question("Why is the sky blue? Answer in two sentences."),
    Question("What is the capital of France? Answer with one word.", "Paris"),
    Question("What is the capital of Italy? Answer with one word.", "Rome"),
    Question("What is the capital of Japan? Answer with one word.", "Tokyo"),
    Question("What is the capital of Egypt? Answer with one word.", "Cairo"),
    Question("What is 2 + 3? Answer with the number only.", "5"),
    Question("What is 10 - 4? Answer with the number only.", "6"),
    Question("What is 3 times 3? Answer with the number only.", "9"),
    Question("Which is the opposite of hot? Answer with one word.", "cold"),
    Question("How many days has a week? Answer with the number only.", "7"),
    Question("Which colour do you get from blue and yellow? Answer with one word.", "green"),
)
"""Six open ones, then ten that are scored: enough to see that texts differ, too few to tell who is better."""


async def compare(
    kind: str,
    arms: Sequence[Arm],
    say: Progress,
    *,
    questions: Sequence[Question] = QUESTIONS,
    again: bool = True,
) -> Transcript:
    """Ask both engines the same, greedily, one after the other.

    Events: "question" with prompt, wanted, and for each engine its text and, if it was asked ``again``, its
    second text under ENGINE_again.

    Args:
        kind: "live" or "simulated".
        arms: two engines, which are running, each with its name for the model.

    Raises:
        EngineError: an engine does not answer, or refuses.
    """
    began = time.monotonic()
    texts: dict[str, list[str]] = {}
    for arm in arms:
        for turn in ("", "_again") if again else ("",):
            name = f"{arm.engine.name}{turn}"
            texts[name] = [await _greedy(arm, one) for one in questions]
            say(f"{name.replace('_', ' ')}: {len(questions)} answers")
    took_s = round(time.monotonic() - began, 3)
    events: list[Event] = [
        {
            "t_s": took_s,
            "what": "question",
            "prompt": one.prompt,
            "wanted": one.wanted,
            **{name: answers[number] for name, answers in texts.items()},
        }
        for number, one in enumerate(questions)
    ]
    return Transcript("agreement", kind, await about_both(arms), tuple(events))


async def _greedy(arm: Arm, question: Question) -> str:
    tokens = OPEN_TOKENS if question.wanted is None else SCORED_TOKENS
    return await answer(
        arm,
        {
            "messages": [{"role": "user", "content": question.prompt}],
            "max_tokens": tokens,
            "temperature": 0,
        },
    )


def texts(transcript: Transcript) -> pl.DataFrame:
    """One row a question: prompt, both texts, whether they are the same, and how many words they share from
    the beginning on.

    Raises:
        UsageError: the transcript has no questions.
    """
    return pl.DataFrame(
        [
            {
                "prompt": event["prompt"],
                "ollama": event["ollama"],
                "vllm": event["vllm"],
                "same": event["ollama"] == event["vllm"],
                "words_shared": shared_words(event["ollama"], event["vllm"]),
            }
            for event in _questions(transcript)
        ]
    )


def agreement(transcript: Transcript) -> pl.DataFrame:
    """One row a pair of answers: who was compared with whom, how many texts are the same, and how many words
    the others share from the beginning on (median; null if all are the same).

    Raises:
        UsageError: the transcript has no questions.
    """
    events = _questions(transcript)
    pairs = [("ollama", "vllm"), ("ollama", "ollama_again"), ("vllm", "vllm_again")]
    rows = []
    for first, second in pairs:
        if second not in events[0]:
            continue
        both = [(event[first], event[second]) for event in events]
        apart = [shared_words(one, other) for one, other in both if one != other]
        rows.append(
            {
                "compared": f"{first} with {'itself' if second.endswith('again') else second}",
                "questions": len(both),
                "same": len(both) - len(apart),
                "words_until_apart": statistics.median(apart) if apart else None,
            }
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def scores(transcript: Transcript) -> pl.DataFrame:
    """One row an engine: how many scored questions it got right, and of how many.

    Raises:
        UsageError: the transcript has no questions.
    """
    events = [event for event in _questions(transcript) if event["wanted"] is not None]
    return pl.DataFrame(
        [
            {
                "engine": engine,
                "right": sum(right(event[engine], event["wanted"]) for event in events),
                "of": len(events),
            }
            for engine in ("ollama", "vllm")
        ]
    )


def right(text: str, wanted: str) -> bool:
    """Whether the wanted word is in the text as a word, in either case."""
    return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", text, re.IGNORECASE) is not None


def shared_words(one: str, other: str) -> int:
    """How many words two texts have in common from the beginning on."""
    pairs = zip(one.split(), other.split(), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _questions(transcript: Transcript) -> list[Event]:
    if not (events := transcript.of("question")):
        raise UsageError(
            f"compare the answers in {transcript.name}",
            "it has none",
            "give the result of lab.agreement()",
        )
    return events
