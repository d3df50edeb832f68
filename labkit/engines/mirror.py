"""A read-only mirror of ``LABKIT_HOME/models`` for both engines, so that one download serves many.

It speaks the two protocols that the engines download with: Ollama's registry (manifests and blobs straight
from a models folder of Ollama) and the Hugging Face Hub (folders that labkit recorded, as ``labkit/FOLDER``).
Nothing is served but what a manifest path, a digest or a folder's record names.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from aiohttp import web

from labkit.engines.model_files import RECORD, Record, models_home, read_record, sha256
from labkit.errors import ModelError

OLLAMA_HOST = "registry.ollama.ai"  # the folder that Ollama files names without a host under
SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]*"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
STORE = web.AppKey("store", Path)


def app(ollama_models: Path) -> web.Application:
    """The mirror as a web application.

    Args:
        ollama_models: a models folder of Ollama, with ``manifests`` and ``blobs`` in it.
    """
    mirror = web.Application()
    mirror[STORE] = ollama_models
    name = f"/v2/{{namespace:{SEGMENT}}}/{{model:{SEGMENT}}}"
    repo = f"{{owner:labkit}}/{{folder:{SEGMENT}}}"
    mirror.add_routes(
        [
            web.get(f"{name}/manifests/{{tag:{SEGMENT}}}", _manifest),
            web.get(f"{name}/blobs/{{digest:sha256:[0-9a-f]{{64}}}}", _blob),
            web.get(f"/api/models/{repo}", _info),
            web.get(f"/api/models/{repo}/revision/{{revision}}", _info),
            web.get(f"/api/models/{repo}/tree/{{revision}}", _tree),
            web.get(f"/{repo}/resolve/{{revision}}/{{file:{SEGMENT}}}", _file),
        ]
    )
    return mirror


async def _manifest(request: web.Request) -> web.StreamResponse:
    where = request.match_info
    path = request.app[STORE] / "manifests" / OLLAMA_HOST / where["namespace"] / where["model"] / where["tag"]
    return _send(path, {"Content-Type": MANIFEST_TYPE})


async def _blob(request: web.Request) -> web.StreamResponse:
    path = request.app[STORE] / "blobs" / request.match_info["digest"].replace(":", "-")
    # Ollama's puller wants to be told where the blob really is, even when it is here.
    return _send(path, {"Location": str(request.url)})


async def _info(request: web.Request) -> web.Response:
    _, record, commit = _repository(request)
    siblings = [
        {"rfilename": name, "size": size, "lfs": {"sha256": digest, "size": size, "pointerSize": 134}}
        for name, (size, digest) in record.files.items()
    ]
    name = f"labkit/{request.match_info['folder']}"
    return web.json_response({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []})


async def _tree(request: web.Request) -> web.Response:
    _, record, _ = _repository(request)
    rows: list[dict[str, Any]] = [
        {
            "type": "file",
            "path": name,
            "size": size,
            "oid": digest[:40],
            "lfs": {"oid": digest, "size": size, "pointerSize": 134},
        }
        for name, (size, digest) in record.files.items()
    ]
    return web.json_response(rows)


async def _file(request: web.Request) -> web.StreamResponse:
    folder, record, commit = _repository(request)
    name = request.match_info["file"]
    if name not in record.files:
        raise web.HTTPNotFound(headers={"X-Error-Code": "EntryNotFound"})
    size, digest = record.files[name]
    headers = {"X-Repo-Commit": commit, "X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(size)}
    return _send(folder / name, headers)


def _repository(request: web.Request) -> tuple[Path, Record, str]:
    """A model folder, its record with the record itself among the files, and a stand-in for a commit."""
    folder = models_home() / request.match_info["folder"]
    try:
        record = read_record(folder)
    except ModelError as error:
        raise web.HTTPServiceUnavailable(text=str(error)) from error
    if record is None:
        raise web.HTTPNotFound(headers={"X-Error-Code": "RepoNotFound"})
    commit = hashlib.sha256(json.dumps(record.files).encode()).hexdigest()[:40]
    if request.match_info.get("revision", "main") not in ("main", commit):
        raise web.HTTPNotFound(headers={"X-Error-Code": "RevisionNotFound"})
    own = folder / RECORD
    files = {**record.files, RECORD: (own.stat().st_size, sha256(own))}
    return folder, Record(record.source, record.digest, files), commit


def _send(path: Path, headers: dict[str, str]) -> web.FileResponse:
    if not path.is_file():
        raise web.HTTPNotFound
    return web.FileResponse(path, headers=headers, chunk_size=2**20)
