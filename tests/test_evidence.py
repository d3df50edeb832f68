"""What a learner asked for beside what was measured, as transcripts."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from synthetic import make_run

from labkit import evidence, transcript
from labkit.bundle import Run
from labkit.errors import UsageError
from labkit.sides import Missing
from labkit.slo import Slo
from labkit.transcript import Transcript
from labkit.verdict import Verdict


@pytest.fixture
def run(tmp_path: Path) -> Run:
    rates = {"ollama": {1: 60.0, 4: 60.0}, "vllm": {1: 30.0, 4: 80.0}}
    return make_run(
        tmp_path / "run", rates=rates, ttft={"ollama": {1: 0.1, 4: 3.0}}, in_line={"vllm": {1: 0, 4: 2}}
    )


def test_a_promise_holds_the_limits_and_what_was_measured(run: Run) -> None:
    told = evidence.promise(run, Slo(ttft_s=2.0), price_per_hour=3.6, utilisation=0.5, users=4)
    asked = {"ttft_s": 2.0, "tpot_s": None, "e2e_s": None, "share": 0.95}
    assert told.about["asked"] == {**asked, "price_per_hour": 3.6, "utilisation": 0.5, "users": 4}
    row = next(row for row in evidence.levels(told, "ollama") if row["level"] == 4)
    assert row["ttft_p50_s"] == pytest.approx(3.0)
    assert row["answers_per_s"] == pytest.approx(60 / 16)
    assert row["per_million_output"] == pytest.approx(3.6 / 3600 / 60 * 1e6 / 0.5)
    assert [row["holds"] for row in evidence.levels(told, "ollama")] == [True, False]
    assert told.kind == "live"


def test_it_can_be_kept_and_read_again(run: Run, tmp_path: Path) -> None:
    told = evidence.promise(run, Slo(ttft_s=2.0), price_per_hour=1.0)
    again = Transcript.load(transcript.keep(told, tmp_path))
    assert again.events == told.events


def test_a_negative_price_is_a_sentence(run: Run) -> None:
    with pytest.raises(UsageError, match="the price is -1"):
        evidence.promise(run, Slo(ttft_s=2.0), price_per_hour=-1.0)


def test_the_largest_level_counts_only_if_all_before_it_hold(run: Run) -> None:
    rows = [{"level": level, "holds": held} for level, held in ((1, True), (2, True), (4, False), (8, True))]
    assert evidence.seats(rows) == rows[1]
    assert evidence.seats(rows[2:]) is None


def test_what_cannot_be_judged_says_why(run: Run, tmp_path: Path) -> None:
    foreign = make_run(
        tmp_path / "foreign", rates={"vllm": {1: 30.0}}, verdict=Verdict("contaminated", ["x"])
    )
    with pytest.raises(Missing, match="is contaminated: x"):
        evidence.levels(evidence.promise(foreign, Slo(ttft_s=2.0), price_per_hour=1.0), "vllm")
    alone = make_run(tmp_path / "alone", rates={"vllm": {1: 30.0}})
    with pytest.raises(Missing, match="no measured level of ollama"):
        evidence.levels(evidence.promise(alone, Slo(ttft_s=2.0), price_per_hour=1.0), "ollama")


def test_a_forecast_has_a_point_for_each_prediction(run: Run) -> None:
    told = evidence.forecast(pl.DataFrame({"error": [0.1], "line_error": [None], "inside": [True]}), run)
    assert told.of("point") == [
        {"t_s": 0.0, "what": "point", "error": 0.1, "line_error": None, "inside": True}
    ]


def test_rows_for_operators_say_where_they_come_from(run: Run) -> None:
    names = {"life": "lifecycle", "log": "start_log_vllm", "file": "gguf_smollm2-135m"}
    start, size, told, network = evidence.rows(
        run, **{name: transcript.recorded(recorded) for name, recorded in names.items()}
    )
    assert start.origin == "recorded life of a model, recorded start-up log"
    assert start.ollama.endswith("to load the model into a server that is up")
    assert (size.ollama, size.vllm) == ("271 MB", "the same numbers, so about as much")
    assert (told.ollama, told.vllm, told.origin) == ("nothing", "waiting", "live run")
    assert network.ollama == "its child runs with --offline"
    assert network.vllm == "it was started from a folder on this machine"


def test_what_a_transcript_does_not_show_is_not_known(run: Run) -> None:
    life = Transcript("lifecycle", "simulated", {}, ())
    log = Transcript("start_log_vllm", "live", {}, ())
    start, _, _, network = evidence.rows(
        run, life=life, log=log, file=transcript.recorded("gguf_smollm2-135m")
    )
    assert {start.ollama, start.vllm, network.ollama, network.vllm} == {evidence.UNKNOWN}
