"""``labkit proxy``: a real nginx in front of an Ollama and a vLLM, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from labkit.errors import EngineError, UsageError

if TYPE_CHECKING:
    from labkit.engines.managed import ManagedEngine

PORT = 18080
WATCH_S = 0.5


def add(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = sub.add_parser("proxy", help="put nginx in front of both engines and share requests out")
    parser.add_argument("--ollama", required=True, metavar="URL", help="such as http://127.0.0.1:11434")
    parser.add_argument("--vllm", required=True, metavar="URL", help="such as http://127.0.0.1:8000")
    parser.add_argument("--share", type=float, default=10, metavar="PERCENT", help="for vLLM (default 10)")
    parser.add_argument("--sticky", action="store_true", help="all requests of one user to one engine")
    parser.add_argument("--port", type=int, help=f"on 127.0.0.1 (default {PORT}, or a free one)")
    parser.add_argument("--print-config", action="store_true", help="print nginx.conf and do nothing else")
    parser.set_defaults(func=_proxy)


def _proxy(args: argparse.Namespace) -> int:
    from labkit.engines.fronts.nginx_config import config

    targets = {"ollama": args.ollama.rstrip("/"), "vllm": args.vllm.rstrip("/")}
    if targets["ollama"] == targets["vllm"]:
        seen = f"both engines are said to be at {targets['vllm']}"
        raise UsageError("share requests out between two engines", seen, "give two addresses")
    written = config(targets, port=args.port or PORT, share=args.share, sticky=args.sticky)
    if args.print_config:
        sys.stdout.write(written)
        return 0
    asyncio.run(_serve(targets, args))
    return 0


async def _serve(targets: Mapping[str, str], args: argparse.Namespace) -> None:
    from labkit.engines.fronts.nginx import Nginx
    from labkit.engines.ollama import Ollama
    from labkit.engines.process import died
    from labkit.engines.vllm import VLLM

    engines = {"ollama": Ollama(targets["ollama"]), "vllm": VLLM(targets["vllm"])}
    for engine in engines.values():
        await _check(engine)
    await _check_names(engines)
    nginx = Nginx(engines, share=args.share, sticky=args.sticky, port=args.port)
    try:
        await nginx.start(progress=_say)
        unit = "users" if args.sticky else "requests"
        print(nginx.url, flush=True)
        _say(f"{nginx.share:g} % of the {unit} go to vLLM; Ctrl-C ends it")
        while nginx.server is not None and nginx.server.process() is not None:  # noqa: ASYNC110
            await asyncio.sleep(WATCH_S)
        if nginx.server is not None:
            raise died(nginx.server)
    finally:
        await nginx.stop(progress=_say)


async def _check(engine: ManagedEngine) -> None:
    if not await engine.ready():
        path, _ = engine.health
        raise EngineError(
            f"put nginx in front of the {engine.title} at {engine.url}",
            f"it does not answer like {engine.title} on {path}",
            f"start it (labkit engines start {engine.name}), or correct the address",
        )


async def _check_names(engines: Mapping[str, ManagedEngine]) -> None:
    """Say so if no model has one name on both: half of the clients would be refused."""
    names = {name: await _names(engine) for name, engine in engines.items()}
    if not names["ollama"] & names["vllm"]:
        have = "; ".join(f"{name} has {', '.join(sorted(names[name])) or 'none'}" for name in names)
        _say(f"no model has the same name on both: {have}")
        _say("give Ollama's the name that vLLM has: ollama cp OLD NEW")


async def _names(engine: ManagedEngine) -> set[str]:
    import httpx

    from labkit.engines.ports import LOOPBACK

    key = {"Authorization": f"Bearer {engine.api_key}"} if engine.api_key else None
    proxies = urlsplit(engine.url).hostname not in LOOPBACK
    try:
        async with httpx.AsyncClient(timeout=10, trust_env=proxies, headers=key) as client:
            answer = await client.get(f"{engine.url}/v1/models")
            return {row["id"] for row in answer.raise_for_status().json()["data"] or ()}
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        seen = f"it does not tell its models on /v1/models: {error}"
        raise EngineError(
            f"put nginx in front of {engine.url}", seen, "set LABKIT_API_KEY if it wants a key"
        ) from error


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
