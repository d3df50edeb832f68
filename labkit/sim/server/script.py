"""What a simulated model writes: words without meaning, the same for the same prompt, and it says so."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from labkit import paths
from labkit.sim.server.tokens import END, number, pieces

PREFACE = "This is a simulated answer. It has the length of a real one but no meaning:"
SHORTEST, LONGEST = 150, 400
"""Tokens after which a model that is not stopped ends its answer; drawn by the prompt."""

SENTENCE = 9
"""Words in a sentence."""


@dataclass(frozen=True)
class Script:
    """A whole answer, known before it begins.

    Attributes:
        tokens: its token numbers.
        texts: what each adds to the text; the end of an answer, and what a stop word cuts off, adds nothing.
        finish: why it ends: "stop" or "length".
        stop: the stop word that ended it, if one did.
    """

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    finish: str
    stop: str | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)


def write(
    prompt: Sequence[int],
    limit: int | None,
    *,
    choice: int = 0,
    ignore_eos: bool = False,
    stops: Iterable[str] = (),
    schema: Any = None,
) -> Script:
    """The answer to a prompt.

    Args:
        limit: tokens that it may have; None: as many as the model wants.
        choice: which one, where several are asked for.
        ignore_eos: go on to the limit.
        stops: words before which it ends.
        schema: a JSON schema that it has to keep to.
    """
    if schema is not None:
        texts = [*pieces(json.dumps(instance(schema))), END]
    else:
        texts = answer(prompt, choice, limit, ignore_eos=ignore_eos)
    finish = "stop"
    if limit is not None and (texts[-1] != END or len(texts) > limit):
        texts, finish = texts[:limit], "length"
    tokens = tuple(map(number, texts))
    if texts[-1] == END:
        texts[-1] = ""
    return _stopped(Script(tokens, tuple(texts), finish), stops)


def answer(prompt: Sequence[int], choice: int, limit: int | None, *, ignore_eos: bool = False) -> list[str]:
    """Token texts of an answer: as many as the model wants, its end included, or up to the limit."""
    draw = Random(hash((*prompt, choice)))
    own = draw.randint(SHORTEST, LONGEST)
    length = own if limit is None or (limit > own and not ignore_eos) else limit
    texts = pieces(PREFACE)
    for index, word in enumerate(draw.choices(_words(), k=max(0, length - len(texts)))):
        begins = index > 0 and index % SENTENCE == 0
        texts += [".", f" {word.title()}"] if begins else [f" {word}"]
    if length == own and not ignore_eos:
        return [*texts[: own - 1], END]
    return texts[:length]


def instance(schema: Any) -> Any:
    """The simplest value that a JSON schema with the usual keywords allows."""
    if not isinstance(schema, dict):
        return "simulated"
    if "const" in schema:
        return schema["const"]
    for several in ("enum", "anyOf", "oneOf"):
        if schema.get(several):
            return schema["enum"][0] if several == "enum" else instance(schema[several][0])
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if kind == "object":
        return {name: instance(value) for name, value in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema.get("items"))] * max(1, int(schema.get("minItems", 1)))
    simple = {"integer": schema.get("minimum", 0), "number": schema.get("minimum", 0), "boolean": True}
    return None if kind == "null" else simple.get(str(kind), "simulated")


def logprobs(text: str, others: int) -> dict[str, Any]:
    """The probability of a token as OpenAI's chat API tells it: certain, since nothing here is drawn."""
    certain = {"token": text, "logprob": 0.0, "bytes": list(text.encode())}
    never: dict[str, Any] = {"token": "", "logprob": -9999.0, "bytes": []}
    return {**certain, "top_logprobs": [certain, *[never] * (others - 1)][:others]}


def _stopped(script: Script, stops: Iterable[str]) -> Script:
    text = script.text
    found = [(at + len(stop), at, stop) for stop in stops if stop and (at := text.find(stop)) >= 0]
    if not found:
        return script
    seen_by, at, stop = min(found)
    kept, length = [], 0
    for piece in script.texts:
        kept.append(piece[: max(0, at - length)])
        length += len(piece)
        if length >= seen_by:
            break
    return Script(script.tokens[: len(kept)], tuple(kept), "stop", stop)


@cache
def _words() -> list[str]:
    return (paths.data() / "prompts" / "plain.txt").read_text().split()
