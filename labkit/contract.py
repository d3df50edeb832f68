"""Does this server answer as its engine does? The contract as data, asked of a server check by check.

>>> outcomes = await contract.run("http://127.0.0.1:8000", "vllm", "smollm2:135m")
>>> print(contract.table(outcomes))

``data/contract.toml`` has the checks and explains their words. An outcome holds facts and no raw replies:
what an expectation allows is told in its own words ("between 1 and 3"), so that two servers that both keep to
it give equal facts, whatever ids, times and counts they answered with.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from labkit.contract_checks import Check, Wanted, load_checks
from labkit.engines.ports import LOOPBACK
from labkit.errors import EngineError, ModelError, UsageError

__all__ = ["Check", "Outcome", "differences", "load_checks", "run", "table"]

VERSIONS = {"ollama": "/api/version", "vllm": "/version"}
"""Where each engine, and it alone, tells its version."""

LIMIT_S = 120.0
"""Time for one check; a CPU needs about ten seconds for the longest prompt."""

PROBE_S = 10.0
"""Time for what costs a server nothing: its version, its list of models."""

STREAMS = ("text/event-stream", "application/x-ndjson")

CARRIED = {
    "role": ("choices.0.delta.role", "message.role"),
    "content": ("choices.0.delta.content", "choices.0.text", "message.content"),
    "finish": ("choices.0.finish_reason", "done"),
    "usage": ("usage", "eval_count"),
    "error": ("error",),
}
"""What a chunk of a stream can carry, and where, on the OpenAI-style and on Ollama's own API."""


@dataclass(frozen=True)
class Outcome:
    """What a server made of one check.

    Attributes:
        status: "held", "differs", or "error" if no reply came.
        got: each fact that was looked at; the same text as in ``expected`` if it is as expected.
        expected: each fact as the engine has it.
        unlike: facts that the other engine's replies have and this one does not keep: what is here, and what
            the other has.
    """

    check: Check
    status: Literal["held", "differs", "error"]
    got: Mapping[str, str]
    expected: Mapping[str, str]
    unlike: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "id": self.check.id,
            "title": self.check.title,
            "request": f"{self.check.method} {self.check.path}",
            "status": self.status,
            "got": dict(self.got),
            "expected": dict(self.expected),
            "unlike": {fact: {"got": here, "other": there} for fact, (here, there) in self.unlike.items()},
        }


def _untold(_outcome: Outcome) -> None:
    """Nobody wants to hear of it."""


async def run(
    url: str,
    engine: str,
    model: str | None = None,
    *,
    api_key: str | None = None,
    ids: Sequence[str] | None = None,
    on_outcome: Callable[[Outcome], None] = _untold,
) -> list[Outcome]:
    """Ask a server each request of the contract, one after the other, and compare.

    Args:
        url: root of the server; a ``/v1`` at its end is left off.
        engine: "ollama" or "vllm", as which it has to answer.
        model: the name that a client sends (default: the first that the server lists).
        api_key: bearer token, if the server wants one.
        ids: these checks only (default: all that are about this engine).
        on_outcome: is told each outcome as soon as it is there.

    Raises:
        UsageError: no such engine or check.
        EngineError: nothing answers there (any more), or something else than this engine.
        ModelError: the server has no such model, or none at all; lists those that it has.
    """
    checks = _chosen(engine, ids)
    root = url.rstrip("/").removesuffix("/v1")
    try:
        async with _client(root, api_key) as client:
            await _recognise(client, engine)
            model = await _find_model(client, model)
            outcomes = []
            for check in checks:
                outcomes.append(await _outcome(client, check, engine, model))
                on_outcome(outcomes[-1])
            return outcomes
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EngineError(
            f"ask the server at {root or '(no url)'} for {engine}'s contract",
            f"it does not answer: {error!r}",
            "start it, or correct the url",
        ) from error


def _chosen(engine: str, ids: Sequence[str] | None) -> list[Check]:
    if engine not in VERSIONS:
        raise UsageError(
            f"ask for the contract of {engine!r}", f"there are {', '.join(VERSIONS)}", "name one of these"
        )
    known = {check.id: check for check in load_checks().values() if engine in check.expected}
    unknown = set(ids or ()) - known.keys()
    if unknown:
        raise UsageError(
            f"ask for {', '.join(sorted(unknown))}",
            f"checks of {engine} are {', '.join(known)}",
            "name some of these",
        )
    return list(known.values()) if ids is None else [known[one] for one in ids]


def _client(root: str, api_key: str | None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=root,
        timeout=httpx.Timeout(LIMIT_S, connect=5),
        trust_env=urlsplit(root).hostname not in LOOPBACK,  # no proxy for loopback
        headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        # A connection each: one that the server closed meanwhile would be taken for an answer that broke off,
        # and a server that is gone is seen from the next request.
        limits=httpx.Limits(max_keepalive_connections=0),
    )


async def _recognise(client: httpx.AsyncClient, engine: str) -> None:
    """Refuse a server that is another engine or neither, before it fails every check."""
    seen = []
    for name, path in VERSIONS.items():
        answer = await client.get(path, timeout=PROBE_S)
        if answer.status_code == httpx.codes.OK and isinstance(_at(_json(answer.text), "version"), str):
            if name == engine:
                return
            seen.append(f"it is {name}, by its {path}")
        else:
            seen.append(f"{path} answered {answer.status_code} without {name}'s version")
    raise EngineError(
        f"ask the server at {client.base_url} for {engine}'s contract",
        "; ".join(seen),
        "name the engine that it is, or the url of one",
    )


