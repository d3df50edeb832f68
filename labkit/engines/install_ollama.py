"""Two ways to get Ollama: its official release archive, or its sources out of package registries."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tarfile
from functools import partial
from pathlib import Path

import httpx

from labkit import host
from labkit.engines import hardware
from labkit.engines.base import Progress
from labkit.engines.install_steps import (
    COMPILER,
    GIT,
    Pins,
    Plan,
    doubt,
    download,
    environment,
    log_file,
    platform_key,
    run_step,
)
from labkit.errors import InstallFailed

TARGETS = ("llama-server", "llama-quantize")
"""What Ollama starts: one serves a model, the other is needed by ``ollama create``."""


def folders(pins: Pins, engines: Path) -> list[Path]:
    """Where an install may be: a native build for this very CPU, or the release that fits every CPU."""
    return [engines / f"ollama-{pins['version']}-{key}" for key in (hardware.cpu_key(), "release")]


def executable(folder: Path) -> Path:
    """The ``ollama`` program of an install (macOS archives are flat, Linux ones have ``bin/``)."""
    flat = folder / "ollama"
    return flat if flat.is_file() else folder / "bin" / "ollama"


def complete(program: Path) -> bool:
    """Whether ``llama-server`` is where this ``ollama`` looks for it; ``go install`` alone makes no such.

    Linux only: packages for macOS place it in several ways.
    """
    place = program.resolve().parent
    places = (place.parent / "lib" / "ollama", place / "build" / "lib" / "ollama")
    return platform.system() != "Linux" or any((folder / "llama-server").is_file() for folder in places)


def plan(pins: Pins, engines: Path, progress: Progress) -> Plan:
    """The official archive where its host answers, else a build from source.

    Raises:
        InstallFailed: neither is possible on this platform.
    """
    archive = pins["release"]["files"].get(platform_key())
    if archive is not None:
        try:
            return _release(pins, archive, engines)
        except (httpx.HTTPError, LookupError) as error:
            progress(f"official Ollama release not reachable ({error}): building from source instead")
    if platform.system() != "Linux":
        raise InstallFailed(
            "install Ollama",
            f"no official archive to be had for {platform_key()}, and the source build is for Linux",
            "install Ollama from ollama.com, then run this again",
        )
    source = pins["source"]
    return Plan(
        "Ollama",
        pins["version"],
        "compiled from source for this CPU" + doubt(source, "online"),
        folders(pins, engines)[0],
        source["download_mb"],
        source["disk_mb"],
        source["minutes"],
        partial(_build, pins),
        (COMPILER, GIT),
    )


def _release(pins: Pins, archive: Pins, engines: Path) -> Plan:
    """Plan for the archive; reading the checksums first tells whether the host can be reached at all."""
    release = pins["release"]
    timeout = httpx.Timeout(20, connect=release["connect_timeout_s"])
    answer = httpx.get(f"{release['url']}/{release['checksums']}", follow_redirects=True, timeout=timeout)
    answer.raise_for_status()
    digests = dict(line.split(maxsplit=1)[::-1] for line in answer.text.splitlines() if line.strip())
    digest = {name.strip().removeprefix("./"): value for name, value in digests.items()}[archive["file"]]
    return Plan(
        "Ollama",
        pins["version"],
        "official release archive" + doubt(release, "online"),
        folders(pins, engines)[1],
        archive["download_mb"],
        archive["disk_mb"],
        5,
        partial(_unpack, pins, f"{release['url']}/{archive['file']}", digest),
    )


def _unpack(pins: Pins, url: str, digest: str, work: Path, progress: Progress) -> Path:
    log = log_file("ollama")
    archive = work / url.rpartition("/")[2]
    download(url, archive, digest, progress)
    progress("unpacking")
    cmake = next(tool for tool in pins["source"]["tools"] if tool.startswith("cmake="))
    environment(work / "tools", [cmake], log=log, progress=progress)
    folder = work / "install"
    folder.mkdir()
    # CMake's tar reads zstd, which neither Python's tarfile nor every system's tar does.
    tar = [str(work / "tools/bin/cmake"), "-E", "tar", "xf", str(archive)]
    run_step(tar, log=log, progress=progress, cwd=folder)
    _check(folder, log, progress)
    return folder


def _build(pins: Pins, work: Path, progress: Progress) -> Path:
    log = log_file("ollama")
    progress("fetching build tools (cmake, ninja, Go)")
    environment(work / "tools", pins["source"]["tools"], log=log, progress=progress)
    llama_cpp = _llama_cpp(pins, work, log, progress)
    ollama = _ollama(pins, work, log, progress)
    folder = work / "install"
    (folder / "bin").mkdir(parents=True)
    shutil.copy2(work / "go" / "ollama", folder / "bin")
    _llama_server(ollama, llama_cpp, work, log, progress)
    library = folder / "lib" / "ollama"
    library.mkdir(parents=True)
    built = work / "build" / "bin"
    for file in [*(built / target for target in TARGETS), *built.glob("*.so*")]:
        shutil.copy2(file, library, follow_symlinks=False)
    _check(folder, log, progress)
    return folder


def _llama_cpp(pins: Pins, work: Path, log: Path, progress: Progress) -> Path:
    """Fetch, check and unpack the llama.cpp tree that this Ollama pins."""
    progress("fetching the llama.cpp sources (37 MB)")
    source = pins["source"]
    name = source["llama_cpp"].partition("==")[0]
    # The hash is checked by pip itself, before it runs any of the package's build code for metadata.
    wanted = work / "llama_cpp.txt"
    wanted.write_text(f"{source['llama_cpp']} --hash=sha256:{source['llama_cpp_sha256']}\n")
    pip = [str(work / "tools/bin/python"), "-m", "pip", "download", "--quiet", "--no-deps"]
    options = ["--no-binary", name, "--dest", str(work), "--require-hashes", "-r", str(wanted)]
    run_step([*pip, *options], log=log, progress=progress)
    [archive] = work.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(work / "llama", filter="data")
    [tree] = (work / "llama").glob("*/llama.cpp")
    return tree


def _ollama(pins: Pins, work: Path, log: Path, progress: Progress) -> Path:
    """Compile the ``ollama`` program into ``work/go``; returns its source tree in the module cache."""
    module, version = pins["source"]["module"], pins["version"]
    go = str(work / "tools/bin/go")
    env = {"GOBIN": str(work / "go"), "GOROOT": "", "PATH": _tools_path(work)}
    progress(f"fetching and compiling ollama {version} (Go)")
    stamp = f"-s -w -X {module}/version.Version={version}"
    run_step([go, "install", "-ldflags", stamp, f"{module}@v{version}"], log=log, progress=progress, env=env)
    said = run_step(
        [go, "mod", "download", "-json", f"{module}@v{version}"],
        log=log,
        progress=progress,
        env=env,
        cwd=work,
    )
    return Path(json.loads("\n".join(said))["Dir"])


def _llama_server(ollama: Path, llama_cpp: Path, work: Path, log: Path, progress: Progress) -> None:
    """Ollama's own CMake build, its compatibility patches applied, for this CPU's instructions."""
    cmake, build = str(work / "tools/bin/cmake"), str(work / "build")
    options = {
        "FETCHCONTENT_SOURCE_DIR_LLAMA_CPP": str(llama_cpp),
        "CMAKE_BUILD_TYPE": "Release",
        "BUILD_SHARED_LIBS": "ON",
        "GGML_NATIVE": "ON",
        "LLAMA_USE_PREBUILT_UI": "OFF",  # the web page; ON tries to download it
    }
    defines = [f"-D{name}={value}" for name, value in options.items()]
    env = {"PATH": _tools_path(work)}
    source = str(ollama / "llama" / "server")
    progress("configuring llama-server")
    run_step([cmake, "-S", source, "-B", build, "-G", "Ninja", *defines], log=log, progress=progress, env=env)
    progress("compiling llama-server (5 to 10 minutes on two cores)")
    run_step(
        [cmake, "--build", build, "--target", *TARGETS, "-j", str(host.cores())],
        log=log,
        progress=progress,
        env=env,
        show=_Tenths(),
    )


def _tools_path(work: Path) -> str:
    return os.pathsep.join([str(work / "tools/bin"), os.environ.get("PATH", os.defpath)])


class _Tenths:
    """Shows ninja's ``[12/343] …`` once per tenth."""

    counter = re.compile(r"\[(\d+)/(\d+)\]")

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, line: str) -> str | None:
        match = self.counter.match(line)
        if match is None:
            return None
        done, total = int(match[1]), int(match[2])
        if done * 10 // total <= self.shown:
            return None
        self.shown = done * 10 // total
        return f"compiled {done} of {total} files"


def _check(folder: Path, log: Path, progress: Progress) -> None:
    """Start the programs once: a build that cannot run on this CPU fails here, not under load."""
    for program in [executable(folder), *folder.rglob("llama-server")]:
        run_step([str(program), "--version"], log=log, progress=progress)
