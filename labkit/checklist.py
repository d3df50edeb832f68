"""The list of what has to be seen to before users are moved, filled in from what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from labkit import agreement as answers
from labkit import metrics, migration
from labkit.bundle import Run
from labkit.demos.clients import changed_lines
from labkit.demos.contract import compared
from labkit.engines.ports import LOOPBACK
from labkit.transcript import Event, Transcript

DONE, OPEN = "done", "to do"


@dataclass(frozen=True)
class Item:
    """One line: what has to be seen to, "done" or "to do", and what says so."""

    what: str
    state: str
    evidence: str


class Checklist(list[Item]):
    """The lines; a notebook shows them as a table."""

    def __init__(self, items: Iterator[Item], about: str) -> None:
        super().__init__(items)
        self.about = about

    def __repr__(self) -> str:
        return self._repr_markdown_()

    def _repr_markdown_(self) -> str:
        rows = [f"| {'☑' if one.state == DONE else '☐'} {one.what} | {one.evidence} |" for one in self]
        return "\n".join([self.about, "", "| | because |", "|---|---|", *rows])


def fill(
    *, contract: Transcript, clients: Transcript, agreement: Transcript, shift: Run, gateway: Run
) -> Checklist:
    """The list for a move from Ollama to vLLM.

    Args:
        contract, clients, agreement: results of ``lab.contract()``, ``lab.clients()``, ``lab.agreement()``.
        shift, gateway: the runs of ``lab.shift()`` and ``lab.gateway()``.

    Raises:
        UsageError: one of them is of something else.
    """
    kinds = {
        "contract": contract.kind,
        "client": clients.kind,
        "agreement": agreement.kind,
        "shift": shift.kind,
        "gateway": gateway.kind,
    }
    said = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    parts = (_code(clients), _requests(contract), _server(contract), _answers(agreement), _traffic(shift))
    items = (item for part in (*parts, _gateway(gateway)) for item in part)
    return Checklist(items, f"**From Ollama to vLLM**, by these measurements: {said}.")


def _code(clients: Transcript) -> Iterator[Item]:
    programs = {event["step"]: event for event in clients.of("program")}
    alias, before, moved = (programs.get(name) for name in ("alias in Ollama", "before", "address, model"))
    if alias and before and moved:
        lines = changed_lines(before["code"], moved["code"])
        seen = f"with it {changed_lines(alias['code'], moved['code'])} line changes, without it {lines}"
        yield Item("One model name on both sides", _if(alias["ok"] and moved["ok"]), seen)
    native = programs.get("native, address, model")
    if native:
        seen = (
            "the program ran"
            if native["ok"]
            else f"the one that was tried failed: {native['said'].partition(' for url')[0]}"
        )
        yield Item("No program uses Ollama's own API", _if(native["ok"]), seen)


def _requests(contract: Transcript) -> Iterator[Item]:
    rows = compared(contract).filter(pl.col("request").str.contains(" /v1/"))
    for what, change in (
        ("No request is sent that vLLM refuses", "refused now"),
        ("Nobody relies on replies that differ", "answers otherwise"),
    ):
        ids = rows.filter(change=change)["id"].to_list()
        yield Item(
            what, _if(not ids), f"look through your code for: {', '.join(ids)}" if ids else "none differs"
        )
    yield from _checked(
        contract, "max-completion-tokens", "Both limits are sent", "max_completion_tokens is not read by both"
    )
    yield from _checked(contract, "long-prompt", "Prompts fit the context", "one cuts them, one refuses them")
    yield from _checked(
        contract, "stream", "The reader of streams takes both shapes", "roles and ends come elsewhere"
    )


def _checked(contract: Transcript, name: str, what: str, otherwise: str) -> Iterator[Item]:
    found = next((one for one in _checks(contract) if one["id"] == name), None)
    if found is not None:
        same = not found["unlike"]
        yield Item(what, _if(same), f"{name}: {'the same on both' if same else otherwise}")


def _server(contract: Transcript) -> Iterator[Item]:
    for server in contract.of("server"):
        if server["engine"] == "vllm" and server["listens"]:
            inside = set(server["listens"]) <= LOOPBACK
            seen = f"it listens on {', '.join(server['listens'])}"
            yield Item("vLLM is not open to the network", _if(inside), seen)
    checks = {one["id"]: one for one in _checks(contract)}
    if key := checks.get("authorization"):
        refused = not key["got"]["status"].startswith("2")
        seen = f"a made-up key was answered with {key['got']['status']}"
        yield Item("vLLM asks for a key, or something in front of it does", _if(refused), seen)
    if metrics_ := checks.get("metrics"):
        seen = f"/metrics answered {metrics_['got']['status']}; Ollama has no such page"
        yield Item("Monitoring reads vLLM", OPEN, seen)


def _answers(agreement: Transcript) -> Iterator[Item]:
    first = answers.agreement(agreement).row(0, named=True)
    scored = answers.scores(agreement).to_dicts()
    told = " and ".join(f"{row['engine']} {row['right']} of {row['of']}" for row in scored)
    seen = f"{first['same']} of {first['questions']} texts are the same; right: {told}"
    yield Item("Answers were compared on your own questions", OPEN, f"on this course's: {seen}")


def _traffic(shift: Run) -> Iterator[Item]:
    rows, total = migration.phases(shift), migration.account(shift)
    bad = total["failed"] + total["lost"]
    seen = ", ".join(f"{row['wanted']:g} %" for row in rows.to_dicts())
    yield Item(
        "Traffic was moved in steps", _if(not bad), f"{seen}; failed or lost: {bad} of {total['planned']}"
    )
    last = rows.row(-1, named=True)
    back = last["wanted"] == 0 and rows.height > 1 and last["n"] > 0 and last["vllm"] == 0
    yield Item(
        "The way back was tried under load", _if(back), f"vLLM answered {last['vllm']} of the last phase"
    )
    took = metrics.answered(shift.requests).select(metrics.E2E).to_series().to_list()
    if took:
        seen = f"the longest answer took {max(took):.1f} s; a client's limit has to be above yours"
        yield Item("Timeouts fit the longest answers", OPEN, seen)


def _gateway(gateway: Run) -> Iterator[Item]:
    engines = {name: arm["facts"].get("engine") for name, arm in gateway.meta["arms"].items()}
    for row in migration.added(gateway).to_dicts():
        if engines[row["arm"]] in ("nginx", "litellm"):
            seen = f"added {row['added_ttft_ms']:.1f} ms to the first token (median of {row['n']})"
            yield Item(f"The cost of the way {row['arm']} is known", DONE, seen)


def _checks(contract: Transcript) -> list[Event]:
    return [one for one in contract.of("check") if one["engine"] == "vllm"]


def _if(done: bool) -> str:
    return DONE if done else OPEN
