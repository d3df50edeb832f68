"""The contract suite: assertions that can fail, servers that are no engine, and both real engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from small_server import RUNNER, Reply, Server, serving

from labkit import contract, paths
from labkit.contract_checks import VERBS, load_checks
from labkit.engines import models
from labkit.engines.ollama import Ollama
from labkit.engines.ports import free_port
from labkit.engines.simulated import SimulatedOllama, SimulatedVLLM
from labkit.engines.vllm import VLLM
from labkit.errors import EngineError, LabkitError, ModelError, SchemaError, UsageError

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"


def check(expected: str, one: str = "c", before: str = "") -> str:
    """The text of one check for Ollama."""
    return f"""
[[check]]
id = "{one}"
title = "A title."
request = "POST /{one}"
{before}
[check.ollama]
{expected}
"""


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Puts a contract of these checks in the place of the course's own."""

    def written(*checks: str) -> Path:
        path = tmp_path / "contract.toml"
        path.write_text("schema_version = 1\n" + "".join(checks))
        monkeypatch.setattr(paths, "data", lambda: tmp_path)
        return path

    return written


def sse(*chunks: Any) -> Reply:
    """A stream of server-sent events."""
    events = [f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}\n\n" for chunk in chunks]
    return Reply("".join(events), type=SSE)


def delta(finish: str | None = None, **delta: str) -> dict[str, Any]:
    """A chunk of an OpenAI-style chat."""
    return {"choices": [{"delta": delta, "finish_reason": finish}]}


ROLE, WORD, END = delta(role="assistant", content=""), delta(content="a"), delta("stop")
USAGE = {"choices": [], "usage": {"completion_tokens": 2}}
LINES = '{"message":{"content":"a"},"done":false}\n{"message":{"content":""},"done":true,"eval_count":1}\n'

FACTS: list[tuple[str, Reply, Reply, str]] = [
    # the expectation, a reply that keeps to it, one that does not, what is then told
    ('text = "a"', Reply("a"), Reply("b"), '"b"'),
    ('type = "text/plain"', Reply("a", type="text/plain"), Reply("a", type="text/html"), '"text/html"'),
    ('"json.a" = "x"', Reply({"a": "x"}), Reply({"a": "y"}), '"y"'),
    ('"json.a" = "x"', Reply({"a": "x"}), Reply("no JSON"), "absent"),
    ('"json.a" = 1', Reply({"a": 1}), Reply({"a": True}), "true"),
    ('"json.a" = 1', Reply({"a": 1}), Reply({"a": "1"}), '"1"'),
    ('"json.a.1.b" = 1', Reply({"a": [0, {"b": 1}]}), Reply({"a": [0]}), "absent"),
    ('"json.a" = { contains = "x" }', Reply({"a": "xy"}), Reply({"a": "y" * 200}), '"' + "y" * 159 + "…"),
    ('"json.a" = { contains = "x" }', Reply({"a": ["x"]}), Reply({"a": ["xy"]}), '["xy"]'),
    ('"json.*.a" = { contains = "x" }', Reply([{"a": "x"}, 0]), Reply([{"a": "y"}, 0]), '["y", null]'),
    ('"json.*.a" = { contains = "x" }', Reply([{"a": "x"}]), Reply({"a": "x"}), "absent"),
    ('"json.a" = { lacks = "x" }', Reply({"a": "y"}), Reply({"a": "xy"}), '"xy"'),
    ('"json.a" = { lacks = "x" }', Reply({"a": "y"}), Reply({}), "absent"),
    ('"json.a" = { exists = true }', Reply({"a": 0}), Reply({"a": None}), "absent"),
    ('"json.a" = { exists = false }', Reply({}), Reply({"a": 0}), "0"),
    ('"json.a" = { count = 1 }', Reply({"a": [7]}), Reply({"a": [7, 8]}), "[7, 8]"),
    ('"json.a" = { count = 1 }', Reply({"a": [7]}), Reply({"a": "7"}), '"7"'),
    ('"json.a" = { between = [1, 3] }', Reply({"a": 3}), Reply({"a": 4}), "4"),
    ('"json.a" = { between = [1, 3] }', Reply({"a": 1}), Reply({"a": 0}), "0"),
    ('"json.a" = { between = [1, 3] }', Reply({"a": 1}), Reply({}), "absent"),
    (
        '"stream.chunks" = "role, content, finish, usage, [DONE]"',
        sse(ROLE, WORD, WORD, END, USAGE, "[DONE]"),
        sse(ROLE, WORD, END, "nonsense", {"error": {}}, {"error": "died"}),
        '"role, content, finish, no JSON, nothing, error"',
    ),
    (
        '"stream.chunks" = "role+content, content+finish"',
        sse(delta(role="assistant", content="a"), delta("length", content="b")),
        sse(ROLE, WORD, END),
        '"role, content, finish"',
    ),
    (
        '"stream.chunks" = "content, finish+usage"',
        Reply(LINES, type=NDJSON),
        Reply(LINES),
        "absent",
    ),
    ('"stream.last.eval_count" = 1', Reply(LINES, type=NDJSON), Reply("", type=NDJSON), "absent"),
    ('"stream.last.usage.completion_tokens" = 2', sse(WORD, USAGE, "[DONE]"), sse(WORD), "absent"),
]


