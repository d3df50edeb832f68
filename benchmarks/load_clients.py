"""The other clients that ``load.py`` compares with, each in a process of its own: a plain closed loop.

    python benchmarks/load_clients.py aiohttp|openai URL USERS REQUESTS TOKENS

prints one JSON object. Both are written the way their documentation shows, with the clock read when the
library hands over a chunk: that is what a reader who uses them would measure.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from time import perf_counter, process_time

PROMPT = [{"role": "user", "content": "Write a long story of many paragraphs."}]
Ask = Callable[[], AsyncIterator[float]]
"""One request: yields the time of each token."""


def quantile(values: list[float], share: float) -> float:
    """Linear interpolation between order statistics, as in labkit.metrics."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def summary(values: list[float]) -> dict[str, float]:
    """Median and p99 in ms."""
    return {"p50": quantile(values, 0.5) * 1e3, "p99": quantile(values, 0.99) * 1e3}


async def closed_loop(ask: Ask, users: int, requests: int) -> dict[str, object]:
    """Users that ask until all requests are taken."""
    left = iter(range(requests))
    answers: list[tuple[float, list[float]]] = []

    async def user() -> None:
        for _ in left:
            sent = perf_counter()
            answers.append((sent, [at async for at in ask()]))

    start = perf_counter()
    await asyncio.gather(*(user() for _ in range(users)))
    end = perf_counter()
    cpu = process_time()
    tokens = sum(len(times) for _, times in answers)
    return {
        "cpu_s": cpu,
        "tokens": tokens,
        "tokens_per_s": tokens / (end - start),
        "ttft_ms": summary([times[0] - sent for sent, times in answers]),
        "itl_ms": summary([b - a for _, times in answers for a, b in pairwise(times)]),
    }


async def with_aiohttp(url: str, users: int, requests: int, tokens: int) -> dict[str, object]:
    """aiohttp and the json of the standard library."""
    import aiohttp

    body = {"model": "ref", "messages": PROMPT, "max_tokens": tokens, "stream": True}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask() -> AsyncIterator[float]:
            async with session.post(f"{url}/chat/completions", json=body) as reply:
                async for line in reply.content:
                    now = perf_counter()
                    if line.startswith(b"data: {"):
                        choices = json.loads(line[6:])["choices"]
                        if choices and choices[0]["delta"].get("content"):
                            yield now

        return await closed_loop(ask, users, requests)


async def with_openai(url: str, users: int, requests: int, tokens: int) -> dict[str, object]:
    """The openai library."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:

        async def ask() -> AsyncIterator[float]:
            stream = await client.chat.completions.create(
                model="ref", messages=PROMPT, max_tokens=tokens, stream=True
            )
            async for chunk in stream:
                now = perf_counter()
                if chunk.choices and chunk.choices[0].delta.content:
                    yield now

        return await closed_loop(ask, users, requests)


CLIENTS: dict[str, Callable[[str, int, int, int], Awaitable[dict[str, object]]]] = {
    "aiohttp": with_aiohttp,
    "openai": with_openai,
}


async def _main(name: str, url: str, *numbers: str) -> dict[str, object]:
    users, requests, tokens = map(int, numbers)
    return await CLIENTS[name](url, users, requests, tokens)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_main(*sys.argv[1:]))))
