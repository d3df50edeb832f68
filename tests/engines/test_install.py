"""Installing: what is refused, what is never used, what is found. Real files, processes and HTTP."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from labkit.engines import install, install_ollama, install_steps
from labkit.engines.base import Progress, quiet
from labkit.engines.install_steps import Plan, SystemPackage, platform_key
from labkit.errors import InstallFailed, UsageError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty LABKIT_HOME, and a PATH without engines."""
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "home"


def build_ollama(work: Path, _progress: Progress) -> Path:
    """A finished install, as far as finding it goes."""
    program = work / "install" / "bin" / "ollama"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return work / "install"


@pytest.fixture
def plan(home: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A plan for Ollama that takes a moment and no network; what ``install`` will use."""
    folder = install_ollama.folders(install.pins("ollama"), home / "engines")[0]
    small = Plan("Ollama", "0.0", "made up", folder, 260, 1, 1, build_ollama)
    monkeypatch.setattr(install_ollama, "plan", lambda *_args: small)
    return small


def use(plan: Plan, monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    changed = replace(plan, **changes)
    monkeypatch.setattr(install_ollama, "plan", lambda *_args: changed)


def test_an_install_is_found_and_a_second_one_changes_nothing(plan: Plan) -> None:
    program = install.install("ollama", yes=True)
    assert program == plan.folder / "bin" / "ollama" == install.find_ollama()
    before = program.stat()
    said: list[str] = []
    assert install.install("ollama", progress=said.append) == program
    assert program.stat() == before
    assert said == [f"ollama: using {program}"]


def test_nothing_moves_before_somebody_agrees(plan: Plan, home: Path) -> None:
    with pytest.raises(UsageError, match="260 MB") as caught:
        install.install("ollama")
    assert "--yes" in caught.value.fix
    questions: list[str] = []

    def no(question: str) -> bool:
        questions.append(question)
        return False

    with pytest.raises(UsageError, match="the answer was no"):
        install.install("ollama", ask=no)
    assert questions
    assert list((home / "engines").iterdir()) == []


def test_a_disk_that_is_too_small_is_told_with_both_sizes(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(plan, monkeypatch, disk_mb=10**12)
    with pytest.raises(InstallFailed, match=r"free, 1000000000\.0 GB needed") as caught:
        install.install("ollama", yes=True)
    assert "LABKIT_HOME" in caught.value.fix


def test_a_build_that_fails_leaves_nothing(plan: Plan, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(work: Path, progress: Progress) -> Path:
        build_ollama(work, progress)
        script = "import sys; print('no such instruction'); sys.exit(3)"
        install_steps.run_step(
            [sys.executable, "-c", script], log=install_steps.log_file("ollama"), progress=progress
        )
        raise AssertionError

    use(plan, monkeypatch, build=fails)
    with pytest.raises(InstallFailed, match="exit status 3\nno such instruction") as caught:
        install.install("ollama", yes=True)
    assert "install-ollama.log" in caught.value.fix
    assert install.find_ollama() is None
    assert list((home / "engines").iterdir()) == []


def test_half_an_install_is_never_used_and_is_cleared_away(plan: Plan, home: Path) -> None:
    left = home / "engines" / ".building-ollama-killed"
    build_ollama(left, quiet)
    half = plan.folder
    half.mkdir()
    assert install.find_ollama() is None, "a folder without its record is no install"
    half.rmdir()
    assert install.install("ollama", yes=True).is_file()
    assert not left.exists()


def test_two_installs_at_once_build_once(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[Path] = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(work: Path, progress: Progress) -> Path:
        builds.append(work)
        begun.set()
        go_on.wait()
        return build_ollama(work, progress)

    use(plan, monkeypatch, build=slow)
    first = threading.Thread(target=partial(install.install, "ollama", yes=True))
    first.start()
    begun.wait()

    def waits(line: str) -> None:
        if "waiting" in line:
            go_on.set()

    install.install("ollama", yes=True, progress=waits)
    first.join()
    assert len(builds) == 1


def test_remove_frees_what_install_took(plan: Plan) -> None:
    install.install("ollama", yes=True)
    assert install.remove("ollama") > 0
    assert install.find_ollama() is None
    assert install.remove("ollama") == 0


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UsageError, match="labkit knows ollama, vllm"):
        install.install("tgi")


def test_ollama_on_path_counts_only_with_its_llama_server(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = build_ollama(tmp_path, quiet) / "bin" / "ollama"
    monkeypatch.setenv("PATH", str(program.parent))
    assert install.find_ollama() is None
    library = tmp_path / "install" / "lib" / "ollama"
    library.mkdir(parents=True)
    (library / "llama-server").touch()
    assert install.find_ollama() == program


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is in this very environment")
def test_vllm_on_path_is_found_by_its_python(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    (env / "bin" / "vllm").write_text("#!/bin/sh\n")
    (env / "bin" / "vllm").chmod(0o755)
    monkeypatch.setenv("PATH", str(env / "bin"))
    assert install.find_vllm() is None, "a script without its package is of no use"
    [site] = (env / "lib").glob("*/site-packages")
    (site / "vllm").mkdir()
    assert install.find_vllm() == (env / "bin" / "python")


@pytest.mark.skipif(sys.platform != "linux", reason="apt")
def test_a_bare_machine_with_root_gets_its_system_packages(
    plan: Plan, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    apt = tmp_path / "apt-get"
    apt.write_text('#!/bin/sh\necho "$@"\n')
    apt.chmod(0o755)
    use(plan, monkeypatch, needs=[SystemPackage("g++", "compiles", lambda: False)])
    install.install("ollama", yes=True)
    assert "install -y --no-install-recommends g++" in (home / "logs" / "install-ollama.log").read_text()


def test_missing_system_packages_name_the_one_command(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    needs = [SystemPackage("g++", "compiles", lambda: False), SystemPackage("git", "patches", lambda: True)]
    with pytest.raises(InstallFailed, match=r"g\+\+ \(compiles\)") as caught:
        install_steps.provide(needs, install_steps.log_file("ollama"), quiet)
    assert "g++" in caught.value.fix
    assert "git" not in caught.value.fix


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def release(tmp_path: Path) -> Iterator[tuple[Path, dict[str, object]]]:
    """A release host on this machine: its folder, and pins that point to it."""
    folder = tmp_path / "release"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    pins = install.pins("ollama")
    pins["release"]["url"] = f"http://127.0.0.1:{server.server_port}"
    pins["release"]["files"][platform_key()] = {"file": "ollama.tgz", "download_mb": 1, "disk_mb": 1}
    yield folder, pins
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_archive_with_another_digest_is_refused(
    home: Path, release: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    folder, pins = release
    (folder / "ollama.tgz").write_bytes(b"cut sho")
    wanted = hashlib.sha256(b"cut short").hexdigest()
    (folder / "sha256sum.txt").write_text(f"{'0' * 64}  ./other.zip\n{wanted}  ./ollama.tgz\n")
    offered = install_ollama.plan(pins, tmp_path, quiet)
    assert offered.route == "official release archive, not yet verified online"
    with pytest.raises(InstallFailed, match=f"published one is {wanted}"):
        offered.build(tmp_path, quiet)
    assert not (tmp_path / "ollama.tgz").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the source build is for Linux")
def test_without_the_release_the_sources_are_taken_and_it_is_said_why(
    release: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    _, pins = release
    said: list[str] = []
    offered = install_ollama.plan(pins, tmp_path, said.append)
    assert offered.route == "compiled from source for this CPU"
    assert "404" in said[0]


@pytest.mark.engines
def test_an_archive_is_unpacked_and_started(
    home: Path, release: tuple[Path, dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marked so since CMake, which unpacks it, comes from the package registry."""
    monkeypatch.setenv("PATH", os.defpath)  # CMake's start script calls dirname
    folder, pins = release
    tree = build_ollama(tmp_path / "tree", quiet)
    with tarfile.open(folder / "ollama.tgz", "w:gz") as archive:
        archive.add(tree, arcname=".")
    digest = hashlib.sha256((folder / "ollama.tgz").read_bytes()).hexdigest()
    (folder / "sha256sum.txt").write_text(f"{digest}  ./ollama.tgz\n")
    work = tmp_path / "work"
    work.mkdir()
    built = install_ollama.plan(pins, tmp_path, quiet).build(work, quiet)
    assert install_ollama.executable(built).is_file()