@pytest.mark.parametrize(("expected", "right", "wrong", "got"), FACTS, ids=[fact[0] for fact in FACTS])
async def test_an_expectation_holds_and_fails(
    write: Write, expected: str, right: Reply, wrong: Reply, got: str
) -> None:
    write(check(f"status = 200\n{expected}"))
    for reply, status in ((right, "held"), (wrong, "differs")):
        async with serving({"/c": reply}) as server:
            (outcome,) = await contract.run(*server)
        assert outcome.status == status
        assert outcome.got["status"] == "200"
    (fact,) = outcome.expected.keys() - {"status"}
    assert outcome.got[fact] == got


async def test_another_status_differs(write: Write) -> None:
    write(check("status = 200"))
    async with serving({"/c": Reply({}, status=503)}) as server:
        (outcome,) = await contract.run(*server)
    assert (outcome.status, outcome.got, outcome.expected) == (
        "differs",
        {"status": "503"},
        {"status": "200"},
    )


def test_every_kind_of_assertion_is_tried_above() -> None:
    tried = {verb for verb in VERBS if any(f"{{ {verb} =" in expected for expected, *_ in FACTS)}
    assert tried == VERBS.keys() - {"equals"}


def test_every_expectation_of_the_course_can_fail() -> None:
    for one in load_checks().values():
        for wanted in (wanted for facts in one.expected.values() for wanted in facts.values()):
            assert {str(wanted)} != {wanted.got(value) for value in (None, "", "another")}, (one.id, wanted)


def test_every_generated_prompt_is_used_and_every_answer_is_bounded() -> None:
    for one in load_checks().values():
        assert ("{long}" in json.dumps(one.body)) == (one.long_prompt_words > 0), one.id
        if "completions" in one.path and one.id != "completions-default-length":
            assert one.body is not None
            assert 0 < one.body["max_tokens"] <= 64 or one.body["stop"], one.id
        if one.path == "/api/chat":
            assert one.body is not None
            assert one.body["messages"] == [] or one.body["options"]["num_predict"] <= 64, one.id


async def test_what_is_sent(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port(0)}")
    seen: list[tuple[Any, Any]] = []

    async def record(request: web.Request) -> web.Response:
        seen.append((request.headers.get("Authorization"), await request.json()))
        return web.json_response({"model": "m"})

    body = 'body = { model = "{model}", messages = [{ content = "{long}" }], n = 1 }\nlong_prompt_words = 3'
    right = 'status = 200\n"json.model" = "{model}"'
    other = 'body = {}\nheaders = { Authorization = "Bearer other" }'
    write(check(right, "one", body), check(right, "two", other), check("status = 200", "three"))
    async with serving({"/one": record, "/two": record}) as server:
        url = server.url + "/v1/"
        outcomes = await contract.run(url, "ollama", "m", api_key="secret", ids=["two", "one"])
    assert [outcome.check.id for outcome in outcomes] == ["two", "one"]
    assert {outcome.status for outcome in outcomes} == {"held"}
    long = {"model": "m", "messages": [{"content": "word word word "}], "n": 1}
    assert seen == [("Bearer other", {}), ("Bearer secret", long)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"engine": "triton"}, ["'triton'", "ollama, vllm"]),
        ({"ids": ["n", "nope"]}, ["nope", "unknown-model"]),
        ({"engine": "vllm", "ids": ["native-ps"]}, ["native-ps", "checks of vllm"]),
    ],
)
async def test_what_cannot_be_asked_is_told_before_anything_is_sent(
    given: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        await contract.run(**{"url": "http://127.0.0.1:9", "engine": "ollama", "model": "m", **given})
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "127.0.0.1:{port}", "http://127.0.0.1:x", ""])
async def test_a_dead_server_is_one_error(url: str) -> None:
    with pytest.raises(EngineError, match="does not answer") as caught:
        await contract.run(url.format(port=free_port(0)), "ollama", "m")
    assert caught.value.fix


