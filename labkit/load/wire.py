"""The wire protocols, without any I/O: the bytes to send and what the bytes of an answer say.

An :class:`Answer` is fed the body of one reply, cut anywhere, with the clock reading of each piece. What
counts as a token is decided here and nowhere else:

* a chunk with non-empty content, reasoning or a tool call; never a role-only or an empty chunk;
* a chunk may hold several tokens. With usage in every chunk the differences tell how many; otherwise a chunk
  is recorded as one token and the total is corrected from the final usage (``output_tokens``);
* an answer is complete when it carried a finish_reason or ``[DONE]`` (OpenAI), or a line with ``done: true``
  (Ollama). Anything else is a failure, however many tokens came. What follows the last word is ignored;
* a count or duration that cannot be one (null, negative, text) is none: the answer came whole without it.

A server that answers a streaming request with one JSON object is reported as failed: neither TTFT nor ITL of
such an answer can be seen from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from labkit.load.plan import Plan
from labkit.workload import Prompt

Record = Callable[[float, int, bool], None]
"""Receives each token chunk: time, tokens in it, whether it shared a read with the chunk before."""

ROUTES = {
    "openai-chat": "/v1/chat/completions",
    "openai-completions": "/v1/completions",
    "ollama-chat": "/api/chat",
    "ollama-generate": "/api/generate",
}

_BOM = b"\xef\xbb\xbf"
_QUOTE = 160  # bytes of a malformed line that are quoted
_MOST = 2**16 - 1  # tokens in a chunk that a record can hold
_ABSURD = 2**31  # tokens that no answer has
_NO_ANSWER = ("abort", "error", "load", "unload")  # reasons to finish that no whole answer has


class BadAnswer(Exception):
    """The answer broke its protocol or carried an error; the text says how."""


def endpoint(base_path: str, protocol: str) -> str:
    """Path of the request for a url that ends in the server's root or in ``/v1``."""
    return base_path.rstrip("/").removesuffix("/v1") + ROUTES[protocol]


def body(plan: Plan, prompt: Prompt) -> bytes:
    """The JSON body that asks for a streamed answer of ``prompt.output_tokens`` tokens at most."""
    asked: dict[str, Any] = {"model": plan.model, "stream": True}
    if plan.protocol in ("openai-chat", "ollama-chat"):
        asked["messages"] = prompt.messages
    else:
        asked["prompt"] = "\n".join(message["content"] for message in prompt.messages)
    if plan.protocol.startswith("openai"):
        asked |= {
            "stream_options": {"include_usage": True},
            "max_tokens": prompt.output_tokens,
            "temperature": plan.temperature,
        }
        if plan.ignore_eos:
            asked["ignore_eos"] = True
    else:
        # num_ctx is left alone: another value than the loaded one would make Ollama reload the model.
        asked["options"] = {"num_predict": prompt.output_tokens, "temperature": plan.temperature}
    for name, value in plan.extra_body.items():
        merge = isinstance(value, dict) and isinstance(asked.get(name), dict)
        asked[name] = {**asked[name], **value} if merge else value
    return orjson.dumps(asked)


def error_text(reply: bytes) -> str:
    """The message in an error reply of any of the servers, at most 300 characters."""
    try:
        found: Any = orjson.loads(reply)
    except orjson.JSONDecodeError:
        found = reply.decode("utf-8", "replace")
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    text = found if isinstance(found, str) else orjson.dumps(found).decode()
    return text.strip()[:300]


