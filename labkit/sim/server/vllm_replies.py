"""How vLLM words its answers, whole and in pieces."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import orjson

from labkit.sim.server.replies import DONE, Counts, Job, event
from labkit.sim.server.script import logprobs
from labkit.sim.server.vllm_asked import Asked


class Reply(ABC):
    """One reply to one request, which may have several choices."""

    kind: str
    chunk_kind: str

    def __init__(self, reply_id: str, model: str, asked: Asked) -> None:
        self._asked = asked
        self._head = {"id": reply_id, "object": self.kind, "created": int(time.time()), "model": model}
        said = orjson.dumps({**self._head, "object": self.chunk_kind})
        self._chunk = b'data: %b,"choices":[' % said[:-1]

    def frame(self, job: Job, token: int) -> bytes:
        """What is sent when a job got this token."""
        finish = job.script.finish if token == len(job.script.tokens) - 1 else None
        sent = self._opening(job) if token == 0 else b""
        sent += self._chunk + orjson.dumps(self._piece(job, token, finish)) + b"]"
        if self._asked.continuous_usage:
            sent += b',"usage":' + orjson.dumps(self._so_far(job, token + 1))
        return sent + b"}\n\n"

    def end(self, counts: Counts) -> bytes:
        """What is sent after all of them."""
        if not self._asked.usage:
            return DONE
        chunk = {**self._head, "object": self.chunk_kind, "choices": [], "usage": counts.usage()}
        return event(chunk) + DONE

    def whole(self, jobs: Sequence[Job], counts: Counts) -> dict[str, Any]:
        """The reply in one piece."""
        return {
            **self._head,
            "choices": [self._choice(job) for job in jobs],
            "system_fingerprint": None,
            "usage": counts.usage() | {"completion_tokens_details": None},
        }

    def _so_far(self, job: Job, written: int) -> dict[str, int]:
        prompt = len(job.request.prompt)
        return {"prompt_tokens": prompt, "total_tokens": prompt + written, "completion_tokens": written}

    def _opening(self, _job: Job) -> bytes:
        return b""

    @abstractmethod
    def _piece(self, job: Job, token: int, finish: str | None) -> dict[str, Any]:
        """One token as a choice of a chunk."""

    @abstractmethod
    def _choice(self, job: Job) -> dict[str, Any]:
        """A whole answer as a choice."""


class ChatReply(Reply):
    """``/v1/chat/completions``: the role comes first and alone, the reason to finish with the last word."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def _opening(self, job: Job) -> bytes:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": job.index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._chunk + orjson.dumps(choice) + b"]}\n\n"

    def _piece(self, job: Job, token: int, finish: str | None) -> dict[str, Any]:
        text = job.script.texts[token]
        said = {
            "index": job.index,
            "delta": {"content": text},
            "logprobs": self._logprobs([text]),
            "finish_reason": finish,
        }
        return said | ({"stop_reason": job.script.stop} if finish else {})

    def _choice(self, job: Job) -> dict[str, Any]:
        message = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
        return {
            "index": job.index,
            "message": {"role": "assistant", "content": job.text, **message},
            "logprobs": self._logprobs(job.script.texts),
            "finish_reason": job.script.finish,
            "stop_reason": job.script.stop,
        }

    def _logprobs(self, texts: Sequence[str]) -> dict[str, Any] | None:
        if self._asked.logprobs is None:
            return None
        return {"content": [logprobs(text, self._asked.logprobs) for text in texts]}


class CompletionReply(Reply):
    """``/v1/completions``: plain text; with echo the prompt comes with the first token."""

    kind = "text_completion"
    chunk_kind = "text_completion"

    def _piece(self, job: Job, token: int, finish: str | None) -> dict[str, Any]:
        text = job.script.texts[token]
        return self._said(job, job.prefix + text if token == 0 else text, finish)

    def _choice(self, job: Job) -> dict[str, Any]:
        return self._said(job, job.text, job.script.finish)

    def _said(self, job: Job, text: str, finish: str | None) -> dict[str, Any]:
        stop = job.script.stop if finish else None
        return {
            "index": job.index,
            "text": text,
            "logprobs": None,
            "finish_reason": finish,
            "stop_reason": stop,
        }
