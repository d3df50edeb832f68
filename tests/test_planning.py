"""The plan: which option it takes and why, what it says of each number, and what it refuses."""

from __future__ import annotations

import asyncio
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from moved import shift_run
from synthetic import TOKENS_EACH, make_run

from labkit import calibration, paths, planning
from labkit.bundle import Run
from labkit.calibration import Calibrated
from labkit.cli import main
from labkit.decision import Row
from labkit.designs import Load
from labkit.document import Document, Heading, Items, Table, Text
from labkit.errors import UsageError
from labkit.lab import Lab
from labkit.options import Need, Prices, break_even, comparable
from labkit.slo import Slo

RATES = {"ollama": {1: 40.0, 2: 40.0, 4: 40.0, 8: 40.0}, "vllm": {1: 20.0, 2: 35.0, 4: 60.0, 8: 90.0}}
TTFT = {"ollama": {1: 0.1, 2: 0.5, 4: 1.3, 8: 2.9}, "vllm": {1: 0.2, 2: 0.3, 4: 0.4, 8: 0.6}}
PROMISE = Slo(ttft_s=1.0)
PRICE = Prices(2.0)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", rates=RATES, ttft=TTFT)


@pytest.fixture(scope="module")
def gap() -> Run:
    return Run.load(paths.data() / "runs" / "the_gap")


@pytest.fixture(scope="module")
def fit(gap: Run) -> Calibrated:
    return calibration.fit([gap], ("ollama", "vllm"))


def test_the_option_with_the_fewest_machines_is_taken(run: Run) -> None:
    plan = planning.plan([run], Need(users=8), PROMISE, PRICE)
    assert plan.decision.startswith("vllm holds 8 users at once with one machine (vllm: measured")
    assert "ollama needs 4 machines (measured)" in plan.decision
    table = {row["arm"]: row for row in plan.table.to_dicts()}
    assert (table["ollama"]["users"], table["ollama"]["machines"]) == (2, 4)
    assert table["ollama"]["per_month"] == pytest.approx(4 * table["vllm"]["per_month"])
    assert any("with 2 users at once or less one machine with ollama" in line for line in plan.changes)
    assert any(
        "a p95 of TTFT of 2.9" in line and "ollama would hold 8 users" in line for line in plan.changes
    )


def test_where_both_need_as_many_machines_the_room_decides_and_both_are_named(run: Run) -> None:
    plan = planning.plan([run], Need(users=2), PROMISE, PRICE)
    assert plan.decision.startswith("vllm and ollama hold 2 users at once with one machine each")
    assert "vllm has the most room" in plan.decision


def test_where_both_hold_alike_none_has_more_room(run: Run) -> None:
    plan = planning.plan([run], Need(users=2), Slo(ttft_s=9.0), PRICE)
    assert "none of them was seen to have more room" in plan.decision
    assert "nobody looked further" in plan.decision


def test_where_nobody_measured_further_the_prediction_is_named(gap: Run, fit: Calibrated) -> None:
    plan = planning.plan([gap], Need(users=2), Slo(ttft_s=60.0), PRICE, fit=fit)
    assert any(
        line.startswith("Room: nobody measured more on vLLM; by the prediction") for line in plan.changes
    )


def test_a_run_in_which_the_engine_stood_still_is_no_evidence() -> None:
    still = Run.load(paths.data() / "runs" / "stall_closed")
    with pytest.raises(UsageError, match="in another way"):
        planning.plan([still], Need(users=1), PROMISE, PRICE)


def test_a_promise_that_no_load_keeps_is_a_sentence(run: Run) -> None:
    plan = planning.plan([run], Need(users=8), Slo(ttft_s=0.01), PRICE)
    assert plan.decision.startswith("No number of these machines keeps the promise")
    assert "times its limit of 0.01 s" in plan.decision
    assert plan.table["machines"].null_count() == 2
    assert plan.table["per_million_output"].null_count() == 2
    assert "none are enough" in plan.markdown()


def test_one_that_cannot_be_had_is_named_beside_the_one_that_can(run: Run) -> None:
    plan = planning.plan([run], Need(users=4), Slo(ttft_s=0.15), PRICE)
    assert plan.decision.startswith("ollama holds 4 users at once with 4 machines")
    assert "Left out: vllm keeps it" in plan.decision


