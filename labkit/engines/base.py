"""What every engine offers: settings in, facts and gauges out, a start and a stop that are proved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from labkit.errors import UsageError

Progress = Callable[[str], None]
"""Receives one short line per step of something slow; never raises."""


def quiet(_line: str) -> None:
    """The progress receiver that says nothing."""


@dataclass(frozen=True)
class EngineFacts:
    """What an engine says of itself, read and never assumed; None where it does not say.

    ``sources`` names, per field, where the value was read ("log", "/api/ps", "command line", …).
    """

    engine: str  # ollama | vllm
    kind: str  # live | simulated
    url: str
    version: str | None = None
    model: str | None = None  # the name a client must send
    model_digest: str | None = None  # sha256 of the weights file the engine serves
    model_source: str | None = None  # where the file came from (models.toml)
    quantisation: str | None = None  # F16, Q4_1, bfloat16 …
    context: int | None = None  # tokens one request may use
    slots: int | None = None  # Ollama: child's -np; vLLM: max_num_seqs
    block_size: int | None = None  # tokens a KV block
    kv_tokens: int | None = None  # tokens the KV pool holds
    kv_bytes: int | None = None
    threads: int | None = None
    device: str | None = None  # "cpu", "cuda:0 NVIDIA A100 …"
    owner: str = "foreign"  # kernel | shell | foreign
    simulated: dict[str, Any] | None = None  # profile, basis, time_scale, band; None for a real engine
    behind: dict[str, Any] | None = None  # of a proxy: the facts of the engines behind it, by name
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def time_scale(self) -> float:
        """How many seconds pass for the engine in one second of the wall clock."""
        return 1.0 if self.simulated is None else float(self.simulated["time_scale"])

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for ``run.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Gauges:
    """One reading of an engine's state; None where it has no such gauge."""

    running: float | None = None  # requests being worked on
    waiting: float | None = None  # requests in the engine's queue
    kv_use: float | None = None  # share of the KV pool in use, 0..1
    prefix_hits: float | None = None  # tokens taken from the prefix cache since start
    prefix_queries: float | None = None  # tokens looked up in the prefix cache since start
    preemptions: float | None = None  # times since start that a request lost its KV blocks to another


@dataclass(frozen=True)
class Served:
    """What an engine has served since it started, for the contamination check; None where unknown."""

    requests: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None


class Engine(ABC):
    """A server of one engine: ours to start and stop, or found running and used as it is.

    Attributes:
        name: "ollama" or "vllm".
        url: root of the server, without ``/v1`` and without a trailing slash.
        protocol: the wire protocol labkit measures it with
            ("ollama-chat" for Ollama, since only that one reports durations; "openai-chat" for vLLM).
        api_key: bearer token, or None.
    """

    name: str
    url: str
    protocol: str
    api_key: str | None = None

    @abstractmethod
    async def start(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        """Start the server with these settings, or reuse a fitting one, and wait until it answers.

        Cancelling the coroutine stops what was started.

        Raises:
            UsageError: unknown setting or impossible value; names the field and the limit.
            StartFailed: not ready within the deadline or exited; quotes the log.
        """

    @abstractmethod
    async def stop(self, *, progress: Progress = quiet) -> None:
        """Stop a server that labkit started, and prove it: port free, processes gone. No-op if not ours.

        Raises:
            StopFailed: something survived SIGINT and SIGKILL.
        """

    @abstractmethod
    async def restart(self, *, progress: Progress = quiet, **settings: Any) -> EngineFacts:
        """Stop, then start with the present settings changed by these."""

    @abstractmethod
    async def ready(self) -> bool:
        """Whether the server answers now."""

    @abstractmethod
    async def load(self, model: str, *, progress: Progress = quiet) -> float:
        """Make sure that ``model`` (the name a client sends) is loaded; seconds that it took."""

    async def unload(self, model: str) -> None:
        """Take a model out of memory; the next request loads it again.

        Raises:
            UsageError: this engine has its model from start to stop.
        """
        raise UsageError(
            f"unload {model} from {self.name}", "it keeps its model from start to stop", "use Ollama for this"
        )

    async def stall(self, seconds: float) -> None:
        """Make the whole engine stand still, as a machine does that swaps or is taken away for a moment.

        Raises:
            UsageError: labkit did not start this server.
        """
        raise UsageError(
            f"hold {self.name} at {self.url} for {seconds:g} s",
            "labkit did not start this server",
            "let labkit start one: leave its address out",
        )

    async def shift(self, share: float) -> None:
        """Send so many per cent of the requests to the vLLM behind it from now on; back once that is proved.

        Raises:
            UsageError: it is no proxy.
        """
        raise UsageError(
            f"send {share:g} % of the requests to vLLM", f"{self.name} is no proxy", "put nginx in front"
        )

    @abstractmethod
    async def facts(self) -> EngineFacts:
        """Read what the server really uses."""

    @abstractmethod
    async def gauges(self) -> Gauges:
        """Read the present state."""

    @abstractmethod
    async def served(self) -> Served:
        """Read what was served since the start."""

    @abstractmethod
    def cpu_s(self) -> float | None:
        """CPU seconds that the server's processes have used so far; None for a foreign server."""

    @abstractmethod
    def log_tail(self, n: int = 20) -> list[str]:
        """Last ``n`` lines of the server's log; empty if the log is not ours."""

    @abstractmethod
    def alive(self) -> bool:
        """Whether the process of a server we started is still there; True for a foreign server."""
