"""The file with a model's weights: where it is, and what its head says, as a transcript."""

from __future__ import annotations

import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

from labkit import paths
from labkit.demos import gguf
from labkit.demos.apart import ollama_apart
from labkit.demos.gguf import Array, Tensor
from labkit.engines import models
from labkit.engines.base import Progress, quiet
from labkit.engines.model_files import sha256
from labkit.engines.ollama import models_folder
from labkit.transcript import Event, Transcript

SHOWN = (
    "general.architecture", "general.name", "general.size_label", "general.license", "general.file_type",
    "llama.block_count", "llama.context_length", "llama.embedding_length", "llama.attention.head_count",
    "llama.attention.head_count_kv", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens",
)  # fmt: skip
"""Keys of the metadata that a transcript has."""


async def blob(model: str, say: Progress) -> Path:
    """The weights file that Ollama serves a model from, brought here if it is not here.

    Args:
        model: a row of ``data/models.toml``.

    Raises:
        UsageError: unknown model.
        ModelError, NotInstalled, StartFailed: it cannot be had.
    """
    async with ollama_apart("live", "look for a model file", quiet) as engine:
        side = await models.ensure(model, engine=engine, progress=say)
    return models_folder() / "blobs" / f"sha256-{side.digest}"


def excerpt(model: str) -> Path:
    """The head of that file as it comes with the course: lists cut short, no weights.

    Raises:
        UsageError: unknown model.
    """
    models.find(model)
    return paths.data() / "gguf" / f"{slug(model)}.gguf"


def slug(model: str) -> str:
    """A model's name as a file's name: "smollm2-135m-q4_1"."""
    return model.removeprefix("labkit/").replace(":", "-")


def transcribe(path: Path, model: str) -> Transcript:
    """What a whole weights file says of itself, and what its digest really is.

    Raises:
        ModelError: it is no GGUF file, or damaged.
    """
    head = gguf.read(path)
    began = time.monotonic()
    digest = sha256(path)
    took_s = round(time.monotonic() - began, 3)
    events: list[Event] = [
        {"t_s": 0.0, "what": "header", "magic": gguf.MAGIC.decode(), "version": head.version,
         "tensors": len(head.tensors), "metadata": len(head.metadata)}
    ]  # fmt: skip
    for key in (key for key in SHOWN if key in head.metadata):
        value = head.metadata[key]
        shown = f"{value.count} entries" if isinstance(value, Array) else value
        events.append({"t_s": 0.0, "what": "key", "key": key, "value": str(shown)})
    for kind, tensors in sorted(_by_type(head.tensors).items()):
        events.append(
            {"t_s": 0.0, "what": "type", "type": kind, "tensors": len(tensors),
             "elements": sum(one.elements for one in tensors), "bits": tensors[0].bits,
             "bytes": sum(one.bytes for one in tensors)}
        )  # fmt: skip
    events.append(
        {"t_s": took_s, "what": "file", "name": path.name, "bytes": path.stat().st_size,
         "header_bytes": head.bytes, "tensor_bytes": sum(one.bytes for one in head.tensors),
         "computed_bytes": head.file_bytes, "digest": digest}
    )  # fmt: skip
    seen_on = {"model": model, "date": datetime.now(UTC).date().isoformat()}
    return Transcript(f"gguf_{slug(model)}", "live", seen_on, tuple(events))


def _by_type(tensors: tuple[Tensor, ...]) -> dict[str, list[Tensor]]:
    groups = defaultdict(list)
    for tensor in tensors:
        groups[tensor.type].append(tensor)
    return groups
