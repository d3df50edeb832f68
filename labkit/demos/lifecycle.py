"""The life of a model in Ollama: loaded by the first question, kept, unloaded; and asked through two APIs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import ollama
import psutil

from labkit import paths
from labkit.demos.apart import about, ollama_apart
from labkit.engines import models
from labkit.engines.base import Progress
from labkit.engines.ollama import Ollama
from labkit.engines.ollama_log import Child
from labkit.errors import EngineError
from labkit.transcript import Event, Transcript

MODEL = "smollm2:135m"
PROMPT = "Name three animals that live in the sea."
KEEP_ALIVE = "2s"
TOKENS = 24
"""Length of an answer; short, since it is the beginning that matters here."""

WAIT_S = 30.0
"""A model that is to stay for longer is not waited for."""

GONE_S = 60.0
"""After keep_alive has passed."""

POLL_S = 0.05


async def lifecycle(
    kind: str, say: Progress, *, prompt: str = PROMPT, keep_alive: str = KEEP_ALIVE
) -> Transcript:
    """Ask a model that is not loaded, ask it again, unload it, let it expire, and ask through both APIs.

    Args:
        kind: "live" or "simulated".
        keep_alive: how long the model is to stay after the third answer, in Ollama's notation.

    Raises:
        EngineError: Ollama refuses a request; quotes it.
        NotInstalled, StartFailed, ModelError: see :func:`labkit.demos.apart.ollama_apart`,
            :func:`labkit.engines.models.ensure`.
    """
    async with ollama_apart(kind, "lifecycle", say) as engine:
        if kind == "live":
            await models.ensure(MODEL, engine=engine, progress=say)
        async with ollama.AsyncClient(engine.url, trust_env=False) as client:
            life = _Life(engine, client, models.find(MODEL).ollama.name, prompt, say)
            try:
                await life.live(keep_alive)
            except ollama.ResponseError as error:
                raise EngineError(
                    f"ask Ollama at {engine.url}", error.error, "correct the prompt or keep_alive"
                ) from None
        facts = await engine.facts()
        asked = {"prompt": prompt, "keep_alive": keep_alive}
        seen_on = about(engine, facts.version, model=MODEL, quantisation=facts.quantisation, asked=asked)
    return Transcript("lifecycle", kind, seen_on, tuple(life.events))


class _Life:
    """Does one thing after the other, and notes each."""

    def __init__(
        self, engine: Ollama, client: ollama.AsyncClient, model: str, prompt: str, say: Progress
    ) -> None:
        self.events: list[Event] = []
        self._engine = engine
        self._client = client
        self._began = time.monotonic()
        self._say = say
        self._asked: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "options": {"num_predict": TOKENS, "temperature": 0},
        }

    async def live(self, keep_alive: str) -> None:
        """From the first question to the last."""
        await self.answer("first")
        await self.loaded()
        self.processes()
        await self.answer("second")
        await self.unload()
        await self.answer("third", keep_alive)
        await self.expire(keep_alive)
        await self.both_apis()

    async def answer(self, turn: str, keep_alive: str | None = None) -> None:
        """Ask, and note when the first piece came and what the engine says that it spent."""
        started = time.monotonic()
        first_s, text, last = None, "", None
        async for last in await self._client.chat(**self._asked, stream=True, keep_alive=keep_alive):
            if last.message.content and first_s is None:
                first_s = time.monotonic() - started
            text += last.message.content or ""
        took_s = time.monotonic() - started
        if last is None or first_s is None:
            raise EngineError(f"ask Ollama at {self._engine.url}", "an answer without a word", "try again")
        self._note(
            "answer",
            started,
            turn=turn,
            load_s=_seconds(last.load_duration),
            prompt_s=_seconds(last.prompt_eval_duration),
            decode_s=_seconds(last.eval_duration),
            ttft_s=round(first_s, 4),
            took_s=round(took_s, 4),
            prompt_tokens=last.prompt_eval_count,
            output_tokens=last.eval_count,
            text=text,
        )
        self._say(f"{turn} answer: first word after {first_s:.2f} s, whole after {took_s:.2f} s")

    async def loaded(self) -> None:
        """What is in memory now, and for how long."""
        for row in (await self._client.ps()).models:
            left = row.expires_at - datetime.now(UTC) if row.expires_at else None
            self._note(
                "loaded",
                time.monotonic(),
                model=row.model,
                bytes=row.size,
                context=row.context_length,
                keep_s=round(left.total_seconds(), 1) if left else None,
            )

    def processes(self) -> None:
        """The server and the child that does the computing, each with its command line."""
        server = self._engine.server
        for member in server.family() if server else []:
            try:
                command = member.cmdline()
            except psutil.NoSuchProcess:
                continue
            child = Child.of(command) is not None
            if child or member.pid == (server and server.pid):
                self._note(
                    "process",
                    time.monotonic(),
                    role="child" if child else "server",
                    program=command[0].rpartition("/")[2],
                    flags=[paths.neutral(word) for word in command[1:]],
                    memory_mib=round(member.memory_info().rss / 2**20),
                )

    async def unload(self) -> None:
        """Have the model taken out of memory at once: a request without a prompt and ``keep_alive=0``."""
        started = time.monotonic()
        await self._client.generate(model=self._asked["model"], keep_alive=0)
        await self._gone()
        self._note("unload", started, took_s=round(time.monotonic() - started, 4))
        self._say("unloaded by keep_alive=0")

    async def expire(self, keep_alive: str) -> None:
        """Wait until the model goes by itself, unless that takes too long."""
        started = time.monotonic()
        row = next(iter((await self._client.ps()).models), None)
        left_s = (row.expires_at - datetime.now(UTC)).total_seconds() if row and row.expires_at else 0.0
        if left_s <= WAIT_S:
            await self._gone()
        after_s = round(time.monotonic() - started, 3) if left_s <= WAIT_S else None
        self._note("expired", started, keep_alive=keep_alive, after_s=after_s)
        self._say(
            f"keep_alive={keep_alive}: "
            + (f"gone after {after_s:.1f} s" if after_s is not None else "still there")
        )

    async def both_apis(self) -> None:
        """The same question through Ollama's own API and through the OpenAI-style one."""
        import openai  # takes a second

        native = await self._client.chat(**self._asked)
        said = native.model_dump(exclude_none=True)
        self._api("native", "/api/chat", said, native.message.content or "")
        async with openai.DefaultAsyncHttpxClient(trust_env=False) as http:
            client = openai.AsyncOpenAI(
                base_url=f"{self._engine.url}/v1", api_key="unused", http_client=http, max_retries=0
            )
            reply = await client.chat.completions.create(
                model=self._asked["model"],
                messages=self._asked["messages"],
                max_tokens=TOKENS,
                temperature=0,
            )
        text = reply.choices[0].message.content or ""
        self._api("openai", "/v1/chat/completions", reply.model_dump(exclude_none=True), text)

    def _api(self, api: str, path: str, said: Mapping[str, Any], text: str) -> None:
        fields = list(dotted(said))
        self._note("api", time.monotonic(), api=api, path=path, fields=fields, text=text, reply=dict(said))

    async def _gone(self) -> None:
        """Wait until no model is in memory.

        Raises:
            EngineError: one is kept there.
        """
        deadline = time.monotonic() + GONE_S
        while (await self._client.ps()).models:
            if time.monotonic() > deadline:
                raise EngineError(
                    "wait until the model is gone", f"it is still there after {GONE_S:.0f} s", "try again"
                )
            await asyncio.sleep(POLL_S)

    def _note(self, what: str, started: float, **more: Any) -> None:
        self.events.append({"t_s": round(started - self._began, 4), "what": what, **more})


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else round(nanoseconds / 1e9, 4)


def dotted(said: Any, path: str = "") -> Iterator[str]:
    """Names of all fields of a reply: "usage.prompt_tokens"."""
    if isinstance(said, Mapping):
        for name, value in said.items():
            yield from dotted(value, f"{path}.{name}" if path else str(name))
    elif isinstance(said, list) and said and isinstance(said[0], Mapping):
        yield from dotted(said[0], f"{path}[0]")
    else:
        yield path