@pytest.mark.parametrize(
    ("served", "asked", "handlers", "error", "words"),
    [
        ("neither", "ollama", {}, EngineError, ["/api/version answered 404", "/version answered 404"]),
        ("neither", "vllm", {"/version": Reply("1.0")}, EngineError, ["/version answered 200 without"]),
        ("vllm", "ollama", {}, EngineError, ["it is vllm"]),
        ("ollama", "vllm", {}, EngineError, ["it is ollama"]),
        ("ollama", "ollama", {"/v1/models": Reply({"data": [{"id": "x"}]})}, ModelError, ["it has x"]),
        ("ollama", "ollama", {"/v1/models": Reply({"data": None})}, ModelError, ["no models"]),
        ("vllm", "vllm", {"/v1/models": Reply("key?", status=401)}, ModelError, ["401: key?", "api_key"]),
    ],
)
async def test_a_foreign_server_is_one_error(
    served: str, asked: str, handlers: dict[str, Reply], error: type[LabkitError], words: list[str]
) -> None:
    async with serving(handlers, served) as server:
        with pytest.raises(error) as caught:
            await contract.run(server.url, asked, "m")
    assert all(word in str(caught.value) for word in words), str(caught.value)


async def test_an_answer_that_breaks_off_is_an_error_and_the_rest_goes_on(write: Write) -> None:
    async def hang_up(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Length": "10"})
        await reply.prepare(request)
        assert request.transport is not None
        request.transport.abort()
        return reply

    write(check("status = 200"), check("status = 200", "d"))
    async with serving({"/c": hang_up, "/d": Reply({})}) as server:
        outcomes = await contract.run(*server)
    assert [outcome.status for outcome in outcomes] == ["error", "held"]
    assert "no reply" in outcomes[0].got["status"]


async def test_an_answer_without_an_end_is_cut_off(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "LIMIT_S", 0.3)

    async def trickle(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse()
        await reply.prepare(request)
        while True:
            await reply.write(b" ")
            await asyncio.sleep(0.05)

    write(check("status = 200"))
    async with serving({"/c": trickle}) as server:
        (outcome,) = await contract.run(*server)
    assert outcome.status == "error"
    assert "TimeoutError" in outcome.got["status"]


async def test_a_server_that_goes_away_halfway_is_one_error(write: Write) -> None:
    async def leave(request: web.Request) -> web.Response:
        for site in list(request.app[RUNNER].sites):
            await site.stop()
        return web.json_response({})

    write(check("status = 200"), check("status = 200", "d"))
    async with serving({"/c": leave}) as server:
        with pytest.raises(EngineError, match="does not answer"):
            await contract.run(*server)


RIGHT = check("status = 200")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('title = "A title."', "", ["check c, field title"]),
        ('id = "c"', "id = 5", ["field id"]),
        ("POST /c", "PATCH /c", ["check c, field request", "GET or POST"]),
        ("POST /c", "POST", ["check c, field request"]),
        ("[check.ollama]\nstatus = 200", "", ["check c, field ollama and vllm"]),
        ("[check.ollama]", "[check.olama]", ["check c, field olama", "not known"]),
        ("[check.ollama]", "body = 5\n[check.ollama]", ["check c, field body"]),
        ("status = 200", 'text = "x"', ["check c, ollama, field status"]),
        ("status = 200", 'status = 200\n"jason.a" = 1', ["check c, ollama, field jason.a"]),
        ("status = 200", 'status = 200\n"text.a" = 1', ["check c, ollama, field text.a"]),
        ("status = 200", 'status = 200\n"json.*" = 1', ["check c, ollama, field json.*"]),
        ("status = 200", 'status = 200\ntext = { has = "x" }', ["ollama, field text", "contains"]),
        ("status = 200", 'status = 200\ntext = { contains = "x", lacks = "y" }', ["ollama, field text"]),
        ("status = 200", "status = 200\ntext = { contains = 5 }", ["field text", "contains should"]),
        ("status = 200", 'status = 200\ntext = { lacks = "" }', ["field text", "lacks should"]),
        ("status = 200", 'status = 200\ntext = { exists = "yes" }', ["field text", "exists should"]),
        ("status = 200", "status = 200\njson = { count = true }", ["field json", "count should"]),
        ("status = 200", "status = 200\njson = { between = [3, 1] }", ["field json", "between should"]),
        ("status = 200", "status = 200\njson = [1]", ["field json", "equals should"]),
    ],
)
def test_a_wrong_data_file_names_the_field(write: Write, old: str, new: str, words: list[str]) -> None:
    assert old in RIGHT
    path = write(RIGHT.replace(old, new))
    with pytest.raises(SchemaError) as caught:
        load_checks()
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)


