"""What is asked: prompts of a stated length, answers of a stated length, the same for every engine."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from labkit import paths
from labkit.errors import UsageError

OPENING, CLOSING = 8, 6
"""Tokens that SmolLM2's chat template puts around a system message and a question: before the question, and
behind it. Checked with the model's tokenizer, in which each of the common words is one token: W and V of them
make a prompt of OPENING + W + V + CLOSING tokens."""

NUMBER = "{number}"
"""Stands in a system message of the learner's own for a number that is new in each question."""


@dataclass(frozen=True)
class Prompt:
    """One question to send. ``messages`` for chat protocols, joined to plain text for the others."""

    messages: list[dict[str, str]]
    output_tokens: int
    group: str | None = None


@dataclass(frozen=True)
class Workload:
    """A recipe for prompts; the same recipe and seed give the same prompts on every machine.

    Attributes:
        name: label in bundles and captions.
        output_tokens: length that every answer is asked to have. Ollama cannot be told to go on past the
            model's own end, so the prompts ask for long stories and the run counts what really came.
        prompt_words: the question is padded with common words to about this many; None asks it bare.
            Common English words are about one token each, so this approximates a token count without a
            tokenizer; what the engine really counted is in ``prompt_tokens``.
        shared_words: that many common words, the same for all questions, come before each of them: a prefix
            that an engine may have in its cache.
        own_prompts: the learner's own questions, used instead of the built-in ones, in turn; each is asked
            with a number before it, since a question asked twice would be answered from a prompt cache.
        system: the learner's own system message, before each question; :data:`NUMBER` in it is replaced.
        system_words: the system message is that many common words, the same for all questions of a level and
            repeat, and others at the next.
        documents, document_words: one of so many texts of so many common words comes before each question, in
            turn; new ones at each level and repeat.
        turns: questions come from conversations of so many turns, one conversation after the other; each
            resends the whole conversation so far, as an agent does. The answers in it are made of common
            words, since the real ones are not known when questions are planned; a turn is ``prompt_words``
            long.
        total_tokens: each question is common words alone, and exactly that many tokens long in the course's
            models, the chat template's included …
        shared_tokens: … of which that many, in the system message, are the same for all questions of a level
            and repeat; the first token behind them is another in each question.

    Raises:
        UsageError: fields that make no sense, alone or together.
    """

    name: str = "stories"
    output_tokens: int = 64
    prompt_words: int | None = None
    shared_words: int | None = None
    own_prompts: tuple[str, ...] = ()
    system: str | None = None
    system_words: int | None = None
    documents: int | None = None
    document_words: int | None = None
    turns: int | None = None
    total_tokens: int | None = None
    shared_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, int) and value < 1:
                raise UsageError(f"make a workload with {name}={value}", "it must be 1 or more", "")
        if (self.documents is None) != (self.document_words is None):
            seen = f"documents={self.documents}, document_words={self.document_words}"
            raise UsageError("make a workload with documents", seen, "give both")
        least, most = OPENING + 1, (self.total_tokens or 0) - CLOSING - 1
        if self.total_tokens is not None and not least <= (self.shared_tokens or least) <= most:
            raise UsageError(
                f"share {self.shared_tokens or least} of {self.total_tokens} tokens",
                f"{OPENING} are the chat template's before the question and {CLOSING} behind it",
                f"share {least} at least, and leave {CLOSING + 1} at least to each question",
            )

    def prompts(self, count: int, seed: str) -> list[Prompt]:
        """``count`` prompts for one level; another seed gives other prompts, so nothing is answered from a
        cache that an earlier level has filled."""
        rng = random.Random(f"{self.name}/{seed}")
        if self.total_tokens is not None:
            return self._counted(count, self.total_tokens, rng)
        systems = self._systems(count, rng)
        asked, groups = self._questions(count, rng)
        if self.turns is not None:
            return self._conversations(systems, asked, self.turns, rng)
        return [
            Prompt([*system, _said("user", text)], self.output_tokens, group)
            for system, text, group in zip(systems, asked, groups, strict=True)
        ]

    def _questions(self, count: int, rng: random.Random) -> tuple[list[str], list[str | None]]:
        """The texts of the questions, and what each has in common with some of the others."""
        if self.own_prompts:
            own = self.own_prompts
            texts = [f"({rng.randrange(10**6)}) {own[i % len(own)]}" for i in range(count)]
        else:
            texts = [self._story(rng) for _ in range(count)]
        groups: list[str | None] = [None] * count
        if self.shared_words is not None:
            shared = random.Random(self.name).choices(_words()["plain"], k=self.shared_words)
            texts = [f"{' '.join(shared)}. {text}" for text in texts]
        if self.documents is not None:
            read = [common_words(self.document_words or 0, rng) for _ in range(self.documents)]
            texts = [f"{read[i % len(read)]}.\n\n{text}" for i, text in enumerate(texts)]
            groups = [f"document {i % len(read) + 1}" for i in range(count)]
        return texts, groups

    def _systems(self, count: int, rng: random.Random) -> list[list[dict[str, str]]]:
        """The system message before each question, in a list that is empty where there is none."""
        if self.system is not None:
            # digits are a token each: the numbers are equally long
            texts = [self.system.replace(NUMBER, str(rng.randrange(10**5, 10**6))) for _ in range(count)]
        elif self.system_words is not None:
            texts = [common_words(self.system_words, rng)] * count
        else:
            return [[]] * count
        return [[_said("system", text)] for text in texts]

    def _conversations(
        self, systems: list[list[dict[str, str]]], asked: list[str], turns: int, rng: random.Random
    ) -> list[Prompt]:
        prompts, said = [], list[dict[str, str]]()
        for number, (system, text) in enumerate(zip(systems, asked, strict=True)):
            if number % turns == 0:
                said = []
            group = f"conversation {number // turns + 1}"
            prompts.append(Prompt([*system, *said, _said("user", text)], self.output_tokens, group))
            answer = _said("assistant", common_words(self.output_tokens, rng))
            said = [*said, _said("user", text), answer]
        return prompts

    def _counted(self, count: int, total: int, rng: random.Random) -> list[Prompt]:
        shared = self.shared_tokens or OPENING + 1
        system = _said("system", common_words(shared - OPENING, rng))
        firsts = _first_words()
        if count > len(firsts):
            raise UsageError(
                f"ask {count} questions with {shared} tokens in common",
                f"there are {len(firsts)} words to tell them apart by their first",
                f"ask {len(firsts)} at most",
            )
        rest = total - shared - CLOSING - 1
        own = [" ".join([first, *_chosen(rest, rng)]) for first in rng.sample(firsts, count)]
        group = f"{shared} tokens"
        return [Prompt([system, _said("user", text)], self.output_tokens, group) for text in own]

    def _story(self, rng: random.Random) -> str:
        words = _words()
        hero, place, thing = (rng.choice(words[kind]) for kind in ("hero", "place", "thing"))
        # the number keeps two equal draws apart, and comes first so that no cached prefix is shared
        ask = (
            f"Story {rng.randrange(10**6)}. Write a long story of many paragraphs about "
            f"{hero} who finds {thing} {place}."
        )
        missing = (self.prompt_words or 0) - len(ask.split())
        if missing <= 0:
            return ask
        return f"{ask} Use these words: {' '.join(rng.choices(words['plain'], k=missing - 3))}"

    def asked_in(self, described: Mapping[str, Any]) -> bool:
        """Whether a run whose ``run.json`` describes its workload so asked these questions."""
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in self.as_dict().items()}
        return all(described.get(name) == value for name, value in plain.items())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``run.json``."""
        return asdict(self)

    def in_short(self) -> dict[str, Any]:
        """The same as JSON has it, without what is not set."""
        told: dict[str, Any] = orjson.loads(orjson.dumps(self.as_dict()))
        return {name: value for name, value in told.items() if value}


THREE: Mapping[str, Workload] = {
    "system prompt": Workload("system prompt", output_tokens=16, system_words=400),
    "documents": Workload("documents", output_tokens=16, documents=3, document_words=300),
    "agent": Workload("agent", output_tokens=16, system_words=200, turns=6, prompt_words=60),
}
"""Three ways to share: one system prompt for all, a few documents that several questions are about (as in
retrieval), and an agent that resends its growing history."""


def _said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def common_words(count: int, rng: random.Random) -> str:
    """So many common words, each of which is one token in the course's models, also at the beginning."""
    return " ".join([rng.choice(_first_words()), *_chosen(count - 1, rng)])


def _chosen(count: int, rng: random.Random) -> list[str]:
    return rng.choices(_words()["plain"], k=count)


def _first_words() -> list[str]:
    """Common words that are one token also where no space comes before them."""
    return [word for word in _words()["plain"] if word not in {"guy", "morning"}]


def _words() -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for path in sorted((paths.data() / "prompts").glob("*.txt")):
        lists[path.stem] = _lines(path)
    return lists


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line]
