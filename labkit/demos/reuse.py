"""What an engine reuses of what it has read: asked again, changed, while it is busy, and under pressure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, cast

import httpx

from labkit.arms import Arm
from labkit.demos.apart import about
from labkit.engines.base import EngineFacts, Progress
from labkit.engines.managed import ManagedEngine
from labkit.errors import EngineError
from labkit.load import wire
from labkit.load.plan import Plan
from labkit.transcript import Event, Transcript
from labkit.workload import Prompt, common_words

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "vllm": {"kv_cache_gib": 0.09, "max_model_len": 2048},
    "ollama": {"num_parallel": 2},
}
"""What an engine is started with: a KV pool that a few long prompts fill; a slot for a second question."""

WORDS = 600
"""Length of the text that questions have in common; each word is a token in the course's models."""

SHORT, LONG = 8, 96
"""Tokens of an answer, and of one that another question comes into."""

MOST_OTHERS = 40
"""Texts that are asked about to fill a KV pool; a larger one is not filled."""

EACH_SLOT = 2
"""Other texts for each slot, where memory is divided into slots and not into blocks."""

TIMEOUT_S = 300.0

STORY = "Write a long story of many paragraphs about an old sailor who finds a map."
QUESTIONS = ("What is this text about?", "Which word comes first?", "Which word comes last?")


async def reuse(kind: str, arm: Arm, say: Progress, *, text: str | None = None) -> Transcript:
    """Ask an engine that is up questions with a text in common, and keep what it says that it reused.

    The text begins with a number that is new in every run, since a server may still know what it was asked in
    another.

    Args:
        kind: "live" or "simulated".
        text: of the reader's own (default: :data:`WORDS` common words).

    Returns:
        Events "ask", in seconds of the engine: case, prompt_tokens, cached_tokens (None where the engine
        never says), output_tokens, ttft_s, took_s; of the question that came while another was answered also
        busy, whether that was still so at its first token. One event "pool": kv_tokens, and other_tokens that
        were asked to fill them, in whole blocks.

    Raises:
        EngineError: the engine refuses a question, or breaks off; quotes it.
    """
    facts = await arm.engine.facts()
    headers = {"Authorization": f"Bearer {arm.engine.api_key}"} if arm.engine.api_key else {}
    async with httpx.AsyncClient(
        base_url=arm.engine.url, headers=headers, trust_env=False, timeout=TIMEOUT_S
    ) as client:
        asking = _Asking(client, arm, facts, text, say)
        await asking.in_turn()
        await asking.beside()
        await asking.under_pressure()
    seen_on = about(
        cast("ManagedEngine", arm.engine),
        facts.version,
        model=arm.model,
        **{name: getattr(facts, name) for name in ("block_size", "kv_tokens", "slots", "context")},
        **({"time_scale": facts.time_scale} if kind == "simulated" else {}),
        asked={"engine": arm.engine.name, "text": text, **arm.settings},
    )
    return Transcript("reuse", kind, seen_on, tuple(asking.sorted()))


