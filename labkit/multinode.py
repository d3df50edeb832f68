"""One vLLM over several hosts: the commands for each, and what must be open between them.

Tensor parallelism stays inside a host, whose devices talk over a fast link; between hosts, layers are split
(pipeline parallelism), which sends each token's numbers once a stage and not twice a layer. Commands and
ports are those of vLLM 0.32.0 and of Ray 2; nothing here was run on several hosts.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from labkit import parallel
from labkit.errors import UsageError
from labkit.parallel import Shape

MODEL = re.compile(r"[\w.-]+(/[\w.-]+)*|/[\w./-]+")
"""A repository, or a folder that every host has at the same place."""

RAY_PORT, NODE_PORT, OBJECT_PORT, FIRST_WORKER, LAST_WORKER = 6379, 6380, 6381, 10002, 10999
MASTER_PORT = 29501
"""vLLM's own default."""

WAYS = ("ray", "mp")


@dataclass(frozen=True)
class Command:
    """One command: where it runs, what it is for, its arguments, and variables that it needs."""

    host: str
    purpose: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """As a line for a shell, quoted."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*variables, shlex.join(self.argv)])


@dataclass(frozen=True)
class Opening:
    """Ports that one side must be able to reach on another."""

    of: str
    to: str
    ports: str
    purpose: str


@dataclass(frozen=True)
class Cluster:
    """What it takes to serve one model on several hosts."""

    ranks: int
    stages: int
    commands: tuple[Command, ...]
    openings: tuple[Opening, ...]

    def __str__(self) -> str:
        lines = [f"{self.stages} hosts, {self.ranks} ranks on each"]
        for number, one in enumerate(self.commands, start=1):
            lines += [f"{number}. on {one.host}: {one.purpose}", f"   {one}"]
        lines.append("Open, and nothing else:")
        lines += [f"- {one.of} → {one.to}: {one.ports} ({one.purpose})" for one in self.openings]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        steps = "".join(
            f"<li>on <b>{escape(one.host)}</b>: {escape(one.purpose)}<pre>{escape(str(one))}</pre></li>"
            for one in self.commands
        )
        rows = "".join(
            "".join(["<tr>", *(f"<td>{escape(cell)}</td>" for cell in vars(one).values()), "</tr>"])
            for one in self.openings
        )
        head = "<tr><th>from</th><th>to</th><th>ports</th><th>for</th></tr>"
        return f"<ol>{steps}</ol><table><caption>Open, and nothing else</caption>{head}{rows}</table>"


def cluster(
    hosts: Sequence[str],
    gpus_each: int,
    model: str,
    shape: Shape,
    *,
    way: str = "ray",
    port: int = 8000,
) -> Cluster:
    """The commands that serve a model on several hosts, the first of which answers.

    Args:
        hosts: IPv4 addresses in the private network that the hosts share.
        gpus_each: GPUs of each host, all of which are used.
        model: a repository, or a folder that is there on every host.
        shape: of that model.
        way: "ray", on a Ray cluster; "mp", vLLM's own processes, without Ray.
        port: of the API, on the first host.

    Raises:
        UsageError: an impossible host, number or model; GPUs that do not divide its heads; too few layers.
    """
    _check(hosts, gpus_each, model, way, port)
    if why := parallel.share(shape, gpus_each).why:
        fix = f"use {parallel.largest(shape, gpus_each)} of the GPUs of each host"
        raise _refuse(f"{gpus_each} GPUs a host", why, fix)
    if shape.layers < len(hosts):
        raise _refuse(f"{len(hosts)} hosts", f"the model has {shape.layers} layers", "use fewer hosts")
    split = ("--tensor-parallel-size", str(gpus_each), "--pipeline-parallel-size", str(len(hosts)))
    serve, answer = ["vllm", "serve", model, *split], ["--host", hosts[0], "--port", str(port)]
    made = _with_ray(hosts, gpus_each, serve, answer) if way == "ray" else _without_ray(hosts, serve, answer)
    return Cluster(gpus_each, len(hosts), tuple(made), tuple(_openings(hosts, way, port)))


def _with_ray(hosts: Sequence[str], gpus_each: int, serve: list[str], answer: list[str]) -> list[Command]:
    workers = ["--min-worker-port", str(FIRST_WORKER), "--max-worker-port", str(LAST_WORKER)]
    common = [
        "--num-gpus", str(gpus_each),
        "--node-manager-port", str(NODE_PORT), "--object-manager-port", str(OBJECT_PORT),
        *workers, "--disable-usage-stats",
    ]  # fmt: skip
    first = ["ray", "start", "--head", "--node-ip-address", hosts[0], "--port", str(RAY_PORT)]
    commands = [
        Command(
            hosts[0],
            "start the cluster; its dashboard stays on this host",
            (*first, "--dashboard-host", "127.0.0.1", *common),
            _here(hosts[0]),
        )
    ]
    commands += [
        Command(
            host,
            "join it",
            ("ray", "start", "--address", f"{hosts[0]}:{RAY_PORT}", "--node-ip-address", host, *common),
            _here(host),
        )
        for host in hosts[1:]
    ]
    commands.append(Command(hosts[0], "see whether all GPUs are there", ("ray", "status")))
    argv = (*serve, *answer, "--distributed-executor-backend", "ray")
    commands.append(Command(hosts[0], "serve; Ray starts the ranks on all hosts", argv, _key(hosts[0])))
    return commands


def _without_ray(hosts: Sequence[str], serve: list[str], answer: list[str]) -> list[Command]:
    commands = []
    for number, host in enumerate(hosts):
        argv = [
            *serve,
            "--nnodes", str(len(hosts)), "--node-rank", str(number),
            "--master-addr", hosts[0], "--master-port", str(MASTER_PORT),
        ]  # fmt: skip
        argv += ["--headless"] if number else answer
        purpose = "join as ranks without an API" if number else "serve, and wait for the others"
        commands.append(Command(host, purpose, tuple(argv), _here(host) if number else _key(host)))
    return commands


def _here(host: str) -> dict[str, str]:
    """vLLM's ranks call each other at this address, and not at one that they guess."""
    return {"VLLM_HOST_IP": host}


