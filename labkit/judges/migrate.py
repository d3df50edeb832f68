"""Claims of notebook 08: what has to change to move from one engine to the other, and how traffic moves."""

from __future__ import annotations

import re
from functools import partial

import polars as pl

from labkit import migration
from labkit.demos.clients import changed_lines
from labkit.demos.contract import compared
from labkit.errors import UsageError
from labkit.judges.base import HELD, NOT_HELD, Case, Finding, Judge, Reader
from labkit.sides import Missing, NoArm
from labkit.transcript import Event, Transcript

SURE = 2.576
"""Standard deviations of a 99 % interval: of a few phases one is outside its 95 % interval too easily."""

PYTHON = 9
"""C46: of Python 3."""

METHODS = ("awq", "gptq", "fp8")

BASICS = ("chat", "no-messages", "temperature-9", "max-completion-tokens", "long-prompt", "stream")
"""C58: checks about messages, streaming and sampling."""


def _openai_style(transcript: Transcript) -> pl.DataFrame:
    """What became of the requests on the API that both have."""
    try:
        rows = compared(transcript).filter(pl.col("request").str.contains(" /v1/"))
    except UsageError as error:
        raise Missing(f"The checks of both engines are needed, and {error.seen}") from None
    if rows.is_empty():
        raise Missing("No request of the OpenAI-style API is in it")
    return rows


def _stops_working(transcript: Transcript) -> Finding:
    """C45: is there a request that Ollama answers and vLLM refuses?"""
    rows = _openai_style(transcript)
    refused = rows.filter(change="refused now")["id"].to_list()
    if not refused:
        return HELD, f"vLLM answered all of the {rows.height} requests that Ollama answered."
    told = (
        f"Of {rows.height} requests on the OpenAI-style API vLLM refuses {len(refused)} that Ollama answers"
    )
    return NOT_HELD, f"{told}: {', '.join(refused)}. A program that sends one of these has to change."


def _the_same(ids: tuple[str, ...] | None, transcript: Transcript) -> Finding:
    """C58, C79: is any reply on the shared API another one?"""
    rows = _openai_style(transcript)
    if ids is not None:
        rows = rows.filter(pl.col("id").is_in(ids))
        if rows.is_empty():
            raise Missing(f"None of the checks {', '.join(ids)} is in it")
    other = rows.filter(pl.col("change") != "same")["id"].to_list()
    if not other:
        return HELD, f"All {rows.height} requests got the same facts from both."
    told = f"{len(other)} of {rows.height} requests got other facts from vLLM than from Ollama"
    return NOT_HELD, f"{told}: {', '.join(other)}."


def _any_key(transcript: Transcript) -> Finding:
    """C56: a key that nobody gave out."""
    found = {event["engine"]: event for event in transcript.of("check") if event["id"] == "authorization"}
    if {"ollama", "vllm"} - found.keys():
        raise Missing("Not both engines were sent a key that nobody had given out")
    told = ", ".join(f"{name} answered {event['got']['status']}" for name, event in found.items())
    taken = all(event["got"]["status"].startswith("2") for event in found.values())
    return (
        HELD if taken else NOT_HELD,
        f"Sent a made-up key, {told}. vLLM refuses it once it is started with a key of its own.",
    )


def _native_paths(transcript: Transcript) -> Finding:
    """C87: does vLLM have Ollama's own paths?"""
    asked = [e for e in transcript.of("check") if e["engine"] == "vllm" and " /api/" in e["request"]]
    if not asked:
        raise Missing("vLLM was not asked on any path of Ollama's own API")
    told = ", ".join(f"{event['request']} {event['got']['status']}" for event in asked)
    gone = all(event["got"]["status"] == "404" for event in asked)
    return HELD if gone else NOT_HELD, f"vLLM answered: {told}."


def _one_line(transcript: Transcript) -> Finding:
    """C57, C88: the fewest lines with which the client ran on vLLM, its model's name as it was."""
    programs = {event["step"]: event for event in transcript.of("program")}
    before = programs.get("before")
    moved = [e for e in programs.values() if e["api"] == "openai" and e["engine"] == "vllm" and e["ok"]]
    if before is None or not before["ok"] or not moved:
        raise Missing("The client did not run on both engines")
    needed, least = min(
        ((changed_lines(before["code"], e["code"]), e) for e in moved), key=lambda one: one[0]
    )
    told = f"The fewest changed lines with which it ran on vLLM were {needed} ({', '.join(least['changed'])})"
    return HELD if needed == 1 else NOT_HELD, f"{told}{_alias(programs)}."


def _alias(programs: dict[str, Event]) -> str:
    """What a name that both take would change."""
    alias, moved = programs.get("alias in Ollama"), programs.get("address, model")
    if alias is None or moved is None or not (alias["ok"] and moved["ok"]):
        return ""
    lines = changed_lines(alias["code"], moved["code"])
    return (
        f". With one name for the model on both it is {lines}; whether the replies are the same is not said"
    )


