"""``labkit engines install|remove|start|stop|status|logs``: the engines, real or simulated, in the shell."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import types
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from labkit.errors import EngineError, InstallFailed, UsageError

if TYPE_CHECKING:
    from labkit.engines.base import EngineFacts
    from labkit.engines.ollama import Ollama
    from labkit.engines.ollama_settings import OllamaSettings
    from labkit.engines.process import ServerState
    from labkit.engines.vllm import VLLM
    from labkit.engines.vllm_settings import VLLMSettings

NAMES = ("ollama", "vllm")
PROXIES = ("nginx", "litellm")
"""What stands in front of the engines in one lesson; nothing else needs them."""
SIMULATED = "simulated-"
"""How the server names of simulated engines begin."""
SIMULATION = ("profile", "time_scale")
"""What a simulated engine is made with, beside its settings."""
NOTHING = "nothing that labkit started is running"
SHOWN = ("engine", "url", "port", "pid", "owner", "owner_pid", "model", "settings", "log", "started_at")
"""Fields of a server's state in ``status --json``, beside ``facts`` and ``error``."""


def add(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = sub.add_parser("engines", help="install, start, watch and stop Ollama and vLLM")
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    install = actions.add_parser("install", help="get the engines; shows the size and asks first")
    install.add_argument("engine", nargs="?", choices=NAMES + PROXIES, help="default: all of them")
    install.add_argument("--yes", action="store_true", help="agree to the download and the disk it takes")
    install.set_defaults(func=_install)

    remove = actions.add_parser("remove", help="delete what install made")
    remove.add_argument("engine", nargs="?", choices=NAMES + PROXIES, help="default: both engines")
    remove.set_defaults(func=_remove)

    start = actions.add_parser("start", help="start a server that stays until it is stopped")
    start.add_argument("--simulated", action="store_true", help="one that only behaves like the engine")
    start.add_argument("engine", choices=NAMES)
    # The settings are read by a second parser: making it imports the engines, which no other command needs.
    start.add_argument("settings", nargs=argparse.REMAINDER, metavar="...", help="ENGINE --help lists them")
    start.set_defaults(func=_start)

    stop = actions.add_parser("stop", help="stop servers that labkit started, and prove it")
    stop.add_argument("engine", nargs="?", choices=NAMES)
    stop.add_argument("--all", action="store_true", help="of both engines, simulated ones too")
    stop.add_argument("--simulated", action="store_true", help="simulated ones only")
    stop.set_defaults(func=_stop)

    status = actions.add_parser("status", help="servers that labkit started, and what they say of themselves")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(func=_status)

    logs = actions.add_parser("logs", help="the end of the log of an engine's newest server")
    logs.add_argument("engine", choices=NAMES)
    logs.add_argument("--simulated", action="store_true", help="of a simulated one")
    logs.add_argument("-n", type=int, default=40, metavar="LINES", help="default 40")
    logs.set_defaults(func=_logs)


def _install(args: argparse.Namespace) -> int:
    from labkit.engines.install import install

    ask = _ask if sys.stdin.isatty() else None
    for name in _chosen(args):
        print(install(name, yes=args.yes, progress=_say, ask=ask))
    for name in () if args.engine else PROXIES:
        try:
            print(install(name, yes=args.yes, progress=_say, ask=ask))
        except InstallFailed as error:  # all but one lesson goes without
            _say(f"labkit: {error}")
    return 0


def _ask(question: str) -> bool:
    return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}


def _remove(args: argparse.Namespace) -> int:
    from labkit.engines.install import remove
    from labkit.engines.install_steps import gigabytes
    from labkit.engines.process import states

    for name in _chosen(args):
        if running := states(name):
            raise EngineError(
                f"remove {name}", f"it is running on port {running[0].port}", f"labkit engines stop {name}"
            )
        print(f"{name}: {gigabytes(remove(name, _say) / 1e6)} freed")
    return 0


def _start(args: argparse.Namespace) -> int:
    given = vars(_settings_parser(args.engine).parse_args(args.settings))
    simulated = given.pop("simulated", args.simulated)
    made = {name: given.pop(name) for name in ("port", *SIMULATION) if name in given}
    model = given.pop("model", None)
    if not simulated and (odd := made.keys() & SIMULATION):
        raise UsageError(f"start {args.engine} with {min(odd)}", "a real engine has none", "add --simulated")
    if simulated and model:
        raise UsageError(
            f"simulate {args.engine} with the model {model}", "it serves its profile's", "choose a --profile"
        )
    facts = asyncio.run(_started(_server(args.engine, simulated), made, model, given))
    print(facts.url)
    for name, value in facts.as_dict().items():
        if value is not None and name not in {"url", "sources", "kind"}:
            print(f"  {name}: {value}")
    return 0


def _server(name: str, simulated: bool) -> str:
    """What state files and logs call the servers of an engine."""
    return SIMULATED + name if simulated else name


