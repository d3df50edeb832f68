"""vLLM: start it, read what it really uses, watch it, stop it.

Facts and gauges come from ``/version``, ``/v1/models`` and ``/metrics``; what vLLM says in its log alone
(data type, device, threads) is read from there when the server is ours.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from labkit.engines import hardware, install, model_files, model_table, process
from labkit.engines.base import Engine, EngineFacts, Gauges, Progress, Served, quiet
from labkit.engines.vllm_settings import CAUSES, Device, VLLMSettings
from labkit.errors import EngineError, ModelError, NotInstalled, StartFailed, UsageError

__all__ = ["VLLM", "VLLMSettings"]

PORT = 8000
DEFAULT_MODEL = "smollm2:135m"
DEADLINE_S = {True: 300.0, False: 900.0}
"""Time to become ready, eager or compiled; on two idle cores it takes 35 to 65 s, or about 150 s."""

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
LOG_HEAD = 200_000
"""Bytes of the log that hold everything said at the start."""


class VLLM(Engine):
    """A vLLM server.

    Args:
        url: a server that labkit does not manage (default: ``LABKIT_VLLM_URL``); used as it is.
        owner: "kernel" servers end with this process, "shell" servers stay until they are stopped.
        port: where to start one (default: 8000, or any free port if that is taken).
        api_key: bearer token (default: ``LABKIT_API_KEY``).
    """

    name = "vllm"
    protocol = "openai-chat"

    def __init__(
        self,
        url: str | None = None,
        *,
        owner: process.Owner = "kernel",
        port: int | None = None,
        api_key: str | None = None,
    ) -> None:
        given = url or os.environ.get("LABKIT_VLLM_URL")
        self.url = (given or f"http://127.0.0.1:{port or PORT}").rstrip("/").removesuffix("/v1")
        self.api_key = api_key or os.environ.get("LABKIT_API_KEY")
        self.owner = owner
        self.model = DEFAULT_MODEL
        self._pinned = given is not None
        self._port = port
        self._asked: dict[str, Any] = {}
        self._state: process.ServerState | None = None

    @classmethod
    def attached(cls, state: process.ServerState) -> VLLM:
        """The engine of a server that labkit started earlier."""
        engine = cls(state.url, owner=state.owner)
        engine._adopt(state)
        return engine

    async def start(
        self, *, model: str | None = None, progress: Progress = quiet, **settings: Any
    ) -> EngineFacts:
        """Serve ``model`` (a name of the course's table, default "smollm2:135m") with these settings.

        A server of labkit's with the same model and settings is used again. A foreign one is used as it is.

        Raises:
            UsageError: unknown model or setting, or an impossible value.
            NotInstalled: no vLLM on this machine.
            ModelError: the model's files are not there, or a foreign server does not serve it.
            StartFailed: see :func:`labkit.engines.process.launch`.
        """
        wanted = VLLMSettings.of(settings)
        row = model_table.find(model or self.model)
        if self._pinned:
            await self._use_pinned(row, settings, progress)
            return await self.facts()
        device: Device = "cuda" if hardware.gpus() else "cpu"
        resolved = wanted.resolved(device)
        self.model, self._asked = row.name, settings
        state = self._fitting(row.vllm.name, resolved)
        if state is not None:
            progress(f"vllm: using the server on port {state.port}, its settings fit")
        elif not settings and await self._foreign_serves(row.vllm.name):
            progress(f"vllm: using {self.url} as it is, labkit did not start it")
            return await self.facts()
        else:
            self._state = self._state or process.inherited("vllm")
            await self.stop(progress=progress)
            state = await self._launch(row, resolved, device, progress)
        self._adopt(state)
        return await self.facts()

    async def restart(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        """Start with the present model and settings, changed by these; a server of ours is stopped first."""
        changed = {"model": self.model, **self._asked, **settings}
        model_table.find(changed["model"])  # a typing error must not cost the running server
        VLLMSettings.of({name: value for name, value in changed.items() if name != "model"})
        await self.stop(progress=progress)
        return await self.start(progress=progress, **changed)

    async def stop(self, *, progress: Progress = quiet) -> None:
        """See :meth:`Engine.stop`. A kernel never stops a server that a shell owns."""
        if self._state is None:
            return
        state, self._state = self._state, None
        if state.owner == self.owner:
            await process.terminate(state, progress=progress)
        else:
            progress(f"vllm: the server on port {state.port} belongs to the shell; left running")

    async def ready(self) -> bool:
        """See :meth:`Engine.ready`."""
        try:
            async with self._client(5) as client:
                return (await client.get("/health")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    async def load(self, model: str, *, progress: Progress = quiet) -> float:
        """Check that the server has ``model``; vLLM loads at its start, so this takes no time.

        Raises:
            ModelError: it serves something else; lists what.
        """
        started = time.monotonic()
        served = [row["id"] for row in await self._models()]
        if model not in served:
            raise ModelError(
                f"use {model} on {self.url}",
                f"this vLLM serves {', '.join(served)}",
                "vLLM serves one model: start it again with the other one, or ask for one of these names",
            )
        return time.monotonic() - started

    async def facts(self) -> EngineFacts:
        """See :meth:`Engine.facts`."""
        version = (await self._get("/version")).json()["version"]
        row = (await self._models())[0]
        cache = _labels(await self._metrics(), "vllm:cache_config_info")
        log = self._log_facts()
        record = self._record(row.get("root"))
        size = _number(cache.get("kv_cache_memory_bytes"))
        slots = self._state.settings.get("max_num_seqs") if self._state else None
        read: dict[str, tuple[Any, str]] = {
            "version": (version, "/version"),
            "model": (row["id"], "/v1/models"),
            "context": (row.get("max_model_len"), "/v1/models"),
            "block_size": (_number(cache.get("block_size")), "/metrics"),
            "kv_tokens": (_kv_tokens(cache), "/metrics"),
            "kv_bytes": (size, "/metrics"),
            "slots": (slots, "command line"),
            "quantisation": (log.get("dtype"), "log"),
            "device": (log.get("device"), "log"),
            "threads": (log.get("threads"), "log"),
            "model_digest": (record.digest if record else None, "labkit's record of the folder"),
            "model_source": (record.source if record else None, "labkit's record of the folder"),
        }
        known = {name: value for name, (value, _) in read.items() if value is not None}
        return EngineFacts(
            engine="vllm",
            kind="live",
            url=self.url,
            owner=self._state.owner if self._state else "foreign",
            sources={name: read[name][1] for name in known},
            **known,
        )

    async def gauges(self) -> Gauges:
        """See :meth:`Engine.gauges`."""
        text = await self._metrics()
        return Gauges(
            running=_total(text, "vllm:num_requests_running"),
            waiting=_total(text, "vllm:num_requests_waiting"),
            kv_use=_total(text, "vllm:kv_cache_usage_perc"),
            prefix_hits=_total(text, "vllm:prefix_cache_hits_total"),
            prefix_queries=_total(text, "vllm:prefix_cache_queries_total"),
        )

    async def served(self) -> Served:
        """See :meth:`Engine.served`. vLLM does not count every request whose client went away."""
        text = await self._metrics()
        return Served(
            requests=_whole(_total(text, "vllm:request_success_total")),
            prompt_tokens=_whole(_total(text, "vllm:prompt_tokens_total")),
            output_tokens=_whole(_total(text, "vllm:generation_tokens_total")),
        )

    def log_tail(self, n: int = 20) -> list[str]:
        """See :meth:`Engine.log_tail`."""
        return process.tail(Path(self._state.log), n) if self._state else []

    def alive(self) -> bool:
        """See :meth:`Engine.alive`."""
        return self._state is None or self._state.process() is not None

    def raise_if_dead(self) -> None:
        """Raises EngineDied, with the end of the log and the known cause, if a server of ours is gone."""
        if self._state is not None and not self.alive():
            raise process.died(self._state, CAUSES)

    def _adopt(self, state: process.ServerState) -> None:
        self._state, self.url = state, state.url

    def _fitting(self, served: str, settings: VLLMSettings) -> process.ServerState | None:
        """A running server, the shell's or started by this process, with this model and these settings."""
        for state in process.states("vllm"):
            ours = state.owner == "shell" or state.owner_pid == process.owner_pid()
            there = self._port in {None, state.port}
            if ours and there and state.model == served and state.settings == settings.as_dict():
                return state
        return None

    async def _foreign_serves(self, served: str) -> bool:
        """Whether somebody else's vLLM with this model is up where ours would go."""
        mine = self._state is not None or any(state.url == self.url for state in process.states("vllm"))
        if mine or not await self.ready():
            return False
        try:
            return served in [row["id"] for row in await self._models()]
        except (EngineError, ValueError, LookupError):
            return False  # something else answers there

    async def _use_pinned(self, row: model_table.Model, settings: dict[str, Any], progress: Progress) -> None:
        """Use the server of the given URL. If labkit started it, its settings are known; else none is."""
        if not await self.ready():
            raise StartFailed(
                f"use the vLLM at {self.url}",
                "it does not answer on /health",
                "start it, or unset LABKIT_VLLM_URL to let labkit start one",
            )
        state = next((state for state in process.states("vllm") if state.url == self.url), None)
        if state is not None:
            self._adopt(state)
        has = state.settings if state else {}
        for name, value in settings.items():
            if has.get(name) != value:
                seen = f"it has {name}={has[name]!r}" if state else "what it has cannot be read from it"
                raise UsageError(
                    f"use the vLLM at {self.url} with {name}={value!r}",
                    f"{seen}, and it is not restarted from here",
                    "unset LABKIT_VLLM_URL, and labkit starts one with these settings beside it",
                )
        await self.load(row.vllm.name)
        progress(f"vllm: using {self.url} as it is")

    async def _launch(
        self, row: model_table.Model, settings: VLLMSettings, device: Device, progress: Progress
    ) -> process.ServerState:
        python = install.find_vllm()
        if python is None:
            raise NotInstalled("start vLLM", "it is not installed", "labkit engines install vllm")
        folder = model_files.models_home() / row.vllm.folder
        if model_files.read_record(folder) is None:
            raise ModelError(
                f"start vLLM with {row.name}", f"there is no {folder}", f"labkit models get {row.name}"
            )
        port = self._port or process.free_port(PORT)
        self.url = f"http://127.0.0.1:{port}"
        return await process.launch(
            engine="vllm",
            argv=settings.argv(python, folder, row.vllm.name, port),
            env=settings.environment(device, hardware.core_ids()),
            port=port,
            settings=settings.as_dict(),
            owner=self.owner,
            log_name=f"vllm-{port}.log",
            ready=self.ready,
            deadline_s=DEADLINE_S[bool(settings.eager)],
            causes=CAUSES,
            progress=progress,
            model=row.vllm.name,
        )

    def _client(self, timeout_s: float) -> httpx.AsyncClient:
        url = urlsplit(self.url)
        return httpx.AsyncClient(
            base_url=self.url,
            timeout=timeout_s,
            trust_env=url.hostname not in LOOPBACK,  # no proxy for loopback
            verify=url.scheme == "https",  # loading the certificates takes longer than a gauge reading
            headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else None,
        )

    async def _get(self, path: str) -> httpx.Response:
        try:
            async with self._client(30) as client:
                return (await client.get(path)).raise_for_status()
        except httpx.HTTPError as error:
            self.raise_if_dead()
            raise EngineError(
                f"ask vLLM at {self.url}{path}", repr(error), "labkit engines status"
            ) from error

    async def _models(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (await self._get("/v1/models")).json()["data"]
        return rows

    async def _metrics(self) -> str:
        return (await self._get("/metrics")).text

    def _log_facts(self) -> dict[str, Any]:
        """Data type, device and threads as vLLM logs them at its start."""
        if self._state is None:
            return {}
        with Path(self._state.log).open(errors="replace") as log:
            text = log.read(LOG_HEAD)
        found: dict[str, Any] = {}
        if match := re.search(r"\bdtype=(?:torch\.)?(\w+)", text):
            found["dtype"] = match[1]
        if match := re.search(r"\bdevice_config=([\w:]+)", text):
            gpus = hardware.gpus()
            found["device"] = match[1] if match[1] == "cpu" or not gpus else f"{match[1]} {gpus[0].name}"
        if ranks := re.findall(r"local_rank=\d+, core ids=\[([\d, ]+)\]", text):
            found["threads"] = sum(len(ids.split(",")) for ids in ranks)
        return found

    def _record(self, root: str | None) -> model_files.Record | None:
        """The record of the folder that the server was started with, if it is on this machine and ours."""
        if root is None or urlsplit(self.url).hostname not in LOOPBACK:
            return None
        try:
            return model_files.read_record(Path(root))
        except ModelError:
            return None


def _samples(text: str, name: str) -> Iterator[tuple[str, float]]:
    """Labels and value of each sample of one metric in Prometheus' text format."""
    for line in text.splitlines():
        if line.startswith(name) and line[len(name)] in "{ ":
            labels, _, value = line[len(name) :].rpartition(" ")
            yield labels, float(value)


def _labels(text: str, name: str) -> dict[str, str]:
    """Labels of the first sample of one metric; empty if it is missing."""
    labels = next((labels for labels, _ in _samples(text, name)), "")
    return dict(re.findall(r'(\w+)="([^"]*)"', labels))


def _total(text: str, name: str) -> float | None:
    """Sum over all samples of one metric; None if it is missing."""
    values = [value for _, value in _samples(text, name) if not math.isnan(value)]
    return sum(values) if values else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _number(label: str | None) -> int | None:
    return int(label) if label is not None and label.isdecimal() else None


def _kv_tokens(cache: dict[str, str]) -> int | None:
    """Tokens that the KV pool holds: said outright by newer versions, else blocks times block size."""
    said = _number(cache.get("kv_cache_size_tokens"))
    blocks, size = _number(cache.get("num_gpu_blocks")), _number(cache.get("block_size"))
    return said if said is not None or blocks is None or size is None else blocks * size
