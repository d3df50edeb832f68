"""``labkit contract``: does a server answer each request as its engine does?"""

from __future__ import annotations

import argparse
import os


def add(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = sub.add_parser("contract", help="ask a server each request of the contract, and compare")
    parser.add_argument("--url", required=True, help="http://127.0.0.1:PORT, with or without /v1")
    parser.add_argument("--engine", required=True, choices=("ollama", "vllm"), help="as which it answers")
    parser.add_argument("--model", metavar="NAME", help="default: the first that the server lists")
    parser.add_argument("--check", nargs="+", metavar="ID", help="these only (default: all of this engine)")
    parser.add_argument("--api-key", default=os.environ.get("LABKIT_API_KEY"), help="or LABKIT_API_KEY")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Ask and print; 0 if every check held, 1 if one did not."""
    import asyncio
    import json

    from labkit import contract

    outcomes = asyncio.run(
        contract.run(args.url, args.engine, args.model, api_key=args.api_key, ids=args.check)
    )
    if args.json:
        print(json.dumps([outcome.as_dict() for outcome in outcomes], ensure_ascii=False, indent=1))
    else:
        print(contract.table(outcomes))
    return 0 if all(outcome.status == "held" for outcome in outcomes) else 1
