"""What is asked: prompts of a stated length, answers of a stated length, the same for every engine."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labkit import paths
from labkit.errors import UsageError


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
    """

    name: str = "stories"
    output_tokens: int = 64
    prompt_words: int | None = None
    shared_words: int | None = None
    own_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("output_tokens", "prompt_words", "shared_words"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"make a workload with {name}={value}", "it must be 1 or more", "")

    def prompts(self, count: int, seed: str) -> list[Prompt]:
        """``count`` prompts for one level; another seed gives other prompts, so nothing is answered from a
        cache that an earlier level has filled."""
        rng = random.Random(f"{self.name}/{seed}")
        if self.own_prompts:
            own = self.own_prompts
            texts = [f"({rng.randrange(10**6)}) {own[i % len(own)]}" for i in range(count)]
        else:
            texts = [self._story(rng) for _ in range(count)]
        if self.shared_words is not None:
            shared = random.Random(self.name).choices(_words()["plain"], k=self.shared_words)
            texts = [f"{' '.join(shared)}. {text}" for text in texts]
        return [Prompt([{"role": "user", "content": text}], self.output_tokens) for text in texts]

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


def _words() -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for path in sorted((paths.data() / "prompts").glob("*.txt")):
        lists[path.stem] = _lines(path)
    return lists


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line]
