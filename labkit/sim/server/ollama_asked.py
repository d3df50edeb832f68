"""What a request asks of Ollama. The OpenAI-style API is translated to Ollama's own, as Ollama does it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from labkit.sim.server import tokens
from labkit.sim.server.replies import Refusal, texts
from labkit.sim.server.vllm_asked import schema_of

KEPT = 4
"""Tokens at the beginning that stay when a prompt is cut."""

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
DURATION = re.compile(r"[-+]?(\d+(\.\d*)?(h|ms|m|s|us|µs|ns))+|[-+]?0")


@dataclass(frozen=True)
class Asked:
    """The parts of a request on Ollama's own API that matter here.

    Attributes:
        messages: the conversation; empty if only the model is meant.
        raw: a prompt that goes without the chat template.
        limit: tokens that the answer may have; None: any number.
        context: tokens that prompt and answer may have together, if it says so.
        others: alternatives a token to tell probabilities of; None: none are asked for.
    """

    model: str
    messages: Sequence[Mapping[str, Any]]
    raw: str | None
    limit: int | None
    context: int | None
    stops: Sequence[str]
    schema: Any
    keep_alive_s: float | None
    truncate: bool
    stream: bool
    others: int | None

    @property
    def empty(self) -> bool:
        """Whether only the model is meant: load it, or unload it."""
        return not self.messages and not self.raw

    def prompt(self, context: int) -> tuple[int, ...]:
        """Its tokens: one that is too long loses its oldest messages, then its middle.

        Raises:
            Refusal: it is too long and must not be cut.
        """
        kept = list(self.messages)
        numbers = self._numbers(kept)
        if not self.truncate and len(numbers) >= context:
            raise Refusal(
                400,
                f"request ({len(numbers)} tokens) exceeds the available context size ({context} tokens), "
                "try increasing it",
            )
        while len(numbers) > context and (oldest := _oldest(kept)) is not None:
            del kept[oldest]
            numbers = self._numbers(kept)
        if len(numbers) < context:
            return numbers
        limit = (context + KEPT) // 2
        return (*numbers[:KEPT], *numbers[KEPT - limit :])

    def _numbers(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        return tokens.encode(messages) if self.raw is None else tokens.encode_text(self.raw)


def _oldest(messages: Sequence[Mapping[str, Any]]) -> int | None:
    """The message to leave out next: never the last one, nor the system's."""
    others = (i for i, message in enumerate(messages[:-1]) if message.get("role") != "system")
    return next(others, None)


def chat_asked(given: Mapping[str, Any]) -> Asked:
    """Read the body of ``/api/chat``.

    Raises:
        Refusal: as Ollama would.
    """
    messages = given.get("messages") or []
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _type_error("messages", "[]api.Message")
    return _asked(given, messages, None)


def generate_asked(given: Mapping[str, Any]) -> Asked:
    """Read the body of ``/api/generate``.

    Raises:
        Refusal: as Ollama would.
    """
    prompt = given.get("prompt") or ""
    if not isinstance(prompt, str):
        raise _type_error("prompt", "string")
    if given.get("raw"):
        return _asked(given, [], prompt)
    system = [{"role": "system", "content": given["system"]}] if given.get("system") else []
    return _asked(given, [*system, {"role": "user", "content": prompt}] if prompt else [], None)


def from_openai(given: Mapping[str, Any]) -> dict[str, Any]:
    """A request on the OpenAI-style API as one on Ollama's own; what it does not know is left out.

    Raises:
        Refusal: as Ollama would.
    """
    sampling = {"max_tokens": "num_predict", "stop": "stop", "temperature": "temperature", "seed": "seed"}
    options = {mine: given[name] for name, mine in sampling.items() if given.get(name) is not None}
    asked = {
        "model": given.get("model"),
        "options": options,
        "stream": bool(given.get("stream")),
        "tools": given.get("tools"),
        "logprobs": bool(given.get("logprobs")),
        "top_logprobs": given.get("top_logprobs"),
        "format": schema_of(given.get("response_format")),
    }
    if "messages" in given:
        return {**asked, "messages": given["messages"]}
    if not isinstance(given.get("prompt", ""), str):
        raise Refusal(
            400,
            "json: cannot unmarshal array into Go struct field CompletionRequest.prompt of type string",
        )
    return {**asked, "logprobs": False, "prompt": given.get("prompt")}


def _asked(given: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], raw: str | None) -> Asked:
    options = given.get("options") or {}
    if not isinstance(options, dict):
        raise _type_error("options", "map[string]interface {}")
    predict = _whole(options, "num_predict")
    return Asked(
        model=str(given.get("model") or ""),
        messages=messages,
        raw=raw,
        limit=predict if predict is not None and predict > 0 else None,
        context=_whole(options, "num_ctx"),
        stops=texts(options.get("stop")),
        schema=_schema(given.get("format")),
        keep_alive_s=keep_alive(given.get("keep_alive")),
        truncate=given.get("truncate") is not False,
        stream=given.get("stream") is not False,
        others=int(given.get("top_logprobs") or 0) if given.get("logprobs") else None,
    )


def keep_alive(given: Any) -> float | None:
    """Seconds for which a model is to be kept, from seconds or Go's notation; negative is for ever.

    Raises:
        Refusal: it is neither.
    """
    if given is None:
        return None
    if isinstance(given, str):
        if not DURATION.fullmatch(given):
            raise Refusal(400, f'time: invalid duration "{given}"')
        parts = re.findall(r"(\d+(?:\.\d*)?)(h|ms|m|s|us|µs|ns)", given)
        seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
        return inf if given.startswith("-") and seconds else seconds
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise Refusal(400, f"Unsupported type: '{type(given).__name__}'")
    return inf if given < 0 else float(given)


def _schema(wanted: Any) -> Any:
    return {"type": "object"} if wanted == "json" else wanted or None


def _whole(options: Mapping[str, Any], name: str) -> int | None:
    value = options.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal(400, f'option "{name}" must be of type integer')
    return int(value)


def _type_error(field: str, kind: str) -> Refusal:
    return Refusal(400, f"json: cannot unmarshal value into Go struct field .{field} of type {kind}")
