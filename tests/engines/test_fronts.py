"""Proxies in front of small engines: what they share out, that nothing is lost, and that they end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from labkit import cli, migration
from labkit.budget import Budget
from labkit.bundle import Run
from labkit.designs import Load, design
from labkit.engines import install, install_nginx, process
from labkit.engines.base import Engine
from labkit.engines.fronts.front import Front
from labkit.engines.fronts.litellm import LiteLLM
from labkit.engines.fronts.nginx import Nginx
from labkit.engines.fronts.nginx_config import config
from labkit.engines.fronts.route import Route
from labkit.engines.fronts.splitter import Splitter
from labkit.errors import EngineError, NotInstalled, PortTaken, StartFailed, UsageError
from labkit.experiments import Arm
from labkit.sim.server.split import side
from labkit.workload import Workload
from tests.small_engine import SmallEngine

BUDGET = Budget("test", (1,), (1,), rounds=30, max_s=None, repeats=1)
SLOW = Workload(output_tokens=30)
"""Answers that last, so that a share does too."""

ASKED = {"model": "m", "max_tokens": 3, "stream": True, "messages": []}


@asynccontextmanager
async def pair(slots: int = 4) -> AsyncIterator[dict[str, Engine]]:
    """Two small engines that answer."""
    engines = {name: SmallEngine(name, slots=slots) for name in ("ollama", "vllm")}
    for engine in engines.values():
        await engine.start()
    try:
        yield dict(engines)
    finally:
        for engine in engines.values():
            await engine.stop()


@asynccontextmanager
async def running(front: Front) -> AsyncIterator[Front]:
    await front.start()
    try:
        yield front
    finally:
        await front.stop()


async def asked(front: Front, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        return await client.post(f"{front.url}/v1/chat/completions", json=ASKED, headers=headers)


async def moved(front: Front, folder: Path, shares: tuple[float, ...], users: int = 4) -> Run:
    """A run in which the share goes from 0 to each of these."""
    load = Load((users,), shares=shares)
    arms = [Arm(front.name, front, "m", settings={"sticky": front.sticky})]
    made = design("shift", arms, load, workload=SLOW, budget=BUDGET, seed=1, folder=folder)
    return await made.run()


# the configuration


def test_the_configuration_says_what_a_stream_and_ollama_need() -> None:
    text = config({"ollama": "http://127.0.0.1:11434", "vllm": "http://10.0.0.7:8000"}, port=1, share=12.5)
    assert "12.5% vllm;" in text
    assert 'split_clients "$request_id" $side' in text
    assert re.search(
        r"map \$side \$host_of_side \{\n    ollama 127.0.0.1:11434;\n    vllm 10.0.0.7:8000;", text
    )
    for line in ("proxy_buffering off", "proxy_next_upstream off", "listen 127.0.0.1:1;"):
        assert line in text


@pytest.mark.parametrize(("share", "line"), [(0, "* ollama;"), (100, "* vllm;")])
def test_all_or_nothing_is_no_percentage(share: float, line: str) -> None:
    text = config({"ollama": "http://127.0.0.1:1", "vllm": "http://127.0.0.1:2"}, port=3, share=share)
    assert line in text
    assert "% vllm" not in text


@pytest.mark.parametrize(
    ("url", "share", "word"),
    [
        ("http://127.0.0.1:2", 101, "0 to 100"),
        ("http://127.0.0.1:2", -1, "0 to 100"),
        ("127.0.0.1:2", 10, "no such address"),
        ("http://127.0.0.1:2;}", 10, "no such address"),
        ("http://127.0.0.1:99999", 10, "no such address"),
        ("http://127.0.0.1:2/api", 10, "path /api"),
    ],
)
def test_what_nginx_cannot_do_is_refused(url: str, share: float, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        config({"ollama": "http://127.0.0.1:1", "vllm": url}, port=3, share=share)


def test_no_key_is_in_a_file() -> None:
    engine = SmallEngine("vllm")
    engine.api_key = "secret"
    front = LiteLLM({"vllm": engine}, "m")
    assert front.api_key not in (written := json.dumps(front.config()))
    assert "secret" not in written
    assert Nginx({"vllm": engine}).api_key == "secret", "a client's key is handed on"
    text = config({"vllm": "http://127.0.0.1:2"}, port=3, share=0)
    noted = text[text.index("log_format") : text.index("access_log")]
    assert "authorization" not in noted
    assert "$who" not in noted


# the splitter


async def test_the_splitter_moves_a_load_and_loses_nothing(tmp_path: Path) -> None:
    async with pair() as engines, running(Splitter(engines)) as front:
        run = await moved(front, tmp_path / "run", (50, 100, 0))
    assert migration.account(run)["lost"] == 0
    assert set(run.requests["outcome"]) == {"ok"}
    table = migration.phases(run)
    assert table["wanted"].to_list() == [0, 50, 100, 0]
    assert table["measured"].to_list()[0] == 0
    assert table["measured"].to_list()[2:] == [100, 0]
    assert table["vllm"][1] > 0
    assert table["ollama"][1] > 0
    counted = int(table["planned"].sum()) + migration.moving(run).height
    assert counted == migration.account(run)["planned"]


async def test_a_sticky_user_moves_once(tmp_path: Path) -> None:
    async with pair() as engines, running(Splitter(engines, sticky=True)) as front:
        run = await moved(front, tmp_path / "run", (50, 100), users=6)
    still = run.requests.join(migration.moving(run), on="id", how="anti")
    for (_user,), rows in still.filter(~still["warmup"]).group_by("user"):
        order = rows.sort("id")["served_by"].to_list()
        assert order == sorted(order), "ollama first, then vllm, and never back"
    assert migration.phases(run)["n"].to_list() == [6, 6, 6], "users are counted, not requests"


async def test_an_engine_that_is_gone_is_said_and_named(tmp_path: Path) -> None:
    async with pair() as engines, running(Splitter(engines, share=100)) as front:
        await engines["vllm"].stop()
        answer = await asked(front)
    assert answer.status_code == 502
    assert answer.headers["x-served-by"] == "vllm"


def test_a_growing_share_moves_each_key_once() -> None:
    keys = [f"user {n}" for n in range(2000)]
    for share in (10, 35):
        hits = sum(side(key, share) == "vllm" for key in keys)
        low, high = migration.wilson(hits, len(keys), z=3.3)
        assert low <= share / 100 <= high
    assert {k for k in keys if side(k, 10) == "vllm"} < {k for k in keys if side(k, 35) == "vllm"}


# one engine by several ways


async def test_each_way_is_an_arm_and_the_engine_counts_all(tmp_path: Path) -> None:
    async with pair() as engines:
        route = Route(engines["vllm"])
        behind = {"vllm": engines["vllm"]}
        ways = {"direct": None, "through": Splitter(behind, share=100)}
        arms = [
            Arm(name, route, "m", start=lambda say, front=front: route.take(front, say))
            for name, front in ways.items()
        ]
        workload = Workload(output_tokens=3)
        made = design(
            "gateway", arms, Load((1,)), workload=workload, budget=BUDGET, seed=1, folder=tmp_path / "run"
        )
        run = await made.run()
        await route.stop()
    assert run.verdict.word in ("clean", "suspect"), "its own count says that nobody else was there"
    assert [run.meta["arms"][name]["engine"] for name in run.arms] == ["vllm", "splitter"]
    table = migration.added(run)
    assert table["n"].to_list() == [30, 30]
    assert table["added_ttft_ms"][0] == 0
    assert table["added_ttft_ms_low"][1] <= table["added_ttft_ms"][1] <= table["added_ttft_ms_high"][1]


async def test_live_and_simulated_engines_do_not_stand_behind_one_proxy() -> None:
    engines = {"ollama": SmallEngine("ollama"), "vllm": SmallEngine("vllm", time_scale=2)}
    with pytest.raises(UsageError, match="one kind and pace"):
        await Splitter(engines).facts()


# the shell


def test_the_shell_prints_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    urls = ["--ollama", "http://127.0.0.1:1", "--vllm", "http://127.0.0.1:2"]
    assert cli.main(["proxy", *urls, "--share", "25", "--sticky", "--print-config"]) == 0
    out = capsys.readouterr().out
    assert "25% vllm;" in out
    assert 'split_clients "$who" $side' in out


@pytest.mark.parametrize(
    ("vllm", "share", "code", "word"),
    [
        ("http://127.0.0.1:1", "10", 2, "give two addresses"),
        ("http://127.0.0.1:2", "120", 2, "0 to 100"),
        ("http://127.0.0.1:2", "10", 1, "does not answer like Ollama"),
    ],
)
def test_the_shell_says_what_is_wrong_before_it_starts(
    vllm: str, share: str, code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["proxy", "--ollama", "http://127.0.0.1:1", "--vllm", vllm, "--share", share]
    assert cli.main(asked) == code
    assert word in capsys.readouterr().err


# installs


async def test_no_nginx_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(install.FINDERS, "nginx", lambda: None)
    with pytest.raises(NotInstalled, match="labkit engines install nginx"):
        await Nginx({"vllm": SmallEngine("vllm")}).start()


def test_a_system_without_packages_is_told_to_bring_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(install_nginx.shutil, "which", lambda _name: None)
    with pytest.raises(EngineError, match="with your package manager"):
        install_nginx.plan(install.pins("nginx"), tmp_path, lambda _line: None)


def test_libraries_of_nginx_are_read_from_its_dependencies() -> None:
    said = (
        "nginx\n  Depends: libc6\n  Depends: libssl3\n  Depends: zlib1g\n  Depends: iproute2\n  Breaks: libx"
    )
    assert install_nginx.LIBRARY.findall(said) == ["libssl3", "zlib1g"]


# a real nginx


@pytest.mark.engines
async def test_nginx_moves_a_load_and_loses_nothing(tmp_path: Path) -> None:
    async with pair() as engines, running(Nginx(engines)) as front:
        assert isinstance(front, Nginx)
        run = await moved(front, tmp_path / "run", (50, 100, 0))
        lines = [json.loads(line) for line in front.access_log().read_text().splitlines()]
    account = migration.account(run)
    assert account["lost"] == 0
    assert set(run.requests["outcome"]) == {"ok"}, run.requests["error"].unique()
    table = migration.phases(run)
    assert table["measured"].to_list()[0] == 0
    assert table["measured"].to_list()[2:] == [100, 0]
    # what nginx noted and what its answers said is one account
    noted = Counter(line["served_by"] for line in lines if line["path"].startswith("/v1"))
    assert noted == Counter(run.requests["served_by"].to_list())


@pytest.mark.engines
async def test_nginx_hands_tokens_on_as_they_come() -> None:
    async with pair() as engines, running(Nginx(engines, share=100)) as front:
        question = {"role": "user", "content": "a long one " * 30_000}  # nginx must not want a file for it
        long = {**ASKED, "max_tokens": 40, "messages": [question]}
        async with (
            httpx.AsyncClient(trust_env=False, timeout=20) as client,
            client.stream("POST", f"{front.url}/v1/chat/completions", json=long) as answer,
        ):
            pieces = [piece async for piece in answer.aiter_raw()]
    assert len(pieces) > 20


@pytest.mark.engines
async def test_nginx_finishes_a_stream_that_a_new_share_finds_in_flight() -> None:
    async with pair() as engines, running(Nginx(engines)) as front:
        long = {**ASKED, "max_tokens": 200}
        async with (
            httpx.AsyncClient(trust_env=False, timeout=20) as client,
            client.stream("POST", f"{front.url}/v1/chat/completions", json=long) as answer,
        ):
            pieces = answer.aiter_text()
            said = await anext(pieces)
            await front.shift(100)
            later = (await asked(front)).headers["x-served-by"]
            said += "".join([piece async for piece in pieces])
    assert answer.headers["x-served-by"] == "ollama"
    assert later == "vllm"
    assert said.count('"content"') == 200
    assert said.rstrip().endswith("[DONE]")


@pytest.mark.engines
async def test_nginx_and_the_splitter_send_a_user_to_the_same_side() -> None:
    async with pair() as engines, running(Nginx(engines, share=37.5, sticky=True)) as front:
        for user in (f"user-{n}" for n in range(40)):
            assert (await asked(front, **{"X-User": user})).headers["x-served-by"] == side(user, 37.5)


@pytest.mark.engines
async def test_nginx_says_what_it_does_not_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.engines.fronts.nginx.config", lambda *_a, **_k: "events { nonsense; }")
    with pytest.raises(StartFailed, match='unknown directive "nonsense"'):
        await Nginx({"vllm": SmallEngine("vllm")}).start()


@pytest.mark.engines
async def test_nginx_on_a_taken_port_names_its_owner() -> None:
    async with pair() as engines:
        port = int(engines["vllm"].url.rpartition(":")[2])
        with pytest.raises(PortTaken, match=f"port {port} is taken|taken by"):
            await Nginx(engines, port=port).start()
    assert not process.states("nginx")


KERNEL = """
import asyncio, sys
from labkit.engines.fronts.nginx import Nginx
from tests.small_engine import SmallEngine

