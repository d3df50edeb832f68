"""Claims of notebook 00: what either engine runs on."""

from __future__ import annotations

from labkit.judges.base import HELD, NOT_HELD, Case, Finding, Judge, source
from labkit.sides import Missing, Side, sides


def _answered(case: Case, engine: str) -> tuple[Side, int, str]:
    """The engine's first arm, its whole answers, and its device."""
    if case.run.kind == "simulated":
        raise Missing("A simulated engine proves nothing about what the real one runs on")
    s = sides(case.run, engine)[0]
    device = s.facts.get("device")
    if device is None:
        raise Missing(f"{s.name} does not tell its device")
    return s, sum(row["ok"] for row in s.rows.values()), device


def _needs_nvidia(case: Case) -> Finding:
    """C03, C37, C82: one answer from a CPU refutes it; answers from a GPU do not prove it."""
    s, answers, device = _answered(case, "vllm")
    if not answers:
        raise Missing(f"{s.name} gave no whole answer")
    if device != "cpu":
        raise Missing(f"{s.name} ran on {device} here, which does not tell what else it runs on")
    told = f"vLLM {s.facts.get('version')} gave {_whole(answers)} on a CPU without any GPU."
    return NOT_HELD, told


def _whole(answers: int) -> str:
    return f"{answers} whole answer{'' if answers == 1 else 's'}"


def _runs_here(case: Case) -> Finding:
    """C09: for the one machine that there is."""
    s, answers, device = _answered(case, "ollama")
    where = f"{case.run.meta['host'].get('os', 'this system')}, {device}"
    if not answers:
        return NOT_HELD, f"{s.name} gave no whole answer on {where}."
    told = f"Ollama {s.facts.get('version')} gave {_whole(answers)} on {where}"
    return HELD, f"{told}. The other systems were not tried here."


def _finds_the_gpu(case: Case) -> Finding:
    """C02: labkit gives Ollama no setting of a GPU, so one that it computes on is one that it found."""
    s, answers, device = _answered(case, "ollama")
    if device == "cpu":
        raise Missing(f"{s.name} ran on the CPU here, and on which GPU it could have run is not known")
    told = f"Ollama {s.facts.get('version')}, told nothing of a GPU, chose {device}{source(s, 'device')}"
    return HELD if answers else NOT_HELD, f"{told} and gave {_whole(answers)}."


JUDGES: dict[str, Judge] = {
    "C02": _finds_the_gpu,
    "C03": _needs_nvidia,
    "C09": _runs_here,
    "C37": _needs_nvidia,
    "C82": _needs_nvidia,
}
