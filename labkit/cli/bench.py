"""``labkit bench``: load one server and print what it did."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import paths
from labkit.load.plan import ARRIVALS, PROTOCOLS, Plan

if TYPE_CHECKING:
    import polars as pl

    from labkit.bundle import Run
    from labkit.load.process import LoadProcess
    from labkit.workload import Workload

_ARM = "bench"
_SETTINGS = ("arrivals", "users", "rate", "requests", "seconds", "think_s", "ramp_s", "timeout_s")
_NAMES = {
    "ttft_ms": "TTFT (from send)",
    "ttft_intended_ms": "TTFT (from intended)",
    "itl_ms": "ITL (gaps, pooled)",
    "tpot_ms": "TPOT",
    "e2e_ms": "E2E",
}
_PROMPTS_PER_USER = 64  # of a run that ends by time; used over again after that
_MOST_PROMPTS = 100_000  # of any run
_MOST = 2**31  # above any number that an option can mean
_TALK_S = 5.0


def add(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = sub.add_parser("bench", help="load one server and print what it did")
    parser.add_argument("--url", required=True, help="http://127.0.0.1:PORT/v1, or the server's root")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="openai-chat")
    parser.add_argument("--model", required=True, metavar="NAME", help="as the server knows it")
    parser.add_argument(
        "--users", type=_count, default=1, metavar="N", help="at a time; in a burst: requests at once"
    )
    end = parser.add_mutually_exclusive_group(required=True)
    end.add_argument("--requests", type=_count, metavar="N", help="end after so many requests")
    end.add_argument("--seconds", type=_positive, metavar="S", help="end after this time")
    parser.add_argument("--output-tokens", type=_count, default=128, metavar="N", help="asked of each answer")
    parser.add_argument(
        "--prompt-tokens",
        type=_count,
        metavar="N",
        help="approximate prompt length: common words, about one token each (no tokenizer is used)",
    )
    parser.add_argument("--arrivals", choices=ARRIVALS, default="closed", help="default: closed loop")
    parser.add_argument("--rate", type=_positive, metavar="R", help="requests a second of an open loop")
    parser.add_argument("--think", type=_positive, default=0.0, metavar="S", help="pause of a user")
    parser.add_argument("--ramp", type=_positive, default=0.0, metavar="S", help="users start over this time")
    parser.add_argument("--timeout", type=_positive, default=600.0, metavar="S", help="of one request")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and arrivals")
    parser.add_argument("--api-key", default=os.environ.get("LABKIT_API_KEY"), help="or LABKIT_API_KEY")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the bundle, new or empty")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(func=run)


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0 and below {_MOST}")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def run(args: argparse.Namespace) -> int:
    """Measure, write the bundle, print.

    Exit code 0 also when requests failed (they are results), 1 if the server was never reached or the load
    process broke off, 130 after Ctrl-C, which keeps and prints what came.
    """
    result, code = asyncio.run(_bench(args))
    if args.json:
        import orjson

        print(orjson.dumps(result).decode())
    else:
        print(_table(result))
    return code


async def _bench(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from labkit.bundle import empty_folder
    from labkit.device import holding
    from labkit.engines import declared
    from labkit.workload import Workload

    workload = Workload("bench", args.output_tokens, args.prompt_tokens)
    folder = args.out or paths.runs() / f"bench-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    plan = _plan(args, workload, str(folder))
    empty_folder(folder)  # refused now, not after a wait

    async with holding([plan.url], owner="labkit bench", on_wait=_say):
        said = await declared.ask(plan.url)
        if said is not None:
            plan = replace(plan, time_scale=said["time_scale"])
            pace = f"{plan.time_scale:g} times real time"
            _say(f"simulated, profile {said['profile']}, {pace}; times are simulated")
        return await _measure(plan, folder, workload, said)


def _plan(args: argparse.Namespace, workload: Workload, rows: str) -> Plan:
    count = min(args.requests or args.users * _PROMPTS_PER_USER, _MOST_PROMPTS)
    return Plan(
        url=args.url.rstrip("/"),
        protocol=args.protocol,
        model=args.model,
        prompts=workload.prompts(count, str(args.seed)),
        arrivals=args.arrivals,
        users=args.users,
        rate=args.rate,
        requests=args.requests,
        seconds=args.seconds,
        think_s=args.think,
        ramp_s=args.ramp,
        timeout_s=args.timeout,
        seed=args.seed,
        api_key=args.api_key,
        arm=_ARM,
        level=args.users,
        rows=rows,
    )


async def _measure(
    plan: Plan, folder: Path, workload: Workload, said: dict[str, Any] | None
) -> tuple[dict[str, Any], int]:
    """Measure the plan; ``said`` is what a simulated server declares of itself."""
    from labkit.bundle import Recorder
    from labkit.engines.declared import origin, told_facts
    from labkit.load.process import LoadProcess
    from labkit.verdict import judge_clients

    facts: dict[str, Any] = {"engine": plan.protocol, "url": plan.url, "model": plan.model}
    if said is not None:
        facts |= {name: value for name, (value, _) in told_facts(said).items()} | {"simulated": origin(said)}
    settings = {name: getattr(plan, name) for name in _SETTINGS}
    recorder = Recorder(
        folder,
        kind="live" if said is None else "simulated",
        arms={_ARM: {"engine": "", "settings": settings, "facts": facts}},
        workload=workload.as_dict(),
        seed=plan.seed,
        time_scale=plan.time_scale,
    )
    stopped = asyncio.Event()
    async with LoadProcess(replace(plan, t0=recorder.clock.t0)) as load:

        def stop() -> None:
            stopped.set()
            load.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        spoken = 0.0
        async for frame in load.frames():
            if frame.t_s >= spoken + _TALK_S * plan.time_scale:
                spoken = frame.t_s
                tally = frame.tally
                _say(f"{spoken:.0f} s: {tally.ok} ok, {tally.failed} failed, {frame.in_flight} in flight")
    recorder.level(
        {
            "arm": _ARM,
            "engine": "",
            "level": plan.level,
            "repeat": plan.repeat,
            "warmup": False,
            **asdict(load.tally),
            "client": asdict(load.health),
            "broken": load.broken,
            "others_cpu": None,
        }
    )
    run = recorder.finish(judge_clients(recorder.levels), stopped=stopped.is_set())
    code = _judge(run, load, plan)
    return _result(run, load), 130 if stopped.is_set() else code


def _result(run: Run, load: LoadProcess) -> dict[str, Any]:
    """The pinned object: counts, rates, latencies in ms of the answers that came whole (null without any)."""
    from labkit import metrics

    tally, health = load.tally, load.health
    whole = metrics.answered(run.requests)
    gaps = metrics.gaps(run.tokens.filter(run.tokens["request_id"].is_in(whole["id"].implode())))
    duration = tally.ended_s - tally.started_s

    def ms(values: pl.Series) -> dict[str, float | None]:
        return metrics.stats(values).scaled(1000.0)

    return {
        "planned": tally.planned,
        "ok": tally.ok,
        "failed": tally.failed,
        "cancelled": tally.cancelled,
        "unfinished": tally.unfinished,
        "tokens": tally.tokens,
        "duration_s": round(duration, 6),
        "tokens_per_s": round(tally.tokens / duration, 3) if duration > 0 else None,
        "ttft_ms": ms(whole.select(metrics.TTFT).to_series()),
        "ttft_intended_ms": ms(whole.select(metrics.TTFT_INTENDED).to_series()),
        "itl_ms": ms(gaps["itl_s"]),
        "tpot_ms": ms(whole.select(metrics.TPOT).to_series()),
        "e2e_ms": ms(whole.select(metrics.E2E).to_series()),
        "client": {
            "loop_lag_p99_ms": round(health.loop_lag_p99_ms, 3),
            "coalesced_share": round(health.coalesced_share, 6),
            "cpu_s": round(health.cpu_s, 3),
        },
    }


def _judge(run: Run, load: LoadProcess, plan: Plan) -> int:
    """Say what a reader of the numbers must know; the exit code."""
    requests = run.requests
    failures = requests.filter(requests["outcome"] == "failed")["error"].value_counts(sort=True)
    for text, count in failures.head(3).iter_rows():
        _say(f"{count} failed: {text}")
    if load.tally.planned > len(plan.prompts):
        _say("there were more requests than prompts: repeated ones may have been answered from a cache")
    for reason in [*run.verdict.reasons, *filter(None, [run.partial])]:
        _say(reason)
    _say(f"bundle: {run.path}")
    if load.broken:
        return 1
    if load.health.connections == 0:
        _say(f"no connection to {plan.url} was ever made")
        return 1
    return 0


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['planned']} planned = {result['ok']} ok + {result['failed']} failed + "
        f"{result['cancelled']} cancelled + {result['unfinished']} unfinished",
        f"{result['tokens']} tokens in {result['duration_s']:.1f} s = {_number(result['tokens_per_s'])}/s",
        "",
        f"{'ms':<22}{'mean':>10}{'p50':>10}{'p95':>10}{'p99':>10}",
    ]
    for key, name in _NAMES.items():
        cells = "".join(f"{_number(result[key][q]):>10}" for q in ("mean", "p50", "p95", "p99"))
        lines.append(f"{name:<22}{cells}")
    client = result["client"]
    lines += [
        "",
        f"load process: loop lag p99 {client['loop_lag_p99_ms']:.1f} ms, "
        f"{client['coalesced_share']:.1%} of chunks coalesced, {client['cpu_s']:.2f} CPU s",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
