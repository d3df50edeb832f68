"""What a request asks of vLLM, checked as vLLM checks it and refused in its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.sim.server.replies import Refusal, texts

COMPLETION_TOKENS = 16
"""Length of a completion that does not say how long it may be."""

MOST_STOPS = 4
"""Stop words that a request may name."""


@dataclass(frozen=True)
class Asked:
    """The parts of a request that matter here; ``longest`` is None where it does not say."""

    longest: int | None
    longest_name: str
    choices: int
    stream: bool
    usage: bool
    continuous_usage: bool
    ignore_eos: bool
    stops: Sequence[str]
    schema: Any
    logprobs: int | None  # alternatives a token; None: not asked for
    echo: bool

    def limit(self, prompt: int, context: int) -> int:
        """Tokens that the answer to a prompt of this length may have.

        Raises:
            Refusal: prompt or answer do not fit into the context.
        """
        if self.longest is not None and self.longest > context:
            raise Refusal(
                400,
                f"{self.longest_name}={self.longest} cannot be greater than max_model_len={context}. "
                "Please request fewer output tokens.",
                "BadRequestError",
                self.longest_name,
            )
        if prompt > context:
            raise Refusal(
                400,
                f"This model's maximum context length is {context} tokens. However, your prompt contains "
                f"{prompt} input tokens, which exceeds this limit even without any output tokens. Please "
                "reduce the length of the input prompt.",
                "BadRequestError",
                "input_tokens",
            )
        limit = context - prompt if self.longest is None else min(self.longest, context - prompt)
        if limit < 1:
            raise Refusal(
                400, f"max_tokens must be at least 1, got {limit}.", "BadRequestError", "max_tokens"
            )
        return limit


def invalid(field: str, message: str) -> Refusal:
    """What FastAPI says of a body that is not as declared."""
    where = f"body.{field}" if field else "body"
    return Refusal(
        400, f"1 validation error:\n  {{'loc': '{where}', 'msg': '{message}'}}", "Bad Request", where
    )


def chat_asked(raw: Mapping[str, Any]) -> Asked:
    """Check the body of a chat request.

    Raises:
        Refusal: as vLLM would.
    """
    messages = raw.get("messages")
    if not isinstance(messages, list):
        raise invalid("messages", "Field required" if messages is None else "Input should be a valid list")
    if not all(isinstance(message, dict) and "role" in message for message in messages):
        raise invalid("messages", "Field required")
    if not messages:
        raise Refusal(
            400,
            "Cannot apply chat template to an empty conversation. Provide at least one message.",
            "BadRequestError",
        )
    if raw.get("tools") and raw.get("tool_choice", "auto") != "none":
        raise Refusal(
            400,
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            "BadRequestError",
        )
    name = "max_tokens" if raw.get("max_completion_tokens") is None else "max_completion_tokens"
    others = _whole(raw, "top_logprobs") or 0
    return _asked(raw, name, _whole(raw, name), others if raw.get("logprobs") else None)


def completion_asked(raw: Mapping[str, Any]) -> tuple[Asked, Sequence[Any]]:
    """Check the body of a completion request; also its prompts, texts or token numbers.

    Raises:
        Refusal: as vLLM would.
    """
    prompt = raw.get("prompt")
    if not isinstance(prompt, str | list) or prompt == []:
        raise invalid("prompt", "Field required" if prompt is None else "Input should be a valid string")
    longest = _whole(raw, "max_tokens")
    asked = _asked(raw, "max_tokens", COMPLETION_TOKENS if longest is None else longest, None)
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    return asked, prompt if several else [prompt]


def _asked(raw: Mapping[str, Any], name: str, longest: int | None, logprobs: int | None) -> Asked:
    _check_sampling(raw)
    if len(texts(raw.get("stop"))) > MOST_STOPS:
        raise invalid("stop", f"List should have at most {MOST_STOPS} items after validation")
    options = raw.get("stream_options") or {}
    streaming = bool(raw.get("stream"))
    if options and not streaming:
        raise Refusal(
            400,
            "Stream options can only be defined when `stream=True`.",
            "BadRequestError",
            "stream_options",
        )
    return Asked(
        longest=longest,
        longest_name=name,
        choices=_choices(raw),
        stream=streaming,
        usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        ignore_eos=bool(raw.get("ignore_eos")),
        stops=texts(raw.get("stop")),
        schema=schema_of(raw.get("response_format")),
        logprobs=logprobs,
        echo=bool(raw.get("echo")),
    )


def schema_of(wanted: Any) -> Any:
    """The JSON schema that OpenAI's ``response_format`` asks for; None if the answer is free."""
    if not isinstance(wanted, dict) or wanted.get("type") not in ("json_schema", "json_object"):
        return None
    return (wanted.get("json_schema") or {}).get("schema", {"type": "object"})


def _choices(raw: Mapping[str, Any]) -> int:
    choices = _whole(raw, "n")
    if choices is None:
        return 1
    if choices < 1:
        raise Refusal(400, f"n must be at least 1, got {choices}.", "BadRequestError", "n")
    return choices


def _check_sampling(raw: Mapping[str, Any]) -> None:
    for name, low, high, words in (
        ("temperature", 0.0, 2.0, "in [0, 2]"),
        ("top_p", 0.0, 1.0, "in (0, 1]"),
        ("presence_penalty", -2.0, 2.0, "in [-2, 2]"),
        ("frequency_penalty", -2.0, 2.0, "in [-2, 2]"),
    ):
        value = raw.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(name, "Input should be a valid number")
        if not low <= value <= high:
            raise Refusal(400, f"{name} must be {words}, got {float(value)}.", "BadRequestError", name)


def _whole(raw: Mapping[str, Any], name: str) -> int | None:
    value = raw.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise invalid(name, "Input should be a valid integer")
    return value