def _python_39(transcript: Transcript) -> Finding:
    """C46: the lowest Python that the installed package takes."""
    package = next(iter(transcript.of("package")), None)
    wants = (package or {}).get("requires_python") or ""
    lowest = re.search(r">=\s*3\.(\d+)", wants)
    if package is None or lowest is None:
        raise Missing("The package names no lowest Python")
    told = f"{package['name']} {package['version']} wants Python {wants}"
    return HELD if int(lowest[1]) == PYTHON else NOT_HELD, f"{told}."


def _methods(transcript: Transcript) -> Finding:
    """C54: are the three in the installed version's list?"""
    listed = next((event["names"] for event in transcript.of("methods")), None)
    if listed is None:
        raise Missing("No list of quantisation methods was found in the package")
    lacking = [name for name in METHODS if name not in listed]
    told = f"The installed version lists {len(listed)} methods"
    if lacking:
        return NOT_HELD, f"{told}, without {', '.join(lacking)}."
    return HELD, f"{told}, {', '.join(METHODS)} among them. None was loaded here."


def _phases(case: Case) -> pl.DataFrame:
    """The phases of a run in which the share was moved.

    Raises:
        Missing: it is no such run.
    """
    if "served_by" not in case.run.requests.columns or case.run.gauges.filter(name="share").is_empty():
        raise NoArm("No traffic was moved in this run")
    return migration.phases(case.run)


def _side_by_side(case: Case) -> Finding:
    """C59: did both answer in one run while the share moved, and was nothing lost?"""
    rows = _phases(case)
    by = {name: int(rows[name].sum()) for name in ("ollama", "vllm")}
    if not all(by.values()):
        raise Missing("Only one of the two answered in this run")
    lost = migration.account(case.run)
    bad = lost["failed"] + lost["lost"]
    moves = " → ".join(f"{share:g} %" for share in rows["wanted"])
    told = (
        f"vLLM's share went {moves} while the load went on; Ollama answered {by['ollama']}, vLLM {by['vllm']}"
    )
    return HELD if not bad else NOT_HELD, f"{told}; failed or lost: {bad} of {lost['planned']}."


def _nginx_splits(case: Case) -> Finding:
    """C62: is each share that was asked for inside the interval of what was measured?"""
    rows = _phases(case)
    fronts = {arm["facts"].get("engine") for arm in case.run.meta["arms"].values()}
    if "nginx" not in fronts:
        raise Missing("Not nginx but labkit's own splitter stood in front in this run")
    told, inside = [], True
    for row in rows.rows(named=True):
        if not row["n"]:
            continue
        # as many of n as the measured share says: with a sticky split n counts users
        hits = round(row["measured"] / 100 * row["n"])
        low, high = (100 * end for end in migration.wilson(hits, row["n"], SURE))
        inside = inside and low - 1e-9 <= row["wanted"] <= high + 1e-9
        told.append(f"{row['wanted']:g} % asked, {row['measured']:.0f} % measured of {row['n']}")
    if not told:
        raise Missing("No phase of this run has a request")
    failed = migration.account(case.run)["failed"]
    word = HELD if inside and not failed else NOT_HELD
    needs = "It took one model name on both, no buffering and a local Host header"
    return word, f"{'; '.join(told)} (99 % intervals); failed: {failed}. {needs}."


def _litellm(case: Case) -> Finding:
    """C78: did a client get its answers through it?"""
    arms = [name for name, arm in case.run.meta["arms"].items() if arm["facts"].get("engine") == "litellm"]
    if not arms:
        raise NoArm("LiteLLM was not in front in this run")
    rows = case.run.requests.filter(~pl.col("warmup"), pl.col("arm").is_in(arms))
    ok = rows.filter(outcome="ok")
    if rows.is_empty():
        raise Missing("Nothing was asked through LiteLLM in this run")
    behind = sorted({name for name in ok["served_by"] if name})
    told = f"Through LiteLLM {ok.height} of {rows.height} questions got their answer"
    word = HELD if ok.height == rows.height else NOT_HELD
    return word, f"{told}{', from ' + ' and '.join(behind) if behind else ''}."


JUDGES: dict[str, Judge] = {"C59": _side_by_side, "C62": _nginx_splits, "C78": _litellm}

READERS: dict[str, tuple[str, Reader]] = {
    "C45": ("contract", _stops_working),
    "C46": ("package", _python_39),
    "C54": ("package", _methods),
    "C56": ("contract", _any_key),
    "C57": ("clients", _one_line),
    "C58": ("contract", partial(_the_same, BASICS)),
    "C79": ("contract", partial(_the_same, None)),
    "C87": ("contract", _native_paths),
    "C88": ("clients", _one_line),
}
