"""vLLM into an environment of its own: the official build on an NVIDIA GPU, a CPU build elsewhere."""

from __future__ import annotations

import platform
from functools import partial
from pathlib import Path

from labkit.engines import hardware
from labkit.engines.base import Progress
from labkit.engines.install_steps import NUMA, Pins, Plan, doubt, environment, log_file, run_step, uv
from labkit.errors import InstallFailed

NEWS = ("Resolved", "Downloading", "Downloaded", "Prepared", "Installed", "Bytecode")
"""First words of uv's output that are worth a progress line."""

SMALL_TORCH = ("--torch-backend", "cpu")
"""uv's switch for PyTorch's own index of CPU-only builds."""

CHECK = "from vllm.platforms import current_platform as p; print(p.device_type)"


def folders(pins: Pins, engines: Path) -> list[Path]:
    """Where an install may be, the better one for this machine first."""
    targets = ("cuda", "cpu") if hardware.gpus() else ("cpu",)
    return [engines / f"vllm-{pins['version']}-{target}" for target in targets]


def executable(folder: Path) -> Path:
    """The Python of an install."""
    return folder / "bin" / "python"


def plan(pins: Pins, engines: Path, progress: Progress) -> Plan:
    """The build for this machine's GPU, else the one for its CPU.

    Raises:
        InstallFailed: no build of vLLM runs on this platform or processor.
    """
    if platform.system() != "Linux":
        raise InstallFailed(
            "install vLLM",
            f"vLLM has no build for {platform.system()} that labkit can use",
            "use a Linux machine, or name a server elsewhere with LABKIT_VLLM_URL",
        )
    folder = folders(pins, engines)[0]
    if hardware.gpus():
        cuda = pins["cuda"]
        return _plan(pins, cuda, "for the NVIDIA GPU" + doubt(cuda, "on a GPU"), folder, ())
    if platform.machine() == "x86_64" and "avx2" not in hardware.cpu_flags():
        raise InstallFailed(
            "install vLLM",
            "this processor has no AVX2, which the CPU build needs",
            "name a server elsewhere with LABKIT_VLLM_URL",
        )
    cpu = pins["cpu"]
    if _reaches_small_torch(cpu, progress):
        small = {**cpu, **cpu["small_torch"]}
        route = "CPU build, CPU-only torch" + doubt(small, "online")
        return _plan(pins, small, route, folder, SMALL_TORCH)
    return _plan(pins, cpu, "CPU build, default torch" + doubt(cpu, "online"), folder, ())


def _plan(pins: Pins, build: Pins, route: str, folder: Path, extra: tuple[str, ...]) -> Plan:
    return Plan(
        "vLLM",
        pins["version"],
        route,
        folder,
        build["download_mb"],
        build["disk_mb"],
        build["minutes"],
        partial(_build, build, extra),
        (NUMA,),
    )


def _reaches_small_torch(cpu: Pins, progress: Progress) -> bool:
    """Whether PyTorch's CPU index answers: a dry run that moves no package."""
    torch = next(package for package in cpu["packages"] if package.startswith("torch=="))
    dry = [uv(), "pip", "install", "--dry-run", "--no-deps", "--reinstall", *SMALL_TORCH, torch]
    env = {"UV_HTTP_RETRIES": "0", "UV_HTTP_TIMEOUT": "5", "UV_SYSTEM_PYTHON": "1"}
    try:
        run_step(dry, log=log_file("vllm"), progress=progress, env=env)
    except InstallFailed:
        progress("PyTorch's index of CPU builds not reachable: taking the default torch, 2 GB larger")
        return False
    return True


def _build(build: Pins, extra: tuple[str, ...], work: Path, progress: Progress) -> Path:
    overrides = work / "overrides.txt"
    overrides.write_text("\n".join(build["overrides"]))
    log = log_file("vllm")
    folder = work / "install"
    python = environment(
        folder,
        build["packages"],
        log=log,
        progress=progress,
        show=lambda line: line.strip() if line.strip().startswith(NEWS) else None,
        # Compiled now, or the first start spends a minute more on it.
        extra=["--override", str(overrides), "--compile-bytecode", *extra],
    )
    progress("checking that vLLM can be imported")
    run_step([str(python), "-c", CHECK], log=log, progress=progress, env={"VLLM_NO_USAGE_STATS": "1"})
    return folder
