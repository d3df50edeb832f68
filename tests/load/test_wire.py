"""What the bytes of an answer mean, cut anywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.load.plan import PROTOCOLS, Plan
from labkit.load.wire import ANSWERS, Answer, BadAnswer, body, endpoint, error_text
from labkit.workload import Prompt

from .server import content, event, usage

CHAT = b"".join(
    [
        b": ping\n\n",
        event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
        event({"choices": [{"delta": {"reasoning": "hm"}}]}),
        event(content("größer €")),
        b"id: 7\nretry: 10\n",
        event(content("b")),
        event(content("", "stop")),
        event(usage(5)),
        event("[DONE]"),
    ]
)
OLLAMA = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in (
        {"message": {"role": "assistant", "content": ""}, "done": False},
        {"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
        {"message": {"role": "assistant", "content": "größer"}, "done": False},
        {
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "length",
            "load_duration": 2_000_000,
            "prompt_eval_count": 9,
            "prompt_eval_cached_count": 4,
            "prompt_eval_duration": 30_000_000,
            "eval_count": 2,
            "eval_duration": 50_000_000,
        },
    )
)


def answer(protocol: str, *pieces: bytes) -> tuple[Answer, list[tuple[float, int, bool]]]:
    """Feed pieces one clock tick apart."""
    tokens: list[tuple[float, int, bool]] = []
    found = ANSWERS[protocol](lambda *token: tokens.append(token))
    for at, piece in enumerate(pieces):
        found.feed(piece, float(at))
    found.finish(float(len(pieces)))
    return found, tokens


def facts(found: Answer) -> dict[str, Any]:
    """All that does not depend on where the bytes were cut."""
    names = ("chunks", "tokens", "finish_reason", "prompt_tokens", "output_tokens", "cached_tokens")
    times = ("role_s", "first_reasoning_s", "first_token_s", "last_token_s", "done_s")
    return {n: getattr(found, n) for n in names} | {n: getattr(found, n) is None for n in times}


@pytest.mark.parametrize(("protocol", "whole"), [("openai-chat", CHAT), ("ollama-chat", OLLAMA)])
@given(data=st.data())
def test_cut_anywhere(protocol: str, whole: bytes, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        whole = whole.replace(b"\n", b"\r\n")
    if data.draw(st.booleans()):
        whole = b"\xef\xbb\xbf" + whole
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)))))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    in_pieces, tokens = answer(protocol, *pieces)
    at_once, _ = answer(protocol, whole)
    assert facts(in_pieces) == facts(at_once)
    assert in_pieces.flaw() is None
    assert [at for at, _, _ in tokens] == sorted(at for at, _, _ in tokens)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(rubbish=st.lists(st.binary(max_size=80)))
def test_rubbish_is_a_bad_answer_and_nothing_worse(protocol: str, rubbish: list[bytes]) -> None:
    try:
        found, _ = answer(protocol, *rubbish)
    except BadAnswer as error:
        assert str(error)
    else:
        assert found.flaw()


shapes = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("choices", "delta", "content", "text", "finish_reason", "usage", "completion_tokens"),
                    *("message", "response", "done", "done_reason", "eval_count", "load_duration"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(shape=shapes)
def test_json_of_any_shape_is_a_bad_answer_and_nothing_worse(protocol: str, shape: Any) -> None:
    line = json.dumps(shape).encode()
    try:
        found, tokens = answer(
            protocol, line + b"\n" if protocol.startswith("ollama") else b"data: " + line + b"\n\n"
        )
    except BadAnswer as error:
        assert str(error)
    else:
        assert found.corrected == found.tokens - sum(n for _, n, _ in tokens)
        assert found.finish_reason is None or isinstance(found.finish_reason, str)


def test_chat_counts_reasoning_and_content_but_no_role_and_no_empty_chunk() -> None:
    found, tokens = answer("openai-chat", *CHAT.splitlines(keepends=True))
    assert found.chunks == len(tokens) == 3
    assert found.role_s is not None
    assert found.role_s < found.first_token_s == found.first_reasoning_s < found.last_token_s
    assert (found.tokens, found.corrected) == (5, 2)
    assert (found.finish_reason, found.prompt_tokens) == ("stop", 7)


def test_a_role_in_the_first_content_chunk_is_a_token() -> None:
    found, _ = answer("openai-chat", event({"choices": [{"delta": {"role": "assistant", "content": "x"}}]}))
    assert (found.chunks, found.role_s, found.first_token_s) == (1, None, 0.0)


def test_reasoning_content_and_tool_calls_are_tokens() -> None:
    found, _ = answer(
        "openai-chat",
        event({"choices": [{"delta": {"content": None, "reasoning_content": "hm"}}]}),
        event({"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}),
    )
    assert found.chunks == 2
    assert found.first_reasoning_s == found.first_token_s == 0.0
    assert found.last_token_s == 1.0


def test_tokens_that_share_a_read_are_marked() -> None:
    _, tokens = answer("openai-chat", event(content("a")) + event(content("b")), event(content("c")))
    assert [coalesced for _, _, coalesced in tokens] == [False, True, False]


def test_usage_in_every_chunk_tells_tokens_per_chunk() -> None:
    counted = [
        content(text, usage={"completion_tokens": n}) for text, n in (("a b c", 3), ("d", 4), ("e f", 6))
    ]
    _, tokens = answer("openai-chat", *map(event, counted))
    assert [n for _, n, _ in tokens] == [3, 1, 2]


def test_usage_at_the_end_corrects_the_total_only() -> None:
    last = content("c", "stop", usage={"completion_tokens": 12})
    found, tokens = answer("openai-chat", event(content("a")), event(content("b")), event(last))
    assert [n for _, n, _ in tokens] == [1, 1, 1]
    assert (found.tokens, found.corrected) == (12, 9)


def test_without_usage_chunks_are_counted() -> None:
    found, _ = answer("openai-chat", event(content("a b c")), event(content("d", "stop")))
    assert (found.output_tokens, found.tokens) == (None, 2)


@pytest.mark.parametrize("nonsense", [None, 0, -5, "7", 3.5, True, [], 2**63, 10**30])
def test_a_count_that_cannot_be_one_is_none(nonsense: Any) -> None:
    last = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": nonsense}}
    chat, _ = answer("openai-chat", event(content("a")), event(content("b", "stop")), event(last))
    line = {"done": True, "eval_count": nonsense, "load_duration": -1, "prompt_eval_duration": "soon"}
    pieces = (json.dumps(each).encode() + b"\n" for each in ({"response": "a"}, {"response": "b"}, line))
    generated, _ = answer("ollama-generate", *pieces)
    for found in (chat, generated):
        assert (found.tokens, found.corrected, found.unmetered, found.flaw()) == (2, 0, True, None)
    assert generated.load_s is generated.prefill_s is None


def test_usage_without_a_count_of_the_answer_in_each_chunk() -> None:
    chunks = [content("a", usage={"prompt_tokens": 5}), content("b", usage={"completion_tokens": None})]
    found, _ = answer("openai-chat", *map(event, chunks), event(usage(2)), event("[DONE]"))
    assert (found.tokens, found.unmetered, found.flaw()) == (2, False, None)


@pytest.mark.parametrize("protocol", ["openai-chat", "openai-completions"])
def test_a_choice_without_text_is_no_token(protocol: str) -> None:
    said = {"delta": {"content": "a"}, "text": "a"}
    choices = [said, {"delta": None, "text": None}, {"finish_reason": "stop"}]
    found, _ = answer(protocol, *(event({"choices": [choice]}) for choice in choices))
    assert (found.chunks, found.finish_reason, found.flaw()) == (1, "stop", None)


@pytest.mark.parametrize("quiet", [b"data:\n\n", b"data: \r\n\r\n", b"event: error\n\n", b"event: ping\n\n"])
def test_an_event_without_data_is_nothing(quiet: bytes) -> None:
    found, _ = answer("openai-chat", event(content("a")) + quiet + event(content("b", "stop")))
    assert (found.chunks, found.flaw()) == (2, None)


@pytest.mark.parametrize(
    ("protocol", "said", "more"),
    [
        ("openai-chat", event(content("a")) + event("[DONE]"), event(content("b")) + b"data: {oops\n\nx\n"),
        ("ollama-chat", b'{"message":{"content":"a"}}\n{"done":true,"eval_count":1}\n', b'{"error":"x"}\n{'),
    ],
)
def test_what_follows_the_last_word_is_ignored(protocol: str, said: bytes, more: bytes) -> None:
    for pieces in ([said + more], [said, more]):
        found, _ = answer(protocol, *pieces)
        assert (found.chunks, found.tokens, found.done_s, found.flaw()) == (1, 1, 0.0, None)


def test_cached_tokens() -> None:
    used = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 8}}
    assert answer("openai-chat", event({"choices": [], "usage": used}))[0].cached_tokens == 8


def test_data_without_a_space_over_several_lines() -> None:
    found, _ = answer(
        "openai-chat", b'data:{"choices":\ndata: [{"delta":{"content":"x"}}]}\n\ndata:[DONE]\n\n'
    )
    assert (found.chunks, found.done_s) == (1, 0.0)


def test_last_event_without_its_newlines() -> None:
    found, _ = answer("openai-chat", event(content("x")), b"data: [DONE]")
    assert found.flaw() is None


def test_completions() -> None:
    texts = [{"choices": [{"text": text, "finish_reason": None}]} for text in ("", "a", "b")]
    found, _ = answer("openai-completions", *map(event, texts), event("[DONE]"))
    assert (found.chunks, found.first_token_s) == (2, 1.0)


def test_ollama_durations_and_counts() -> None:
    found, _ = answer("ollama-chat", *OLLAMA.splitlines(keepends=True))
    assert (found.load_s, found.prefill_s, found.decode_s) == (0.002, 0.03, 0.05)
    assert (found.prompt_tokens, found.output_tokens, found.cached_tokens) == (9, 2, 4)
    assert (found.role_s, found.first_reasoning_s, found.first_token_s) == (0.0, 1.0, 1.0)
    assert found.finish_reason == "length"


def test_ollama_generate() -> None:
    found, _ = answer("ollama-generate", b'{"response":"a","done":false}\n', b'{"response":"","done":true}\n')
    assert (found.chunks, found.first_token_s, found.done_s) == (1, 0.0, 1.0)


@pytest.mark.parametrize(
    ("protocol", "pieces", "flaw"),
    [
        ("openai-chat", [event(content("a"))], "without finish_reason and without [DONE]"),
        ("openai-chat", [], "without finish_reason and without [DONE]"),
        ("openai-chat", [event("[DONE]")], "neither a token nor a finish_reason"),
        ("openai-chat", [event(content("", "stop"))], None),
        ("openai-chat", [event(content("a", "length"))], None),
        ("openai-chat", [event(content("a")), event("[DONE]")], None),
        ("ollama-chat", [b'{"message":{"content":"a"},"done":false}\n'], "without a line with done: true"),
        ("ollama-chat", [b'{"message":{"content":""},"done":true}\n'], "neither a token nor a finish_reason"),
        ("ollama-chat", [b'{"done":true,"done_reason":"load"}\n'], "gave up: finish_reason 'load'"),
        ("openai-chat", [event(content("a", "error")), event("[DONE]")], "gave up: finish_reason 'error'"),
    ],
)
def test_what_makes_an_answer_whole(protocol: str, pieces: list[bytes], flaw: str | None) -> None:
    found, _ = answer(protocol, *pieces)
    assert found.flaw() is None if flaw is None else flaw in found.flaw()


@pytest.mark.parametrize(
    ("protocol", "piece", "quoted"),
    [
        ("openai-chat", b"data: {broken\n\n", "{broken"),
        ("openai-chat", b"dota: {}\n\n", "dota"),
        ("openai-chat", b"data: [1]\n\n", "[1]"),
        ("openai-chat", event({"error": {"message": "out of memory"}}), "out of memory"),
        ("openai-chat", b'event: error\ndata: {"message": "no room"}\n\n', "no room"),
        ("ollama-chat", b"{broken\n", "{broken"),
        ("ollama-chat", b'{"error":"model runner has stopped"}\n', "model runner has stopped"),
        ("ollama-chat", b'{"message":[1]}\n', "[1]"),
    ],
)
def test_bad_answers_are_quoted(protocol: str, piece: bytes, quoted: str) -> None:
    with pytest.raises(BadAnswer) as bad:
        answer(protocol, piece)
    assert quoted in str(bad.value)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (b'{"error":"server busy"}', "server busy"),
        (b'{"error":{"message":"server busy","type":"api_error"}}', "server busy"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"object":"error","message":"too long"}', "too long"),
        (b"<html>bad gateway</html>", "<html>bad gateway</html>"),
        (b"\xff" * 1000, "�" * 300),
        (b"", ""),
        (b"[1]", "[1]"),
    ],
)
def test_error_text(reply: bytes, text: str) -> None:
    assert error_text(reply) == text


@pytest.mark.parametrize("base", ["", "/", "/v1", "/v1/"])
def test_endpoint(base: str) -> None:
    assert endpoint(base, "openai-chat") == "/v1/chat/completions"
    assert endpoint("/gateway" + base, "ollama-generate") == "/gateway/api/generate"


def asked(protocol: str, **fields: Any) -> dict[str, Any]:
    prompt = Prompt([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], 5)
    given = Plan(url="http://h", protocol=protocol, model="m", prompts=[prompt], requests=1, **fields)
    return dict(json.loads(body(given, prompt)))


def test_bodies() -> None:
    chat = asked("openai-chat", ignore_eos=True)
    assert (chat["max_tokens"], chat["stream"], chat["ignore_eos"]) == (5, True, True)
    assert chat["stream_options"] == {"include_usage": True}
    assert len(chat["messages"]) == 2
    assert asked("openai-completions")["prompt"] == asked("ollama-generate")["prompt"] == "s\nu"
    assert asked("ollama-chat")["options"] == {"num_predict": 5, "temperature": 0.0}


def test_extra_body_is_merged() -> None:
    found = asked("openai-chat", extra_body={"stream_options": {"continuous_usage_stats": True}, "top_k": 1})
    assert found["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert found["top_k"] == 1
