"""Claims of notebook 01: what a pull brings and what serves it, on transcripts of both."""

from __future__ import annotations

from labkit.demos.gguf import MAGIC
from labkit.judges.base import HELD, NOT_HELD, Finding, Reader
from labkit.sides import Missing, bits
from labkit.transcript import Transcript

CHILD = "llama-server"
"""The program of llama.cpp that serves a model."""

FULL_BITS = 16
"""Bits a weight of a model that is not quantised."""

HEAD = "gguf_smollm2-135m"
"""Transcript of the head of the file that Ollama serves."""


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


def _one_binary(transcript: Transcript) -> Finding:
    """C43: how many programs serve one model? What operating them takes is not seen here."""
    if transcript.kind == "simulated":
        raise Missing("A simulated Ollama is not the real one's program")
    programs = dict.fromkeys(event["program"] for event in transcript.of("process"))
    if not programs:
        raise Missing("No process was seen in it")
    if len(programs) > 1:
        return NOT_HELD, f"{len(programs)} programs serve the model: {' and '.join(programs)}."
    return HELD, f"One program serves the model: {next(iter(programs))}. What operating it takes is not seen."


# What is in the file: C14, C41, on the transcript of :mod:`labkit.demos.weights`


def _gguf(transcript: Transcript) -> Finding:
    """C14: what the file that Ollama serves begins with; other models are other files."""
    heads = transcript.of("header")
    if not heads:
        raise Missing("The head of no file is in it")
    magic = heads[0]["magic"]
    told = f"The file that Ollama serves {transcript.about['model']} from begins with {magic!r}"
    return HELD if magic == MAGIC.decode() else NOT_HELD, f"{told}. No other model's file was looked at."


def _smaller(transcript: Transcript) -> Finding:
    """C41: is it smaller than the same weights in 16 bit without a container, and by what?"""
    types = transcript.of("type")
    if not types:
        raise Missing("The types of no file's weights are in it")
    size, elements = transcript.one("file")["bytes"], sum(one["elements"] for one in types)
    plain = elements * FULL_BITS // 8
    told = (
        f"{size / 1e6:,.1f} MB for {elements / 1e6:,.1f} million weights, "
        f"which are {plain / 1e6:,.1f} MB in {FULL_BITS} bit"
    )
    widest = max(types, key=lambda one: one["elements"])
    stored = f"most of them as {widest['type']}"
    if size < plain:
        return HELD, f"{told}: {stored}, and it is that which makes the file smaller."
    return NOT_HELD, f"{told}: {stored}, and the format by itself makes nothing smaller."


READERS: dict[str, tuple[str, Reader]] = {
    "C01": ("pull", _pulls),
    "C14": (HEAD, _gguf),
    "C17": ("lifecycle", _wraps_llama_cpp),
    "C18": ("lifecycle", _quantised),
    "C19": ("lifecycle", _run_loads),
    "C41": (HEAD, _smaller),
    "C43": ("lifecycle", _one_binary),
}
