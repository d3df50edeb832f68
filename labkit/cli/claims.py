"""``labkit claims``: the claims that the course puts to the test, and how old each check is."""

from __future__ import annotations

import argparse


def add(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = sub.add_parser("claims", help="the claims that the course puts to the test, and their checks")
    parser.add_argument("--notebook", metavar="NN", help="only those that this notebook treats, such as 02")
    parser.add_argument("--stale", type=int, metavar="DAYS", help="only those checked longer ago than this")
    parser.add_argument("--page", action="store_true", help="print docs/claims.md, with all of them, instead")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the table or the page."""
    from datetime import UTC, datetime

    from labkit import claims, claims_page
    from labkit.errors import UsageError

    if args.page:
        print(claims_page.page(), end="")
        return 0
    today = datetime.now(UTC).date()
    found = [
        claim
        for claim in claims.load().values()
        if claim.notebook.startswith(args.notebook or "")
        and (args.stale is None or claim.age(today) > args.stale)
    ]
    if args.notebook and not any(name.startswith(args.notebook) for name in claims.NOTEBOOKS):
        raise UsageError(
            f"list the claims of notebook {args.notebook!r}",
            f"there are {', '.join(claims.NOTEBOOKS)}",
            "--notebook 02",
        )
    print(claims_page.table(found, today))
    return 0