class Answer:
    """One streamed reply: times of its first and last tokens, counts, and how it ended.

    All times are the clock readings that :meth:`feed` was given; None until it happens.
    """

    __slots__ = (
        "_continuous",
        "_counted",
        "_record",
        "_tail",
        "cached_tokens",
        "chunks",
        "decode_s",
        "done_s",
        "finish_reason",
        "first_reasoning_s",
        "first_token_s",
        "last_token_s",
        "load_s",
        "output_tokens",
        "prefill_s",
        "prompt_tokens",
        "role_s",
    )
    unterminated = ""  # what to say of a stream that just ended

    def __init__(self, record: Record) -> None:
        self._record = record
        self._tail = b""
        self._continuous = True  # every token chunk so far carried usage
        self._counted = 0  # tokens recorded so far
        self.chunks = 0
        self.role_s: float | None = None
        self.first_reasoning_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self.done_s: float | None = None  # [DONE] or done: true
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None  # as the server counted them
        self.cached_tokens: int | None = None
        self.load_s: float | None = None
        self.prefill_s: float | None = None
        self.decode_s: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens generated: the server's count, or those recorded while there is none.

        A count of 0 beside chunks with text is none either.
        """
        return self.output_tokens or self._counted

    @property
    def unmetered(self) -> bool:
        """Whether chunks had to be counted instead of tokens."""
        return self.chunks > 0 and not self.output_tokens

    @property
    def corrected(self) -> int:
        """Tokens that the server counted beyond those recorded from chunks."""
        return self.tokens - self._counted

    def feed(self, data: bytes, now: float) -> None:
        """Take the next piece of the body, read from the socket at ``now``.

        Raises:
            BadAnswer: malformed line or an error object in the stream.
        """
        raise NotImplementedError

    def flaw(self) -> str | None:
        """Why the answer is not whole, None if it is."""
        if self.done_s is None and self.finish_reason is None:
            return self.unterminated
        if self.finish_reason in _NO_ANSWER:
            return f"the server gave up: finish_reason {self.finish_reason!r}"
        if self.chunks == 0 and self.finish_reason is None:
            return "empty answer: the stream ended properly but had neither a token nor a finish_reason"
        return None

    def finish(self, now: float) -> None:
        """The body is over: take an event whose closing newline never came.

        Raises:
            BadAnswer: as :meth:`feed`.
        """
        self.feed(b"\n\n", now)

    def _token(self, now: float, usage: dict[str, Any] | None) -> None:
        n = 1
        total = _count(usage.get("completion_tokens")) if usage and self._continuous else None
        if total is None:
            self._continuous = False
        else:
            n = min(max(total - self._counted, 0), _MOST)
        if self.first_token_s is None:
            self.first_token_s = now
        self._record(now, n, now == self.last_token_s)
        self.last_token_s = now
        self.chunks += 1
        self._counted += n


class OpenAIAnswer(Answer):
    """Server-sent events with OpenAI chunks. Subclasses look for the text in a choice."""

    __slots__ = ("_data", "_event")
    unterminated = "stream ended without finish_reason and without [DONE]"

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._data: bytes | None = None  # data lines of the event that is being read
        self._event = b""

    def feed(self, data: bytes, now: float) -> None:
        lines = (self._tail + data).split(b"\n")
        self._tail = lines.pop()
        for line in lines:
            if self.done_s is not None:
                return
            if line.startswith(b"data:"):
                self._data = line[5:] if self._data is None else self._data + b"\n" + line[5:]
            elif line and line != b"\r":
                self._other_line(line)
            else:
                kind, event = self._event, self._data
                self._event, self._data = b"", None
                if event and not event.isspace():  # an event without data is nothing, says the standard
                    self._dispatch(kind, event, now)

    def _other_line(self, line: bytes) -> None:
        """A comment, another field, the first line behind a byte order mark, or rubbish."""
        if line.startswith(_BOM) and self._data is None:
            rest = line.removeprefix(_BOM)
            if rest.startswith(b"data:"):
                self._data = rest[5:]
                return
            line = rest.strip() or b":"
        name, _, value = line.partition(b":")
        if name == b"event":
            self._event = value.strip()
        elif name not in (b"", b"id", b"retry", b"data"):
            raise BadAnswer(f"malformed SSE line: {line[:_QUOTE]!r}")

    def _dispatch(self, kind: bytes, event: bytes, now: float) -> None:
        if kind == b"error":
            raise BadAnswer(f"error in the stream: {error_text(event)}")
        try:
            chunk = orjson.loads(event)
        except orjson.JSONDecodeError as error:
            if event.strip() == b"[DONE]":
                self.done_s = now
                return
            raise BadAnswer(f"malformed event, not JSON: {event[:_QUOTE]!r}") from error
        try:
            self._chunk(chunk, now)
        except (AttributeError, KeyError, TypeError) as error:
            raise BadAnswer(f"malformed event, unexpected shape: {event[:_QUOTE]!r}") from error

    def _chunk(self, chunk: dict[str, Any], now: float) -> None:
        if chunk.get("error"):
            raise BadAnswer(f"error in the stream: {error_text(orjson.dumps(chunk))}")
        usage = chunk.get("usage")
        choices = chunk.get("choices")
        if choices:
            choice = choices[0]
            self._choice(choice, usage, now)
            if reason := choice.get("finish_reason"):
                self.finish_reason = str(reason)
        if usage:
            self.prompt_tokens = _count(usage.get("prompt_tokens"))
            self.output_tokens = _count(usage.get("completion_tokens"))
            if details := usage.get("prompt_tokens_details"):
                self.cached_tokens = _count(details.get("cached_tokens"))

    def _choice(self, choice: dict[str, Any], usage: dict[str, Any] | None, now: float) -> None:
        raise NotImplementedError


class ChatAnswer(OpenAIAnswer):
    """``/v1/chat/completions``."""

    __slots__ = ()

    def _choice(self, choice: dict[str, Any], usage: dict[str, Any] | None, now: float) -> None:
        delta = choice.get("delta") or {}
        if delta.get("content"):
            self._token(now, usage)
        elif delta.get("reasoning_content") or delta.get("reasoning"):
            if self.first_reasoning_s is None:
                self.first_reasoning_s = now
            self._token(now, usage)
        elif delta.get("tool_calls"):
            self._token(now, usage)
        elif self.role_s is None and delta.get("role"):
            self.role_s = now


class CompletionAnswer(OpenAIAnswer):
    """``/v1/completions``."""

    __slots__ = ()

    def _choice(self, choice: dict[str, Any], usage: dict[str, Any] | None, now: float) -> None:
        if choice.get("text"):
            self._token(now, usage)


class OllamaAnswer(Answer):
    """Ollama's own API: one JSON object a line, durations of the server's own in the last one."""

    __slots__ = ()
    unterminated = "stream ended without a line with done: true"

    def feed(self, data: bytes, now: float) -> None:
        lines = (self._tail + data).split(b"\n")
        self._tail = lines.pop()
        for line in lines:
            if line and not line.isspace() and self.done_s is None:
                self._line(line, now)

    def _line(self, line: bytes, now: float) -> None:
        try:
            chunk = orjson.loads(line.removeprefix(_BOM))
        except orjson.JSONDecodeError as error:
            raise BadAnswer(f"malformed line, not JSON: {line[:_QUOTE]!r}") from error
        try:
            self._chunk(chunk, now)
        except (AttributeError, TypeError) as error:
            raise BadAnswer(f"malformed line, unexpected shape: {line[:_QUOTE]!r}") from error

    def _chunk(self, chunk: dict[str, Any], now: float) -> None:
        if chunk.get("error"):
            raise BadAnswer(f"error in the stream: {error_text(orjson.dumps(chunk))}")
        message = chunk.get("message") or chunk
        if message.get("content") or message.get("response"):
            self._token(now, None)
        elif message.get("thinking"):
            if self.first_reasoning_s is None:
                self.first_reasoning_s = now
            self._token(now, None)
        elif message.get("tool_calls"):
            self._token(now, None)
        elif self.role_s is None and message.get("role") and not chunk.get("done"):
            self.role_s = now
        if chunk.get("done"):
            self._done(chunk, now)

    def _done(self, chunk: dict[str, Any], now: float) -> None:
        self.done_s = now
        self.finish_reason = str(chunk["done_reason"]) if chunk.get("done_reason") else None
        self.prompt_tokens = _count(chunk.get("prompt_eval_count"))
        self.output_tokens = _count(chunk.get("eval_count"))
        self.cached_tokens = _count(chunk.get("prompt_eval_cached_count"))
        self.load_s = _seconds(chunk.get("load_duration"))
        self.prefill_s = _seconds(chunk.get("prompt_eval_duration"))
        self.decode_s = _seconds(chunk.get("eval_duration"))


def _count(value: Any) -> int | None:
    """A number of tokens; None for anything that cannot be one."""
    return value if type(value) is int and 0 <= value < _ABSURD else None


def _seconds(nanoseconds: Any) -> float | None:
    return nanoseconds / 1e9 if isinstance(nanoseconds, int | float) and nanoseconds >= 0 else None


ANSWERS: dict[str, type[Answer]] = {
    "openai-chat": ChatAnswer,
    "openai-completions": CompletionAnswer,
    "ollama-chat": OllamaAnswer,
    "ollama-generate": OllamaAnswer,
}
