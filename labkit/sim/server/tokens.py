"""Text and token numbers without a tokenizer: a rule that counts about as many as SmolLM2's does.

A word is a token together with the space before it, a long word is several; digits and punctuation marks are
one each. The number of a token is a checksum of its text: equal texts are equal tokens, which is all that a
prefix cache looks at. How far the rule is off is in ``tests/sim/test_server_tokens.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What SmolLM2's chat template says before a conversation without a system message of its own."""

END = "<|im_end|>"
"""Ends a message; written by the model it ends its answer."""

PIECE = re.compile(
    r"<\|\w+\|>"
    r"| Sm(?=olLM)| H(?=ugging)|ass(?=istant\n)"  # of the template; words that the real one takes apart
    r"|'(?:s|t|re|ve|m|ll|d)(?![a-z])"
    r"| ?[A-Z]?[a-z]{1,11}"
    r"| ?[A-Z]{1,4}"
    r"| ?[^\W\d_]"
    r"|\d"
    r"| ?[^\w\s]|_"
    r"|\s+(?=\d|\s|$)|\s"
)
"""One token; together they cover any text."""


def pieces(text: str) -> list[str]:
    """The texts of its tokens, in order; joined they are the text again."""
    return PIECE.findall(text)


def number(piece: str) -> int:
    """The number of the token with this text."""
    return crc32(piece.encode("utf-8", "surrogatepass"))


def encode_text(text: str) -> tuple[int, ...]:
    """Token numbers of a text as it stands."""
    return tuple(map(number, pieces(text)))


def encode(messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Token numbers of a conversation in the chat template, up to where the answer begins."""
    return encode_text(chat(messages))


def chat(messages: Sequence[Mapping[str, Any]]) -> str:
    """The conversation in the chat template."""
    said = [(str(message.get("role", "user")), content(message.get("content"))) for message in messages]
    if not said or said[0][0] != "system":
        said.insert(0, ("system", SYSTEM))
    return "".join(f"<|im_start|>{role}\n{text}{END}\n" for role, text in said) + "<|im_start|>assistant\n"


def content(given: Any) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(given, list):
        return "".join(str(part.get("text", "")) for part in given if isinstance(part, dict))
    return "" if given is None else str(given)
