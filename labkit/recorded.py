"""Runs that were measured on real engines and are shipped with the course, in ``data/runs``."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from labkit import paths
from labkit.bundle import Run, empty_folder, read_meta
from labkit.designs import Load
from labkit.engines import model_table
from labkit.errors import UsageError
from labkit.sim.rerun import whole_settings
from labkit.workload import Workload

LOG_BYTES = 22_000
"""Of each text kept beside the tables: its beginning, where an engine says what it uses."""

Meta = dict[str, Any]
Sides = Sequence[tuple[str, Mapping[str, Any]]]
"""Engines with what each is started with; ``{}`` stands for labkit's defaults."""


def keep(run: Run, folder: Path) -> Run:
    """Copy a live run to ``folder`` as a recorded one, which it says of itself from then on.

    The tables stay as they are. Paths of this machine are taken out of the texts.

    Raises:
        UsageError: the folder holds something already.
    """
    target = empty_folder(folder)
    for table in run.path.glob("*.parquet"):
        shutil.copy(table, target)
    for text in sorted((run.path / "artefacts").glob("*")):
        (target / "artefacts").mkdir(exist_ok=True)
        (target / "artefacts" / text.name).write_text(paths.neutral(text.read_text()[:LOG_BYTES]))
    meta = {**run.meta, "kind": "recorded"}
    written = paths.neutral(orjson.dumps(meta, option=orjson.OPT_INDENT_2).decode())
    (target / "run.json").write_text(written)
    return Run.load(target)


def find(sides: Sides, *, model: str, workload: Workload, load: Load) -> Run:
    """The recorded run of these engines, so started, with this model, these questions and this load.

    Of several that fit, the one with the most of the asked levels.

    Args:
        sides: engines with the settings that each of them is to have.
        model: a row of ``data/models.toml``.
        load: one of its levels that was recorded is enough.

    Raises:
        UsageError: an impossible setting or an unknown model; or nothing like it was recorded: says what was.
    """
    row = model_table.find(model)
    served = {"ollama": row.ollama.name, "vllm": row.vllm.name}
    there = recordings()
    levels = {
        folder: levels_of(meta) & set(load.levels)
        for folder, meta in there.items()
        if _same_arms(meta, sides, served)
        and workload.asked_in(meta["workload"])
        and load.same_as(meta["workload"].get("load"))
    }
    best = max(levels, key=lambda folder: len(levels[folder]), default=None)
    if best is None or not levels[best]:
        asked = _in_a_line(sides, {**workload.as_dict(), "load": load.as_dict()}, load.levels)
        lines = [f"{folder.name}: {describe(meta)}" for folder, meta in there.items()]
        raise UsageError(
            f"find a recorded run of {row.title}: {asked}",
            "\n".join(["recorded are", *(lines or ["no runs at all"])]),
            "ask for one of these, or measure it: MODE = 'simulated' needs no engines, 'live' the real ones",
        )
    return Run.load(best)


def recordings() -> dict[Path, Meta]:
    """``run.json`` of each recorded run, by its folder."""
    found = sorted((paths.data() / "runs").glob("*/run.json"))
    return {path.parent: read_meta(path.parent) for path in found}


def levels_of(meta: Meta) -> set[int]:
    """Numbers of users that a run measured."""
    return {record["level"] for record in meta["levels"] if not record["warmup"]}


def describe(meta: Meta) -> str:
    """Engines with their settings, load, questions and levels of a run, in one line."""
    sides = [(arm["engine"], arm["settings"]) for arm in meta["arms"].values()]
    return _in_a_line(sides, meta["workload"], sorted(levels_of(meta)))


def badge(metas: Sequence[Meta]) -> str:
    """One line on where and when recorded runs were measured."""
    if not metas:
        return "recorded: no run is there"
    machines = sorted({f"{meta['host']['cpu']}, {meta['host']['cores']} cores" for meta in metas})
    days = sorted({meta["started_at"][:10] for meta in metas})
    when = " to ".join(dict.fromkeys([days[0], days[-1]]))
    return f"recorded: measured on {' and '.join(machines)}, on {when}, replayed"


def _same_arms(meta: Meta, sides: Sides, served: Mapping[str, str]) -> bool:
    """Whether a run's arms are these, each with its engine, its model and all its settings."""
    left = list(sides)
    for arm in meta["arms"].values():
        # clients of a proxy say vLLM's
        if arm["facts"].get("model") != served.get(arm["engine"], served["vllm"]):
            return False
        has = whole_settings(arm, arm["settings"])
        same = (s for s in left if s[0] == arm["engine"] and whole_settings(arm, s[1]) == has)
        if (side := next(same, None)) is None:
            return False
        left.remove(side)
    return not left


def _in_a_line(sides: Sides, workload: Mapping[str, Any], levels: Iterable[int]) -> str:
    """Engines, load, questions and levels in one line."""
    engines = [
        " ".join([engine, *(f"{name}={value!r}" for name, value in given.items())]) for engine, given in sides
    ]
    shape = [f"{workload['output_tokens']} tokens out"]
    lengths = ("prompt_words", "shared_words", "total_tokens")
    shape += [f"{workload[name]} {name}" for name in lengths if workload.get(name)]
    shape += ["own prompts"] if workload.get("own_prompts") else []
    load = workload.get("load") or {}
    how = str(load.get("arrivals", "closed"))
    several = [str(one["name"]) for one in load.get("workloads") or ()]
    load = {**load, "arrivals": None, "workloads": " and ".join(several)}
    rest = [f"{name}={value}" for name, value in load.items() if value]
    return (
        f"{' + '.join(engines)}; {workload['name']} ({', '.join(shape)}); {', '.join([how, *rest])}; "
        f"levels {', '.join(map(str, levels))}"
    )
