"""The head of a GGUF file: what model it is, and which tensor is stored in how many bits.

A file is magic, version and two counts; then keys with values, then a list of tensors, then the numbers in
the tensors. Only what is before the numbers is read here. The layout is that of the GGUF specification (ggml,
``docs/gguf.md``), version 3, little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

from labkit.errors import ModelError

MAGIC = b"GGUF"
ALIGNMENT = 32
"""Tensors begin at multiples of so many bytes, unless the key ``general.alignment`` says otherwise."""

KEPT = 8
"""Elements that are kept of an array; a tokenizer's vocabulary has tens of thousands."""

SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
STRING, ARRAY = 8, 9

TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}  # fmt: skip
"""Number of a tensor type: its name, the elements that are stored together, and the bytes that these take."""


@dataclass(frozen=True)
class Array:
    """A list in the metadata, of which only the beginning is kept."""

    kind: int
    count: int
    first: tuple[Any, ...]


@dataclass(frozen=True)
class Tensor:
    """One tensor; ``offset`` is where it begins, counted from the end of the head."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def type(self) -> str:
        """Name of the type that it is stored in."""
        return TYPES[self.kind][0]

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    @property
    def bits(self) -> float:
        """Bits a number, with its share of the scales that a group of numbers has in common."""
        _, together, size = TYPES[self.kind]
        return 8 * size / together

    @property
    def bytes(self) -> int:
        """What it takes in the file, without padding."""
        return round(self.elements * self.bits / 8)


@dataclass(frozen=True)
class Head:
    """What stands before the numbers.

    Attributes:
        metadata: by key; lists as :class:`Array`.
        kinds: by key, the number of the value's type.
        bytes: where the numbers begin.
    """

    version: int
    metadata: dict[str, Any]
    kinds: dict[str, int]
    tensors: tuple[Tensor, ...]
    bytes: int

    @property
    def alignment(self) -> int:
        """Tensors begin at multiples of so many bytes."""
        return int(self.metadata.get("general.alignment", ALIGNMENT))

    @property
    def file_bytes(self) -> int:
        """How long the whole file is, by the sizes of its tensors."""
        return self.bytes + sum(padded(tensor.bytes, self.alignment) for tensor in self.tensors)


def read(path: Path) -> Head:
    """The head of a file.

    Raises:
        ModelError: it is no GGUF file, is cut off, or has a tensor type that this table does not know.
    """
    tried = f"read the head of {path.name}"
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != MAGIC:
            raise ModelError(tried, f"it begins with {magic!r}, not with {MAGIC!r}", "take a GGUF file")
        try:
            return _head(file)
        except (struct.error, UnicodeDecodeError) as error:
            raise ModelError(tried, f"it is cut off or damaged: {error}", "get the file again") from error
        except KeyError as error:
            raise ModelError(tried, f"type {error} is not known", "add it in labkit/demos/gguf.py") from error


def excerpt(source: Path, target: Path) -> Path:
    """Write the head of a file as a GGUF file of its own: lists cut short, no numbers behind it."""
    head = read(source)
    out = [MAGIC, struct.pack("<IQQ", head.version, len(head.tensors), len(head.metadata))]
    for key, value in head.metadata.items():
        kind = head.kinds[key]
        out += [_packed(STRING, key), struct.pack("<I", kind), _packed(kind, value)]
    for tensor in head.tensors:
        shape = struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
        out += [_packed(STRING, tensor.name), struct.pack("<I", len(tensor.shape)), shape]
        out.append(struct.pack("<IQ", tensor.kind, tensor.offset))
    written = b"".join(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(written.ljust(padded(len(written), head.alignment), b"\0"))
    return target


def padded(size: int, alignment: int) -> int:
    """The next multiple of ``alignment``."""
    return -(-size // alignment) * alignment


def _head(file: IO[bytes]) -> Head:
    version, tensors, keys = _unpacked(file, "<IQQ")
    metadata, kinds = {}, {}
    for _ in range(keys):
        key = _value(file, STRING)
        (kinds[key],) = _unpacked(file, "<I")
        metadata[key] = _value(file, kinds[key])
    listed = tuple(_tensor(file) for _ in range(tensors))
    end = padded(file.tell(), int(metadata.get("general.alignment", ALIGNMENT)))
    return Head(version, metadata, kinds, listed, end)


def _tensor(file: IO[bytes]) -> Tensor:
    name = _value(file, STRING)
    (dimensions,) = _unpacked(file, "<I")
    shape = _unpacked(file, f"<{dimensions}Q")
    kind, offset = _unpacked(file, "<IQ")
    if kind not in TYPES:
        raise KeyError(kind)
    return Tensor(name, shape, kind, offset)


def _value(file: IO[bytes], kind: int) -> Any:
    if kind == STRING:
        (length,) = _unpacked(file, "<Q")
        return str(_taken(file, length), "utf-8")
    if kind == ARRAY:
        of, count = _unpacked(file, "<IQ")
        first = tuple(_value(file, of) for _ in range(min(count, KEPT)))
        for _ in range(count - len(first)):
            _value(file, of)
        return Array(of, count, first)
    (value,) = _unpacked(file, SCALARS[kind])
    return value


def _packed(kind: int, value: Any) -> bytes:
    if kind == STRING:
        text = str(value).encode()
        return struct.pack("<Q", len(text)) + text
    if kind == ARRAY:
        items = b"".join(_packed(value.kind, item) for item in value.first)
        return struct.pack("<IQ", value.kind, len(value.first)) + items
    return bytes(struct.pack(SCALARS[kind], value))


def _unpacked(file: IO[bytes], layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, _taken(file, struct.calcsize(layout)))


def _taken(file: IO[bytes], size: int) -> bytes:
    data: bytes = file.read(size)
    if len(data) < size:
        raise struct.error(f"{size} bytes expected, {len(data)} left")
    return data
