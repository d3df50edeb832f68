"""What vLLM says while it starts, as phases with their seconds; and what it says when it refuses to start."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from labkit import paths
from labkit.demos.apart import about
from labkit.device import holding
from labkit.engines.base import Progress
from labkit.engines.ports import free_port
from labkit.engines.simulated import SimulatedVLLM
from labkit.engines.vllm import VLLM
from labkit.engines.vllm_settings import CAUSES
from labkit.errors import EngineError, StartFailed, UsageError
from labkit.transcript import Event, Transcript

STAMPED = re.compile(
    r"^(?:\((?P<process>\w+) pid=\d+\) )?(?P<level>[A-Z]+) (?P<at>\d\d-\d\d \d\d:\d\d:\d\d) "
)
"""A line of vLLM's own logging; the time is the local one, in whole seconds."""

WHERE = re.compile(r"\[[\w.]+:\d+\] ")
SAID = 240
"""Characters of a line that a transcript keeps."""

PORTS = {"live": 8100, "simulated": 28100}
"""Where a server that is to refuse is started, if these are free."""


@dataclass(frozen=True)
class Phase:
    """One part of a start, by the log line that ends it.

    Attributes:
        ends: pattern of that line (vLLM 0.32.0).
        does: what happens in it.
    """

    name: str
    ends: str
    does: str


PHASES = (
    Phase("imports", r"non-default args", "Python starts and loads vLLM and PyTorch"),
    Phase("configuration", r"Using max model len",
          "the model's config.json is read and the settings are checked"),
    Phase("engine core", r"Initializing a V1 LLM engine", "a second process starts and loads the same again"),
    Phase("worker", r"Starting to load model", "a third process starts, the one that computes"),
    Phase("weights", r"Loading weights took|Model loading took", "the file with the weights is read"),
    Phase("KV pool", r"(CPU|GPU) KV cache size", "the memory for the KV cache is taken and cut into blocks"),
    Phase("warm-up", r"init engine \(profile", "one trial step; on a GPU also compiling and CUDA graphs"),
    Phase("HTTP server", r"Starting vLLM (API )?server", "the API's routes are set up"),
)  # fmt: skip
"""In the order in which vLLM goes through them."""

FACTS = {
    "weights_s": r"Loading weights took ([\d.]+)",
    "init_s": r"init engine \(profile.*\) took ([\d.]+)",
    "checkpoint_gib": r"Checkpoint size: ([\d.]+) GiB",
    "kv_gib": r"Explicitly set \(([\d.]+)/",
    "kv_tokens": r"KV cache size: ([\d,]+) tokens",
    "concurrency": r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x",
}
"""Numbers that the lines tell themselves, some finer than their time stamps."""


def phases(log: str, began: datetime | None = None) -> list[Event]:
    """The events of a start-up log: a "phase" for each part, a "fact" for each number that a line tells.

    A phase's ``took_s`` is the difference of two time stamps in whole seconds, so it is right to a second.
    A phase whose line is missing is left out; its time is then in the next one.

    Args:
        began: when the process started, by the local clock (default: at the first line of the log).
    """
    lines = stamped(log, began)
    now = 0.0
    events: list[Event] = []
    for phase in PHASES:
        found = next(((t_s, said) for t_s, said in lines if re.search(phase.ends, said)), None)
        if found is None:
            continue
        t_s, said = max(now, found[0]), found[1]
        took_s = round(t_s - now, 3)
        events.append(
            {"t_s": now, "what": "phase", "phase": phase.name, "took_s": took_s, "does": phase.does,
             "says": short(said)}
        )  # fmt: skip
        now = t_s
    for name, pattern in FACTS.items():
        for t_s, said in lines:
            if value := re.search(pattern, said):
                number = float(value[1].replace(",", ""))
                events.append(
                    {"t_s": t_s, "what": "fact", "name": name, "value": number, "says": short(said)}
                )
                break
    return events