class _Asking:
    """Asks one thing after the other, and notes each."""

    def __init__(
        self, client: httpx.AsyncClient, arm: Arm, facts: EngineFacts, text: str | None, say: Progress
    ) -> None:
        self._client, self._arm, self._facts, self._text, self._say = client, arm, facts, text, say
        self._began = perf_counter()
        self._events: list[Event] = []
        self._random = random.Random()

    def sorted(self) -> list[Event]:
        """All events by their time; a count that is left out is 0 if the engine gives one at all."""
        tells = any(event.get("cached_tokens") is not None for event in self._events)
        for event in self._events:
            if event["what"] == "ask" and tells:
                event["cached_tokens"] = event["cached_tokens"] or 0
        return sorted(self._events, key=lambda event: float(event["t_s"]))

    async def in_turn(self) -> None:
        """The same again, longer, and with one token changed late and early."""
        body, number = self._body(), self._number()
        text = _numbered(number, body)
        first = _conversation(text, QUESTIONS[0])
        await self._ask("cold", first)
        await self._ask("same again", first)
        answered = [*first, {"role": "assistant", "content": "It is about many things."}]
        await self._ask("longer by a question", [*answered, {"role": "user", "content": QUESTIONS[1]}])
        late = body.rsplit(maxsplit=1)[0] + (" night" if not body.endswith("night") else " day")
        await self._ask("late token changed", _conversation(_numbered(number, late), QUESTIONS[0]))
        first_digit = 10**5 if number < 9 * 10**5 else -(10**5)  # a digit is a token in the course's models
        early = _numbered(number + first_digit, body)
        await self._ask("early token changed", _conversation(early, QUESTIONS[0]))

    async def beside(self) -> None:
        """The same text while another question about it is answered, and once more after that."""
        text = self._fresh()
        writing = asyncio.Event()
        first = asyncio.create_task(
            self._ask("busy: first", _conversation(text, STORY), LONG, on_token=writing.set)
        )
        waiting = asyncio.create_task(writing.wait())
        try:
            await asyncio.wait((first, waiting), return_when=asyncio.FIRST_COMPLETED)
            second = await self._ask("busy: same prefix meanwhile", _conversation(text, QUESTIONS[0]))
            ended = await first
        finally:
            waiting.cancel()
            first.cancel()
        second["busy"] = ended["t_s"] + ended["took_s"] > second["t_s"] + second["ttft_s"]
        await self._ask("idle: same prefix", _conversation(text, QUESTIONS[1]))

    async def under_pressure(self) -> None:
        """A text that is known, then others until there is no room for all, then the first one again."""
        text = self._fresh()
        await self._ask("pressure: first", _conversation(text, QUESTIONS[0]))
        await self._ask("pressure: again", _conversation(text, QUESTIONS[1]))
        size, room, filled = self._facts.block_size, self._facts.kv_tokens or 0, 0
        for _ in range(EACH_SLOT * (self._facts.slots or 1) if size is None else MOST_OTHERS):
            if size is not None and filled > room:
                break
            other = await self._ask(
                "pressure: others", _conversation(common_words(WORDS, self._random), QUESTIONS[0])
            )
            # a last block that is not full is given to the next one, and takes no known one's place
            filled += (other["prompt_tokens"] or WORDS) // (size or 1) * (size or 1)
        at = self._lasting(perf_counter() - self._began)
        pool = {"kv_tokens": self._facts.kv_tokens, "other_tokens": filled}
        self._events.append({"t_s": at, "what": "pool", **pool})
        await self._ask("pressure: after others", _conversation(text, QUESTIONS[2]))

    async def _ask(
        self,
        case: str,
        messages: list[dict[str, str]],
        tokens: int = SHORT,
        on_token: Callable[[], None] = lambda: None,
    ) -> Event:
        started = perf_counter()
        answer = await self._answer(Prompt(messages, tokens), on_token)
        if answer.first_token_s is None:
            raise self._error("an answer without a word")
        event = {
            "t_s": self._lasting(started - self._began),
            "what": "ask",
            "case": case,
            "prompt_tokens": answer.prompt_tokens,
            "cached_tokens": answer.cached_tokens,
            "output_tokens": answer.tokens,
            "ttft_s": self._lasting(answer.first_token_s - started),
            "took_s": self._lasting(perf_counter() - started),
        }
        self._events.append(event)
        reused = f"{event['cached_tokens'] or 0} of {event['prompt_tokens']} tokens"
        self._say(
            f"{self._arm.engine.name}, {case}: {reused} reused, first word after {event['ttft_s']:.2f} s"
        )
        return event

    async def _answer(self, prompt: Prompt, on_token: Callable[[], None]) -> wire.Answer:
        """Send it, and read the answer as it comes."""
        engine = self._arm.engine
        plan = Plan(
            engine.url,
            engine.protocol,
            self._arm.model,
            [prompt],
            requests=1,
            ignore_eos=engine.name == "vllm",
        )
        answer = wire.ANSWERS[engine.protocol](lambda _now, _tokens, _coalesced: on_token())
        route, sent = wire.ROUTES[engine.protocol], {"Content-Type": "application/json"}
        try:
            async with self._client.stream(
                "POST", route, content=wire.body(plan, prompt), headers=sent
            ) as reply:
                if reply.is_error:
                    raise self._error(wire.error_text(await reply.aread()))
                async for piece in reply.aiter_raw():
                    answer.feed(piece, perf_counter())
            answer.finish(perf_counter())
        except (httpx.HTTPError, wire.BadAnswer) as error:
            raise self._error(str(error)) from error
        if flaw := answer.flaw():
            raise self._error(flaw)
        return answer

    def _error(self, seen: str) -> EngineError:
        engine = self._arm.engine
        fix = "see that it runs, or ask less: a text that fits into its context"
        return EngineError(f"ask {engine.name} at {engine.url}", seen, fix)

    def _lasting(self, wall_s: float) -> float:
        """So many seconds for the engine."""
        return round(wall_s * self._facts.time_scale, 4)

    def _body(self) -> str:
        return common_words(WORDS, self._random) if self._text is None else self._text

    def _fresh(self) -> str:
        """A text that nobody has asked about."""
        return _numbered(self._number(), self._body())

    def _number(self) -> int:
        return self._random.randrange(10**5, 10**6)


def _numbered(number: int, body: str) -> str:
    return f"{number} {body}"


def _conversation(text: str, question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": text}, {"role": "user", "content": question}]
