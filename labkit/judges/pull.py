"""Claims of notebook 01: what a pull brings and what serves it, on transcripts of both."""

from __future__ import annotations

from labkit.judges.base import HELD, NOT_HELD, Finding, Reader
from labkit.sides import Missing, bits
from labkit.transcript import Transcript

CHILD = "llama-server"
"""The program of llama.cpp that serves a model."""


FULL_BITS = 16
"""Bits a weight of a model that is not quantised."""


def _pulls(transcript: Transcript) -> Finding:
    """C01: did the pull bring a model? How long the install takes is not seen here."""
    said = [event["status"] for event in transcript.of("status")]
    if not said or not transcript.of("done"):
        raise Missing("The pull is not whole")
    done = transcript.one("done")
    told = (
        f"One pull, without a further step, brought {done['bytes'] / 1e6:,.0f} MB in {done['took_s']:,.1f} s"
    )
    if said[-1] != "success":
        return NOT_HELD, f"The pull ended with {said[-1]!r}."
    return HELD, f"{told}. How long the install takes was not measured."


def _quantised(transcript: Transcript) -> Finding:
    """C18: does the model that Ollama serves have fewer than 16 bits a weight?"""
    if transcript.kind == "simulated":
        raise Missing("A simulated Ollama has no model file")
    width, word = bits(transcript.about), transcript.about.get("quantisation")
    if width is None:
        raise Missing(f"Ollama tells no precision ({word})")
    told = f"Ollama serves {transcript.about.get('model')} from a GGUF file as {word}"
    return HELD if width < FULL_BITS else NOT_HELD, f"{told}, {width} bits a weight."


def _wraps_llama_cpp(transcript: Transcript) -> Finding:
    """C17: is there a child process, and is it llama.cpp's server?"""
    if transcript.kind == "simulated":
        raise Missing("A simulated Ollama has no child process and proves nothing about the real one")
    processes = {event["role"]: event for event in transcript.of("process")}
    if "server" not in processes:
        raise Missing("No process was seen in it")
    if "child" not in processes:
        return NOT_HELD, f"{processes['server']['program']} has no child process that serves the model."
    child = processes["child"]
    told = f"{processes['server']['program']} has a child process {child['program']}"
    return HELD if child["program"] == CHILD else NOT_HELD, f"{told}, which has {child['memory_mib']:,} MiB."


def _run_loads(transcript: Transcript) -> Finding:
    """C19: an API that answers and a model that loads without ``ollama run`` refute it; nothing proves it."""
    first = next((event for event in transcript.of("answer") if event["turn"] == "first"), None)
    apis = [event["path"] for event in transcript.of("api")]
    if first is None or not apis:
        raise Missing("Not both a first answer and a reply of an API are in it")
    load = f" in {first['load_s']:.2f} s" if first["load_s"] is not None else ""
    told = f"Without any `ollama run` the first question loaded the model{load}"
    return NOT_HELD, f"{told}, and {' and '.join(apis)} answered."


READERS: dict[str, tuple[str, Reader]] = {
    "C01": ("pull", _pulls),
    "C17": ("lifecycle", _wraps_llama_cpp),
    "C18": ("lifecycle", _quantised),
    "C19": ("lifecycle", _run_loads),
}
