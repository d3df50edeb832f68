"""One question to a simulated engine and what becomes of it. Times in simulated seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from labkit.sim.cost import Work


class Refused(Exception):
    """The engine's queue is full: status 503."""


@dataclass(eq=False, slots=True)
class Request:
    """Prompt and answer as token numbers (all that matters is which are equal), and their course."""

    id: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]  # what will be written
    model: str = ""  # Ollama has several
    context: int | None = None  # Ollama loads a model anew for another one
    keep_alive_s: float | None = None  # how long Ollama is to keep the model after this
    sent_s: float = 0.0
    admitted_s: float | None = None  # work on it began
    token_s: list[float] = field(default_factory=list)  # when each token of the answer was written
    ended_s: float | None = None
    load_s: float = 0.0  # of the wait: until its model was loaded
    cached: int = 0  # prompt tokens that did not have to be read
    preemptions: int = 0  # times that it lost its memory and had to be read again
    computed: int = 0  # tokens whose keys and values are there
    blocks: list[int] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)
    filled: int = 0  # blocks that are full

    @property
    def known(self) -> int:
        """Tokens that its next token depends on: the prompt, and the answer so far."""
        return len(self.prompt) + len(self.token_s)

    @property
    def left(self) -> int:
        """Tokens still to be written."""
        return len(self.answer) - len(self.token_s)


def work_of(plan: Iterable[tuple[Request, int]], begun: int) -> Work:
    """What a step does that computes so many tokens of each request and begins ``begun`` prompts."""
    tokens = sequences = kv = 0
    pairs = 0.0
    for request, new in plan:
        end = request.computed + new
        tokens += new
        sequences += end == request.known
        if new == 1:
            kv += end
        else:
            pairs += new * (request.computed + end) / 2
    return Work(tokens, sequences, begun, kv, pairs)
