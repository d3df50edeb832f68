"""Runs that were measured on real engines and are shipped with the course, in ``data/runs``."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from labkit import paths
from labkit.bundle import Run, empty_folder, read_meta
from labkit.engines import model_table
from labkit.errors import UsageError
from labkit.sim.rerun import whole_settings
from labkit.workload import Workload

LOG_BYTES = 20_000
"""Of each text kept beside the tables: its beginning, where an engine says what it uses."""

Meta = dict[str, Any]
Settings = Mapping[str, Mapping[str, Any]]
"""By engine, what it is started with; ``{}`` stands for labkit's defaults."""


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
        (target / "artefacts" / text.name).write_text(_neutral(text.read_text()[:LOG_BYTES]))
    meta = {**run.meta, "kind": "recorded"}
    written = _neutral(orjson.dumps(meta, option=orjson.OPT_INDENT_2).decode())
    (target / "run.json").write_text(written)
    return Run.load(target)


def find(settings: Settings, *, model: str, workload: Workload, users: Sequence[int]) -> Run:
    """The recorded run of these engines, so started, with this model and these questions.

    Of several that fit, the one with the most of the asked levels.

    Args:
        model: a row of ``data/models.toml``.
        users: levels that are asked for; one that was recorded is enough.

    Raises:
        UsageError: an impossible setting or an unknown model; or nothing like it was recorded: says what was.
    """
    row = model_table.find(model)
    served = {"ollama": row.ollama.name, "vllm": row.vllm.name}
    there = recordings()
    levels = {
        folder: levels_of(meta) & set(users)
        for folder, meta in there.items()
        if _same_engines(meta, settings, served) and workload.asked_in(meta["workload"])
    }
    best = max(levels, key=lambda folder: len(levels[folder]), default=None)
    if best is None or not levels[best]:
        asked = _side_by_side(settings, workload.as_dict(), users)
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
    """Engines with their settings, questions and levels of a run, in one line."""
    settings = {arm["engine"]: arm["settings"] for arm in meta["arms"].values()}
    return _side_by_side(settings, meta["workload"], sorted(levels_of(meta)))


def badge(metas: Sequence[Meta]) -> str:
    """One line on where and when recorded runs were measured."""
    if not metas:
        return "recorded: no run is there"
    machines = sorted({f"{meta['host']['cpu']}, {meta['host']['cores']} cores" for meta in metas})
    days = sorted({meta["started_at"][:10] for meta in metas})
    when = " to ".join(dict.fromkeys([days[0], days[-1]]))
    return f"recorded: measured on {' and '.join(machines)}, on {when}, replayed"


def _same_engines(meta: Meta, settings: Settings, served: Mapping[str, str]) -> bool:
    arms = {arm["engine"]: arm for arm in meta["arms"].values()}
    if arms.keys() != settings.keys() or len(arms) < len(meta["arms"]):
        return False
    return all(
        arm["facts"].get("model") == served[engine]
        and whole_settings(arm, arm["settings"]) == whole_settings(arm, settings[engine])
        for engine, arm in arms.items()
    )


def _side_by_side(settings: Settings, workload: Mapping[str, Any], users: Iterable[int]) -> str:
    """Engines, questions and levels in one line."""
    engines = [
        " ".join([engine, *(f"{name}={value!r}" for name, value in given.items())])
        for engine, given in settings.items()
    ]
    shape = [f"{workload['output_tokens']} tokens out"]
    shape += [f"{workload[name]} {name}" for name in ("prompt_words", "shared_words") if workload.get(name)]
    shape += ["own prompts"] if workload.get("own_prompts") else []
    return (
        f"{' + '.join(engines)}; {workload['name']} ({', '.join(shape)}); users {', '.join(map(str, users))}"
    )


def _neutral(text: str) -> str:
    return text.replace(str(paths.home()), "LABKIT_HOME").replace(str(Path.home()), "~")
