"""Fit the profile of the padded model, link between ranks included, to the recorded run of notebook 07.

    python benchmarks/fit_ranks.py

One run shows one core, two cores, and two ranks, so it tells what computing costs apart from talking.
"""

from __future__ import annotations

from dataclasses import replace

from labkit import paths
from labkit.bundle import Run
from labkit.sim import profile
from labkit.sim.calibrate import Source, calibrate

NAME = profile.BY_MODEL["smollm2:135m-12h"]
RUN = "tensor_parallel"


def main() -> None:
    """Write the profile."""
    run = Run.load(paths.data() / "runs" / RUN)
    made = calibrate([Source(run, arm) for arm in run.meta["arms"]], profile.load(NAME))
    host = run.meta["host"]
    fitted = replace(
        made.profile,
        source=f"benchmarks/fit_ranks.py, from data/runs/{RUN}",
        device=replace(made.profile.device, name=f"{host['cpu']}, {host['cores']} cores"),
        threads=host["cores"],
    )
    (paths.data() / "profiles" / f"{NAME}.toml").write_text(profile.dump(fitted))
    print(made.profile.engines["vllm"], made.kept, made.residual)


if __name__ == "__main__":
    main()
