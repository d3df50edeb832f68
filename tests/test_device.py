"""The device lock, held and lost by real processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import device
from labkit.device import DeviceLock
from labkit.errors import DeviceBusy

HOLDER = """
import asyncio, sys
from labkit.device import DeviceLock
async def main():
    async with DeviceLock(sys.argv[1], owner="the other sweep", on_wait=print, hold_s=float(sys.argv[2])):
        print("held", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    return tmp_path


def hold(name: str, hold_s: float = 600) -> subprocess.Popen[str]:
    """Another process that has the device when this returns."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, name, str(hold_s)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


async def wait_until_told(said: list[str]) -> None:
    async with asyncio.timeout(10):
        while not said:  # noqa: ASYNC110  on_wait runs in the other task; polling keeps the test short
            await asyncio.sleep(0.01)


async def test_second_measurement_waits_and_says_for_whom() -> None:
    said: list[str] = []
    order: list[str] = []

    async def second() -> None:
        async with DeviceLock("cpu", owner="second", on_wait=said.append):
            order.append("second in")

    async with DeviceLock("cpu", owner="labkit bench", on_wait=said.append):
        assert said == []
        task = asyncio.create_task(second())
        await wait_until_told(said)
        await asyncio.sleep(3 * device.POLL_S)
        order.append("first out")
    await task
    assert order == ["first out", "second in"]
    assert len(said) == 1
    assert said[0].startswith("waiting for cpu: held by labkit bench since ")


async def test_devices_do_not_wait_for_each_other() -> None:
    said: list[str] = []
    async with (
        DeviceLock("cuda:0", owner="a", on_wait=said.append),
        DeviceLock("cuda:1", owner="b", on_wait=said.append),
    ):
        assert said == []


async def test_killed_holder_frees_the_device() -> None:
    said: list[str] = []
    with hold("cpu") as other:

        async def wait() -> None:
            async with DeviceLock("cpu", owner="second", on_wait=said.append):
                pass

        task = asyncio.create_task(wait())
        await wait_until_told(said)
        assert "held by the other sweep since" in said[0]
        assert not task.done()
        other.kill()
        await asyncio.wait_for(task, 10)


async def test_waiting_can_be_cancelled() -> None:
    said: list[str] = []
    async with DeviceLock("cpu", owner="first", on_wait=said.append):

        async def wait() -> None:
            async with DeviceLock("cpu", owner="second", on_wait=said.append):
                pytest.fail("two measurements at once")

        task = asyncio.create_task(wait())
        await wait_until_told(said)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with asyncio.timeout(5), DeviceLock("cpu", owner="third", on_wait=said.append):
        pass


async def test_an_error_inside_frees_the_device() -> None:
    with pytest.raises(ZeroDivisionError):
        async with DeviceLock("cpu", owner="first", on_wait=print):
            _ = 1 / 0
    async with asyncio.timeout(5), DeviceLock("cpu", owner="second", on_wait=print):
        pass


async def test_overdue_living_holder_is_named_and_never_robbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "PATIENCE_S", 0.3)
    said: list[str] = []
    with hold("cpu", hold_s=0) as other:
        with pytest.raises(DeviceBusy, match="longer than it announced") as caught:
            async with DeviceLock("cpu", owner="second", on_wait=said.append):
                pytest.fail("two measurements at once")
        assert f"process {other.pid}" in caught.value.fix
        assert len(said) == 1
        other.kill()
