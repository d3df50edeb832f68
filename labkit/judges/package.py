"""Claims of notebook 08 that the installed vLLM decides without being started, on its own package."""

from __future__ import annotations

from labkit.judges.base import HELD, NOT_HELD, Finding, Reader
from labkit.sides import Missing
from labkit.transcript import Event, Transcript

OLLAMAS_FORMAT = "gguf"
OLD_CUDA = "11.8"
"""Of C47."""

PACKAGE = "vllm"
"""Of C48."""


def _event(transcript: Transcript, what: str) -> Event:
    found = transcript.of(what)
    if not found:
        raise Missing(f"The installed package tells nothing of its {what}")
    return found[0]


def _not_ollamas_file(transcript: Transcript) -> Finding:
    """C16: is the format of Ollama's files among the methods that vLLM brings?"""
    names = _event(transcript, "methods")["names"]
    told = f"Of the {len(names)} methods that vLLM {transcript.about.get('version')} lists"
    if OLLAMAS_FORMAT in names:
        return NOT_HELD, f"{told}, one is {OLLAMAS_FORMAT}, the format of Ollama's files."
    return HELD, f"{told}, none is {OLLAMAS_FORMAT}, the format of Ollama's files. No plugin was looked for."


def _cuda_118(transcript: Transcript) -> Finding:
    """C47: what was the PyTorch that it computes with built for?"""
    torch = _event(transcript, "torch")
    told = f"The PyTorch beside it, {torch['version']}, was built for"
    if not torch["cuda"]:
        return NOT_HELD, f"{told} no CUDA at all."
    return HELD if torch["cuda"] == OLD_CUDA else NOT_HELD, f"{told} CUDA {torch['cuda']}."


def _one_install(transcript: Transcript) -> Finding:
    """C48: is what serves here the package of that name?"""
    package = _event(transcript, "package")
    told = f"What is installed is the package {package['name']} {package['version']}"
    if package["name"] != PACKAGE:
        return NOT_HELD, f"{told}: the one called {PACKAGE} would have been the wrong one for this machine."
    return HELD, f"{told}. Drivers and system libraries were not looked at."


READERS: dict[str, tuple[str, Reader]] = {
    "C16": ("package", _not_ollamas_file),
    "C47": ("package", _cuda_118),
    "C48": ("package", _one_install),
}