def test_costs_follow_the_price_and_people_who_are_not_always_busy(run: Run) -> None:
    dear = planning.plan([run], Need(users=8), PROMISE, Prices(4.0, 0.5, 0.1)).table
    base = planning.plan([run], Need(users=8), PROMISE, PRICE).table
    for one, other in zip(dear.to_dicts(), base.to_dicts(), strict=True):
        assert one["per_million_output"] == pytest.approx(4 * other["per_million_output"])
        assert one["per_user_month"] == pytest.approx(0.2 * other["per_user_month"])


def test_other_lengths_than_measured_are_predicted_and_that_is_said(gap: Run, fit: Calibrated) -> None:
    need = Need(users=4, prompt_tokens=300, output_tokens=100)
    plan = planning.plan([gap], need, Slo(ttft_s=5.0), PRICE, fit=fit)
    assert {option.basis for option in plan.deciding} == {"predicted"}
    assert {option.basis for option in plan.options} == {"measured", "predicted"}
    assert any(line.startswith("Lengths: no run asked for the needed lengths") for line in plan.changes)
    assert all(option.lengths == (300, 100) for option in plan.deciding)


def test_where_no_lengths_are_asked_for_a_prediction_has_those_of_the_run(run: Run, fit: Calibrated) -> None:
    plan = planning.plan([run], Need(users=4), Slo(ttft_s=5.0), PRICE, fit=fit)
    lengths = {option.basis: option.lengths for option in plan.options if option.engine == "vllm"}
    assert lengths["predicted"] == pytest.approx(lengths["measured"])


def test_a_run_in_which_traffic_moved_is_no_evidence_of_what_one_engine_holds(tmp_path: Path) -> None:
    moved = shift_run(tmp_path / "run", load=Load((4,), shares=(10, 50, 100, 0)).as_dict())
    with pytest.raises(UsageError, match="in another way"):
        planning.plan([moved], Need(users=4), PROMISE, PRICE)


def test_lengths_near_those_that_were_measured_are_decided_by_the_measurement(
    gap: Run, fit: Calibrated
) -> None:
    plan = planning.plan([gap], Need(4, None, 60, 64), Slo(ttft_s=5.0), PRICE, fit=fit)
    assert {option.basis for option in plan.deciding} == {"measured"}


def test_other_lengths_without_a_prediction_are_refused_with_what_there_is(run: Run) -> None:
    with pytest.raises(UsageError, match=f"ollama 24 in, {TOKENS_EACH} out"):
        planning.plan([run], Need(4, None, 300, 100), PROMISE, PRICE)


def test_a_rate_is_planned_from_predictions_or_from_an_open_loop(gap: Run, fit: Calibrated) -> None:
    plan = planning.plan([gap], Need(rate=0.3), Slo(ttft_s=5.0), PRICE, fit=fit)
    assert {option.unit for option in plan.deciding} == {"requests/s"}
    assert "0.3 requests/s" in plan.decision
    assert plan.table["per_user_month"].null_count() == len(plan.table)
    with pytest.raises(UsageError, match="in another way in all runs: closed"):
        planning.plan([gap], Need(rate=0.3), Slo(ttft_s=5.0), PRICE)
    opened = Run.load(paths.data() / "runs" / "arrivals")
    assert planning.plan([opened], Need(rate=0.3), Slo(ttft_s=5.0), PRICE).deciding[0].basis == "measured"


def test_of_two_runs_of_an_arm_the_one_with_more_levels_counts(run: Run, tmp_path: Path) -> None:
    few = make_run(tmp_path / "few", rates={"vllm": {2: 35.0}}, ttft={"vllm": {2: 9.0}})
    plan = planning.plan([few, run], Need(users=8), PROMISE, PRICE)
    assert {option.arm: option.evidence for option in plan.options}["vllm"] == "run"


def test_the_decision_table_says_where_each_row_is_from_and_takes_more(run: Run) -> None:
    more = Row("set-up", "a minute", "an hour", "entered")
    rows = planning.plan([run], Need(users=8), PROMISE, PRICE, rows=[more]).rows
    assert rows.rows()[-1] == ("set-up", "a minute", "an hour", "entered")
    origins = dict(rows.select("what", "origin").iter_rows())
    assert origins["model file"] == "read from the engine"
    assert origins["one user alone, whole answer (E2E p50)"] == "measured"
    assert origins["million output tokens at that load"] == "computed: measured"


