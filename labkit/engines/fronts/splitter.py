"""labkit's own stand-in for nginx in the simulated depth: the same shares and header, nothing to install."""

from __future__ import annotations

import json
import sys

import httpx

from labkit import __version__, paths
from labkit.engines.fronts.front import Front
from labkit.engines.fronts.nginx_config import STATE, check_share
from labkit.engines.wanted import Command

DEADLINE_S = 30.0


class Splitter(Front):
    """A server process of :mod:`labkit.sim.server.split`."""

    name = "splitter"
    title = "labkit's splitter"
    default_port = 28080
    health = STATE

    def version(self) -> str:
        """labkit's own."""
        return __version__

    def _command(self, port: int) -> Command:
        given = {
            "port": port,
            "share": check_share(self.share),
            "targets": json.dumps({name: engine.url for name, engine in self.behind.items()}),
        }
        argv = [sys.executable, "-P", "-m", "labkit.sim.server.split"]
        argv += [f"--{name}={value}" for name, value in given.items()]
        argv += ["--sticky"] if self.sticky else []
        return Command(argv, {"PYTHONPATH": paths.import_path()}, DEADLINE_S)

    async def shift(self, share: float) -> None:
        """See :meth:`Engine.shift`."""
        self.share = check_share(share)
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            (await client.post(self.url + STATE, json={"share": self.share})).raise_for_status()
