"""Ollama's scheduler: slots, the two queues, the prompt cache, models that come and go."""

from __future__ import annotations

from itertools import pairwise

import pytest

from labkit.sim.drive import drive
from labkit.sim.ollama import Ollama
from labkit.sim.request import Refused, Request

from .small import ollama, request, step_by_step


def serve(engine: Ollama, *arrivals: tuple[float, Request]) -> list[Request]:
    return drive(engine, arrivals, lambda _request, _now: None)


def loaded(**settings: int) -> Ollama:
    engine = ollama(**settings)
    serve(engine, (0.0, request(99, 4, 1)))
    return engine


def test_one_slot_makes_a_staircase_first_come_first_served() -> None:
    requests = [request(n) for n in range(4)]
    step_by_step(ollama(slots=1), requests)
    for earlier, later in pairwise(requests):
        assert (earlier.ended_s or 0) < later.token_s[0]


def test_the_first_request_waits_for_the_load_and_says_so() -> None:
    first = request(0)
    step_by_step(ollama(), [first])
    assert first.load_s == 1.0
    assert first.admitted_s == 1.0


def test_a_loaded_model_never_refuses() -> None:
    engine = loaded(max_queue=1, slots=1)
    assert all(r.token_s for r in serve(engine, *((10.0, request(n)) for n in range(20))))


def test_an_unloaded_model_refuses_what_its_load_queue_cannot_hold() -> None:
    # seen on the real one with OLLAMA_MAX_QUEUE=1: of a burst of 20, 2 were served and 18 refused
    sent = serve(ollama(max_queue=1), *((0.0, request(n)) for n in range(20)))
    assert sum(bool(r.token_s) for r in sent) == 2
    assert sum(r.admitted_s is None for r in sent) == 18


def test_a_prefix_is_reused_from_an_idle_slot_and_not_from_a_busy_one() -> None:
    engine = loaded(slots=2)
    first, busy, idle = request(0, 20, 40, 20), request(1, 20, 1, 20), request(2, 20, 1, 20)
    serve(engine, (10.0, first), (10.1, busy))
    assert busy.cached == 0
    serve(engine, (20.0, idle))
    assert idle.cached == 19


def test_the_host_remembers_a_prompt_that_its_slot_has_forgotten() -> None:
    engine = loaded(slots=1)
    again = [request(0, 20, 1, 20), request(1, 20, 1), request(2, 20, 1, 20)]
    serve(engine, *((10.0 + n, r) for n, r in enumerate(again)))
    assert again[2].cached == 19


def test_the_idle_model_with_the_shortest_keep_alive_is_evicted() -> None:
    engine = ollama(max_models=2)
    for n, (model, keep) in enumerate((("a", 100.0), ("b", 50.0), ("c", 100.0))):
        r = request(n, model=model)
        r.keep_alive_s = keep
        serve(engine, (10.0 * n, r))
    assert set(engine.runners) == {"a", "c"}


def test_a_model_is_unloaded_when_nobody_wants_it() -> None:
    engine = ollama(keep_alive_s=5)
    serve(engine, (0.0, request(0)))
    engine.unload_expired(4.0)
    assert engine.runners
    engine.unload_expired(20.0)
    assert not engine.runners


def test_another_context_loads_the_model_again() -> None:
    engine = ollama()
    serve(engine, (0.0, request(0)))
    other = request(1)
    other.context = 128
    serve(engine, (10.0, other))
    assert other.load_s == 1.0
    assert engine.runners["m"].context == 128


def test_a_busy_model_is_not_evicted() -> None:
    engine = ollama(max_models=1)
    first, second = request(0, model="a", answer=200), request(1, model="b")
    serve(engine, (0.0, first), (1.5, second))
    assert (first.ended_s or 0) + 1.0 == pytest.approx(second.admitted_s)


def test_a_client_that_goes_frees_its_slot() -> None:
    engine = loaded(slots=1)
    first, second = request(0, answer=100), request(1)
    engine.submit(first, 10.0)
    engine.submit(second, 10.0)
    engine.begin(10.0)
    engine.cancel(first)
    now = engine.next_s
    engine.end()
    engine.begin(now)
    assert second.admitted_s == now
    assert not first.token_s


def test_a_client_that_goes_while_its_model_is_loaded_does_not_stop_the_queue() -> None:
    engine = ollama(max_queue=4)
    first, second = request(0), request(1)
    for r in (first, second):
        engine.submit(r, 0.0)
    engine.cancel(first)
    engine.begin(0.0)
    serve(engine)
    assert second.token_s


def test_a_full_queue_is_told_at_once() -> None:
    engine = ollama(max_queue=1)
    engine.submit(request(0), 0.0)
    engine.submit(request(1), 0.0)
    with pytest.raises(Refused):
        engine.submit(request(2), 0.0)


def test_two_busy_models_share_the_device() -> None:
    alone, together = request(0, model="a"), [request(1, model="a"), request(2, model="b")]
    engine = ollama()
    serve(engine, (0.0, request(8, model="a")), (5.0, request(9, model="b")), (20.0, alone))
    serve(engine, *((40.0, r) for r in together))
    assert together[0].ended_s - 40.0 > (alone.ended_s or 0) - 20.0
