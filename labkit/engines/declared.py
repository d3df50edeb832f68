"""What a simulated server says of itself: a header in each of its answers, which no real engine sends."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import httpx

from labkit.engines.ports import LOOPBACK

HEADER = "X-Labkit-Simulated"

ORIGIN = ("profile", "basis", "time_scale", "band")
FACTS = ("slots", "context", "block_size", "kv_tokens", "kv_bytes", "quantisation", "threads", "device")


def declared(answer: httpx.Response) -> dict[str, Any] | None:
    """The header of one answer; None from a real engine."""
    said = answer.headers.get(HEADER)
    return None if said is None else dict(json.loads(said))


def origin(said: dict[str, Any] | None) -> dict[str, Any] | None:
    """Where its numbers come from, for :attr:`EngineFacts.simulated`."""
    return None if said is None else {key: said[key] for key in ORIGIN}


def told_facts(said: dict[str, Any] | None) -> dict[str, tuple[Any, str]]:
    """Facts that a real engine tells in its log or on a command line, each with its source."""
    told = said or {}
    return {name: (told[name], HEADER) for name in FACTS if told.get(name) is not None}


async def ask(url: str) -> dict[str, Any] | None:
    """The header of the server at ``url``; None if it sends none, or does not answer."""
    at = urlsplit(url)
    try:
        async with httpx.AsyncClient(
            timeout=5, trust_env=at.hostname not in LOOPBACK, verify=at.scheme == "https"
        ) as client:
            return declared(await client.get(url.removesuffix("/v1")))
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
