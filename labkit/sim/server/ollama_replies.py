"""How Ollama words its answers: on its own API and on the OpenAI-style one, whole and in pieces."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from random import randrange
from typing import Any

import orjson

from labkit.sim.server.ollama_library import stamp
from labkit.sim.server.replies import DONE, Counts, Job, event
from labkit.sim.server.script import logprobs

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"


class Reply(ABC):
    """One reply to one request.

    Attributes:
        media: type of the stream.
    """

    media: str

    def __init__(self, model: str, *, others: int | None = None, usage: bool = False) -> None:
        """``model`` as the client called it; ``others``: alternatives a token if probabilities are wanted;
        ``usage``: counts at the end of a stream."""
        self._model, self._others, self._usage = model, others, usage

    @abstractmethod
    def frame(self, job: Job, token: int) -> bytes:
        """What is sent when a job got this token."""

    @abstractmethod
    def end(self, job: Job) -> bytes:
        """What is sent after it."""

    @abstractmethod
    def whole(self, job: Job) -> dict[str, Any]:
        """The reply in one piece."""

    def _logprobs(self, *texts: str) -> list[dict[str, Any]] | None:
        return None if self._others is None else [logprobs(text, self._others) for text in texts]


class Native(Reply):
    """``/api/chat`` and ``/api/generate``: a line a token, and one with counts and durations."""

    media = NDJSON

    def __init__(self, model: str, *, chat: bool, others: int | None = None) -> None:
        super().__init__(model, others=others)
        self._chat = chat

    def frame(self, job: Job, token: int) -> bytes:
        text = job.script.texts[token]
        if not text:
            return b""
        said = {**self._said(text), "done": False}
        if (probable := self._logprobs(text)) is not None:
            said["logprobs"] = probable
        return orjson.dumps(said) + b"\n"

    def end(self, job: Job) -> bytes:
        return orjson.dumps(self._said("") | self._done(job)) + b"\n"

    def whole(self, job: Job) -> dict[str, Any]:
        said = self._said(job.script.text) | self._done(job)
        probable = self._logprobs(*job.script.texts)
        return said if probable is None else {**said, "logprobs": probable}

    def bare(self, reason: str) -> dict[str, Any]:
        """The reply to a request that only loads or unloads."""
        return self._said("") | {"done": True, "done_reason": reason}

    def _said(self, text: str) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"response": text}
        return {"model": self._model, "created_at": stamp(time.time()), **said}

    def _done(self, job: Job) -> dict[str, Any]:
        request = job.request
        admitted, ended = request.admitted_s or 0.0, request.ended_s or 0.0
        first, last = request.token_s[0], request.token_s[-1]
        return {
            "done": True,
            "done_reason": job.script.finish,
            "total_duration": _ns(ended - request.sent_s),
            "load_duration": _ns(request.load_s),
            "prompt_eval_count": len(request.prompt),
            "prompt_eval_cached_count": request.cached,
            "prompt_eval_duration": _ns(first - admitted),
            "eval_count": len(request.token_s),
            "eval_duration": _ns(last - first),
        }


class OpenAI(Reply):
    """What the OpenAI-style replies have in common."""

    media = SSE
    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, model: str, *, others: int | None = None, usage: bool = False) -> None:
        super().__init__(model, others=others, usage=usage)
        self._head = {
            "id": f"{self.prefix}-{randrange(999)}",
            "object": self.chunk_kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": "fp_ollama",
        }

    def whole(self, job: Job) -> dict[str, Any]:
        return {
            **self._head,
            "object": self.kind,
            "choices": [self._choice(job)],
            "usage": Counts([job]).usage(),
        }

    @abstractmethod
    def _choice(self, job: Job) -> dict[str, Any]:
        """The whole answer."""

    def _counted(self, job: Job) -> bytes:
        if not self._usage:
            return DONE
        return event({**self._head, "choices": [], "usage": Counts([job]).usage()}) + DONE


class OpenAIChat(OpenAI):
    """``/v1/chat/completions``: the role comes with the first words, the reason to finish on its own."""

    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    _opened = False

    def frame(self, job: Job, token: int) -> bytes:
        text = job.script.texts[token]
        return self._delta(text) if text else b""

    def end(self, job: Job) -> bytes:
        # an answer without a word opens with its role all the same
        opening = b"" if self._opened else self._delta("")
        finish = {"index": 0, "delta": {}, "finish_reason": job.script.finish}
        return opening + event({**self._head, "choices": [finish]}) + self._counted(job)

    def _delta(self, text: str) -> bytes:
        delta = {"content": text} if self._opened else {"role": "assistant", "content": text}
        self._opened = True
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None}
        if (probable := self._logprobs(text)) is not None:
            choice["logprobs"] = {"content": probable}
        return event({**self._head, "choices": [choice]})

    def _choice(self, job: Job) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": job.script.text},
            "finish_reason": job.script.finish,
        }
        if (probable := self._logprobs(*job.script.texts)) is not None:
            choice["logprobs"] = {"content": probable}
        return choice


class OpenAICompletion(OpenAI):
    """``/v1/completions``: text in pieces, an empty usage in each if it was asked for."""

    prefix = "cmpl"
    kind = chunk_kind = "text_completion"

    def frame(self, job: Job, token: int) -> bytes:
        text = job.script.texts[token]
        return self._piece(text, None) if text else b""

    def end(self, job: Job) -> bytes:
        return self._piece("", job.script.finish) + self._counted(job)

    def _piece(self, text: str, finish: str | None) -> bytes:
        none = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        usage = {"usage": none} if self._usage else {}
        choice = {"text": text, "index": 0, "finish_reason": finish}
        return event({**self._head, "choices": [choice], **usage})

    def _choice(self, job: Job) -> dict[str, Any]:
        return {"text": job.script.text, "index": 0, "finish_reason": job.script.finish}


def _ns(seconds: float) -> int:
    """Nanoseconds; at least one, since Ollama leaves out a duration of zero."""
    return max(1, round(seconds * 1e9))
