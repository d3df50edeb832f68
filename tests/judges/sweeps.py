"""What sweeps over users say of the claims: claim, word, words of the reason, the run."""

from __future__ import annotations

from typing import Any

from labkit.judges import HELD, NOT_HELD, NOT_HERE

OLLAMA = {1: 60.0, 2: 62.0, 4: 62.0, 8: 62.0, 16: 62.0}
VLLM = {1: 40.0, 2: 50.0, 4: 100.0, 8: 150.0, 16: 200.0}
BASE: dict[str, Any] = {"rates": {"ollama": OLLAMA, "vllm": VLLM}}
FOUR: dict[str, Any] = {"facts": {"ollama, 4 slots": {"slots": 4}}}
A100 = {"device": "cuda:0 NVIDIA A100-PCIE-40GB", "model": "llama3.1:8b-instruct-fp16"}


def rates(ollama: dict[int, Any] | None = None, vllm: dict[int, Any] | None = None) -> dict[str, Any]:
    return {"rates": {"ollama": {**OLLAMA, **(ollama or {})}, "vllm": {**VLLM, **(vllm or {})}}}


def on_a100(vllm_peak: float) -> dict[str, Any]:
    facts = {"ollama": A100, "vllm": {**A100, "model": "meta-llama/Llama-3.1-8B-Instruct"}}
    return {"rates": {"ollama": {32: 40.0}, "vllm": {32: vllm_peak}}, "facts": facts}


CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("C12", NOT_HERE, "3.23 times", BASE),
    ("C12", HELD, "published", on_a100(760.0)),
    ("C12", NOT_HELD, "published", on_a100(200.0)),
    ("C12", NOT_HERE, "published", {**on_a100(760.0), "kind": "simulated"}),
    ("C13", HELD, "up to 16 users", BASE),
    ("C13", NOT_HELD, "flat from 8 users", rates(vllm={16: 152.0})),
    ("C13", NOT_HELD, "flat from 8 users", rates(vllm={8: [140, 160], 16: [155, 175]})),
    ("C13", NOT_HELD, "narrows between 8 and 16", rates(vllm={16: 120.0})),
    ("C13", NOT_HERE, "3 levels", {"rates": {"ollama": {1: 60, 4: 60}, "vllm": {1: 40, 4: 90}}}),
    ("C31", NOT_HELD, "with 1 slot a user waits", BASE),
    ("C31", HELD, "2 and 2", {**BASE, "slots": 2}),
    ("C31", HELD, "2 users were not measured", {"rates": {"ollama": {1: 60}, "vllm": {1: 40}}}),
    ("C31", NOT_HELD, "100% apart", {**BASE, "slots": 2, "ttft": {"vllm": {1: 0.2}}}),
    ("C31", NOT_HERE, "cut off", {**BASE, "slots": 2, "unfinished": {"ollama": {1: 0.5}}}),
    ("C31", NOT_HERE, "Neither 1 nor 2", {"rates": {"ollama": {4: 60}, "vllm": {4: 40}}}),
    ("C32", HELD, "by more than a little", BASE),
    ("C32", HELD, "narrowly", rates(vllm={1: 52.0})),
    ("C32", NOT_HELD, "vLLM is ahead", rates(vllm={1: 90.0})),
    ("C32", NOT_HELD, "beyond the noise", rates(vllm={1: 59.0})),
    ("C32", NOT_HELD, "beyond the noise", rates({1: [50, 70]}, {1: [45, 60]})),
    ("C32", NOT_HERE, "4 against 16 bit", {**BASE, "facts": {"ollama": {"quantisation": "Q4_1"}}}),
    (
        "C32",
        NOT_HELD,
        "4 against 16 bit",
        {**rates(vllm={1: 90.0}), "facts": {"ollama": {"quantisation": "Q4_1"}}},
    ),
    ("C32", NOT_HERE, "unknown", {**BASE, "facts": {"vllm": {"quantisation": None}}}),
    ("C33", HELD, "from 2 users on (1 slot)", BASE),
    ("C33", HELD, "judged at 8 users", {"rates": {"ollama": {1: 60, 4: 60, 8: 60}}, "slots": 4}),
    ("C33", NOT_HELD, "no queue", {**BASE, "queue": {"ollama": {16: 0.05}}}),
    ("C33", NOT_HELD, "no queue", {**BASE, "slots": 16, "queue": {"ollama": {16: 0.09}}}),
    ("C33", NOT_HERE, "neither with 16", {"rates": {"ollama": {1: 60, 4: 60}}, "slots": 4}),
    ("C33", NOT_HERE, "tells waiting from work", {**BASE, "unfinished": {"ollama": {16: 1.0}}}),
    ("C34", NOT_HERE, "3.23 at 16 users", BASE),
    ("C34", HELD, "5.00 at 128", rates({128: 60.0}, {128: 300.0})),
    ("C34", NOT_HELD, "2.00 at 128", rates({128: 60.0}, {128: 120.0})),
    ("C35", HELD, "vLLM's ITL", BASE),
    ("C35", HELD, "Ollama's ITL", {"rates": {"ollama": OLLAMA}}),
    ("C35", NOT_HELD, "2.00 times", {**BASE, "itl": {"ollama": {1: 0.01, 16: 0.02}}}),
    ("C81", NOT_HERE, "3.23 at 16 users", BASE),
    ("C81", HELD, "4.00 at 128", rates({128: 60.0}, {128: 240.0})),
    ("C81", NOT_HELD, "12.00 at 128", rates({128: 60.0}, {128: 720.0})),
    ("C80", HELD, "1.03 times as many tokens/s at 16 users", BASE),
    ("C80", NOT_HELD, "2.00 times", rates({16: 120.0})),
    (
        "C80",
        NOT_HELD,
        "1.50 at 16 users",
        {"rates": {**BASE["rates"], "ollama, 4 slots": {16: 93.0}}, **FOUR},
    ),
    ("C80", HELD, "1.02 at 16 users", {"rates": {**BASE["rates"], "ollama, 4 slots": {16: 63.0}}, **FOUR}),
    ("C80", NOT_HERE, "1 user only", {"rates": {"ollama": {1: 60.0}}}),
    ("C06", HELD, "97% of Ollama's TTFT", BASE),
    ("C06", NOT_HELD, "1% of Ollama's TTFT", {**BASE, "queue": {"ollama": {16: 0.05}}}),
    ("C06", NOT_HERE, "at once than slots", {**BASE, "slots": 16}),
    (
        "C30",
        NOT_HELD,
        "1.50 at 16 users",
        {"rates": {**BASE["rates"], "ollama, 4 slots": {16: 93.0}}, **FOUR},
    ),
    ("C35", NOT_HERE, "nothing was held back", {**BASE, "slots": 16}),
    ("C35", HELD, "above 8 users too many", {**BASE, "unfinished": {"ollama": {16: 0.5}}}),
    ("C36", HELD, "97% of Ollama's TTFT", BASE),
    ("C36", HELD, "or more of Ollama's", {**BASE, "unfinished": {"ollama": {16: 0.5}}}),
    ("C36", NOT_HELD, "1% of Ollama's TTFT", {**BASE, "queue": {"ollama": {16: 0.05}}}),
    ("C36", NOT_HERE, "nobody had to wait", {**BASE, "slots": 16}),
    (
        "C36",
        NOT_HERE,
        "too many answers",
        {**BASE, "queue": {"ollama": {16: 0.05}}, "unfinished": {"ollama": {16: 0.5}}},
    ),
]
