"""What the load process is told to do: one level of load on one server, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from labkit.errors import LoadError, UsageError
from labkit.workload import Prompt

PROTOCOLS = ("openai-chat", "openai-completions", "ollama-chat", "ollama-generate")
ARRIVALS = ("closed", "poisson", "constant", "burst")


@dataclass(frozen=True)
class Plan:
    """One level: who asks what, when, and when it ends.

    The level ends when ``requests`` were issued and have ended, or when every user has asked ``rounds``
    questions and had them answered (a user then leaves; a failed answer is not asked again), or ``seconds``
    after its start, whichever is given and comes first; what is then in flight is cut off by the plan and
    counted as unfinished.

    Durations and the rate are in seconds of the run. ``time_scale`` of these pass in one second of the wall
    clock: 1 on a real engine; a simulated one says how much faster it goes. ``t0`` is an absolute reading of
    ``time.perf_counter`` (one clock for all processes of a machine).

    Raises:
        UsageError: fields that make no sense, alone or together.
    """

    url: str  # root or .../v1
    protocol: str
    model: str
    prompts: list[Prompt]  # taken in order, over again when they run out
    arrivals: str = "closed"
    users: int = 1  # closed loop: users; open loop: connections opened ahead
    rate: float | None = None  # requests a second in an open loop; a burst is `users` requests at once
    requests: int | None = None
    rounds: int | None = None  # closed loop: questions a user asks
    seconds: float | None = None
    think_s: float = 0.0
    ramp_s: float = 0.0  # users of a closed loop start evenly over this time
    timeout_s: float = 600.0  # deadline of one request
    seed: int = 0
    temperature: float = 0.0
    ignore_eos: bool = False  # vLLM only: answers of exactly the asked length
    api_key: str | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)
    name_users: bool = False  # each request says in X-User whose it is, for a proxy that goes by that
    # labels copied into every row
    engine: str = ""
    arm: str = ""
    level: int = 0
    repeat: int = 0
    warmup: bool = False
    # where and from when
    rows: str = ""  # folder of *.rows files, appended to
    first_id: int = 0
    t0: float = 0.0  # perf_counter at the start of the run; 0 = at the start of the level
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        for flaw, fix in self._flaws():
            raise UsageError("plan a load", flaw, fix)

    def _flaws(self) -> Iterator[tuple[str, str]]:
        """What is wrong, and what to do about it."""
        if self.protocol not in PROTOCOLS:
            yield f"protocol {self.protocol!r}", f"one of {', '.join(PROTOCOLS)}"
        if self.arrivals not in ARRIVALS:
            yield f"arrivals {self.arrivals!r}", f"one of {', '.join(ARRIVALS)}"
        try:
            url = urlsplit(self.url)
            whole = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
            # what the request line and the Host header cannot carry as it is, or would leave out
            whole &= not (url.query or url.username) and self.url.isprintable() and " " not in self.url
        except ValueError:  # a port that is no number
            whole = False
        if not whole:
            yield f"url {self.url!r}", "give it as http(s)://host[:port][/path]"
        if not self.model or not self.model.isprintable():
            yield f"model {self.model!r}", "give its name as the server knows it"
        if not -(2**63) <= self.seed < 2**63:
            yield f"seed {self.seed}", "it must fit into 64 bits"
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            yield "an API key that no HTTP header can carry", "check it for line ends and for quotes"
        if not self.prompts:
            yield "no prompts", "give at least one"
        for name in ("users", "rate", "requests", "rounds", "seconds", "timeout_s", "time_scale"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                yield f"{name} is {value}", "it must be above 0"
        for name in ("think_s", "ramp_s"):
            if not getattr(self, name) >= 0:
                yield f"{name} is {getattr(self, name)}", "it must not be negative"
        yield from self._unending()

    def _unending(self) -> Iterator[tuple[str, str]]:
        """Combinations that would never end, or never reach their end."""
        if self.requests is None and self.rounds is None and self.seconds is None:
            yield "it never ends", "give requests, rounds or seconds"
        if self.arrivals == "closed":
            if self.rate is not None:
                yield "a rate in a closed loop", "users set its pace: give other arrivals, or no rate"
            return
        if self.think_s or self.ramp_s:
            yield "think or ramp in an open loop", "they belong to users of a closed loop"
        if self.rounds is not None:
            yield (
                "rounds in an open loop",
                "rounds belong to users of a closed loop: give requests",
            )
        if self.rate is None and self.arrivals != "burst":
            yield f"{self.arrivals} arrivals without a rate", "give the rate in requests a second"
        if self.rate is None and (self.requests or 0) > self.users:
            yield (
                f"one burst of {self.users} never makes {self.requests} requests",
                "give a rate or more users",
            )

    def in_wall_time(self) -> Plan:
        """The same load as timers have to keep it."""
        return replace(
            self,
            seconds=None if self.seconds is None else self.seconds / self.time_scale,
            rate=None if self.rate is None else self.rate * self.time_scale,
            think_s=self.think_s / self.time_scale,
            ramp_s=self.ramp_s / self.time_scale,
            timeout_s=self.timeout_s / self.time_scale,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the pipe to the load process."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """The inverse of :meth:`as_dict`."""
        return cls(**{**data, "prompts": [Prompt(**p) for p in data["prompts"]]})


@dataclass(frozen=True)
class Tally:
    """Where every planned request went: planned = ok + failed + cancelled + unfinished, always.

    While a level runs, requests in flight count as unfinished. Times are of the run.

    Raises:
        LoadError: the sum does not hold, so a request got lost.
    """

    planned: int = 0
    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    unfinished: int = 0
    tokens: int = 0  # received so far, in answers of any outcome
    unmetered: int = 0  # answers whose server counted no tokens: chunks were counted instead
    started_s: float = 0.0  # when the first request was due, since t0
    ended_s: float = 0.0  # last request ended; now, while any is in flight

    def __post_init__(self) -> None:
        if self.planned != self.ok + self.failed + self.cancelled + self.unfinished:
            raise LoadError("count requests", f"the outcomes do not add up: {self}", "report this as a bug")


@dataclass(frozen=True)
class ClientHealth:
    """How well the load process itself kept up; lags are in milliseconds of the run, CPU time is real."""

    loop_lag_p50_ms: float = 0.0  # lateness of a ticker (10 ms real time); missed ticks count with theirs
    loop_lag_p99_ms: float = 0.0
    loop_lag_max_ms: float = 0.0
    missed_ticks: int = 0
    coalesced_share: float = 0.0  # token chunks that shared a read with the one before
    send_late_p99_ms: float = 0.0  # actual send minus intended
    cpu_s: float = 0.0
    rss_mib: float = 0.0  # peak
    rows_lost: int = 0  # rows that could not be written (disk full)
    connections: int = 0  # opened in all; 0 means that the server was never reached
    retries: int = 0  # requests sent again because the server closed an idle connection under them
