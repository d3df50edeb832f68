"""One request and its answer: what was meant, what happened when, and how it ended."""

from __future__ import annotations

from asyncio import TimerHandle
from collections.abc import Callable
from typing import Any, Protocol

from labkit.clock import RunClock
from labkit.load.plan import Plan
from labkit.load.wire import ANSWERS, Answer, BadAnswer, OllamaAnswer, error_text
from labkit.workload import Prompt

SERVED_BY, SERVED_BY_LITELLM = "X-Served-By", "X-Litellm-Model-Id"
"""Headers in which a proxy says which engine answered: nginx as labkit starts it, and LiteLLM."""

USER = "X-User"


class Owner(Protocol):
    """Who is told of the progress of an exchange."""

    def on_sent(self, exchange: Exchange) -> None: ...

    def on_token(self, exchange: Exchange, now: float, tokens: int, coalesced: bool) -> None: ...

    def on_done(self, exchange: Exchange) -> None: ...

    def on_end(self, exchange: Exchange) -> None: ...


class Exchange:
    """Life of one request. A back-end sets ``abort`` and calls :meth:`written`, :meth:`received`,
    :meth:`status`, :meth:`body` and then :meth:`close` (the reply is over) or :meth:`fail`; the owner hears.

    Times are readings of ``time.perf_counter``.
    """

    __slots__ = (
        "_owner",
        "_reply",
        "abort",
        "answer",
        "bytes",
        "connect_s",
        "deadline",
        "end_s",
        "error",
        "first_byte_s",
        "headers_s",
        "http_status",
        "id",
        "intended_s",
        "outcome",
        "prompt",
        "retried",
        "sent_s",
        "served_by",
        "user",
    )

    def __init__(
        self,
        owner: Owner,
        protocol: str,
        prompt: Prompt,
        *,
        request_id: int,
        user: int | None,
        intended_s: float,
    ) -> None:
        self._owner = owner
        self._reply: list[bytes] | None = None  # a body that is no stream is kept whole
        self.answer: Answer = ANSWERS[protocol](self._on_token)
        self.id = request_id
        self.user = user
        self.prompt = prompt
        self.intended_s = intended_s
        self.deadline: TimerHandle | None = None
        self.abort: Callable[[], object] | None = None  # the back-end's way to break the exchange off
        self.retried = False
        self.connect_s: float | None = None
        self.sent_s: float | None = None
        self.first_byte_s: float | None = None
        self.headers_s: float | None = None
        self.end_s: float | None = None
        self.http_status: int | None = None
        self.served_by: str | None = None
        self.bytes = 0
        self.outcome = "unfinished"
        self.error: str | None = None

    def _on_token(self, now: float, tokens: int, coalesced: bool) -> None:
        self._owner.on_token(self, now, tokens, coalesced)

    def written(self, now: float) -> None:
        """The whole request was handed to the socket. A retry keeps the first time: the user waits since."""
        if self.sent_s is None:
            self.sent_s = now
            self._owner.on_sent(self)

    def received(self, size: int, now: float) -> None:
        """A read from the socket brought ``size`` bytes."""
        self.bytes += size
        if self.first_byte_s is None:
            self.first_byte_s = now

    def status(self, code: int, content_type: str, now: float, served_by: str | None = None) -> None:
        """Status line and headers are in."""
        self.http_status = code
        self.served_by = served_by
        self.headers_s = now
        streamed = content_type.partition(";")[0].strip().lower() != "application/json"
        if not 200 <= code < 300 or not (streamed or isinstance(self.answer, OllamaAnswer)):
            self._reply = []

    def body(self, data: bytes, now: float) -> None:
        """The next piece of the body."""
        if self._reply is not None:
            self._reply.append(data)
        elif self.outcome == "unfinished" and self.answer.done_s is None:
            try:
                self.answer.feed(data, now)
            except BadAnswer as error:
                self.break_off("failed", now, str(error))
            if self.answer.done_s is not None:
                self._owner.on_done(self)

    def close(self, now: float, cut: str | None = None) -> None:
        """The reply is over; ``cut`` says how, if it did not end in the way HTTP wants it to.

        An answer that had said its last word is whole even if the connection broke afterwards.
        """
        if self._reply is not None:
            self.fail(self._refusal(b"".join(self._reply)), now)
            return
        if self.outcome == "unfinished":
            try:
                self.answer.finish(now)
            except BadAnswer as error:
                self.fail(cut or str(error), now)
                return
            flaw = self.answer.flaw()
            if flaw:
                self.fail(f"{cut}: {flaw}" if cut else flaw, now)
            else:
                self.end("ok", self.answer.done_s or now)

    def _refusal(self, reply: bytes) -> str:
        text = error_text(reply) or "no body"
        if self.http_status is not None and 200 <= self.http_status < 300:
            return f"answered in one piece instead of a stream, TTFT cannot be seen: {text}"
        return f"HTTP {self.http_status}: {text}"

    def fail(self, error: str, now: float) -> None:
        """The request failed, for the reason given."""
        self.error = error
        self.end("failed", now)

    def break_off(self, outcome: str, now: float, error: str | None = None) -> None:
        """End before the reply is over: the server sees its client go.

        An answer that had said its last word is whole all the same.
        """
        if self.answer.done_s is None:
            self.error = error
            self.end(outcome, now)
        else:
            self.close(now)
        if self.abort is not None:
            self.abort()

    def end(self, outcome: str, now: float) -> None:
        """The request is over, once."""
        if self.end_s is None:
            self.outcome = outcome
            self.end_s = now
            self._owner.on_end(self)

    def row(self, plan: Plan, clock: RunClock) -> dict[str, Any]:
        """The row for ``requests``: times of the run."""
        answer = self.answer
        times = {
            "intended_s": self.intended_s,
            "connect_s": self.connect_s,
            "sent_s": self.sent_s,
            "headers_s": self.headers_s,
            "first_byte_s": self.first_byte_s,
            "role_s": answer.role_s,
            "first_reasoning_s": answer.first_reasoning_s,
            "first_token_s": answer.first_token_s,
            "last_token_s": answer.last_token_s,
            "end_s": self.end_s,
        }
        return {
            "id": self.id,
            "engine": plan.engine,
            "arm": plan.arm,
            "level": plan.level,
            "repeat": plan.repeat,
            "warmup": plan.warmup,
            "user": self.user,
            "group": self.prompt.group,
            **{name: None if at is None else clock.at(at) for name, at in times.items()},
            "prompt_tokens": answer.prompt_tokens,
            "output_tokens": answer.tokens if self.end_s is not None else None,
            "cached_tokens": answer.cached_tokens,
            "bytes": self.bytes,
            "outcome": self.outcome,
            "http_status": self.http_status,
            "served_by": self.served_by,
            "finish_reason": answer.finish_reason,
            "error": self.error,
            "load_s": answer.load_s,
            "prefill_s": answer.prefill_s,
            "decode_s": answer.decode_s,
            **self._queue(clock),
        }

    def _queue(self, clock: RunClock) -> dict[str, Any]:
        """Wait for a slot, by the server's own durations: TTFT from send − load − prefill, not below 0.

        It holds the network and the HTTP layers too, a millisecond or so on one machine. A simulated server's
        durations are in the run's time as they come.
        """
        answer = self.answer
        if answer.prefill_s is None or answer.first_token_s is None or self.sent_s is None:
            return {"queue_basis": "unknown"}
        ttft = clock.lasting(answer.first_token_s - self.sent_s)
        waited = ttft - (answer.load_s or 0.0) - answer.prefill_s
        return {"queue_s": max(waited, 0.0), "queue_basis": "reported"}
