"""Right answers and known mistakes of the exercises in notebook 08, from transcripts and the shift's run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import polars as pl

from labkit import migration
from labkit.contract_checks import load_checks
from labkit.demos.clients import changed_lines
from labkit.demos.contract import compared
from labkit.errors import UsageError
from labkit.exercises.base import Answer, Runs, Solver, Transcripts, always, which
from labkit.exercises.runs import trusted
from labkit.sides import Missing
from labkit.transcript import Event, Transcript

CLOSE = 0.15
"""How near the number of requests has to be, as a share: the formula is an approximation itself."""

TWICE = 2.0
MOST = 1_000_000

MODEL = "llama3.1:8b"
CANDIDATES = {
    "a": "meta-llama/Llama-3.1-8B-Instruct-AWQ",
    "b": "meta-llama/Llama-3.1-8B-Instruct",
    "c": "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16",
    "d": "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4",
}
"""What "migrate-map" asks about."""


# migrate-lines


def _programs(transcripts: Transcripts) -> tuple[Event, list[Event]]:
    """The client for Ollama, and its versions that ran on vLLM."""
    found = transcripts[0].of("program")
    before = next((one for one in found if one["step"] == "before" and one["ok"]), None)
    moved = [one for one in found if one["api"] == "openai" and one["engine"] == "vllm" and one["ok"]]
    if before is None or not moved:
        raise Missing("The client did not run on both engines; give the result of lab.clients()")
    return before, moved


def _solve_lines(transcripts: Transcripts) -> Answer:
    before, moved = _programs(transcripts)
    return float(min(changed_lines(before["code"], one["code"]) for one in moved))


def _judge_lines(transcripts: Transcripts, answer: Answer) -> tuple[bool, str]:
    before, _ = _programs(transcripts)
    tried = [
        f"{' and '.join(one['changed'])}: {'ran' if one['ok'] else one['said']}"
        for one in transcripts[0].of("program")
        if one["api"] == "openai" and one["engine"] == "vllm"
    ]
    needed = _solve_lines(transcripts)
    told = f"It takes {needed:.0f} of the program's {len(before['code'].splitlines())} lines"
    return answer == needed, f"{told}. Changed {'; '.join(tried)}."


def _with_the_key(transcripts: Transcripts) -> Answer:
    before, moved = _programs(transcripts)
    return float(max(changed_lines(before["code"], one["code"]) for one in moved))


def _both_signs(transcripts: Transcripts) -> Answer:
    return 2.0 * float(_solve_lines(transcripts))


# migrate-differences


def _compared(transcripts: Transcripts) -> pl.DataFrame:
    try:
        return compared(transcripts[0])
    except UsageError as error:
        raise Missing(f"This needs the checks of both engines, and {error.seen}") from None


def _solve_differences(transcripts: Transcripts) -> Answer:
    return float(_compared(transcripts).filter(pl.col("change") != "same").height)


def _judge_differences(transcripts: Transcripts, answer: Answer) -> tuple[bool, str]:
    rows = _compared(transcripts)
    kinds = rows.group_by("change", maintain_order=True).len().sort("len", descending=True)
    told = ", ".join(f"{number} {change}" for change, number in kinds.rows())
    return answer == _solve_differences(transcripts), f"Of {rows.height} requests: {told}."


def _refused(transcripts: Transcripts) -> Answer:
    return float(_compared(transcripts).filter(change="refused now").height)


def _by_status(transcripts: Transcripts) -> Answer:
    return float(_compared(transcripts).filter(pl.col("ollama") != pl.col("vllm")).height)


def _facts(transcripts: Transcripts) -> Answer:
    asked = set(_compared(transcripts)["id"])
    checks = [one for one in transcripts[0].of("check") if one["engine"] == "vllm" and one["id"] in asked]
    return float(sum(len(one["unlike"]) for one in checks))


def _asked(transcripts: Transcripts) -> Answer:
    return float(_compared(transcripts).height)


# migrate-limit


_LIMIT, _TOKENS = "max-completion-tokens", "json.usage.completion_tokens"


def _lengths(transcripts: Transcripts) -> dict[str, str]:
    """Tokens that each engine wrote, as the contract's words have it."""
    checks = [event for event in transcripts[0].of("check") if event["id"] == _LIMIT]
    found = {event["engine"]: str(event["got"].get(_TOKENS)) for event in checks}
    if {"ollama", "vllm"} - found.keys():
        raise Missing(f"Not both engines were asked {_LIMIT}; give the result of lab.contract()")
    return found


def _body(name: str) -> int:
    return int((load_checks()[_LIMIT].body or {})[name])


def _solve_limit(transcripts: Transcripts) -> Answer:
    found, limit = _lengths(transcripts), str(_body("max_completion_tokens"))
    return which("ollama", "vllm", found["ollama"] == limit, found["vllm"] == limit)


def _judge_limit(transcripts: Transcripts, answer: Answer) -> tuple[bool, str]:
    told = ", ".join(f"{engine} wrote {tokens}" for engine, tokens in _lengths(transcripts).items())
    sent = f"max_completion_tokens {_body('max_completion_tokens')} and max_tokens {_body('max_tokens')}"
    return answer == _solve_limit(transcripts), f"Sent {sent}, {told}."


# migrate-share


