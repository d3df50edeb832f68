"""The shell's door: ``labkit COMMAND``, one module of this package per command.

Importing a command module is cheap; what is heavy is imported when its command runs. Exit codes: 0 done,
1 what was asked for failed, 2 it could not be asked for like that, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from labkit import __version__
from labkit.errors import LabkitError, UsageError

COMMANDS = ("doctor", "engines", "models", "bench", "run", "calibrate", "claims", "contract", "proxy", "plan")


def parser() -> argparse.ArgumentParser:
    """The whole command line; every module of COMMANDS adds its own part."""
    top = argparse.ArgumentParser(prog="labkit", description="Ollama and vLLM under load, measured honestly.")
    top.add_argument("--version", action="version", version=f"labkit {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"labkit.cli.{name}").add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        args = parser().parse_args(argv)
        code: int = args.func(args)
    except LabkitError as error:
        print(f"labkit: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:  # a folder that cannot be written, a pipe whose reader is gone
        print(f"labkit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code
