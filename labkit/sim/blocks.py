"""vLLM's KV memory: fixed blocks of tokens, shared by equal prompt beginnings, forgotten oldest first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


def chain(tokens: Sequence[int], size: int) -> list[int]:
    """A hash for each full block, which stands for the block and everything before it."""
    hashes, before = [], 0
    for start in range(0, len(tokens) - size + 1, size):
        before = hash((before, *tokens[start : start + size]))
        hashes.append(before)
    return hashes


class BlockPool:
    """``total`` blocks of ``size`` tokens. One that nobody uses keeps its content until it is needed."""

    def __init__(self, total: int, size: int, *, caching: bool = True) -> None:
        self.total, self.size, self._caching = total, size, caching
        self._users = [0] * total
        self._content: list[int | None] = [None] * total
        self._holding: dict[int, int] = {}  # content → block
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(total))  # least recently used first

    @property
    def free(self) -> int:
        """Blocks that nobody uses; some may still hold what they had."""
        return len(self._free)

    def share(self, hashes: Sequence[int]) -> list[int]:
        """The blocks that hold the longest known beginning of this chain, with one more user each."""
        found: list[int] = []
        for content in hashes:
            if (block := self._holding.get(content)) is None:
                break
            if self._users[block] == 0:
                del self._free[block]
            self._users[block] += 1
            found.append(block)
        return found

    def take(self, count: int) -> list[int] | None:
        """So many blocks for new content; None, and nothing changed, if there are not as many."""
        if count > len(self._free):
            return None
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            if (content := self._content[block]) is not None:
                del self._holding[content]
            self._content[block] = None
            self._users[block] = 1
        return taken

    def fill(self, block: int, content: int) -> None:
        """The block is full now: others with this beginning may share it."""
        if self._caching and content not in self._holding:
            self._content[block] = content
            self._holding[content] = block

    def give_back(self, blocks: Sequence[int]) -> None:
        """One user less for each; the last block of an answer is forgotten first, one that nobody may share
        is given out next."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                self._free[block] = None
                if self._content[block] is None:
                    self._free.move_to_end(block, last=False)
