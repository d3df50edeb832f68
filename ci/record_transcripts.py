"""Record what is no load run (``data/transcripts``, ``data/gguf``) on the real engines of this machine.

usage: record_transcripts.py [NAME ...]      all, or those of these names

Nothing else should run meanwhile: seconds are kept as they are.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import labkit
from labkit import depths, transcript
from labkit.demos import gguf, weights
from labkit.lab import Lab

MODELS = ("smollm2:135m", "labkit/smollm2:135m-q4_1")
REFUSED = {"max_model_len": 8192, "kv_cache_gib": 0.06}
OWN_KEEP_ALIVE = "5s"
OWN_REQUEST = {
    "messages": [{"role": "user", "content": "Name three fruits."}],
    "max_tokens": 12,
    "temperature": 0,
}


async def pull(lab: Lab) -> None:
    """Notebook 01."""
    transcript.keep(await lab.pull().result())


async def lifecycle(lab: Lab) -> None:
    """Notebook 01, and its exercise on the learner's own settings."""
    transcript.keep(await lab.lifecycle())
    transcript.keep(await lab.lifecycle(keep_alive=OWN_KEEP_ALIVE), number=2)


async def heads(lab: Lab) -> None:
    """Notebook 01: what is in the model files, and their heads."""
    for model in MODELS:
        transcript.keep(await lab.gguf(model))
        gguf.excerpt(await lab.weights_file(model), weights.excerpt(model))


async def evictions(lab: Lab) -> None:
    """Notebook 03: with a number, and with Ollama's own."""
    transcript.keep(await lab.evictions())
    transcript.keep(await lab.evictions(max_loaded_models=None), number=2)


async def start_log(lab: Lab) -> None:
    """Notebook 04; a server that was just started, so that all of its start is in the log."""
    await lab.vllm.restart()
    transcript.keep(await lab.start_log("vllm"))


async def refusal(lab: Lab) -> None:
    """Notebook 04."""
    transcript.keep(await lab.refusal(vllm=REFUSED))


async def ranks(lab: Lab) -> None:
    """Notebook 07: what each of two ranks holds, and a model whose heads they cannot share."""
    transcript.keep(await lab.ranks())
    await lab.vllm.stop()
    transcript.keep(await lab.refusal(vllm={"tensor_parallel_size": 2}), number=2)


async def reuse(lab: Lab) -> None:
    """Notebook 06: of each engine."""
    for number, engine in enumerate(depths.ENGINES[::-1], start=1):
        transcript.keep(await lab.reuse(engine), number=number)


async def answers(lab: Lab) -> None:
    """Notebook 08: both engines asked the same, and vLLM's package."""
    transcript.keep(await lab.clients())
    transcript.keep(await lab.contract())
    transcript.keep(await lab.both("/v1/chat/completions", OWN_REQUEST))
    transcript.keep(await lab.agreement())
    transcript.keep(await lab.package())


RECORDERS: dict[str, Callable[[Lab], Awaitable[None]]] = {
    one.__name__: one
    for one in (pull, lifecycle, heads, evictions, start_log, refusal, ranks, reuse, answers)
}


async def main(names: list[str]) -> None:
    """Record them one after the other."""
    lab = labkit.Lab(mode="live")
    for name in names or RECORDERS:
        await RECORDERS[name](lab)
    await lab.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