async def main():
    engine = SmallEngine("vllm")
    await engine.start()
    front = Nginx({"vllm": engine}, share=100)
    await front.start()
    print(front.server.pid, flush=True)
    for share in range(100):
        await front.shift(share)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.engines
def test_a_killed_kernel_takes_nginx_and_its_workers_along() -> None:
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, "-c", KERNEL], stdout=subprocess.PIPE, text=True, cwd=root, env=env
    ) as kernel:
        assert kernel.stdout is not None
        master = psutil.Process(int(kernel.stdout.readline()))
        family = [master, *master.children()]
        supervisor = psutil.Process(master.ppid())
        assert len(family) >= 2
        kernel.send_signal(signal.SIGKILL)
    _, still = psutil.wait_procs([*family, supervisor], timeout=15)
    assert not still
    assert not process.states("nginx")


# a real LiteLLM


@pytest.mark.engines
async def test_litellm_stands_in_front_of_an_engine(tmp_path: Path) -> None:
    async with pair() as engines:
        route = Route(engines["vllm"])
        front = LiteLLM({"vllm": engines["vllm"]}, "m")
        arms = [Arm("LiteLLM", route, "m", start=lambda say: route.take(front, say))]
        made = design(
            "gateway",
            arms,
            Load((1,), rounds=3),
            workload=Workload(output_tokens=3),
            budget=BUDGET,
            seed=1,
            folder=tmp_path / "run",
        )
        run = await made.run()
        await route.stop()
    assert set(run.requests["outcome"]) == {"ok"}, run.requests["error"].unique()
    assert set(run.requests["served_by"]) == {"vllm"}
    assert run.meta["arms"]["LiteLLM"]["facts"]["version"] == install.pins("litellm")["version"]
    assert not process.states("litellm")


