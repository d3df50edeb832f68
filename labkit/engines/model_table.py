"""``data/models.toml``, read and checked: what each engine serves and where the files come from."""

from __future__ import annotations

import tomllib
import types
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from labkit import paths
from labkit.errors import ModelError, UsageError

PAIRS = ("fair", "4bit", "default")


@dataclass(frozen=True)
class OllamaModel:
    """What Ollama serves: the name a client sends, and the quantisation it reports."""

    name: str
    quantisation: str


@dataclass(frozen=True)
class VllmModel:
    """What vLLM serves: the name a client sends, and the folder under ``LABKIT_HOME/models``."""

    name: str
    folder: str
    quantisation: str


@dataclass(frozen=True)
class Registry:
    """The engines' own registries; a side that is None is not to be had there."""

    verified: bool
    tag: str | None = None
    tag_digest: str | None = None
    tag_bytes: int = 0
    repo: str | None = None
    repo_bytes: int = 0

    kind = "registry"


@dataclass(frozen=True)
class Package:
    """A GGUF file inside a Python package, to be converted."""

    verified: bool
    package: str
    package_bytes: int
    file: str
    sha256: str
    bytes: int
    ollama_from: str
    system: str
    ollama_blob: str
    f16_sha256: str | None = None
    converted: dict[str, str] | None = None
    heads: int | None = None

    kind = "package"


Source = Registry | Package


@dataclass(frozen=True)
class Model:
    """One row of the table."""

    name: str
    pair: str
    title: str
    licence: str
    gate: str
    note: str
    ollama: OllamaModel
    vllm: VllmModel
    vllm_from: str | None  # the model whose vLLM side this is
    sources: tuple[Source, ...]


def load_table(path: Path | None = None) -> dict[str, Model]:
    """All models by name (default: the course's ``data/models.toml``).

    Raises:
        ModelError: a field is missing, unknown or of the wrong type; names the file and the field.
    """
    path = path or paths.data() / "models.toml"
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"read {path}", str(error), "restore the file") from error
    if raw.get("schema") != 1:
        raise _wrong(path, "schema", f"{raw.get('schema')!r}, but this labkit reads 1")
    rows = raw.get("models")
    if not isinstance(rows, dict):
        raise _wrong(path, "models", "missing")
    return {name: _model(path, name, rows) for name in rows}


def find(name: str) -> Model:
    """One model of the course's table.

    Raises:
        UsageError: no model of this name.
    """
    table = load_table()
    if name not in table:
        raise UsageError(f"find a model called {name!r}", f"labkit knows {', '.join(table)}")
    return table[name]


def _model(path: Path, name: str, rows: dict[str, Any]) -> Model:
    at, row = f"models.{name}", dict(rows[name])
    vllm_from = row.pop("vllm_from", None)
    if vllm_from is not None:
        if "vllm" in row or "vllm" not in rows.get(vllm_from, {}):
            raise _wrong(
                path, f"{at}.vllm_from", f"{vllm_from!r} has no vllm table, or there is one here too"
            )
        row["vllm"] = rows[vllm_from]["vllm"]
    sides = {
        "ollama": _record(OllamaModel, row.pop("ollama", {}), path, f"{at}.ollama"),
        "vllm": _record(VllmModel, row.pop("vllm", {}), path, f"{at}.vllm"),
        "sources": tuple(
            _source(path, f"{at}.sources[{i}]", source) for i, source in enumerate(row.pop("sources", []))
        ),
    }
    model = _record(Model, {"name": name, "vllm_from": vllm_from, **row, **sides}, path, at)
    if model.pair not in PAIRS:
        raise _wrong(path, f"{at}.pair", f"{model.pair!r}, not one of {', '.join(PAIRS)}")
    return model


def _source(path: Path, at: str, row: dict[str, Any]) -> Source:
    kinds: dict[str, type[Source]] = {"registry": Registry, "package": Package}
    kind = row.get("kind")
    if kind not in kinds:
        raise _wrong(path, f"{at}.kind", f"{kind!r}, not one of {', '.join(kinds)}")
    source = _record(kinds[kind], {key: row[key] for key in row if key != "kind"}, path, at)
    if isinstance(source, Registry) and (source.tag is None) != (source.tag_digest is None):
        raise _wrong(path, f"{at}.tag_digest", "tag and tag_digest belong together")
    if isinstance(source, Package) and source.ollama_from not in ("gguf", "f16"):
        raise _wrong(path, f"{at}.ollama_from", f"{source.ollama_from!r}, not 'gguf' or 'f16'")
    if isinstance(source, Package) and (source.ollama_from == "f16") != (source.f16_sha256 is not None):
        raise _wrong(path, f"{at}.f16_sha256", "belongs to ollama_from = 'f16', and only there")
    return source


T = TypeVar("T")


def _record(kind: type[T], row: dict[str, Any], path: Path, at: str) -> T:
    """``row`` as a dataclass, with every field's presence and type checked."""
    wanted: dict[str, Any] = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    unknown = row.keys() - wanted.keys()
    if unknown:
        raise _wrong(path, f"{at}.{min(unknown)}", "unknown field")
    hints = get_type_hints(kind)
    for name, field in wanted.items():
        if name not in row:
            if field.default is MISSING:
                raise _wrong(path, f"{at}.{name}", "missing")
        elif not isinstance(row[name], _classes(hints[name])):
            raise _wrong(path, f"{at}.{name}", f"{row[name]!r} has the wrong type")
    return kind(**row)


def _classes(hint: Any) -> tuple[type, ...]:
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(get_origin(kind) or kind for kind in kinds)


def _wrong(path: Path, field: str, seen: str) -> ModelError:
    return ModelError(
        f"read {path}, field {field}", seen, "correct the field; the top of the file says what it is"
    )