async def _find_model(client: httpx.AsyncClient, model: str | None) -> str:
    """The model that was asked for, or the first."""
    answer = await client.get("/v1/models", timeout=PROBE_S)
    names = _at(_json(answer.text), "data.*.id") or []
    if model is None and names:
        return str(names[0])
    if model is None or model not in names:
        seen = f"it has {', '.join(map(str, names)) or 'no models'}"
        if not answer.is_success:
            seen = f"/v1/models answered {answer.status_code}: {answer.text:.200}"
        raise ModelError(
            f"use {model or 'a model'} on {client.base_url}",
            seen,
            "name a model that it has, or give its api_key",
        )
    return model


async def _outcome(client: httpx.AsyncClient, check: Check, engine: str, model: str) -> Outcome:
    words = {"{model}": model, "{long}": "word " * check.long_prompt_words}
    wanted = {
        fact: Wanted(one.verb, _filled(one.value, words)) for fact, one in check.expected[engine].items()
    }
    expected = {fact: str(one) for fact, one in wanted.items()}
    try:
        async with asyncio.timeout(LIMIT_S):  # the client's own limit starts anew with every piece
            answer = await client.request(
                check.method, check.path, headers=check.headers, json=_filled(check.body, words)
            )
    except (httpx.ConnectError, httpx.ConnectTimeout):
        raise  # the server is gone: one error instead of one for each check that is left
    except (httpx.HTTPError, TimeoutError) as error:
        return Outcome(check, "error", {"status": f"no reply: {error!r}"}, expected)
    reply = _facts(answer)
    got = {fact: one.got(_at(reply, fact)) for fact, one in wanted.items()}
    others = [one for name, facts in check.expected.items() if name != engine for one in facts.items()]
    beside = {fact: Wanted(one.verb, _filled(one.value, words)) for fact, one in others}
    unlike = {
        fact: (here, str(one))
        for fact, one in beside.items()
        if (here := one.got(_at(reply, fact))) != str(one)
    }
    return Outcome(check, "held" if got == expected else "differs", got, expected, unlike)


def _filled(value: Any, words: Mapping[str, str]) -> Any:
    """The same value with each placeholder in its texts replaced."""
    if isinstance(value, str):
        for placeholder, word in words.items():
            value = value.replace(placeholder, word)
        return value
    if isinstance(value, list):
        return [_filled(one, words) for one in value]
    if isinstance(value, dict):
        return {name: _filled(one, words) for name, one in value.items()}
    return value


def _facts(answer: httpx.Response) -> dict[str, Any]:
    """Everything that an expectation can be about."""
    media = answer.headers.get("content-type", "").partition(";")[0]
    facts: dict[str, Any] = {"status": answer.status_code, "type": media, "text": answer.text}
    if media in STREAMS:
        facts["stream"] = _stream(answer.text)
    else:
        facts["json"] = _json(answer.text)
    return facts


def _stream(text: str) -> dict[str, Any]:
    """What the chunks of a stream carry, and the last of them."""
    lines = [line.removeprefix("data:").strip() for line in text.split("\n")]
    chunks = [line if line == "[DONE]" else _json(line) for line in lines if line]
    objects = [chunk for chunk in chunks if isinstance(chunk, dict)]
    return {
        "chunks": ", ".join(kind for kind, _ in groupby(map(_carries, chunks))),
        "last": objects[-1] if objects else None,
    }


def _carries(chunk: Any) -> str:
    if not isinstance(chunk, dict):
        return "[DONE]" if chunk == "[DONE]" else "no JSON"
    carried = [name for name, places in CARRIED.items() if any(_at(chunk, place) for place in places)]
    return "+".join(carried) or "nothing"


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _at(value: Any, path: str) -> Any:
    """What is at a dotted path in parsed JSON, ``*`` for every member; None where there is nothing."""
    step, _, rest = path.partition(".")
    if step == "*" and isinstance(value, list):
        return [_at(member, rest) for member in value]
    if isinstance(value, dict):
        found = value.get(step)
    elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
        found = value[int(step)]
    else:
        return None
    return _at(found, rest) if rest else found


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as text: each check's title, and below it what was got and what was expected."""
    rows = [f"{'':8}{'fact':36} {'got':40} expected"]
    for outcome in outcomes:
        rows.append(f"{outcome.status:7} {outcome.check.id}: {outcome.check.title}")
        for fact, expected in outcome.expected.items():
            rows.append(f"{'':8}{fact:36} {outcome.got.get(fact, '-'):40} {expected}")
    found = [outcome.status for outcome in outcomes]
    rows.append(", ".join(f"{found.count(word)} {word}" for word in ("held", "differs", "error")))
    return "\n".join(rows)


def differences(first: Sequence[Outcome], second: Sequence[Outcome]) -> list[str]:
    """Where two servers of one engine, say a real and a simulated one, answered differently.

    Returns:
        One sentence for each fact that is not the same, and for each check that only one was asked.
    """
    before = {outcome.check.id: outcome.got for outcome in first}
    after = {outcome.check.id: outcome.got for outcome in second}
    found = []
    for name in {**before, **after}:
        if name not in before or name not in after:
            found.append(f"{name}: asked of the {'first' if name in before else 'second'} only")
            continue
        for fact in {**before[name], **after[name]}:
            one, other = before[name].get(fact, "-"), after[name].get(fact, "-")
            if one != other:
                found.append(f"{name}: {fact} is {one} on the first, {other} on the second")
    return found
