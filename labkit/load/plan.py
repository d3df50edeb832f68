"""What the load process is told to do: one level of load on one server, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

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

    Times are absolute readings of ``time.perf_counter`` (one clock for all processes of a machine).
    """

    url: str  # root or .../v1
    protocol: str
    model: str
    prompts: list[Prompt]  # taken in order, over again when they run out
    arrivals: str = "closed"
    users: int = 1  # closed loop: users; open loop: connections opened ahead
    rate: float | None = None  # requests a second for poisson and constant; size of a burst is `users`
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

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the pipe to the load process."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """The inverse of :meth:`as_dict`."""
        return cls(**{**data, "prompts": [Prompt(**p) for p in data["prompts"]]})


@dataclass(frozen=True)
class Tally:
    """Where every planned request went: planned = ok + failed + cancelled + unfinished, always."""

    planned: int = 0
    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    unfinished: int = 0
    tokens: int = 0
    started_s: float = 0.0  # first request sent, since t0
    ended_s: float = 0.0


@dataclass(frozen=True)
class ClientHealth:
    """How well the load process itself kept up."""

    loop_lag_p50_ms: float = 0.0
    loop_lag_p99_ms: float = 0.0
    loop_lag_max_ms: float = 0.0
    missed_ticks: int = 0
    coalesced_share: float = 0.0
    send_late_p99_ms: float = 0.0  # actual send minus intended
    cpu_s: float = 0.0
    rss_mib: float = 0.0
    rows_lost: int = 0  # rows that could not be written (disk full)
