"""vLLM's scheduler, one behaviour at a time; figures in comments are from the real one."""

from __future__ import annotations

import pytest

from labkit.sim.drive import drive
from labkit.sim.request import Refused, Request

from .small import request, step_by_step, vllm


def test_answers_are_written_together() -> None:
    requests = [request(n) for n in range(4)]
    step_by_step(vllm(), requests)
    assert len({tuple(r.token_s) for r in requests}) == 1


def test_the_limit_on_sequences_makes_a_staircase() -> None:
    requests = [request(n) for n in range(6)]
    step_by_step(vllm(seqs=2), requests)
    first = [r.token_s[0] for r in requests]
    assert first[0] == first[1] < first[2] == first[3] < first[4] == first[5]


def test_a_long_prompt_is_read_in_pieces_beside_an_answer() -> None:
    writing, reading = request(0, 4, 20), request(1, 60, 1)
    engine = vllm(budget=16)
    drive(engine, [(0.0, writing), (0.011, reading)], lambda _request, _now: None)
    during = [at for at in writing.token_s if (reading.admitted_s or 0) < at <= reading.token_s[0]]
    assert len(during) >= 4  # 60 tokens in pieces of at most 15


def test_a_shared_beginning_is_read_once_in_whole_blocks() -> None:
    first, second, short = request(0, 17, 1, 17), request(1, 17, 1, 15), request(2, 17, 1, 3)
    engine = vllm()
    for r in (first, second, short):
        step_by_step(engine, [r])
    assert (first.cached, second.cached, short.cached) == (0, 12, 0)


def test_the_last_block_of_the_same_prompt_is_computed_again() -> None:
    # seen on the real one: of an identical prompt of 256 tokens, in blocks of 128, 128 were cached
    engine = vllm()
    again = [request(0, 16, 1, 16), request(1, 16, 1, 16)]
    for r in again:
        step_by_step(engine, [r])
    assert again[1].cached == 12


def test_a_prefix_is_shared_with_an_answer_that_is_still_being_written() -> None:
    writing, second = request(0, 17, 20, 17), request(1, 17, 1, 17)
    drive(vllm(), [(0.0, writing), (0.05, second)], lambda _request, _now: None)
    assert second.cached == 16


def test_a_history_that_is_sent_again_is_found() -> None:
    engine, first = vllm(), request(0, 8, 8)
    step_by_step(engine, [first])
    history = Request(1, first.prompt + first.answer + (7, 7, 7), (1,))
    step_by_step(engine, [history])
    assert history.cached == 12  # the last token of an answer is never read


def test_the_youngest_gives_way() -> None:
    requests = [request(n, 6, 20) for n in range(3)]
    engine = vllm(blocks=12, seqs=3)
    step_by_step(engine, requests)
    assert requests[0].preemptions == 0
    assert requests[2].preemptions > 0


def test_a_bounded_queue_refuses() -> None:
    engine = vllm(seqs=1, max_queue=2)
    for n in range(2):
        engine.submit(request(n), 0.0)
    with pytest.raises(Refused):
        engine.submit(request(2), 0.0)


def test_an_evicted_prefix_is_read_again() -> None:
    engine = vllm(blocks=8)
    step_by_step(engine, [request(0, 16, 1, 16)])
    step_by_step(engine, [request(1, 28, 1)])
    again = request(2, 16, 1, 16)
    step_by_step(engine, [again])
    assert again.cached < 12
