"""How well ``labkit bench`` measures, beside the clients that people use otherwise.

    python benchmarks/load.py [--users 16 256 1000] [--repeats 3] [--clients labkit aiohttp openai vllm]

Truth is a compiled server (refserver.c) that sends tokens on an exact schedule and logs when each one left,
on the clock that the clients read too. The error of a client is what it reports minus what the server logged
for the same run, quantile by quantile, so the server's own jitter cancels out. Client and server are pinned
to a core each; runs of all clients are interleaved, medians over repeats count. A row is void where the
server itself ran more than a millisecond late at p99.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from load_clients import CLIENTS, summary

from labkit.engines import install, models

HERE = Path(__file__).parent
RECORD = struct.Struct("<IIdd")
TTFT_MS, GAP_MS, TOKENS = 200.0, 20.0, 64
ROUNDS = {16: 8, 256: 4, 1000: 3}
SERVER_LATE_MS = 1.0

AIMS = [  # cell, what, value of labkit, limit
    ("fixed", "load process, CPU s", "load_cpu_s", 0.35),
    ("fixed", "load process, peak MiB", "load_rss_mib", 50.0),
    ("fixed", "whole command, CPU s", "cpu_s", 1.0),
    ("fixed", "whole command, peak MiB", "pss_mib", 120.0),
    ("256", "CPU ms per 1,000 tokens", "cpu_per_1k_ms", 22.0),
    ("256", "TTFT error p50, ms", "ttft_error_p50", 10.0),
    ("256", "TTFT error p99, ms", "ttft_error_p99", 25.0),
    ("256", "ITL error p99, ms", "itl_error_p99", 3.0),
    ("1000", "TTFT error p50, ms", "ttft_error_p50", 40.0),
    ("1000", "share of 50k tokens/s missed, %", "missed_percent", 6.0),
]


def build(folder: Path) -> Path:
    """Compile the server."""
    program = folder / "refserver"
    subprocess.run(
        [shutil.which("cc") or "cc", "-O2", "-o", str(program), str(HERE / "refserver.c")], check=True
    )
    return program


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started inside runs on this core only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """The reference server for one run; ``truth`` afterwards."""

    def __init__(self, program: Path, log: Path, core: int, tokens: int) -> None:
        self._log = log
        self._tokens = tokens
        arguments = [str(program), str(log), str(TTFT_MS), str(GAP_MS), str(tokens)]
        with pinned(core):
            self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}/v1"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def truth(self) -> dict[str, Any]:
        """Stop the server and read TTFT, gaps and its own lateness from its log."""
        self._process.terminate()
        if self._process.wait() != 0:
            raise SystemExit("the reference server failed")
        sent: dict[int, list[float]] = {}
        late = []
        for request, token, due, at in RECORD.iter_unpack(self._log.read_bytes()):
            sent.setdefault(request, []).append(at)
            if token:
                late.append(at - due)
        # vllm bench also asks for a page that this server does not have, and hangs up on the answer
        whole = [times for times in sent.values() if len(times) == self._tokens + 1]
        return {
            "ttft_ms": summary([times[1] - times[0] for times in whole]),
            "itl_ms": summary([b - a for times in whole for a, b in pairwise(times[1:])]),
            "late_ms": summary(late)["p99"],
        }


class Tree:
    """Peak memory (proportional, so that shared pages count once) of a process and its children."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak_mib = 0.0
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            try:
                family = [self._process, *self._process.children(recursive=True)]
                now = sum(member.memory_full_info().pss for member in family) / 2**20
            except psutil.Error:  # one of them just ended
                continue
            self.peak_mib = max(self.peak_mib, now)

    def stop(self) -> float:
        """Stop watching and return the peak."""
        self._over.set()
        self._thread.join()
        return self.peak_mib


def execute(command: list[str], core: int | None, *, watch: bool = False) -> dict[str, Any]:
    """Run a client; its JSON, the CPU seconds of its process tree and, if watched, its peak memory."""
    with pinned(core) if core is not None else pinned_nowhere():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    tree = Tree(process.pid) if watch else None
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    peak = tree.stop() if tree else None
    if status:
        raise SystemExit(f"{command} failed: {process.stderr.read() if process.stderr else ''}")
    return {**json.loads(said), "tree_cpu_s": usage.ru_utime + usage.ru_stime, "pss_mib": peak}


@contextmanager
def pinned_nowhere() -> Iterator[None]:
    """All cores."""
    yield


def labkit_bench(url: str, load: tuple[int, int, int], folder: Path) -> list[str]:
    """The command as a user types it."""
    names = ("--users", "--requests", "--output-tokens")
    options = [word for name, value in zip(names, load, strict=True) for word in (name, str(value))]
    program = str(Path(sys.executable).with_name("labkit"))
    return [program, "bench", "--url", url, "--model", "ref", *options, "--out", str(folder), "--json"]


def vllm() -> tuple[str, str] | None:
    """A Python that has vLLM, and a folder with a tokenizer for it; None where either is missing."""
    python, folder = install.find_vllm(), models.vllm_folder("smollm2:135m")
    return (str(python), str(folder)) if python and folder else None


