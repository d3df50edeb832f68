"""What transcripts and runs of a move say of the claims of notebook 08."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from moved import CONTRACT, check, clients_of, contract_of, gateway_run, shift_run

from judges.moments import told
from labkit.bundle import Run
from labkit.judges import HELD, NOT_HELD, NOT_HERE
from labkit.transcript import Transcript

Build = Callable[[Path], Run | Transcript]


def given(transcript: Transcript) -> Build:
    return lambda _folder: transcript


def package(what: str, **fields: Any) -> Build:
    return given(told("package", {"what": what, **fields}))


def moved(*phases: tuple[float, int, int], **more: Any) -> Build:
    return lambda folder: shift_run(folder / "run", *([phases] if phases else []), **more)


def ways(**more: Any) -> Build:
    return lambda folder: gateway_run(folder / "run", **more)


SAME = given(
    contract_of(*(check(engine, name) for name in ("chat", "stream") for engine in ("ollama", "vllm")))
)
ONE_ENGINE = given(contract_of(check("vllm", "chat")))
NO_KEY = given(contract_of(check("ollama", "authorization"), check("vllm", "authorization", 401)))
NATIVE = partial(check, "vllm", "native-version", request="GET /api/version")
NOT_MOVED = ways()

BUILT: list[tuple[str, str, str, Build]] = [
    ("C45", NOT_HELD, "refuses 1 that Ollama answers: long-prompt", given(CONTRACT)),
    ("C45", HELD, "all of the 2 requests", SAME),
    ("C45", NOT_HERE, "checks of both engines", ONE_ENGINE),
    ("C46", HELD, "wants Python >=3.9",
     package("package", name="vllm", version="1", requires_python=">=3.9")),
    ("C46", NOT_HELD, "wants Python <3.15,>=3.11",
     package("package", name="vllm", version="0.32.0", requires_python="<3.15,>=3.11")),
    ("C46", NOT_HERE, "no lowest Python", package("package", name="vllm", version="1", requires_python=None)),
    ("C54", HELD, "lists 4 methods", package("methods", names=["awq", "gptq", "fp8", "inc"])),
    ("C54", NOT_HELD, "without gptq", package("methods", names=["awq", "fp8"])),
    ("C54", NOT_HERE, "No list", package("torch", version="2", cuda=None)),
    ("C56", HELD, "ollama answered 200, vllm answered 200", given(CONTRACT)),
    ("C56", NOT_HELD, "vllm answered 401", NO_KEY),
    ("C56", NOT_HERE, "nobody had given out", SAME),
    *[
        case
        for claim in ("C57", "C88")
        for case in (
            (claim, NOT_HELD, "on vLLM were 2 (address, model). With one name", given(clients_of())),
            (claim, NOT_HELD, "on vLLM were 2 (address, model).", given(clients_of(alias=False))),
            (claim, HELD, "on vLLM were 1 (address)", given(clients_of(address_ok=True))),
            (claim, NOT_HERE, "did not run on both", given(contract_of(name="clients"))),
        )
    ],
    ("C58", NOT_HELD, "3 of 4 requests got other facts", given(CONTRACT)),
    ("C58", HELD, "All 2 requests", SAME),
    ("C58", NOT_HERE, "checks of both engines", ONE_ENGINE),
    ("C79", NOT_HELD, "4 of 6 requests got other facts", given(CONTRACT)),
    ("C79", HELD, "All 2 requests", SAME),
    ("C79", NOT_HERE, "checks of both engines", ONE_ENGINE),
    ("C59", HELD, "went 0 % → 10 % → 50 % → 100 % → 0 % while the load went on", moved()),
    ("C59", NOT_HELD, "failed or lost: 2 of 280", moved(failed=2)),
    ("C59", NOT_HERE, "Only one of the two", moved((0, 10, 0))),
    ("C59", NOT_HERE, "No traffic was moved", NOT_MOVED),
    ("C62", HELD, "10 % asked, 11 % measured of 80", moved()),
    ("C62", NOT_HELD, "10 % asked, 50 % measured of 80", moved((0, 10, 0), (10, 40, 40))),
    ("C62", NOT_HELD, "failed: 1", moved(failed=1)),
    ("C62", NOT_HERE, "labkit's own splitter", moved(front="splitter")),
    ("C62", NOT_HERE, "No traffic was moved", NOT_MOVED),
    ("C78", HELD, "20 of 20 questions got their answer, from vllm", ways()),
    ("C78", NOT_HELD, "17 of 20 questions", ways(failed=3)),
    ("C78", NOT_HERE, "LiteLLM was not in front", ways(only=("vLLM", "vLLM through nginx"))),
    ("C87", HELD, "GET /api/version 404", given(CONTRACT)),
    ("C87", NOT_HELD, "GET /api/version 200", given(contract_of(NATIVE(200)))),
    ("C87", NOT_HERE, "any path of Ollama's own API", ONE_ENGINE),
]  # fmt: skip
