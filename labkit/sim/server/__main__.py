"""``python -m labkit.sim.server``: one simulated server until it is interrupted."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import resource
import sys
from collections.abc import Mapping
from typing import Any

from labkit.errors import LabkitError, UsageError
from labkit.sim import profile as profiles
from labkit.sim.server.clock import fitting_scale
from labkit.sim.server.serving import serving

AUTO = "auto"
TITLES = {"ollama": "Ollama", "vllm": "vLLM"}

log = logging.getLogger("labkit.sim.server")


def main() -> int:
    """Serve; 1 if it cannot start, with the reason in the log."""
    given = _arguments().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(given))
    except (LabkitError, OSError) as error:  # the latter is a taken port
        log.critical("%s", error)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


async def _serve(given: argparse.Namespace) -> None:
    profile = profiles.load(given.profile)
    settings = _settings(given.settings)
    scale = await _scale(given.time_scale)
    async with serving(
        given.engine, profile, settings, scale=scale, port=given.port, model=given.model
    ) as here:
        log.info(
            "simulated %s %s at %s: profile %s (%s), time scale %g",
            *(TITLES[given.engine], profile.engines[given.engine].version, here.url),
            *(profile.name, profile.basis, scale),
        )
        gc.freeze()  # what start-up made lives to the end: no collection need look at it
        await asyncio.Event().wait()


async def _scale(wanted: str) -> float:
    """The time scale to use: what was asked for, but no more than this machine can keep."""
    if wanted == AUTO:
        return await fitting_scale()
    try:
        scale = float(wanted)
    except ValueError:
        scale = 0.0
    if not scale >= 1:
        raise UsageError(
            f"simulate with time scale {wanted}", "it must be a number, never below 1", f"give 1, or {AUTO}"
        )
    fitting = await fitting_scale(scale)
    if fitting < scale:
        log.warning("time scale %g is more than this machine can keep: it is %g instead", scale, fitting)
    return fitting


def _settings(text: str) -> Mapping[str, Any]:
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise UsageError("read the settings", f"{error}: {text}", "give a JSON object") from None
    if not isinstance(settings, dict):
        raise UsageError("read the settings", text, "give a JSON object")
    return settings


def loop_factory() -> Any:
    """uvloop where it exists: half the CPU of asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m labkit.sim.server", description=__doc__)
    parser.add_argument("--engine", choices=sorted(TITLES), required=True)
    parser.add_argument("--profile", default=profiles.DEFAULT, help="which machine and model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--time-scale", default=AUTO, help="times real time, or auto: as fast as can be measured"
    )
    parser.add_argument("--settings", default="{}", help="the engine's settings as JSON")
    parser.add_argument("--model", help="the name by which vLLM serves its model (default: the profile's)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
