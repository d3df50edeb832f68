"""How a model is shared by several devices: what each holds, what they must tell each other, what fits.

Arithmetic on the fields of a model's ``config.json`` and on what an engine was started with; nothing here
measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from labkit.errors import UsageError
from labkit.transcript import Event, Transcript

GIB = 2**30
NUMBER_BYTES = 2
"""Bytes of one 16-bit number, as weights, keys, values and what is sent have them here."""

REDUCES_A_LAYER = 2
"""All-reduces: one after the attention, one after the MLP; each ends in a matrix that is split by rows.

A step has one more, behind the embedding, and one exchange of the words' scores; they are left out here."""

GPU_KV_GIB = 1.0
"""KV memory of each rank on GPUs, as it is on a CPU: arms are alike in it, and can be compared."""

SIZES = (1, 2, 3, 4, 6, 8)
"""Numbers of ranks that a table shows: hosts have up to 8 devices."""

Settings = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, as its ``config.json`` has them.

    Attributes:
        width: numbers that stand for one token between two layers ("hidden_size").
        inner: width of the MLP ("intermediate_size").
        tied: one matrix turns tokens into numbers and back.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    tied: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """From the fields of a ``config.json``.

        Raises:
            UsageError: a field is missing or no number above 0; names it.
        """
        given = config.get("text_config", config)
        heads = _whole(given, "num_attention_heads")
        width = _whole(given, "hidden_size")
        return cls(
            layers=_whole(given, "num_hidden_layers"),
            width=width,
            heads=heads,
            kv_heads=_whole(given, "num_key_value_heads", heads),
            head_dim=_whole(given, "head_dim", width // heads),
            inner=_whole(given, "intermediate_size"),
            vocabulary=_whole(given, "vocab_size"),
            tied=bool(given.get("tie_word_embeddings", False)),
        )

    @classmethod
    def told(cls, transcript: Transcript) -> Self:
        """The model of a transcript of :meth:`labkit.Lab.ranks` or :func:`shares`.

        Raises:
            UsageError: it tells none.
        """
        event = transcript.one("model")
        return cls(**{name: event[name] for name in cls.__dataclass_fields__})

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token, in bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * NUMBER_BYTES

    @property
    def reduces(self) -> int:
        """All-reduces of all layers in one step."""
        return REDUCES_A_LAYER * self.layers


@dataclass(frozen=True)
class Share:
    """What one rank holds.

    Attributes:
        why: why this number of ranks does not fit, in a sentence; empty if it does.
        kv_heads: KV heads of one rank, copies counted.
        copies: ranks that hold the same KV head.
        weights_gib: of one rank.
        kv_bytes: of one token on one rank.
    """

    ranks: int
    why: str
    heads: int
    kv_heads: int
    copies: int
    weights_gib: float
    kv_bytes: int

    @property
    def room(self) -> float:
        """Tokens that the ranks together hold, as a multiple of what one device holds in as much memory."""
        return self.ranks / self.copies


def share(shape: Shape, ranks: int) -> Share:
    """A rank's part of a model: its heads, and its KV heads, or a copy of one if there are fewer than ranks.

    Raises:
        UsageError: no ranks.
    """
    if ranks < 1:
        raise UsageError(f"share a model between {ranks} ranks", "that is nobody", "give 1 or more")
    copies = max(1, ranks // shape.kv_heads)
    kv_heads = max(1, shape.kv_heads // ranks)
    heads = shape.heads // ranks
    attention = shape.width * shape.head_dim * 2 * (heads + kv_heads)
    mlp = 3 * shape.width * shape.inner // ranks
    embeddings = (1 if shape.tied else 2) * shape.vocabulary * shape.width // ranks
    numbers = embeddings + shape.layers * (attention + mlp + 2 * shape.width) + shape.width
    kv_bytes = 2 * shape.layers * kv_heads * shape.head_dim * NUMBER_BYTES
    return Share(ranks, _why(shape, ranks), heads, kv_heads, copies, numbers * NUMBER_BYTES / GIB, kv_bytes)


def largest(shape: Shape, devices: int) -> int:
    """The most ranks that this model can be shared by, on so many devices."""
    return max(ranks for ranks in range(1, devices + 1) if not share(shape, ranks).why)


def shares(config: Mapping[str, Any], devices: int = 8, sizes: Sequence[int] = SIZES) -> Transcript:
    """Numbers of ranks for a model, each with what a rank would hold, or why it does not fit.

    Args:
        config: the fields of its ``config.json``.
        devices: of one host.

    Raises:
        UsageError: a field is missing, or no devices.
    """
    shape = Shape.of(config)
    if devices < 1:
        raise UsageError(f"share a model between {devices} devices", "that is nobody", "give 1 or more")
    events: list[Event] = [{"t_s": 0.0, "what": "model", **asdict(shape), "devices": devices}]
    for ranks in sorted({*(size for size in sizes if size <= devices), devices}):
        part = share(shape, ranks)
        held = {**asdict(part), "weights_gib": round(part.weights_gib, 3), "room": part.room}
        events.append({"t_s": 0.0, "what": "size", "fits": not part.why, **held})
    return Transcript("shares", "computed", {}, tuple(events))


def arms(device: str, count: int) -> list[Settings]:
    """Settings of vLLM that show what tensor parallelism does on this device.

    On a CPU one core, two cores, and two ranks of one core each: the second is the fair one to compare the
    third with, since both have the same cores. On GPUs, not yet verified there, one and two.

    Args:
        device: "cpu" or "cuda".
        count: of its cores, or of its GPUs.

    Raises:
        UsageError: fewer than two.
    """
    if count < 2:
        what = "GPU" if device.startswith("cuda") else "processor core"
        raise UsageError(
            "run tensor parallelism",
            f"it takes two devices, and there is {count} {what} here",
            "MODE = 'simulated' or 'recorded' shows it without; a machine with two can measure it",
        )
    if device.startswith("cuda"):
        return [{"tensor_parallel_size": ranks, "kv_cache_gib": GPU_KV_GIB} for ranks in (1, 2)]
    return [{"cpu_threads": 1}, {"cpu_threads": 2}, {"cpu_threads": 2, "tensor_parallel_size": 2}]


def ranks_of(settings: Mapping[str, Any]) -> int:
    """Ranks of an arm that was started with these settings."""
    return int(settings.get("tensor_parallel_size") or 1)


def label(settings: Mapping[str, Any]) -> str:
    """What a figure calls such an arm: "1 core", "2 ranks, 1 core each"."""
    ranks, threads = ranks_of(settings), settings.get("cpu_threads")
    if not isinstance(threads, int):
        return f"{ranks} rank{'' if ranks == 1 else 's'}"
    cores = f"{threads // ranks} core{'' if threads // ranks == 1 else 's'}"
    return cores if ranks == 1 else f"{ranks} ranks, {cores} each"


def _why(shape: Shape, ranks: int) -> str:
    if shape.heads % ranks:
        return f"{ranks} ranks do not divide {shape.heads} attention heads"
    if shape.kv_heads % ranks and ranks % shape.kv_heads:
        return f"{shape.kv_heads} KV heads can be neither divided nor copied evenly by {ranks} ranks"
    if shape.inner % ranks:
        return f"{ranks} ranks do not divide the MLP's {shape.inner} columns"
    return ""


def _whole(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name, default)
    if value is None and default is not None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(
            "read the shape of a model",
            f"{name} is {value!r}",
            "give the fields of its config.json as a dictionary; such a field is a whole number above 0",
        )
    return value