def _first_step(runs: Runs) -> tuple[float, int]:
    """The first small share that was asked for, 0 to 1, and how many requests its phase had."""
    run = trusted(runs[0])
    if run.gauges.filter(name="share").is_empty():
        raise Missing("No traffic was moved in this run; give the result of lab.shift()")
    for row in migration.phases(run).rows(named=True):
        if 0 < row["wanted"] < 100 / TWICE:
            return row["wanted"] / 100, row["planned"]
    raise Missing("No share between none and a half was asked for in this run")


def _enough(fits: Callable[[int], bool]) -> int:
    """The first number of requests that will do."""
    return next((n for n in count(1) if n > MOST or fits(n)), MOST)


def _solve_share(runs: Runs) -> Answer:
    share, _ = _first_step(runs)
    return float(_enough(lambda n: migration.wilson(share * n, n)[1] < TWICE * share))


def _judge_share(runs: Runs, answer: Answer) -> tuple[bool, str]:
    share, planned = _first_step(runs)
    right = float(_solve_share(runs))
    ends = [f"{100 * end:.0f}" for end in migration.wilson(share * right, int(right))]
    told = (
        f"Where {share:.0%} of {right:.0f} requests went to vLLM, the interval is {ends[0]} to {ends[1]} %. "
        f"It ends below {TWICE * share:.0%}. Your first step had {planned} requests."
    )
    return not isinstance(answer, str) and abs(answer - right) <= CLOSE * right, told


def _one_of_them(runs: Runs) -> Answer:
    share, _ = _first_step(runs)
    return round(1 / share)


def _both_intervals(runs: Runs) -> Answer:
    share, _ = _first_step(runs)
    return float(
        _enough(lambda n: migration.wilson(share * n, n)[1] < migration.wilson(TWICE * share * n, n)[0])
    )


def _this_phase(runs: Runs) -> Answer:
    return float(_first_step(runs)[1])


# migrate-map


def _forms(transcripts: Transcripts) -> dict[str, str]:
    """What each candidate is: a form's name, or "absent"."""
    said = {one["repo"]: one["form"] for one in transcripts[0].of("form") if one["tag"] == MODEL}
    said |= {one["repo"]: "absent" for one in transcripts[0].of("absent")}
    found = {letter: said[repo] for letter, repo in CANDIDATES.items() if repo in said}
    if found.keys() != CANDIDATES.keys():
        raise Missing("This needs the map of models; give the result of mapping.transcript()")
    return found


def _letter(form: str) -> Callable[[Transcripts], Answer]:
    def found(transcripts: Transcripts) -> Answer:
        return next(letter for letter, kind in _forms(transcripts).items() if kind == form)

    return found


def _judge_map(transcripts: Transcripts, answer: Answer) -> tuple[bool, str]:
    forms = _forms(transcripts)
    words = {"absent": "found nowhere", "original": "the original, in 16 bits"}
    told = "; ".join(f"{letter}) {words.get(kind, kind.upper())}" for letter, kind in forms.items())
    return answer == _letter("awq")(transcripts), f"By the map: {told}."


# migrate-own


def _replies(transcripts: Transcripts) -> tuple[Event, Event]:
    found = {event["engine"]: event for event in transcripts[0].of("reply")}
    if {"ollama", "vllm"} - found.keys():
        raise Missing("Not both engines were asked; give the result of lab.both()")
    return found["ollama"], found["vllm"]


def _solve_own(transcripts: Transcripts) -> Answer:
    ollama, vllm = _replies(transcripts)
    for word, name in (("status", "status"), ("fields", "fields"), ("text", "text")):
        if ollama[name] != vllm[name]:
            return word
    return "same"


def _judge_own(transcripts: Transcripts, answer: Answer) -> tuple[bool, str]:
    ollama, vllm = _replies(transcripts)
    only = {
        "Ollama": sorted(set(ollama["fields"]) - set(vllm["fields"])),
        "vLLM": sorted(set(vllm["fields"]) - set(ollama["fields"])),
    }
    told = [f"Statuses {ollama['status']} and {vllm['status']}"]
    told += [
        f"{len(names)} fields only from {name}, such as {names[0]}" for name, names in only.items() if names
    ]
    told.append(f"texts {'equal' if ollama['text'] == vllm['text'] else 'unlike'}")
    return answer == _solve_own(transcripts), f"{'; '.join(told)}."


def _on_transcript(
    solve: Callable[[Transcripts], Answer],
    judge: Callable[[Transcripts, Answer], tuple[bool, str]],
    **wrong: Callable[[Transcripts], Answer | None],
) -> Solver:
    return Solver(solve, judge, wrong, takes=Transcript)


SOLVERS = {
    "migrate-lines": _on_transcript(
        _solve_lines, _judge_lines, one_line=always(1.0), with_the_key=_with_the_key, both_signs=_both_signs
    ),
    "migrate-differences": _on_transcript(
        _solve_differences,
        _judge_differences,
        refused=_refused,
        by_status=_by_status,
        facts=_facts,
        asked=_asked,
    ),
    "migrate-limit": _on_transcript(
        _solve_limit,
        _judge_limit,
        standard=always("both"),
        larger=always("neither"),
        backwards=always("ollama"),
    ),
    "migrate-share": Solver(
        _solve_share,
        _judge_share,
        {"one_of_them": _one_of_them, "both_intervals": _both_intervals, "this_phase": _this_phase},
    ),
    "migrate-map": _on_transcript(
        _letter("awq"),
        _judge_map,
        invented=_letter("absent"),
        sixteen_bits=_letter("original"),
        other_method=_letter("gptq"),
    ),
    "migrate-own": _on_transcript(
        _solve_own, _judge_own, same_path=always("same"), wording=always("text"), refusal=always("status")
    ),
}