def test_an_engine_without_a_run_is_not_known(tmp_path: Path) -> None:
    alone = make_run(tmp_path / "alone", rates={"vllm": RATES["vllm"]})
    rows = planning.plan([alone], Need(users=2), Slo(ttft_s=9.0), PRICE).rows
    assert set(rows["ollama"]) == {"not known"}


class Seen(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}


def test_both_forms_are_whole_and_the_page_fetches_and_runs_nothing(
    gap: Run, fit: Calibrated, tmp_path: Path
) -> None:
    plan = planning.plan([gap], Need(4, None, 300, 100), Slo(ttft_s=5.0), PRICE, fit=fit)
    text, page = plan.save(tmp_path / "new" / "folder")
    assert plan.save(tmp_path / "new" / "folder") == (text, page)
    for said in (text.read_text(), page.read_text()):
        for part in ("recorded", "measured", "predicted", "the", "What was entered", "What would change"):
            assert part in said
    seen = Seen()
    seen.feed(page.read_text())
    assert not seen.tags & {"script", "link", "img", "iframe"}
    assert seen.names <= {"lang", "charset", "class"}


def test_a_run_that_is_not_clean_is_named_in_the_decision(run: Run) -> None:
    assert "Measure again" not in planning.plan([run], Need(users=2), PROMISE, PRICE).decision
    run.meta["verdict"] = {"word": "contaminated", "reasons": ["somebody else"]}
    decision = planning.plan([run], Need(users=2), PROMISE, PRICE).decision
    assert decision.endswith("Measure again before you rely on it: run is contaminated.")


def test_it_says_at_which_depth_it_stands(tmp_path: Path) -> None:
    made = make_run(tmp_path / "simulated", rates=RATES, ttft=TTFT, kind="simulated")
    plan = planning.plan([made], Need(users=2), PROMISE, PRICE)
    for said in (repr(plan), plan._repr_html_(), plan.markdown(), plan.html()):
        assert "simulated: these runs are of labkit" in said


def test_what_is_text_stays_text() -> None:
    odd = "<b>a|b*"
    document = Document(odd, [Heading(odd), Text(odd, strong=True), Items([odd]), Table([odd], [[odd]])])
    assert "<b>" not in document.html()
    assert document.html().count("&lt;b&gt;a|b*") == 7
    assert "<b>" not in document.markdown().replace("\\<b>", "")
    assert "a\\|b\\*" in document.markdown()


def test_a_folder_that_cannot_be_written_to_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="write plan to"):
        planning.plan([run], Need(users=2), PROMISE, PRICE).save(tmp_path / "file")


def changed(run: Run, **facts: Any) -> Run:
    """The same as a run of something else."""
    for arm in run.meta["arms"].values():
        arm["facts"].update(facts)
    return run


def test_runs_that_cannot_stand_in_one_plan_are_refused(run: Run, tmp_path: Path) -> None:
    def other(name: str, **options: Any) -> Run:
        return make_run(tmp_path / name, rates=RATES, ttft=TTFT, **options)

    comparable([run, other("same")])
    cases = [
        ([], "there is no run"),
        ([run, other("depth", kind="simulated")], "the depth live, depth simulated"),
        ([run, changed(other("model"), model="another:7b")], "serves another:7b"),
        ([run, changed(other("bits"), quantisation="Q4_1")], "Q4_1"),
        ([run, changed(other("device"), device="cuda:0")], "cuda:0"),
    ]
    machine = other("machine")
    machine.meta["host"]["cores"] += 1
    cases.append(([run, machine], "the machine"))
    for runs, seen in cases:
        with pytest.raises(UsageError, match=seen):
            comparable(runs)


def test_each_engine_with_a_model_of_its_own_is_refused(tmp_path: Path) -> None:
    """Names differ from engine to engine; the table of models knows which belong together."""
    one = make_run(tmp_path / "one", rates={"ollama": RATES["ollama"]})
    two = make_run(tmp_path / "two", rates={"vllm": RATES["vllm"]})
    changed(one, model="labkit/smollm2:135m-f16")
    comparable([one, changed(two, model="smollm2:135m")])
    with pytest.raises(UsageError, match="serves smollm2:360m"):
        comparable([one, changed(two, model="smollm2:360m")])


@pytest.mark.parametrize(
    "asked",
    [{}, {"users": 1, "rate": 1.0}, {"users": 0}, {"rate": -1.0}, {"users": 1, "prompt_tokens": 5},
     {"users": 1, "prompt_tokens": 0, "output_tokens": 5}],
)  # fmt: skip
def test_a_load_that_is_none_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="plan for a load"):
        Need(**asked)


