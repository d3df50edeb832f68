"""A real nginx: its configuration tested, started under labkit's supervisor, and changed without a loss."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from functools import cached_property
from pathlib import Path

import httpx
import psutil

from labkit import paths
from labkit.engines import install_nginx, process
from labkit.engines.causes import evidence
from labkit.engines.fronts.front import Front, program
from labkit.engines.fronts.nginx_config import STATE, config
from labkit.engines.wanted import Command
from labkit.errors import EngineError, StartFailed

DEADLINE_S = 30.0
RELOAD_DEADLINE_S = 10.0
POLL_S = 0.02
LEAVING = "shutting down"
"""In the process title of a worker that takes no new request any more."""


class Nginx(Front):
    """nginx with a configuration of :mod:`labkit.engines.fronts.nginx_config`."""

    name = "nginx"
    title = "nginx"
    default_port = 18080
    health = STATE

    _generation = 0

    def version(self) -> str:
        """Its version number."""
        return self._version

    @cached_property
    def _program(self) -> str:
        return program("nginx", "nginx")

    @cached_property
    def _env(self) -> dict[str, str]:
        return install_nginx.environment(Path(self._program))

    @cached_property
    def _version(self) -> str:
        said = self._run("-v").stderr
        found = re.search(r"nginx/(\S+)", said)
        return found[1] if found else said.strip()

    def _command(self, port: int) -> Command:
        argv = [self._program, *self._at(port)]
        if self._prefix(port).exists():
            shutil.rmtree(self._prefix(port))
        (self._prefix(port) / "tmp").mkdir(parents=True)
        self._configure(port)
        return Command(argv, self._env, DEADLINE_S)

    async def shift(self, share: float) -> None:
        """See :meth:`Engine.shift`. Old workers finish their answers; no new request reaches them."""
        port = self._port_in_use()
        self.share, self._generation = share, self._generation + 1
        await asyncio.to_thread(self._configure, port)
        assert self._state is not None  # noqa: S101  # it has a port
        try:
            master = psutil.Process(self._state.pid)
            old = [worker.pid for worker in master.children()]
            os.kill(master.pid, signal.SIGHUP)
        except (psutil.NoSuchProcess, ProcessLookupError):
            raise process.died(self._state, self.causes) from None
        try:
            async with asyncio.timeout(RELOAD_DEADLINE_S):
                while not (await self._active() and all(map(_leaving, old))):  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)  # workers set no event here
        except TimeoutError:
            seen, fix = evidence(self._state.log)
            seen = f"nginx still has its old configuration{seen}"
            raise EngineError(f"send {share:g} % of the requests to vLLM", seen, fix) from None

    async def _active(self) -> bool:
        """Whether a new connection reaches a worker with the newest configuration."""
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
                said = (await client.get(self.url + STATE)).json()
        except (httpx.HTTPError, json.JSONDecodeError):
            return False
        return bool(said["generation"] == self._generation)

    def access_log(self) -> Path:
        """The file with one JSON object for each request that it has answered."""
        return self._prefix(self._port_in_use()) / "access.log"

    def log_tail(self, n: int = 20) -> list[str]:
        """The ends of what it said and of its access log."""
        if self._state is None:
            return []
        return [*super().log_tail(n), *process.tail(self.access_log(), n)]

    def _port_in_use(self) -> int:
        if self._state is None:
            raise EngineError("change nginx's share", "it is not running", "start it first")
        return self._state.port

    def _configure(self, port: int) -> None:
        """Write the configuration in one step, and have nginx test it first.

        Raises:
            StartFailed: nginx refuses it; in its own words.
        """
        targets = {name: engine.url for name, engine in self.behind.items()}
        written = config(
            targets, port=port, share=self.share, sticky=self.sticky, generation=self._generation
        )
        draft = self._prefix(port) / "draft.conf"
        draft.write_text(written)
        tested = self._run("-t", *self._at(port, draft.name))
        if tested.returncode != 0:
            raise StartFailed(
                "test nginx's configuration",
                tested.stderr.strip(),
                f"read {draft}; labkit proxy --print-config shows what it is made of",
            )
        draft.replace(draft.with_name("nginx.conf"))

    def _at(self, port: int, conf: str = "nginx.conf") -> list[str]:
        """Its options: all its files below a folder of its own."""
        prefix = self._prefix(port)
        return ["-p", f"{prefix}/", "-c", str(prefix / conf), "-e", "stderr"]

    def _run(self, *options: str) -> subprocess.CompletedProcess[str]:
        argv = [self._program, *options]
        return subprocess.run(
            argv, env={**os.environ, **self._env}, capture_output=True, text=True, check=False, timeout=20
        )

    def _prefix(self, port: int) -> Path:
        return paths.folder("proxies") / f"nginx-{port}"


def _leaving(worker: int) -> bool:
    """Whether a worker has stopped listening."""
    try:
        return LEAVING in " ".join(psutil.Process(worker).cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return True
