"""GGUF heads: read as written, sizes that add up, excerpts that are whole files, damage told."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from labkit.demos import gguf, weights
from labkit.demos.gguf import STRING, Array
from labkit.errors import ModelError, UsageError

MODELS = ("smollm2:135m", "labkit/smollm2:135m-q4_1")


def text(word: str) -> bytes:
    return struct.pack("<Q", len(word)) + word.encode()


def written(path: Path, *, kind: int = 8, tokens: int = 20, version: int = 3) -> Path:
    """A file with one key of each sort and two tensors, numbers and all."""
    keys = [
        text("general.name") + struct.pack("<I", STRING) + text("small"),
        text("general.alignment") + struct.pack("<II", 4, 64),
        text("small.flag") + struct.pack("<I?", 7, True),
        text("small.tokens")
        + struct.pack("<IIQ", 9, STRING, tokens)
        + b"".join(text(f"t{n}") for n in range(tokens)),
    ]
    shapes = ((64, 3), (32,))
    tensors = [
        text(f"tensor{n}") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, 256 * n)
        for n, shape in enumerate(shapes)
    ]
    counts = struct.pack("<IQQ", version, len(tensors), len(keys))
    head = b"GGUF" + counts + b"".join(keys) + b"".join(tensors)
    head = head.ljust(gguf.padded(len(head), 64), b"\0")
    path.write_bytes(head + bytes(256 + 64))  # 6 and 1 blocks of 34 bytes, each tensor padded to 64
    return path


def test_a_head_is_read_as_it_was_written(tmp_path: Path) -> None:
    head = gguf.read(written(tmp_path / "x.gguf"))
    assert head.version == 3
    assert head.metadata["general.name"] == "small"
    assert head.metadata["small.flag"] is True
    assert head.metadata["small.tokens"] == Array(STRING, 20, tuple(f"t{n}" for n in range(gguf.KEPT)))
    assert [(one.name, one.type, one.elements, one.bits) for one in head.tensors] == [
        ("tensor0", "Q8_0", 192, 8.5),
        ("tensor1", "Q8_0", 32, 8.5),
    ]


def test_sizes_add_up_to_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf")
    head = gguf.read(path)
    assert head.alignment == 64
    assert head.file_bytes == path.stat().st_size


def test_an_excerpt_is_the_same_head_with_short_lists(tmp_path: Path) -> None:
    whole = gguf.read(written(tmp_path / "x.gguf"))
    short = gguf.read(gguf.excerpt(tmp_path / "x.gguf", tmp_path / "new" / "y.gguf"))
    assert short.tensors == whole.tensors
    assert short.metadata["general.name"] == "small"
    assert short.metadata["small.tokens"].count == gguf.KEPT
    assert (tmp_path / "new" / "y.gguf").stat().st_size == short.bytes


def test_damage_is_told_in_a_sentence(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf")
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="cut off"):
        gguf.read(tmp_path / "cut.gguf")
    (tmp_path / "other").write_bytes(b"PK\3\4 and so on")
    with pytest.raises(ModelError, match="not with"):
        gguf.read(tmp_path / "other")
    with pytest.raises(ModelError, match="99 is not known"):
        gguf.read(written(tmp_path / "z.gguf", kind=99))


def test_a_transcript_tells_types_sizes_and_the_real_digest(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf")
    told = weights.transcribe(path, "labkit/small:1b")
    assert told.name == "gguf_small-1b"
    assert told.one("header")["tensors"] == 2
    (row,) = told.of("type")
    assert (row["type"], row["tensors"], row["elements"], row["bytes"]) == ("Q8_0", 2, 224, 238)
    file = told.one("file")
    assert file["computed_bytes"] == file["bytes"] == path.stat().st_size
    assert len(file["digest"]) == 64


@pytest.mark.parametrize("model", MODELS)
def test_the_heads_that_come_with_the_course_are_those_of_the_recorded_files(model: str) -> None:
    from labkit import transcript

    head = gguf.read(weights.excerpt(model))
    told = transcript.recorded(f"gguf_{weights.slug(model)}")
    file = told.one("file")
    assert file["name"] == f"sha256-{file['digest']}"
    assert sum(one.bytes for one in head.tensors) == file["tensor_bytes"]
    assert file["header_bytes"] + file["tensor_bytes"] == file["computed_bytes"] == file["bytes"]
    assert {one.type for one in head.tensors} == {row["type"] for row in told.of("type")}


def test_an_unknown_model_has_no_excerpt() -> None:
    with pytest.raises(UsageError):
        weights.excerpt("gpt-9")
