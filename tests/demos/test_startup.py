"""Start-up logs of vLLM: phases in order, numbers from the lines, and the sentence of a refusal."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

import pytest

from labkit import paths
from labkit.demos import startup
from labkit.engines.vllm import VLLM
from labkit.errors import EngineError

LOG = (paths.data() / "calibration" / "the_gap" / "artefacts" / "vLLM.log").read_text()
REFUSED = """
(EngineCore pid=7) ERROR 11-28 11:34:40 [core.py:1010] ValueError: To serve at least one request with the \
model's max seq len (8192), (0.18 GiB KV cache is needed, which is larger than the available KV cache memory.
(EngineCore pid=7) ValueError: To serve at least one request with the model's max seq len (8192), (0.18 GiB \
KV cache is needed, which is larger than the available KV cache memory.
(APIServer pid=3) RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_phases_come_in_order_and_leave_no_gap() -> None:
    events = [event for event in startup.phases(LOG) if event["what"] == "phase"]
    assert [event["phase"] for event in events] == [phase.name for phase in startup.PHASES]
    for before, after in pairwise(events):
        assert after["t_s"] == before["t_s"] + before["took_s"]
    assert sum(event["took_s"] for event in events) == pytest.approx(14, abs=1)  # by the log's time stamps


def test_the_first_phase_begins_with_the_process() -> None:
    began = datetime.fromisoformat("2026-11-24T19:45:50")
    first = next(event for event in startup.phases(LOG, began) if event["what"] == "phase")
    assert (first["phase"], first["t_s"], first["took_s"]) == ("imports", 0.0, 11.0)


def test_a_start_over_new_year_takes_seconds_not_a_year() -> None:
    lines = [
        "INFO 12-31 23:59:58 [a.py:1] non-default args: {}",
        "INFO 01-01 00:00:03 [a.py:2] Starting to load model x",
    ]
    events = startup.phases("\n".join(lines), datetime.fromisoformat("2026-12-31T23:59:57"))
    assert [event["took_s"] for event in events] == [1.0, 5.0]


def test_numbers_are_read_off_the_lines() -> None:
    facts = {event["name"]: event["value"] for event in startup.phases(LOG) if event["what"] == "fact"}
    assert facts["kv_tokens"] == 46592
    assert facts["weights_s"] == 0.14
    assert set(facts) == set(startup.FACTS)


def test_a_missing_line_leaves_its_phase_out() -> None:
    without = "\n".join(line for line in LOG.splitlines() if "Loading weights took" not in line)
    names = [event["phase"] for event in startup.phases(without) if event["what"] == "phase"]
    assert "weights" not in names
    assert names[-1] == "HTTP server"
    assert startup.phases("nothing of the kind") == []


async def test_a_server_that_is_not_ours_has_no_log() -> None:
    with pytest.raises(EngineError, match="did not start this server"):
        await startup.start_log(VLLM("http://127.0.0.1:9"))


def test_a_refusal_is_the_engines_sentence_once() -> None:
    (said,) = startup.refused(REFUSED)
    assert said.startswith("To serve at least one request")
    assert startup.refused(LOG) == []
