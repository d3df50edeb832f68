"""Both engines through the contract's checks, and any one request of the learner's to both."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import polars as pl
import psutil

from labkit import contract
from labkit.arms import Arm
from labkit.demos.apart import about
from labkit.demos.lifecycle import dotted
from labkit.engines.base import Progress
from labkit.engines.managed import ManagedEngine
from labkit.engines.ports import LOOPBACK
from labkit.errors import EngineError, UsageError
from labkit.transcript import Event, Transcript

REPLY_S = 120.0
"""Longest wait for one reply; a CPU writes a few thousand tokens in that time."""

SHOWN = 4000
"""Characters of a reply that is no JSON."""


async def checked(kind: str, arms: Sequence[Arm], say: Progress) -> Transcript:
    """Ask each engine every check of its contract.

    Events: "server" (engine, version, model, and the addresses that it ``listens`` on, where that can be
    seen), then "check" for each (see :meth:`labkit.contract.Outcome.as_dict`) with its ``engine``.

    Args:
        kind: "live" or "simulated".
        arms: the engines, which are running, with the name that each has for the model.

    Raises:
        EngineError, ModelError: see :func:`labkit.contract.run`.
    """
    began = time.monotonic()
    events: list[Event] = []
    for arm in arms:
        name = arm.engine.name
        facts = await arm.engine.facts()
        events.append(
            {
                "t_s": _since(began),
                "what": "server",
                "engine": name,
                "version": facts.version,
                "model": arm.model,
                "listens": listening(arm.engine.url),
            }
        )

        def note(outcome: contract.Outcome, name: str = name) -> None:
            events.append({"t_s": _since(began), "what": "check", "engine": name, **outcome.as_dict()})

        outcomes = await contract.run(
            arm.engine.url, name, arm.model, api_key=arm.engine.api_key, on_outcome=note
        )
        held = sum(outcome.status == "held" for outcome in outcomes)
        say(f"{name}: {held} of {len(outcomes)} checks as labkit knows them")
    return Transcript("contract", kind, await about_both(arms), tuple(events))


async def both(kind: str, arms: Sequence[Arm], path: str, body: Mapping[str, Any]) -> Transcript:
    """Send one request to each engine. A body without a model gets the engine's own name for it.

    Events: "reply" with engine, status, media type, ``fields`` (dotted names), text (what the model wrote, or
    the error), tokens written, and the whole ``reply``.

    Raises:
        EngineError: an engine does not answer.
    """
    began = time.monotonic()
    events: list[Event] = []
    for arm in arms:
        answer = await _posted(arm, path, {"model": arm.model, **body})
        said = _json(answer.text)
        events.append(
            {
                "t_s": _since(began),
                "what": "reply",
                "engine": arm.engine.name,
                "status": answer.status_code,
                "type": answer.headers.get("content-type", "").partition(";")[0],
                "fields": sorted(dotted(said)) if isinstance(said, dict) else [],
                "text": _text(said) if isinstance(said, dict) else answer.text[:SHOWN],
                "reply": said if isinstance(said, dict) else answer.text[:SHOWN],
            }
        )
    asked = {"path": path, "body": dict(body)}
    return Transcript("both", kind, {**await about_both(arms), "asked": asked}, tuple(events))


def compared(transcript: Transcript) -> pl.DataFrame:
    """The checks that both engines were asked, one row each.

    Columns: id, request, title, the HTTP status of ollama and of vllm, change, facts.
    ``change`` is what somebody sees who comes from Ollama: "refused now" (Ollama answered), "answered now"
    (Ollama refused), "answers otherwise" (the same status class, but some fact of Ollama's reply is not in
    vLLM's), or "same". ``facts`` has those facts as "name: vLLM's, was Ollama's".

    Raises:
        UsageError: the transcript is not of both engines.
    """
    of = {
        name: {event["id"]: event for event in transcript.of("check") if event["engine"] == name}
        for name in ("ollama", "vllm")
    }
    rows = []
    for name, ollama in of["ollama"].items():
        if (vllm := of["vllm"].get(name)) is None:
            continue
        statuses = [event["got"].get("status", "") for event in (ollama, vllm)]
        told = [f"{fact}: {one['got']:.60}, was {one['other']:.60}" for fact, one in vllm["unlike"].items()]
        change = _change(statuses, told)
        rows.append((name, ollama["request"], ollama["title"], *statuses, change, "; ".join(told)))
    if not rows:
        raise UsageError(
            f"compare the engines in {transcript.name}",
            "it has no checks of both",
            "give the result of lab.contract()",
        )
    names = ["id", "request", "title", "ollama", "vllm", "change", "facts"]
    return pl.DataFrame(rows, schema=names, orient="row")


def _change(statuses: Sequence[str], unlike: Sequence[str]) -> str:
    was, now = (status.startswith("2") for status in statuses)
    if was != now:
        return "refused now" if was else "answered now"
    return "answers otherwise" if unlike else "same"


async def answer(arm: Arm, body: Mapping[str, Any]) -> str:
    """What the engine's model says to a chat request; the engine's own name for it is filled in.

    Raises:
        EngineError: it does not answer, refuses, or answers with something else; quotes it.
    """
    reply = await _posted(arm, "/v1/chat/completions", {"model": arm.model, **body})
    said = _json(reply.text)
    if reply.is_error or not isinstance(said, dict):
        raise EngineError(
            f"ask {arm.engine.name} at {arm.engine.url}",
            f"{reply.status_code}: {reply.text:.200}",
            "correct the request, or look into the engine's log",
        )
    return _text(said)


async def about_both(arms: Sequence[Arm]) -> dict[str, Any]:
    """What a transcript of two engines says of them, and of the machine."""
    seen = []
    for arm in arms:
        assert isinstance(arm.engine, ManagedEngine)  # noqa: S101  # only these have arms in a lab
        seen.append(about(arm.engine, (await arm.engine.facts()).version))
    names = " and ".join(f"{one['engine']} {one['version']}" for one in seen)
    return {**seen[0], "engine": names, "version": "", "model": arms[-1].model}


def listening(url: str) -> list[str]:
    """The addresses on which somebody listens at a local URL's port; empty where that cannot be seen."""
    where = urlsplit(url)
    if where.hostname not in LOOPBACK:
        return []
    try:
        found = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:  # macOS shows other processes' sockets to root only
        return []
    open_ports = [one.laddr for one in found if one.status == psutil.CONN_LISTEN and one.laddr]
    return sorted({at.ip for at in open_ports if at.port == where.port})


async def _posted(arm: Arm, path: str, body: Mapping[str, Any]) -> httpx.Response:
    url, key = arm.engine.url, arm.engine.api_key
    try:
        async with httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(REPLY_S, connect=5),
            trust_env=urlsplit(url).hostname not in LOOPBACK,
            headers={"Authorization": f"Bearer {key}"} if key else None,
        ) as client:
            return await client.post(path, json=body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EngineError(
            f"send a request to {arm.engine.name} at {url}",
            repr(error),
            "bound the answer with max_tokens, or correct the path",
        ) from error


def _text(said: Mapping[str, Any]) -> str:
    """What the model wrote, on either API, or what was refused."""
    choices = said.get("choices")
    if isinstance(choices, list) and choices:
        return str(choices[0].get("message", {}).get("content") or choices[0].get("text") or "")
    message = said.get("message")
    if isinstance(message, Mapping):
        return str(message.get("content") or "")
    error = said.get("error")
    return str(error.get("message") if isinstance(error, Mapping) else error or said.get("response") or "")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