async def start_log(engine: VLLM) -> Transcript:
    """The start of a running vLLM, by its log.

    Raises:
        EngineError: labkit did not start this server, so its log is not known; or nothing in it is.
    """
    server = engine.server
    if server is None:
        raise EngineError(
            f"read the start-up log of {engine.title} at {engine.url}",
            "labkit did not start this server, and does not know where its log is",
            "unset LABKIT_VLLM_URL to let labkit start one, or MODE = 'recorded'",
        )
    log = log_text(server.log)
    events = phases(log, datetime.fromtimestamp(server.create_time))
    if not events:
        raise EngineError(
            f"read the start-up log of {engine.title}",
            f"none of the lines that vLLM 0.32.0 has is in {server.log}",
            "labkit engines install vllm installs the version that this course knows",
        )
    facts = await engine.facts()
    seen_on = about(engine, facts.version, model=facts.model, asked=engine.asked)
    return Transcript("start_log_vllm", "live", seen_on, tuple(events))


async def refusal(kind: str, settings: Mapping[str, Any], say: Progress) -> Transcript:
    """Start vLLM on a port of its own with settings that it refuses, and keep its own words.

    Servers that run already are left alone.

    Args:
        kind: "live" or "simulated".

    Raises:
        UsageError: it started after all; it is stopped again. Or labkit itself refuses the settings.
        NotInstalled: vLLM is not on this machine.
        StartFailed: it ended for a reason that is not known.
    """
    port = free_port(PORTS[kind])
    engine: VLLM = SimulatedVLLM.beside(port) if kind == "simulated" else VLLM.beside(port)
    written = paths.folder("logs") / f"{engine.server_name}-{port}.log"
    async with holding([engine.url], owner="refusal", on_wait=say):
        written.unlink(missing_ok=True)  # an earlier refusal's words would pass for those of this one
        began = time.monotonic()
        try:
            await engine.start(progress=say, **settings)
        except StartFailed as error:
            took_s = round(time.monotonic() - began, 3)
            log = log_text(written)
            words = refused(log)
            if not words:
                raise
            told = {"tried": error.tried, "seen": _first_line(error.seen), "fix": error.fix}
        else:
            await engine.stop(progress=say)
            asked = ", ".join(f"{name}={value!r}" for name, value in settings.items())
            raise UsageError(
                f"see vLLM refuse {asked}",
                "it started: this fits",
                "ask for a longer max_model_len or a smaller kv_cache_gib",
            )
    events: list[Event] = [{"t_s": 0.0, "what": "asked", **settings}]
    events += [{"t_s": took_s, "what": "said", "text": text} for text in words]
    events.append({"t_s": took_s, "what": "refused", "took_s": took_s, **told})
    version = re.search(r"V1 LLM engine \(v([\d.]+)\)", log)
    seen_on = about(engine, version[1] if version else None, asked=dict(settings))
    return Transcript("refusal", kind, seen_on, tuple(events))


def refused(log: str) -> list[str]:
    """The engine's own sentences on why it does not start: each line that a known cause is found in, once."""
    found: dict[str, None] = {}
    for line in log.splitlines():
        said = re.sub(r"^.*?\b(?:\w*Error|Exception): ", "", STAMPED.sub("", line))
        if any(re.search(cause.pattern, said, re.IGNORECASE) for cause in CAUSES):
            found[WHERE.sub("", said).removeprefix("Seen: ").strip()] = None
    return list(found)


def log_text(log: str | Path) -> str:
    """A log as far as it was written; empty if there is none."""
    path = Path(log)
    return path.read_text(errors="replace") if path.is_file() else ""


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def stamped(log: str, began: datetime | None) -> list[tuple[float, str]]:
    """Seconds since the beginning, and the text, of each line with a time stamp."""
    lines = []
    for line in log.splitlines():
        if match := STAMPED.match(line):
            at = datetime.strptime(match["at"], "%m-%d %H:%M:%S")
            if began is None:
                began = at
            at = at.replace(year=began.year)
            if at < began - timedelta(days=180):  # a start over New Year
                at = at.replace(year=began.year + 1)
            lines.append((max(0.0, round((at - began).total_seconds(), 3)), line[match.end() :]))
    return lines


def short(line: str) -> str:
    said = WHERE.sub("", line, count=1).strip()
    return said if len(said) <= SAID else f"{said[:SAID]} …"