def _key(host: str) -> dict[str, str]:
    """A key in a variable is not seen in the list of processes, as one on a command line is."""
    return {**_here(host), "VLLM_API_KEY": "CHOOSE-A-LONG-ONE"}


def _openings(hosts: Sequence[str], way: str, port: int) -> list[Opening]:
    first, everyone = hosts[0], "each host"
    openings = [Opening("clients, or better a proxy", first, f"TCP {port}", "the API")]
    if way == "ray":
        openings += [
            Opening("the other hosts", first, f"TCP {RAY_PORT}", "Ray's control store"),
            Opening(everyone, everyone, f"TCP {NODE_PORT}, {OBJECT_PORT}", "Ray's node and object managers"),
            Opening(everyone, everyone, f"TCP {FIRST_WORKER} to {LAST_WORKER}", "Ray's workers"),
        ]
    else:
        openings.append(Opening("the other hosts", first, f"TCP {MASTER_PORT}", "the ranks find each other"))
    chosen = "TCP, ports that the system chooses"
    openings.append(Opening(everyone, everyone, chosen, "vLLM, Gloo and NCCL: what the ranks send"))
    return openings


def _check(hosts: Sequence[str], gpus_each: int, model: str, way: str, port: int) -> None:
    if isinstance(hosts, str) or len(hosts) < 2:
        raise _refuse(
            f"the hosts {hosts!r}", "it takes a list of two at least", "one host needs no cluster: vllm serve"
        )
    for host in hosts:
        _check_host(host)
    if len(set(hosts)) < len(hosts):
        raise _refuse(f"the hosts {', '.join(hosts)}", "one is there twice", "name each once")
    for name, number, top in (("GPUs a host", gpus_each, 64), ("port", port, 65535)):
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= top:
            raise _refuse(f"{number!r} as {name}", f"it must be 1 to {top}", "give a whole number")
    if not MODEL.fullmatch(model) or model.startswith("-"):
        raise _refuse(f"the model {model!r}", "neither a repository nor a folder", "such as owner/name")
    if way not in WAYS:
        raise _refuse(f"the way {way!r}", "no such way", f"one of {', '.join(WAYS)}")


def _check_host(host: str) -> None:
    try:
        address = ipaddress.IPv4Address(str(host))  # a number would be taken, too
    except ValueError:
        seen = "it is no IPv4 address, and vLLM and Ray tell hosts apart by theirs"
        raise _refuse(f"the host {host!r}", seen, "such as 10.0.0.1; `hostname -I` tells it") from None
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        seen, fix = "the others cannot reach it by that", "give its address in the network that they share"
        raise _refuse(f"the host {host}", seen, fix)
    if address.is_global:
        seen = "it is an address of the open internet, and neither Ray nor the ranks ask who calls"
        raise _refuse(f"the host {host}", seen, "use addresses of a private network, such as 10.0.0.1")


def _refuse(what: str, seen: str, fix: str) -> UsageError:
    return UsageError(f"plan a cluster with {what}", seen, fix)