def test_an_id_is_there_once(write: Write) -> None:
    write(RIGHT, RIGHT)
    with pytest.raises(SchemaError, match="c is there twice"):
        load_checks()


async def test_the_table_and_the_differences_of_two_servers(write: Write) -> None:
    write(check('status = 200\n"json.a" = { between = [1, 3] }'), check("status = 200", "d"))
    runs = []
    for value in (1, 3, 4):
        async with serving({"/c": Reply({"a": value}), "/d": Reply({})}) as server:
            runs.append(await contract.run(*server))
    one, also_right, wrong = runs
    assert contract.differences(one, also_right) == []
    assert contract.differences(one, wrong) == [
        "c: json.a is between 1 and 3 on the first, 4 on the second",
    ]
    assert contract.differences(one[:1], wrong[1:]) == [
        "c: asked of the first only",
        "d: asked of the second only",
    ]
    lines = contract.table(wrong).splitlines()
    assert lines[1] == "differs c: A title."
    assert lines[3].split() == ["json.a", "4", "between", "1", "and", "3"]
    assert lines[-1] == "1 held, 1 differs, 0 error"


@asynccontextmanager
async def real_ollama() -> AsyncIterator[Server]:
    """Ollama with the fair pair's model; ``max_queue`` is one that nobody else starts a server with."""
    engine = Ollama(port=free_port(0))
    await engine.start(context_length=4096, max_queue=78)
    try:
        side = await models.ensure("smollm2:135m", engine=engine)
        await engine.load(side.served_name)
        yield Server(engine.url, "ollama", side.served_name)
    finally:
        await engine.stop()


@asynccontextmanager
async def real_vllm() -> AsyncIterator[Server]:
    """vLLM with the fair pair's model."""
    engine = VLLM(port=free_port(0))
    await engine.start(model="smollm2:135m", max_model_len=4096, max_num_seqs=5, kv_cache_gib=0.25)
    try:
        yield Server(engine.url, "vllm", "smollm2:135m")
    finally:
        await engine.stop()


@asynccontextmanager
async def simulated_ollama() -> AsyncIterator[Server]:
    """What labkit simulates of it, with the model by the name that the real one has for it."""
    engine = SimulatedOllama(port=free_port(0))
    await engine.start(context_length=4096)
    try:
        yield Server(engine.url, "ollama", models.find("smollm2:135m").ollama.name)
    finally:
        await engine.stop()


@asynccontextmanager
async def simulated_vllm() -> AsyncIterator[Server]:
    """What labkit simulates of it."""
    engine = SimulatedVLLM(port=free_port(0))
    await engine.start(max_model_len=4096)
    try:
        yield Server(engine.url, "vllm", "smollm2:135m")
    finally:
        await engine.stop()


Serve = Callable[[], AbstractAsyncContextManager[Server]]


REMAINING: dict[str, list[str]] = {"ollama": [], "vllm": []}
"""What the simulated engines answer in another way than the real ones: nothing that the suite asks."""


async def asked(serve: Serve) -> list[contract.Outcome]:
    """Every check, which must have held."""
    async with serve() as server:
        outcomes = await contract.run(*server)
    print(contract.table(outcomes))
    wrong = [outcome for outcome in outcomes if outcome.status != "held"]
    assert not wrong, contract.table(wrong)
    return outcomes


@pytest.mark.parametrize("serve", [simulated_ollama, simulated_vllm])
async def test_a_simulated_engine_answers_as_its_engine_does(serve: Serve) -> None:
    await asked(serve)


@pytest.mark.engines
@pytest.mark.parametrize(
    ("engine", "real", "simulated"),
    [("ollama", real_ollama, simulated_ollama), ("vllm", real_vllm, simulated_vllm)],
)
async def test_the_real_engine_holds_too_and_nothing_differs(
    engine: str, real: Serve, simulated: Serve
) -> None:
    assert contract.differences(await asked(real), await asked(simulated)) == REMAINING[engine]
