"""The models that a simulated Ollama has: names for the profile's model, without any weights behind them."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from labkit.engines.model_table import load_table
from labkit.sim.profile import Profile

REGISTRY = "registry.ollama.ai"
LICENCE = "Simulated by labkit: there are no weights, and answers have no meaning."
SYSTEM = "You are simulated."
TEMPLATE = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n"
)


@dataclass(frozen=True)
class Entry:
    """One model. ``blob`` stands for the file with its weights: models are told apart by it, not by name.

    ``quantisation`` is what it was made with here; None is the profile's.
    """

    name: str
    blob: str
    manifest: str
    modified: float = field(default_factory=time.time)
    quantisation: str | None = None


@dataclass(frozen=True)
class Layer:
    """One of the files that a pull fetches: what it is, its SHA-256, its bytes."""

    kind: str
    digest: str
    bytes: int


class Library:
    """What ``ollama list`` shows; pull, copy and delete change it."""

    def __init__(self, profile: Profile) -> None:
        """All names under which labkit's table serves the profile's model, as if pulled before."""
        self._profile = profile
        self._quantisation = profile.engines["ollama"].quantisation
        served = {profile.model.name}
        for row in load_table().values():
            if row.vllm.name == profile.model.name:
                served |= {row.name, row.ollama.name}
        self._known = {tagged(name) for name in served}
        self._entries = {name: _entry(name) for name in sorted(self._known)}

    def find(self, name: str) -> Entry | None:
        """The model of this name, with or without tag, registry and namespace."""
        return self._entries.get(tagged(name))

    def offers(self, name: str) -> Entry | None:
        """What a registry, or a mirror named in front, would give for this name."""
        known = tagged(without_host(name))
        return replace(_entry(known), name=tagged(name)) if known in self._known else None

    def add(self, entry: Entry) -> None:
        """Have it from now on."""
        self._entries[entry.name] = entry

    def copy(self, source: str, destination: str) -> bool:
        """A second name for the same file; False if there is no such model."""
        if (entry := self.find(source)) is None:
            return False
        self.add(replace(entry, name=tagged(destination), modified=time.time()))
        return True

    def quantise(self, source: str, destination: str, quantisation: str) -> bool:
        """Another file with the same model in other words; False if there is no such model."""
        if self.find(source) is None:
            return False
        self.add(replace(_entry(tagged(destination)), quantisation=quantisation.upper()))
        return True

    def layers(self, entry: Entry) -> list[Layer]:
        """What a pull of it fetches, in Ollama's order; all but the weights are real texts."""
        texts = {"template": TEMPLATE, "license": LICENCE, "system": SYSTEM}
        config = json.dumps({"model_format": "gguf", "model_type": self.details(entry)["parameter_size"]})
        small = [_text_layer(kind, text) for kind, text in {**texts, "config": config}.items()]
        return [Layer("model", entry.blob, self.bytes), *small]

    def delete(self, name: str) -> bool:
        """Forget a name; False if there is no such model."""
        return self._entries.pop(tagged(name), None) is not None

    @property
    def bytes(self) -> int:
        """Size of the weights."""
        return int(self._profile.model.weight_bytes)

    def rows(self) -> list[dict[str, Any]]:
        """As ``/api/tags`` lists them, newest first."""
        newest = sorted(self._entries.values(), key=lambda entry: -entry.modified)
        return [
            {
                "name": entry.name,
                "model": entry.name,
                "modified_at": stamp(entry.modified),
                "size": self.bytes,
                "digest": entry.manifest,
                "details": self.details(entry),
                "capabilities": ["completion"],
            }
            for entry in newest
        ]

    def details(self, entry: Entry) -> dict[str, Any]:
        """Format, family, size and precision."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": "llama",
            "families": ["llama"],
            "parameter_size": _human(self._profile.model.parameters),
            "quantization_level": entry.quantisation or self._quantisation,
        }

    def shown(self, entry: Entry) -> dict[str, Any]:
        """As ``/api/show`` tells it."""
        model = self._profile.model
        return {
            "license": LICENCE,
            "modelfile": f'# Modelfile generated by "ollama show"\n# FROM {entry.name}\n\n'
            f'FROM simulated/blobs/sha256-{entry.blob}\nLICENSE """{LICENCE}"""\n',
            "template": TEMPLATE,
            "system": SYSTEM,
            "details": self.details(entry),
            "model_info": {
                "general.architecture": "llama",
                "general.parameter_count": int(model.parameters),
                "llama.attention.head_count": model.heads,
                "llama.attention.head_count_kv": model.kv_heads,
                "llama.block_count": model.layers,
                "llama.context_length": model.context,
                "llama.embedding_length": model.hidden,
            },
            "capabilities": ["completion"],
            "modified_at": stamp(entry.modified),
        }


def tagged(name: str) -> str:
    """A name as Ollama shows it: with its tag, without its own registry and the namespace "library"."""
    short = name.removeprefix(f"{REGISTRY}/").removeprefix("library/")
    return short if ":" in short.rpartition("/")[2] else f"{short}:latest"


def without_host(name: str) -> str:
    """A name without the mirror before it."""
    host, _, rest = name.partition("/")
    return rest if rest and (":" in host or "." in host) else name


def full(name: str) -> str:
    """A name as Ollama's errors have it."""
    short = tagged(name)
    return f"{REGISTRY}/{short}" if "/" in short else f"{REGISTRY}/library/{short}"


def stamp(at: float) -> str:
    """A time as Go writes it in JSON."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _entry(name: str) -> Entry:
    return Entry(name, _digest("blob", name), _digest("manifest", name))


def _text_layer(kind: str, text: str) -> Layer:
    return Layer(kind, hashlib.sha256(text.encode()).hexdigest(), len(text.encode()))


def _digest(kind: str, name: str) -> str:
    return hashlib.sha256(f"simulated {kind} {name}".encode()).hexdigest()


def _human(number: float) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.2f}M"
