"""One client, written for Ollama and moved to vLLM line by line; each version really runs, as a program."""

from __future__ import annotations

import asyncio
import difflib
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from labkit.arms import Arm
from labkit.demos.contract import about_both
from labkit.engines.base import Progress
from labkit.engines.ollama_store import ollama_store
from labkit.transcript import Event, Transcript

QUESTION = "Name three animals that live in the sea."

OPENAI = """\
from openai import OpenAI

client = OpenAI(
    base_url="ADDRESS/v1",
    api_key="KEY",
)
reply = client.chat.completions.create(
    model="MODEL",
    messages=[{"role": "user", "content": "QUESTION"}],
    max_tokens=24,
    temperature=0,
)
print(reply.choices[0].message.content)
"""
"""A client with the ``openai`` library; the words in capitals are filled in."""

NATIVE = """\
import httpx

reply = httpx.post(
    "ADDRESS/api/generate",
    json={
        "model": "MODEL",
        "prompt": "QUESTION",
        "stream": False,
        "keep_alive": "30m",
        "options": {"num_ctx": 2048, "num_predict": 24, "temperature": 0},
    },
    timeout=120,
)
reply.raise_for_status()
print(reply.json()["response"])
"""
"""The same question on Ollama's own API."""

KEYS = {"ollama": "ollama", "vllm": "not-required"}
"""What clients commonly send as a key where none is needed; the library wants a text that is not empty."""

LIMIT_S = 120.0
SAID = 240
ERROR = re.compile(r"^[\w.]*(?:Error|Exception)\b")


@dataclass(frozen=True)
class Step:
    """One version of the client.

    Attributes:
        address, key, model: whose of the two is filled in ("ollama" or "vllm").
        changed: which of these differ from the first version.
    """

    name: str
    template: str
    address: str
    key: str
    model: str

    @property
    def changed(self) -> list[str]:
        return [name for name in ("address", "key", "model") if getattr(self, name) != "ollama"]


STEPS = (
    Step("before", OPENAI, "ollama", "ollama", "ollama"),
    Step("address", OPENAI, "vllm", "ollama", "ollama"),
    Step("address, model", OPENAI, "vllm", "ollama", "vllm"),
    Step("address, model, key", OPENAI, "vllm", "vllm", "vllm"),
    Step("alias in Ollama", OPENAI, "ollama", "ollama", "vllm"),
    Step("native", NATIVE, "ollama", "ollama", "ollama"),
    Step("native, address, model", NATIVE, "vllm", "ollama", "vllm"),
)
"""In this order, since the native one makes Ollama load the model anew, with another context."""


async def moved(kind: str, arms: Sequence[Arm], say: Progress, question: str = QUESTION) -> Transcript:
    """Run each of :data:`STEPS`. Before the alias is tried, Ollama gets it: a second name, the same file.

    Events: "program" with step, api, engine, ``changed`` (against the first), code, ok, and said: what it
    printed, or its error.

    Args:
        kind: "live" or "simulated".
        arms: Ollama and vLLM, which are running, each with its name for the model.
    """
    of = {arm.engine.name: arm for arm in arms}
    async with ollama_store(of["ollama"].engine) as store:
        await store.alias(of["ollama"].model, of["vllm"].model)
    began = time.monotonic()
    events: list[Event] = []
    for step in STEPS:
        code = _filled(step, of, question)
        started = time.monotonic()
        ok, said = await _run(code, of[step.address].engine.api_key)
        events.append(
            {
                "t_s": round(started - began, 3),
                "what": "program",
                "step": step.name,
                "api": "openai" if step.template is OPENAI else "native",
                "engine": step.address,
                "changed": step.changed,
                "ok": ok,
                "said": said,
                "code": code,
            }
        )
        say(f"{step.name}: {'ran' if ok else 'failed'}")
    told = {**await about_both(arms), "asked": {"question": question}}
    return Transcript("clients", kind, told, tuple(events))


def diff(before: str, after: str) -> str:
    """Two programs as a unified diff without its head; empty if they are the same."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1)
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def changed_lines(before: str, after: str) -> int:
    """How many lines of the first are not in the second as they were."""
    return sum(line.startswith("-") for line in diff(before, after).splitlines())


def _filled(step: Step, arms: dict[str, Arm], question: str) -> str:
    words = {
        "ADDRESS": arms[step.address].engine.url,
        "KEY": KEYS[step.key],
        "MODEL": arms[step.model].model,
        "QUESTION": question.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"),
    }
    return re.sub("|".join(words), lambda found: words[found[0]], step.template)


async def _run(code: str, key: str | None) -> tuple[bool, str]:
    """Run a program in this interpreter's like; whether it ended well, and what it said.

    A key that the server really wants stays out of the code, which is shown and kept.
    """
    if key is not None:
        code = "\n".join(_with_key(code, key))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-",  # on a command line anybody on this machine could read the key
        env={**os.environ, "NO_PROXY": "127.0.0.1,localhost,::1"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(code.encode()), LIMIT_S)
    except TimeoutError:
        return False, f"no answer within {LIMIT_S:.0f} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = err.decode(errors="replace").strip().splitlines()
    if process.returncode == 0:
        return True, out.decode(errors="replace").strip()
    last = next((line for line in reversed(lines) if ERROR.match(line)), lines[-1] if lines else "")
    return False, last[:SAID]


def _with_key(code: str, key: str) -> Iterator[str]:
    for line in code.splitlines():
        yield re.sub(r'api_key=".*"', lambda _: f"api_key={key!r}", line)
