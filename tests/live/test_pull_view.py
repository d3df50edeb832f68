"""The view of a pull: a bar a layer, what Ollama says, and how it ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from labkit.demos.pull import News
from labkit.engines.base import Progress
from labkit.errors import ExperimentStopped, ModelError
from labkit.live.pull import PullView, size
from labkit.transcript import Transcript

BIG, SMALL = "sha256:" + "a" * 64, "sha256:" + "b" * 64
TOLD = Transcript("pull", "simulated", {}, ())


class Played:
    """A pull whose events and end the test gives."""

    def __init__(self) -> None:
        self.news: News
        self.end: asyncio.Future[None]
        self.values: list[Any] = []

    async def pull(self, value: Any, news: News, say: Progress) -> Transcript:
        say("waiting for cpu")
        self.values.append(value)
        self.news = news
        self.end = asyncio.get_running_loop().create_future()
        await self.end
        return TOLD


@pytest.fixture
async def played() -> Played:
    return Played()


async def started(played: Played) -> PullView:
    view = PullView(played.pull, badge="simulated: a pull")
    await asyncio.sleep(0)
    return view


def words(view: PullView) -> list[str]:
    shown = view.widget.children[-1]
    return [bar.children[1].value for bar in shown.children]


def status(view: PullView) -> str:
    return str(view.widget.children[1].value)


async def test_each_layer_has_a_bar_with_words(played: Played) -> None:
    view = await started(played)
    assert "waiting for cpu" in status(view)
    played.news({"t_s": 0, "what": "source", "source": "mirror", "says": "no network"})
    assert "From the mirror: no network." in status(view)
    played.news({"t_s": 0, "what": "status", "status": "pulling manifest"})
    assert "pulling manifest" in status(view)
    played.news({"t_s": 0, "what": "progress", "digest": BIG, "completed": 0, "total": 2_000_000})
    assert words(view) == ["aaaaaaaaaaaa: 0% of 2.0 MB"]
    played.news({"t_s": 1, "what": "progress", "digest": BIG, "completed": 2_000_000, "total": 2_000_000})
    played.news({"t_s": 2, "what": "layer", "kind": "model", "digest": BIG, "bytes": 2_000_000})
    played.news({"t_s": 2, "what": "layer", "kind": "template", "digest": SMALL, "bytes": 102})
    assert words(view) == [
        "aaaaaaaaaaaa (model): 100% of 2.0 MB",
        "bbbbbbbbbbbb (template): 100% of 102 B",
    ]
    played.end.set_result(None)
    assert await view.result() is TOLD
    assert "Done" in status(view)
    assert 'data-points="6"' in view.widget.children[2].value


async def test_stop_ends_it_and_run_starts_it_anew(played: Played) -> None:
    view = await started(played)
    played.news({"t_s": 0, "what": "progress", "digest": BIG, "completed": 1, "total": 2})
    view.stop()
    with pytest.raises(ExperimentStopped):
        await view.result()
    assert "Stopped" in status(view)
    view.begin()
    await asyncio.sleep(0)
    assert words(view) == []
    played.end.set_result(None)
    assert await view.result() is TOLD
    assert played.values == [None, None]


async def test_a_failure_is_told_and_raised(played: Played) -> None:
    view = await started(played)
    played.end.set_exception(ModelError("pull x", "no space left on device", "free some space"))
    with pytest.raises(ModelError):
        await view.result()
    for sentence in ("pull x", "no space left on device", "free some space"):
        assert sentence in status(view)


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1e3, "1.0 kB"), (2.7e8, "270.0 MB"), (1e9, "1.0 GB")]
)
def test_sizes_are_told_in_units_that_suit_them(count: float, shown: str) -> None:
    assert size(count) == shown
