"""nginx out of the system's own packages, unpacked beside the engines.

So it needs no root. The package itself, installed, would start a web server on port 80 of all addresses.
"""

from __future__ import annotations

import os
import re
import shutil
from functools import partial
from pathlib import Path

from labkit.engines.base import Progress
from labkit.engines.install_steps import Pins, Plan, log_file, run_step
from labkit.errors import InstallFailed

TOOLS = ("apt-get", "apt-cache", "dpkg-deb")

LIBRARY = re.compile(r"^\s*Depends: ((?!libc6$)lib\S+|zlib1g)$", re.MULTILINE)
"""Packages of libraries among what nginx depends on. The C library is the system's."""


def folders(pins: Pins, engines: Path) -> list[Path]:
    """Where an install may be."""
    return [engines / f"nginx-{pins['version']}"]


def executable(folder: Path) -> Path:
    """The program of an install."""
    return folder / "usr" / "sbin" / "nginx"


def environment(program: Path) -> dict[str, str]:
    """What an unpacked nginx needs to find its libraries; nothing for one of the system's own."""
    folder = program.parent.parent.parent  # of /sbin/nginx too: / is its own parent
    if executable(folder) != program or folder == Path(folder.anchor):
        return {}
    libraries = sorted({str(file.parent) for file in folder.rglob("*.so*")})
    return {"LD_LIBRARY_PATH": os.pathsep.join(libraries)}


def plan(pins: Pins, engines: Path, _progress: Progress) -> Plan:
    """The one way.

    Raises:
        InstallFailed: the system has no Debian packages.
    """
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise InstallFailed(
            "unpack nginx",
            f"this system has no {missing[0]}, so no Debian packages",
            "install nginx with your package manager: labkit takes the one on PATH",
        )
    return Plan(
        "nginx",
        pins["version"],
        "the system's package, unpacked",
        folders(pins, engines)[0],
        pins["download_mb"],
        pins["disk_mb"],
        pins["minutes"],
        partial(_build),
    )


def _build(work: Path, progress: Progress) -> Path:
    log = log_file("nginx")
    if os.geteuid() == 0:  # the lists of packages; others take them as they are
        run_step(["apt-get", "update"], log=log, progress=progress)
    told = run_step(["apt-cache", "depends", "nginx"], log=log, progress=progress)
    names = ["nginx", *dict.fromkeys(LIBRARY.findall("\n".join(told)))]
    progress(f"nginx: unpacking {', '.join(names)}")
    packages, folder = work / "packages", work / "install"
    packages.mkdir()
    run_step(["apt-get", "download", *names], log=log, progress=progress, cwd=packages)
    for package in sorted(packages.glob("*.deb")):
        run_step(["dpkg-deb", "-x", str(package), str(folder)], log=log, progress=progress)
    program = executable(folder)
    run_step([str(program), "-v"], log=log, progress=progress, env=environment(program))
    return folder
