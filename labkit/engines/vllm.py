"""vLLM: start it, read what it really uses, watch it, stop it.

Facts and gauges come from ``/version``, ``/v1/models`` and ``/metrics``; what vLLM says in its log alone
(data type, device, threads) is read from there when the server is ours.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from labkit import host
from labkit.engines import hardware, model_files, model_table
from labkit.engines.base import EngineFacts, Gauges, Progress, Served, quiet
from labkit.engines.declared import declared
from labkit.engines.managed import ManagedEngine
from labkit.engines.ports import LOOPBACK
from labkit.engines.vllm_settings import CAUSES, Device, VLLMSettings
from labkit.engines.wanted import Command, Wanted
from labkit.errors import ModelError

__all__ = ["VLLM", "VLLMSettings"]

DEFAULT_MODEL = "smollm2:135m"
DEADLINE_S = {True: 300.0, False: 900.0}
"""Time to become ready, eager or compiled; on two idle cores it takes 35 to 65 s, or about 150 s."""

PROCESSES_GIB = 2.5
"""What its processes take on a CPU beside weights and KV pool; vLLM 0.32.0, proportional set size."""

LOG_HEAD = 200_000
"""Bytes of the log that hold everything said at the start."""


class VLLM(ManagedEngine):
    """A vLLM server, which serves one model from its start."""

    name = "vllm"
    title = VLLMSettings.title
    protocol = "openai-chat"
    default_port = 8000
    health = ("/health", "")
    causes = CAUSES

    async def start(
        self, *, model: str | None = None, progress: Progress = quiet, **settings: Any
    ) -> EngineFacts:
        """Serve ``model`` with these settings; see :meth:`ManagedEngine.start`.

        Args:
            model: a name of the course's table (default: the one served last, else "smollm2:135m").

        Raises:
            UsageError: also an unknown model.
            ModelError: the model's files are not there, or the given URL's server does not serve it.
        """
        return await super().start(model=model, progress=progress, **settings)

    def _wanted(self, settings: dict[str, Any]) -> Wanted:
        given = dict(settings)
        # A model that was asked for, or by the name that a server of ours has for it: both are in the table.
        row = model_table.find(given.pop("model", None) or self.model or DEFAULT_MODEL)
        device: Device = "cuda" if hardware.gpus() else "cpu"
        wanted = VLLMSettings.of(given).resolved(device)
        return Wanted(given, wanted.as_dict(), row.vllm.name, partial(self._command, row, wanted, device))

    def _command(self, row: model_table.Model, settings: VLLMSettings, device: Device, port: int) -> Command:
        python = self._program()
        folder = model_files.models_home() / row.vllm.folder
        record = model_files.read_record(folder)
        if record is None:
            raise ModelError(
                f"start vLLM with {row.name}", f"there is no {folder}", f"labkit models get {row.name}"
            )
        weights_gib = sum(size for size, _ in record.files.values()) / 2**30
        pools_gib = (settings.kv_cache_gib or 0) * settings.tensor_parallel_size
        return Command(
            settings.argv(python, folder, row.vllm.name, port),
            settings.environment(device, host.core_ids()),
            DEADLINE_S[bool(settings.eager)],
            pools_gib + weights_gib + PROCESSES_GIB if device == "cpu" else None,
        )

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
        answer = await self._get("/version")
        said = declared(answer)
        row = (await self._models())[0]
        cache = _labels(await self._metrics(), "vllm:cache_config_info")
        log = self._log_facts() if said is None else {}
        record = self._record(row.get("root"))
        size = _number(cache.get("kv_cache_memory_bytes"))
        slots = self._state.settings.get("max_num_seqs") if self._state and said is None else None
        read: dict[str, tuple[Any, str]] = {
            "version": (answer.json()["version"], "/version"),
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
        return self._described(read, said)

    async def gauges(self) -> Gauges:
        """See :meth:`Engine.gauges`."""
        text = await self._metrics()
        return Gauges(
            running=_total(text, "vllm:num_requests_running"),
            waiting=_total(text, "vllm:num_requests_waiting"),
            kv_use=_total(text, "vllm:kv_cache_usage_perc"),
            prefix_hits=_total(text, "vllm:prefix_cache_hits_total"),
            prefix_queries=_total(text, "vllm:prefix_cache_queries_total"),
            preemptions=_total(text, "vllm:num_preemptions_total"),
        )

    async def served(self) -> Served:
        """See :meth:`Engine.served`. vLLM does not count every request whose client went away."""
        text = await self._metrics()
        return Served(
            requests=_whole(_total(text, "vllm:request_success_total")),
            prompt_tokens=_whole(_total(text, "vllm:prompt_tokens_total")),
            output_tokens=_whole(_total(text, "vllm:generation_tokens_total")),
        )

    async def _get(self, path: str) -> httpx.Response:
        async with self._talking(f"ask vLLM for {path}", 30) as client:
            return (await client.get(path)).raise_for_status()

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
