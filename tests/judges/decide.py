"""What runs and promises say of the claims of notebook 09."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthetic import make_run

from labkit import evidence
from labkit.bundle import Run
from labkit.judges import HELD, NOT_HELD, NOT_HERE
from labkit.slo import Slo
from labkit.transcript import Transcript
from labkit.verdict import Verdict

RATES: dict[str, dict[int, float]] = {
    "ollama": {1: 60.0, 2: 60.0, 4: 60.0, 8: 60.0},
    "vllm": {1: 30.0, 2: 50.0, 4: 90.0, 8: 150.0},
}


def run(folder: Path, **given: Any) -> Run:
    return make_run(folder / "run", **{"rates": RATES, **given})


def waits(ollama: dict[int, float], vllm: dict[int, float], **more: Any) -> Callable[[Path], Transcript]:
    """TTFT of each by users, and a promise of two seconds."""

    def build(folder: Path) -> Transcript:
        waited = {"ollama": ollama, "vllm": vllm}
        made = run(folder, ttft=waited, itl={arm: dict.fromkeys(RATES[arm], 0.01) for arm in RATES}, **more)
        return evidence.promise(made, Slo(ttft_s=2.0), price_per_hour=1.0)

    return build


def swept(**given: Any) -> Callable[[Path], Run]:
    return lambda folder: run(folder, **given)


SHORT = {1: 0.1, 2: 0.1, 4: 0.1, 8: 0.1}
TO_4 = {**SHORT, 8: 5.0}
NEVER = dict.fromkeys(SHORT, 3.0)
TO_1 = {1: 0.1, 2: 3.0, 4: 4.0, 8: 5.0}
ONE_LEVEL = {"ollama": {1: 60.0}, "vllm": {1: 30.0}}
FEWER = {"ollama": RATES["ollama"], "vllm": {1: 30.0, 2: 50.0, 4: 90.0}}

BUILT: list[tuple[str, str, str, Callable[[Path], Any]]] = [
    ("C38", HELD, "for 4 users and no more for 8 users", waits(TO_4, SHORT)),
    ("C38", NOT_HELD, "for 1 user and no more for 2 users", waits(TO_1, SHORT)),
    ("C38", NOT_HELD, "ollama breaks TTFT within 2 s for 95% with 1 user already", waits(NEVER, SHORT)),
    ("C38", NOT_HELD, "so neither is the better choice", waits(TO_4, TO_4)),
    ("C38", NOT_HERE, "at every measured level, up to 8 users", waits(SHORT, SHORT)),
    ("C38", NOT_HERE, "vllm was not measured there", waits(TO_4, SHORT, rates=FEWER)),
    ("C38", NOT_HERE, "is contaminated", waits(TO_4, SHORT, verdict=Verdict("contaminated", ["someone"]))),
    ("C42", HELD, "vLLM / Ollama in total tokens/s: 2.50 at 8 users", swept()),
    ("C42", NOT_HELD, "0.50 at 8 users", swept(rates={**RATES, "vllm": {1: 20.0, 8: 30.0}})),
    ("C42", NOT_HELD, "takes 533 ms", swept(rates={**RATES, "ollama": {1: 30.0, 8: 60.0}})),
    ("C42", NOT_HERE, "with 1 user and with more", swept(rates=ONE_LEVEL)),
    ("C42", NOT_HERE, "different precision", swept(facts={"ollama": {"quantisation": "Q4_1"}})),
]