@pytest.mark.parametrize("asked", [(-1.0,), (1.0, 0.0), (1.0, 1.0, 2.0)])
def test_money_that_makes_no_sense_is_refused(asked: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="work out a cost"):
        Prices(*asked)


def test_break_even_is_found_for_each_pair(run: Run) -> None:
    (row,) = break_even(run).to_dicts()
    assert (row["ahead"], row["behind"], row["low"], row["high"]) == ("vllm", "ollama", 2, 4)
    (row,) = break_even(run, "ttft_ms_p50").to_dicts()
    assert row["ahead"] == "vllm"
    slots = Run.load(paths.data() / "runs" / "the_gap_own")
    assert len(break_even(slots)) == 1


SHELL = ["plan", "--users", "4", "--ttft", "3", "--price", "1.5", "--runs"]


def test_the_shell_plans_from_bundles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(paths.data() / "runs" / name) for name in ("the_gap", "the_gap_own")]
    assert main([*SHELL, *runs, "--out", str(tmp_path / "out")]) == 0
    assert "hold" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"plan.md", "plan.html"}
    assert main([*SHELL, *runs, "--prompt-tokens", "300", "--output-tokens", "50"]) == 0
    assert "| predicted | yes |" in capsys.readouterr().out


def test_the_shell_plans_without_a_fit_and_says_so(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SHELL, str(run.path)]) == 0
    assert "no predictions: " in capsys.readouterr().err
    assert main([*SHELL, str(tmp_path)]) == 0  # the folder that holds the run


@pytest.mark.parametrize(
    ("changes", "code", "seen"),
    [
        (["--runs", "nowhere"], 1, "name a folder that holds a run.json"),
        (["--runs", str(paths.data() / "runs")], 2, "give runs of one model"),
        (["--price", "-1"], 2, "the price is -1"),
        (["--ttft", "0"], 2, "no answer can keep that"),
        (["--share", "2"], 2, "share is 2"),
        (["--prompt-tokens", "4"], 2, "give both"),
    ],
)
def test_the_shell_refuses_in_sentences(
    changes: list[str], code: int, seen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*SHELL, str(paths.data() / "runs" / "the_gap"), *changes]
    assert main(given) == code
    assert seen in capsys.readouterr().err


def test_the_lab_calibrates_predicts_and_plans_from_recordings() -> None:
    lab = Lab(mode="recorded", budget="smoke")
    fit = asyncio.run(lab.calibrated())
    assert fit.users("vllm") == (1, 4, 16)
    told = lab.predict(fit, "ollama", [2, 8])
    assert told["arm"].unique().to_list() == ["Ollama, 1 slot"]
    assert told["planned"].to_list() == [4, 16]  # as often as in the recording, whatever the budget
    assert lab.predict(fit, "ollama", [2], prompt_tokens=9, output_tokens=7)["output_tokens"].to_list() == [7]
    plan = lab.plan([lab.last_run("the_gap")], slo=PROMISE, users=2, price_per_hour=1.0, fit=fit)
    assert plan.badge.startswith("recorded")


def test_what_a_fit_lacks_is_measured_as_far_as_the_budget_says(fit: Calibrated) -> None:
    """With 1 and 4 users at short, none at smoke and in the recorded depth."""
    asked: list[tuple[Any, ...]] = []

    def measure(lab: Lab, *given: Any) -> None:
        lab._measure = lambda *order: asked.append((*given, *order))  # type: ignore[assignment, method-assign]
        assert lab.fill(fit) is None

    for mode, budget in (
        ("recorded", "short"),
        ("simulated", "smoke"),
        ("simulated", "short"),
        ("simulated", "normal"),
    ):
        measure(Lab(mode=mode, budget=budget), budget)
    (short, *order), (normal, *_) = asked
    assert (short, normal) == ("short", "normal")
    name, engines, load, _, more = order
    assert (name, engines, load.levels) == ("long_in", ["ollama", "vllm"], (1, 4))
    assert more == {"workload": calibration.LONG_IN}
    assert asked[1][3].levels == (1, 4, 16)


def test_a_lab_without_runs_says_what_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path))
    with pytest.raises(calibration.CalibrationRefused, match="measure one first"):
        asyncio.run(Lab(mode="simulated").calibrated())
