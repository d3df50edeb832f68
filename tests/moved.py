"""Runs in which traffic was moved or went through proxies, and transcripts of the contract and of clients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from judges.made import made, request, vllm

from labkit.bundle import Run
from labkit.designs import Load
from labkit.lab_migrate import SHORT
from labkit.transcript import Transcript

Phase = tuple[float, int, int]
"""A share in per cent, and requests that went to Ollama and to vLLM."""

PHASES: tuple[Phase, ...] = ((0, 40, 0), (10, 71, 9), (50, 38, 42), (100, 0, 40), (0, 40, 0))


def shift_run(
    folder: Path,
    phases: Sequence[Phase] = PHASES,
    *,
    front: str = "nginx",
    failed: int = 0,
    sticky: bool = False,
    **more: Any,
) -> Run:
    """A run behind a proxy: each phase lasts as many tenths of a second as it has requests.

    Args:
        failed: so many of the first phase's requests failed.
    """
    rows: list[dict[str, Any]] = []
    gauges: list[tuple[str, float, dict[str, float]]] = []
    at = 0.0
    for share, ollama, vllm_ in phases:
        gauges += [(front, at, {"share_asked": share}), (front, at, {"share": share})]
        for engine in ["ollama"] * ollama + ["vllm"] * vllm_:
            rows.append(request(at + 0.01, at + 0.05, at + 0.09, served_by=engine, user=len(rows) % 4))
            at = round(at + 0.1, 1)
    for row in rows[:failed]:
        row |= {"outcome": "failed", "http_status": 502, "served_by": None}
    run = made(
        folder,
        {front: rows},
        facts={front: {**vllm(model="smollm2:135m"), "engine": front}},
        settings={front: {"sticky": sticky, "ollama": {}, "vllm": {}}},
        gauges=gauges,
        level=4,
        **more,
    )
    for record in run.meta["levels"]:
        record["planned"] = 4 if record["warmup"] else len(rows)
    return run


WAYS = {
    "vLLM": ("vllm", 0.0),
    "vLLM through nginx": ("nginx", 0.001),
    "vLLM through LiteLLM": ("litellm", 0.012),
}


def gateway_run(folder: Path, *, failed: int = 0, only: Sequence[str] = tuple(WAYS), count: int = 20) -> Run:
    """Three ways to one vLLM; so many answers through the last one failed."""
    rows: dict[str, Any] = {}
    for arm in only:
        more_s = WAYS[arm][1]
        rows[arm] = [
            request(n, n + 0.2 + more_s + 0.01 * (n % 3), n + 0.5, served_by="vllm", cached_tokens=0)
            for n in range(count)
        ]
    for row in rows[only[-1]][:failed]:
        row |= {"outcome": "failed", "http_status": 500}
    facts = {arm: {**vllm(model="smollm2:135m"), "engine": WAYS[arm][0]} for arm in only}
    run = made(folder, rows, facts=facts, load=Load((1,)).as_dict(), level=1)
    written = orjson.loads((folder / "run.json").read_bytes())
    for arm in only:
        written["arms"][arm]["engine"] = WAYS[arm][0]
    written["workload"] |= SHORT.as_dict()
    (folder / "run.json").write_bytes(orjson.dumps(written))
    return Run.load(run.path)


def check(
    engine: str, name: str, status: int = 200, *, request: str = "POST /v1/chat/completions", **more: Any
) -> dict[str, Any]:
    """One check as a transcript has it; ``more``: facts got, and ``unlike``."""
    unlike = more.pop("unlike", {})
    return {
        "what": "check",
        "engine": engine,
        "id": name,
        "title": f"About {name}.",
        "request": request,
        "status": "held",
        "got": {"status": str(status), **more},
        "expected": {},
        "unlike": {fact: {"got": "a", "other": "b"} for fact in unlike},
    }


def contract_of(*events: dict[str, Any], name: str = "contract") -> Transcript:
    """A transcript with these events."""
    return Transcript(name, "live", {"date": "2026-11-28"}, tuple({"t_s": 0.0, **event} for event in events))


TOKENS = "json.usage.completion_tokens"

CONTRACT = contract_of(
    {"what": "server", "engine": "vllm", "version": "0.32.0", "model": "m", "listens": ["127.0.0.1"]},
    check("ollama", "chat"),
    check("vllm", "chat"),
    check("ollama", "max-completion-tokens", **{TOKENS: "8"}),
    check("vllm", "max-completion-tokens", unlike=[TOKENS], **{TOKENS: "3"}),
    check("ollama", "long-prompt"),
    check("vllm", "long-prompt", 400, unlike=["status", "json.usage"]),
    check("ollama", "no-model", 400),
    check("vllm", "no-model", 200, unlike=["status", "json.error"]),
    check("ollama", "stream"),
    check("vllm", "stream", unlike=["stream.chunks"]),
    check("ollama", "authorization"),
    check("vllm", "authorization"),
    check("ollama", "metrics", 404, request="GET /metrics"),
    check("vllm", "metrics", 200, request="GET /metrics", unlike=["status"]),
    check("ollama", "native-version", request="GET /api/version"),
    check("vllm", "native-version", 404, request="GET /api/version", unlike=["status", "json.version"]),
    check("ollama", "native-chat", request="POST /api/chat"),
)
"""Eight requests to both: two the same, two refused now, two answered now, two answered otherwise."""


def program(step: str, engine: str, code: str, *, ok: bool = True, api: str = "openai") -> dict[str, Any]:
    """One version of a client as a transcript has it."""
    changed = step.split(", ") if engine == "vllm" else []
    said = "A fish." if ok else "openai.NotFoundError: 404"
    return {
        "what": "program",
        "step": step,
        "api": api,
        "engine": engine,
        "changed": changed,
        "ok": ok,
        "said": said,
        "code": code,
    }


def client(address: str, key: str, model: str) -> str:
    """A program of five lines."""
    return f"import openai\nurl={address}\nkey={key}\nmodel={model}\nprint(openai.ask(url, key, model))\n"


def clients_of(*, address_ok: bool = False, alias: bool = True, native_ok: bool = False) -> Transcript:
    """A client in all its versions."""
    events = [
        program("before", "ollama", client("o", "ollama", "tag")),
        program("address", "vllm", client("v", "ollama", "tag"), ok=address_ok),
        program("address, model", "vllm", client("v", "ollama", "name")),
        program("address, model, key", "vllm", client("v", "none", "name")),
        program("native", "ollama", "post(o)", api="native"),
        program("native, address, model", "vllm", "post(v)", api="native", ok=native_ok),
    ]
    if alias:
        events.append(program("alias in Ollama", "ollama", client("o", "ollama", "name")))
    return contract_of(*events, name="clients")


def question(prompt: str, wanted: str | None, ollama: str, vllm_: str, **again: str) -> dict[str, Any]:
    """One question of an agreement."""
    return {"what": "question", "prompt": prompt, "wanted": wanted, "ollama": ollama, "vllm": vllm_, **again}


AGREEMENT = contract_of(
    question("Sea?", None, "The sea is wide and blue.", "The sea is wide and deep.",
             ollama_again="The sea is wide and blue.", vllm_again="The sea is deep."),
    question("Capital of France?", "Paris", "Paris.", "Paris.", ollama_again="Paris.", vllm_again="Paris."),
    question("2 + 3?", "5", "It is 15.", "It is 5", ollama_again="It is 15.", vllm_again="It is 5"),
    name="agreement",
)  # fmt: skip
