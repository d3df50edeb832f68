"""Profiles: what a simulated engine is made of, from ``data/profiles`` or calibrated on this machine.

A profile names a device, a model, and for each engine the coefficients of its step time
(:mod:`labkit.sim.cost`) with the band that a prediction has. ``basis`` says where they come from: "measured"
on real engines, or "from datasheets, not measured".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labkit import paths, records
from labkit.engines.ollama_settings import DEFAULT_SLOTS
from labkit.errors import UsageError
from labkit.records import Record
from labkit.sim.blocks import BlockPool
from labkit.sim.cost import TERMS, Cost
from labkit.sim.hardware import Device, Model
from labkit.sim.ollama import Ollama
from labkit.sim.vllm import VLLM

DEFAULT = "cpu-2core-smollm2-135m"
BY_MODEL = {"smollm2:135m": DEFAULT, "smollm2:135m-12h": f"{DEFAULT}-12h"}
"""The profile that stands for the reference machine with this model of vLLM."""
BASES = ("measured", "scaled from a measured profile, not measured", "from datasheets, not measured")
METRICS = ("tokens_per_s", "itl", "ttft", "queue")
"""What a band is known for: total tokens/s, the medians of ITL and TTFT, and, of Ollama, which reports it, of
the queue wait."""


@dataclass(frozen=True)
class EngineProfile:
    """One engine on the profile's device.

    Attributes:
        coefficients: of each term of the cost model.
        ridge: tokens a step up to which matrix products hide under the reading of the weights.
        band: half width of the 90 % band of a prediction, as a share of it, by metric.
        limits: the engine's own defaults and fixed sizes ("block_size", "load_s" …).
    """

    version: str
    quantisation: str
    coefficients: Mapping[str, float]
    ridge: float
    band: Mapping[str, float]
    limits: Mapping[str, float]


@dataclass(frozen=True)
class Profile:
    """A device, a model on it, and both engines."""

    name: str
    basis: str
    source: str  # of the figures, for people
    kind: str  # as an engine names its device: "cpu", "cuda:0 NVIDIA A100 …"
    threads: int | None
    device: Device
    model: Model
    engines: Mapping[str, EngineProfile]

    def cost(self, engine: str, ranks: int = 1, share: float = 1.0) -> Cost:
        """The step time of one of its engines, on so many devices.

        On a CPU the ranks share one machine: they read from one memory, however many they are, and compute
        with the ``share`` of its cores that they have together.
        """
        part, device = self.engines[engine], self.device
        if self.kind == "cpu":
            rate, peak = device.bandwidth_gb_s / ranks, device.tflops * share / ranks
            device = replace(device, bandwidth_gb_s=rate, tflops=peak)
        return Cost(device, self.model, part.coefficients, part.ridge, ranks)

    def cores(self, settings: Mapping[str, Any]) -> int | None:
        """Cores that vLLM computes on with these settings, all ranks together; None on a GPU."""
        if self.kind != "cpu" or self.threads is None:
            return None
        asked, ranks = settings.get("cpu_threads", "all"), settings["tensor_parallel_size"]
        words = {"all": self.threads, "default": max(1, self.threads - 1)}
        return min(words.get(asked, asked), self.threads) // ranks * ranks or 1

    def pool_tokens(self, settings: Mapping[str, Any]) -> int:
        """Tokens that vLLM's KV pool holds with these settings, all ranks together."""
        limits, ranks = self.engines["vllm"].limits, settings["tensor_parallel_size"]
        rank_bytes = (settings.get("kv_cache_gib") or 0) * 2**30
        if not rank_bytes:
            share = settings.get("gpu_memory_utilization") or limits["gpu_memory_utilization"]
            rank_bytes = share * self.device.memory_gib * 2**30 - self.model.weight_bytes / ranks
        size = self.block_size(settings)
        return int(max(0.0, rank_bytes) * ranks / self.model.kv_bytes) // size * size

    def block_size(self, settings: Mapping[str, Any]) -> int:
        """Tokens a KV block of vLLM."""
        return int(settings.get("block_size") or self.engines["vllm"].limits["block_size"])

    def facts(self, engine: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What an engine with these settings says of itself, beside its version; None where it has none."""
        vllm, part = engine == "vllm", self.engines[engine]
        slots = settings["max_num_seqs"] if vllm else settings["num_parallel"] or DEFAULT_SLOTS
        context = settings["max_model_len"] if vllm else min(settings["context_length"], self.model.context)
        tokens = self.pool_tokens(settings) if vllm else slots * context
        return {
            "profile": self.name,
            "basis": self.basis,
            "band": dict(part.band),
            "slots": slots,
            "context": context,
            "threads": self.cores(settings) if vllm else self.threads,
            "device": self.kind,
            "cpu": self.device.name,
            "kv_tokens": tokens,
            "kv_bytes": tokens * self.model.kv_bytes // (settings["tensor_parallel_size"] if vllm else 1),
            "block_size": self.block_size(settings) if vllm else None,
            "quantisation": part.quantisation,
            "model": self.model.name,
        }


def names() -> list[str]:
    """Profiles that there are: the course's, and those calibrated here."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.toml")})


def load(name: str) -> Profile:
    """The profile of this name; one calibrated here goes before the course's.

    Raises:
        UsageError: no such profile; names those there are.
        SchemaError: a wrong field; names file and field.
    """
    for folder in _folders():
        if name in {path.stem for path in folder.glob("*.toml")}:
            return read(folder / f"{name}.toml")
    raise UsageError(f"simulate with the profile {name!r}", "no such profile", f"one of {', '.join(names())}")


def read(path: Path) -> Profile:
    """The profile in a file."""
    record = records.read(path)
    device, model = record.record("device"), record.record("model")
    return Profile(
        name=path.stem,
        basis=record.one_of("basis", BASES),
        source=record.get("source", str),
        kind=record.get("kind", str),
        threads=record.get("threads", int) if "threads" in record.data else None,
        device=Device(
            device.get("name", str),
            *(device.number(key) for key in ("memory_gib", "bandwidth_gb_s", "tflops")),
            *(device.number(key) for key in ("link_gb_s", "link_latency_us")),
        ),
        model=Model(
            model.get("name", str),
            model.number("parameters"),
            **{key: model.get(key, int) for key in ("layers", "heads", "kv_heads", "head_dim", "context")},
            bytes_per_weight=model.number("bytes_per_weight"),
            width=model.get("width", int) if "width" in model.data else None,
        ),
        engines={engine: _engine(record.record(engine)) for engine in ("vllm", "ollama")},
    )


def dump(profile: Profile) -> str:
    """The profile as the text of its file."""
    device, model = vars(profile.device), vars(profile.model)
    top = {"basis": profile.basis, "source": profile.source, "kind": profile.kind, "threads": profile.threads}
    parts = [_table("", {"schema_version": records.SCHEMA_VERSION, **top})]
    parts += [_table("device", device), _table("model", model)]
    for name, part in profile.engines.items():
        parts += [
            _table(name, {"version": part.version, "quantisation": part.quantisation}),
            _table(f"{name}.limits", part.limits),
            _table(f"{name}.cost", {**part.coefficients, "ridge": part.ridge}),
            _table(f"{name}.band", part.band),
        ]
    return "\n".join(parts)


def _table(name: str, values: Mapping[str, Any]) -> str:
    lines = [f"[{name}]"] if name else []
    for key, value in values.items():
        if value is not None:
            lines.append(f"{key} = {json.dumps(value) if isinstance(value, str) else f'{value:.6g}'}")
    return "\n".join(lines) + "\n"


def build(profile: Profile, engine: str, settings: Mapping[str, Any]) -> VLLM | Ollama:
    """A simulated engine with these settings (``as_dict()`` of the real engine's settings, resolved).

    Raises:
        UsageError: a setting that the real engine would refuse at its start, in its words.
    """
    if engine == "vllm":
        return _vllm(profile, settings)
    limits = profile.engines["ollama"].limits
    return Ollama(
        profile.cost("ollama"),
        slots=settings["num_parallel"] or DEFAULT_SLOTS,
        context=min(settings["context_length"], profile.model.context),
        load_s=limits["load_s"],
        hop_s=limits["hop_s"],
        hop_token_s=limits["hop_token_s"],
        keep_alive_s=_seconds(str(settings["keep_alive"])),
        max_queue=settings["max_queue"],
        max_models=settings["max_loaded_models"] or 3,
    )


def _vllm(profile: Profile, settings: Mapping[str, Any]) -> VLLM:
    model, ranks, longest = profile.model, settings["tensor_parallel_size"], settings["max_model_len"]
    tokens = profile.pool_tokens(settings)
    if model.heads % ranks:
        raise _refused(
            "tensor_parallel_size",
            ranks,
            f"Total number of attention heads ({model.heads}) must be divisible by tensor parallel size "
            f"({ranks}).",
            f"choose one that divides {model.heads}",
        )
    if longest > model.context:
        raise _refused(
            "max_model_len",
            longest,
            f"User-specified max_model_len ({longest}) is greater than the derived max_model_len "
            f"({model.context})",
            f"at most {model.context}",
        )
    if tokens < longest:
        gib = model.kv_bytes / 2**30
        raise _refused(
            "max_model_len",
            longest,
            f"To serve at least one request with the model's max seq len ({longest}), ({longest * gib:.2f} "
            f"GiB KV cache is needed, which is larger than the available KV cache memory "
            f"({tokens * gib:.2f} GiB). Based on the available memory, the estimated maximum model length "
            f"is {tokens}.",
            f"at most {tokens}, or a larger kv_cache_gib or gpu_memory_utilization, or more devices",
        )
    size = profile.block_size(settings)
    # one of the blocks is never given out: it stands in where a request has none (vLLM's "null block")
    pool = BlockPool(tokens // size - 1, size, caching=settings["prefix_caching"])
    budget = int(profile.engines["vllm"].limits["max_num_batched_tokens"]) * (
        ranks if profile.kind == "cpu" else 1
    )
    return VLLM(
        profile.cost("vllm", ranks, (profile.cores(settings) or 1) / (profile.threads or 1)),
        pool,
        seqs=settings["max_num_seqs"],
        budget=budget,
        max_queue=settings.get("max_num_queued_reqs"),
    )


def _refused(field: str, value: object, words: str, fix: str) -> UsageError:
    return UsageError(f"start the simulated vLLM with {field}={value!r}", words, fix)


def _engine(record: Record) -> EngineProfile:
    cost, band, limits = (record.record(name) for name in ("cost", "band", "limits"))
    cost.no_others("ridge", *TERMS)
    band.no_others(*METRICS)
    return EngineProfile(
        record.get("version", str),
        record.get("quantisation", str),
        {term: cost.number(term) for term in TERMS},
        cost.number("ridge"),
        {metric: band.number(metric) for metric in METRICS if metric in band.data},
        {name: limits.number(name) for name in limits.data},
    )


def _folders() -> list[Path]:
    return [paths.folder("profiles"), paths.data() / "profiles"]


def _seconds(duration: str) -> float:
    """Seconds of Ollama's notation; negative is for ever."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    if duration.lstrip("-").isdigit():
        seconds = float(duration)
    else:
        seconds = sum(float(n) * units[u] for n, u in re.findall(r"(-?[\d.]+)(ms|s|m|h)", duration))
    return seconds if seconds >= 0 else float("inf")
