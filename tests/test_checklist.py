"""The checklist: each line is ticked or left open by what was measured, and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moved import AGREEMENT, CONTRACT, check, clients_of, contract_of, gateway_run, shift_run

from labkit import checklist
from labkit.checklist import DONE, OPEN


def lines(folder: Path, **changed: Any) -> dict[str, checklist.Item]:
    given = {
        "contract": CONTRACT,
        "clients": clients_of(),
        "agreement": AGREEMENT,
        "shift": shift_run(folder / "shift"),
        "gateway": gateway_run(folder / "gateway"),
    }
    return {item.what: item for item in checklist.fill(**{**given, **changed})}


def test_what_was_measured_decides(tmp_path: Path) -> None:
    items = lines(tmp_path)
    done = [what for what, item in items.items() if item.state == DONE]
    assert done == [
        "One model name on both sides",
        "vLLM is not open to the network",
        "Traffic was moved in steps",
        "The way back was tried under load",
        "The cost of the way vLLM through nginx is known",
        "The cost of the way vLLM through LiteLLM is known",
    ]
    assert items["No request is sent that vLLM refuses"].evidence.endswith(": long-prompt")
    assert "1 of 3 texts are the same" in items["Answers were compared on your own questions"].evidence


def test_failures_no_way_back_and_an_open_door_stay_open(tmp_path: Path) -> None:
    server = {"what": "server", "engine": "vllm", "listens": ["0.0.0.0"]}
    asked = [check(engine, "authorization", 401) for engine in ("ollama", "vllm")]
    items = lines(
        tmp_path,
        contract=contract_of(server, *asked),
        clients=clients_of(alias=False, native_ok=True),
        shift=shift_run(tmp_path / "other", [(0, 10, 0), (100, 0, 10)], failed=1),
    )
    assert items["Traffic was moved in steps"].state == OPEN
    assert items["The way back was tried under load"].state == OPEN
    assert items["vLLM is not open to the network"].state == OPEN
    assert items["vLLM asks for a key, or something in front of it does"].state == DONE
    assert items["No program uses Ollama's own API"].state == DONE
    assert "One model name on both sides" not in items


def test_it_shows_as_a_table(tmp_path: Path) -> None:
    items = checklist.fill(
        contract=CONTRACT,
        clients=clients_of(),
        agreement=AGREEMENT,
        shift=shift_run(tmp_path / "shift"),
        gateway=gateway_run(tmp_path / "gateway"),
    )
    shown = items._repr_markdown_().splitlines()
    assert shown[0].startswith("**From Ollama to vLLM**, by these measurements: contract live")
    assert len([line for line in shown if line.startswith("| ☑") or line.startswith("| ☐")]) == len(items)