SHELL = """
import asyncio, sys
from labkit import cli
from labkit.engines.ports import free_port
from labkit.engines.simulated import SimulatedOllama, SimulatedVLLM

async def start():
    urls = []
    for made in (SimulatedOllama, SimulatedVLLM):
        engine = made.beside(free_port(0))
        await engine.start()
        urls.append(engine.url)
    return urls

ollama, vllm = asyncio.run(start())
asked = ["proxy", "--ollama", ollama, "--vllm", vllm, "--share", "100", "--port", sys.argv[1]]
sys.exit(cli.main(asked))
"""
"""A shell with two simulated engines, which end with it."""


@pytest.mark.engines
def test_the_shell_serves_until_it_is_interrupted() -> None:
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    port = process.free_port(0)
    with subprocess.Popen(
        [sys.executable, "-c", SHELL, str(port)], stdout=subprocess.PIPE, text=True, cwd=root, env=env
    ) as shell:
        assert shell.stdout is not None
        url = shell.stdout.readline().strip()
        answer = httpx.get(f"{url}/v1/models", timeout=20, trust_env=False)
        shell.send_signal(signal.SIGINT)
    assert (url, answer.headers["x-served-by"]) == (f"http://127.0.0.1:{port}", "vllm")
    assert process.port_owner(port) is None