def command_of(client: str, url: str, load: tuple[int, int, int], scratch: str) -> list[str]:
    """What to start for a client; the load is users, requests and tokens of an answer."""
    if client == "labkit":
        return labkit_bench(url, load, Path(scratch) / "run")
    if client == "vllm":
        python, tokenizer = vllm() or ("", "")
        return [python, str(HERE / "load_vllm.py"), tokenizer, url, *map(str, load)]
    return [sys.executable, str(HERE / "load_clients.py"), client, url, *map(str, load)]


def measure(program: Path, client: str, users: int, cores: tuple[int, int]) -> dict[str, Any]:
    """One run of one client at one number of users."""
    requests = users * ROUNDS.get(users, 3)
    with (
        tempfile.TemporaryDirectory() as scratch,
        Server(program, Path(scratch) / "log", cores[1], TOKENS) as server,
    ):
        said = execute(command_of(client, server.url, (users, requests, TOKENS), scratch), cores[0])
        truth = server.truth()
    cpu = said["client"]["cpu_s"] if client == "labkit" else said["cpu_s"]
    offered = users * TOKENS / (TTFT_MS + GAP_MS * (TOKENS - 1)) * 1e3
    return {
        "cpu_per_1k_ms": cpu * 1e6 / said["tokens"],
        "tokens": said["tokens"],
        "missed_percent": 100 * (1 - said["tokens_per_s"] / offered),
        "offered_per_s": offered,
        "server_late_p99_ms": truth["late_ms"],
        **{
            f"{name}_error_{q}": abs(said[f"{name}_ms"][q] - truth[f"{name}_ms"][q])
            for name in ("ttft", "itl")
            for q in ("p50", "p99")
        },
    }


def fixed_cost(program: Path) -> dict[str, Any]:
    """One tiny request with ``labkit bench``: what start-up alone costs."""
    with tempfile.TemporaryDirectory() as scratch, Server(program, Path(scratch) / "log", 0, 2) as server:
        bundle = Path(scratch) / "run"
        said = execute(labkit_bench(server.url, (1, 1, 2), bundle), None, watch=True)
        server.truth()
        health = json.loads((bundle / "run.json").read_text())["levels"][0]["client"]
    return {
        "load_cpu_s": health["cpu_s"],
        "load_rss_mib": health["rss_mib"],
        "cpu_s": said["tree_cpu_s"],
        "pss_mib": said["pss_mib"],
    }


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Median of each figure over repeats."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def compare(program: Path, clients: list[str], levels: list[int], repeats: int) -> dict[str, Any]:
    """All clients at all levels, interleaved."""
    available = sorted(os.sched_getaffinity(0))
    cores = (available[0], available[-1])
    cells: dict[str, dict[str, list[dict[str, Any]]]] = {
        str(users): {client: [] for client in clients} for users in levels
    }
    fixed = []
    for repeat in range(repeats):
        fixed.append(fixed_cost(program))
        for users in levels:
            for client in clients:
                print(f"repeat {repeat + 1}: {client}, {users} users", file=sys.stderr)
                cells[str(users)][client].append(measure(program, client, users, cores))
    return {
        "fixed": {"labkit": medians(fixed)},
        **{users: {client: medians(runs) for client, runs in row.items()} for users, row in cells.items()},
    }


def report(results: dict[str, Any]) -> None:
    """Tables on stdout: aims, then every client with its ratio to labkit."""
    print(f"\n{'aim':<42}{'limit':>10}{'labkit':>10}")
    for cell, what, key, limit in AIMS:
        if cell in results and "labkit" in results[cell]:
            value = results[cell]["labkit"][key]
            where = what if cell == "fixed" else f"{cell} users: {what}"
            print(f"{where:<42}{limit:>10g}{value:>10.3g}   {'met' if value <= limit else 'MISSED'}")
    keys = ("cpu_per_1k_ms", "ttft_error_p50", "ttft_error_p99", "itl_error_p99", "missed_percent")
    for cell, row in results.items():
        if cell == "fixed":
            continue
        print(f"\n{cell} users; in brackets: times labkit's\n{'':<10}" + "".join(f"{k:>20}" for k in keys))
        for client, values in row.items():
            cells = "".join(f"{_with_ratio(values[k], row['labkit'][k]):>20}" for k in keys)
            void = "  void: server late" if values["server_late_p99_ms"] > SERVER_LATE_MS else ""
            print(f"{client:<10}{cells}{void}")


def _with_ratio(value: float, own: float) -> str:
    return f"{value:.2f} ({value / own:.1f})" if own > 0 else f"{value:.2f} (–)"


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[16, 256, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    known = ["labkit", *CLIENTS, *(["vllm"] if vllm() else [])]
    parser.add_argument("--clients", nargs="+", choices=known, default=known, help="vllm: where installed")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        began = time.time()
        results = compare(build(Path(scratch)), args.clients, args.users, args.repeats)
    report(results)
    if args.out:
        about = {"unix_time": began, "repeats": args.repeats, "load_average": os.getloadavg()}
        args.out.write_text(json.dumps({**about, "results": results}, indent=2))


if __name__ == "__main__":
    main()
