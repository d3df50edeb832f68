"""What must hold for any load: nothing is lost, first come first served, limits kept, memory conserved."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labkit.sim.drive import closed_loop, drive
from labkit.sim.request import Request

from .small import SIZE, ollama, request, step_by_step, vllm

BLOCKS = st.integers(12, 40)
ANY_LOAD = settings(max_examples=150, deadline=None)


@dataclass(frozen=True)
class Ask:
    """One arrival, as hypothesis draws it."""

    at: float
    prompt: int
    answer: int
    shared: int


ASKS = st.lists(
    st.builds(
        Ask,
        at=st.floats(0, 1),
        prompt=st.integers(1, 24),
        answer=st.integers(1, 24),
        shared=st.sampled_from([0, 3, 8, 16]),
    ),
    min_size=1,
    max_size=24,
)


def arrivals(asks: list[Ask]) -> list[tuple[float, Request]]:
    return [(ask.at, request(n, ask.prompt, ask.answer, ask.shared)) for n, ask in enumerate(asks)]


def answered(sent: list[Request], count: int) -> None:
    """Every request is there, once, and has its whole answer."""
    assert sorted(r.id for r in sent) == list(range(count))
    for r in sent:
        assert r.ended_s is not None
        assert len(r.token_s) == len(r.answer)
        assert r.token_s == sorted(r.token_s)
        assert r.sent_s <= (r.admitted_s or 0.0) < r.token_s[0]


PIECE_OF_ONE_TOKEN = [Ask(at=0.0, prompt=n, answer=3, shared=0) for n in (1, 1, 1, 3)]


@ANY_LOAD
@example(PIECE_OF_ONE_TOKEN, 12, 4, 4)
@given(ASKS, BLOCKS, st.integers(1, 6), st.integers(4, 40))
def test_vllm_loses_nobody_and_gives_all_memory_back(
    asks: list[Ask], blocks: int, seqs: int, budget: int
) -> None:
    engine = vllm(blocks, seqs, budget)
    sent = drive(engine, arrivals(asks), lambda _request, _now: None)
    answered(sent, len(asks))
    assert engine.pool.free == blocks
    assert not engine.running
    assert not engine.waiting


@ANY_LOAD
@given(ASKS, BLOCKS, st.integers(1, 6), st.integers(4, 40))
def test_vllm_admits_in_the_order_of_arrival(asks: list[Ask], blocks: int, seqs: int, budget: int) -> None:
    sent = drive(vllm(blocks, seqs, budget), arrivals(asks), lambda _request, _now: None)
    admitted = [r.admitted_s for r in sent]
    assert admitted == sorted(admitted)


@ANY_LOAD
@given(ASKS, st.integers(1, 5))
def test_ollama_loses_nobody_and_serves_in_the_order_of_arrival(asks: list[Ask], slots: int) -> None:
    engine = ollama(slots)
    sent = drive(engine, arrivals(asks), lambda _request, _now: None)
    answered(sent, len(asks))
    assert [r.admitted_s for r in sent] == sorted(r.admitted_s or 0.0 for r in sent)
    assert not any(runner.busy or runner.waiting for runner in engine.runners.values())


@ANY_LOAD
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), BLOCKS)
def test_preemption_changes_no_answer(answers: list[int], blocks: int) -> None:
    requests = [request(n, 6, length) for n, length in enumerate(answers)]
    engine = vllm(blocks, seqs=12, budget=64)
    step_by_step(engine, requests)
    assert [len(r.token_s) for r in requests] == answers
    assert engine.preemptions == sum(r.preemptions for r in requests)


def test_that_property_is_about_something() -> None:
    requests = [request(n, 6, 30) for n in range(6)]
    engine = vllm(12, seqs=12, budget=64)
    step_by_step(engine, requests)
    assert engine.preemptions > 0


@ANY_LOAD
@given(ASKS, BLOCKS)
def test_the_same_load_gives_the_same_trace(asks: list[Ask], blocks: int) -> None:
    first, second = (drive(vllm(blocks), arrivals(asks), lambda _request, _now: None) for _ in range(2))
    assert [r.token_s for r in first] == [r.token_s for r in second]


@ANY_LOAD
@given(st.lists(st.integers(2, 30), min_size=1, max_size=8), BLOCKS)
def test_steps_at_once_give_the_trace_of_single_steps(answers: list[int], blocks: int) -> None:
    def made() -> list[Request]:
        return [request(n, 6, length) for n, length in enumerate(answers)]

    single, jumping = made(), made()
    step_by_step(vllm(blocks), single)
    drive(vllm(blocks), [(0.0, r) for r in jumping], lambda _request, _now: None)
    for one, other in zip(single, jumping, strict=True):
        assert one.token_s == pytest.approx(other.token_s)


@ANY_LOAD
@given(ASKS, BLOCKS)
def test_a_client_that_goes_leaves_nothing_behind(asks: list[Ask], blocks: int) -> None:
    engine = vllm(blocks)
    requests = [r for _, r in arrivals(asks)]
    for r in requests:
        engine.submit(r, 0.0)
    engine.begin(0.0)
    for r in requests:
        engine.cancel(r)
    engine.end()
    engine.begin(1.0)
    assert engine.pool.free == blocks
    assert not engine.waiting
    assert not engine.running


@given(st.integers(1, 6), st.integers(1, 4))
def test_a_closed_loop_asks_everything_once(users: int, rounds: int) -> None:
    requests = [request(n) for n in range(users * rounds)]
    answered(closed_loop(vllm(), requests, users, 0.0), users * rounds)


def test_the_pool_is_counted_in_blocks() -> None:
    assert vllm(10).pool.total * SIZE == 40