async def _started(
    server: str, made: dict[str, Any], model: str | None, settings: dict[str, Any]
) -> EngineFacts:
    """Start a server of an engine that is ``made`` with these arguments; facts with the model loaded."""
    from labkit.engines.model_table import find

    row = find(model) if model else None  # a misspelt name is told before the server starts
    engine = _engine(server)(owner="shell", **made)
    if engine.name == "vllm" and row is not None:
        settings["model"] = row.name
    facts = await engine.start(progress=_say, **settings)
    if engine.name == "vllm" or row is None:
        return facts
    await engine.load(row.ollama.name, progress=_say)
    return await engine.facts()


def _engine(server: str) -> type[Ollama | VLLM]:
    if server.startswith(SIMULATED):
        from labkit.engines import simulated

        return simulated.SimulatedVLLM if server.endswith("vllm") else simulated.SimulatedOllama
    if server == "vllm":
        from labkit.engines.vllm import VLLM

        return VLLM
    from labkit.engines.ollama import Ollama

    return Ollama


def _settings(name: str) -> type[OllamaSettings | VLLMSettings]:
    if name == "vllm":
        from labkit.engines.vllm_settings import VLLMSettings

        return VLLMSettings
    from labkit.engines.ollama_settings import OllamaSettings

    return OllamaSettings


def _settings_parser(name: str) -> argparse.ArgumentParser:
    """A flag for each field of the engine's settings; only those given are passed on."""
    settings = _settings(name)
    parser = argparse.ArgumentParser(prog=f"labkit engines start {name}", argument_default=argparse.SUPPRESS)
    parser.add_argument("--model", help="a name of the course's table (labkit models list)")
    parser.add_argument("--port", type=int, help="default: the engine's own, or any free port")
    parser.add_argument("--simulated", action="store_true", help="one that only behaves like the engine")
    parser.add_argument("--profile", metavar="NAME", help="of a simulated one: which machine and model")
    parser.add_argument(
        "--time-scale",
        type=float,
        metavar="N",
        help="of a simulated one: times real time (default: what can be measured)",
    )
    hints = get_type_hints(settings)
    for item in fields(settings):
        flag, help = f"--{item.name.replace('_', '-')}", item.metadata.get("help")
        hint = hints[item.name]
        kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if bool in kinds:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=help)
        else:
            parser.add_argument(flag, type=_reader(kinds), metavar="VALUE", help=help)
    return parser


def _reader(kinds: tuple[type, ...]) -> Any:
    """Reads a flag's text as the narrowest of ``kinds`` that it fits."""

    def value(text: str) -> int | float | str:
        for kind in (int, float):
            if kind in kinds:
                try:
                    return kind(text)
                except ValueError:
                    continue
        if str in kinds:
            return text
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")

    return value


def _stop(args: argparse.Namespace) -> int:
    from labkit.engines.process import states, terminate

    if (args.engine is None) == (not args.all):
        raise UsageError("stop a server", "which one?", "labkit engines stop ollama|vllm, or --all")
    running = states(_server(args.engine, args.simulated) if args.engine else None)
    if args.simulated:
        running = [state for state in running if state.engine.startswith(SIMULATED)]
    for state in running:
        asyncio.run(terminate(state, progress=_say))
    if not running:
        print(NOTHING)
    return 0


def _status(args: argparse.Namespace) -> int:
    from labkit.engines.process import states

    rows = asyncio.run(_describe(states()))
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        facts = row["facts"] or {}
        known = [f"{key} {facts[key]}" for key in ("version", "model", "context", "slots") if facts.get(key)]
        if origin := facts.get("simulated"):
            known.append(f"profile {origin['profile']}, {origin['time_scale']:g} times real time")
        said = ", ".join(known) or row["error"]
        print(f"{row['engine']}  {row['url']}  pid {row['pid']}  {row['owner']}-owned  {said}")
    if not rows:
        print(NOTHING)
    return 0


async def _describe(running: list[ServerState]) -> list[dict[str, Any]]:
    rows = []
    for state in running:
        engine = _engine(state.engine).attached(state)
        facts, error = None, None
        try:
            facts = (await engine.facts()).as_dict()
        except EngineError as failure:
            error = str(failure)
        rows.append({**{key: getattr(state, key) for key in SHOWN}, "facts": facts, "error": error})
    return rows


def _logs(args: argparse.Namespace) -> int:
    from labkit import paths
    from labkit.engines.process import tail

    server = _server(args.engine, args.simulated)
    logs = sorted((paths.home() / "logs").glob(f"{server}-*.log"), key=lambda path: path.stat().st_mtime)
    if not logs:
        raise EngineError(f"show the log of {server}", "labkit has not started one here yet")
    print(f"{logs[-1]}:", file=sys.stderr)
    print("\n".join(tail(logs[-1], args.n)))
    return 0


def _chosen(args: argparse.Namespace) -> tuple[str, ...]:
    return (args.engine,) if args.engine else NAMES


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
