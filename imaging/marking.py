"""Which rows of which packs restore points need: a walk over their disk maps that reads every node once.

Rules: a node counts as walked only when its whole subtree was; an id that no pack holds ends the walk, as nothing can
be concluded from what is left. No chunk is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

import numpy as np

from imaging.diskmap import child_ids, chunk_ids, root_level
from imaging.errors import ImagingError
from imaging.holdings import Flags, Holdings, prefixes_of

FetchNodes = Callable[[Sequence[bytes]], list[bytes]]
_AT_ONCE: Final = 64


class Tree(Protocol):
    """The root of a disk map: a disk, or a file kept with a machine."""

    @property
    def root(self) -> bytes | None: ...
    @property
    def size_bytes(self) -> int: ...


class Unresolvable(ImagingError):
    """A restore point needs what no pack holds."""

    def __init__(self, what: str, count: int) -> None:
        super().__init__(
            f"{count} blobs that {what} needs are in no pack that an index object lists",
            hint="run 'strongroom repository verify' to see what is lost; nothing is collected before that is mended",
        )
        self.what = what
        self.count = count


class Marker:
    """Marks rows as needed. Borrows `holdings`."""

    def __init__(self, fetch: FetchNodes, holdings: Holdings, advance: Callable[[int], None] | None = None) -> None:
        """`advance` is told of nodes that were read."""
        self._fetch = fetch
        self._holdings = holdings
        self._advance = advance or (lambda _: None)
        self.needed: Flags = holdings.clashing.copy()
        self.nodes = 0

    def mark(self, trees: Iterable[Tree], what: str) -> None:
        """All that these need; `what` is for messages. Unresolvable; what reading nodes raises."""
        for tree in trees:
            if tree.root is not None:
                self._walk([tree.root], root_level(tree.size_bytes), what)

    def _walk(self, ids: Sequence[bytes], level: int, what: str) -> None:
        fresh = self._mark(b"".join(ids), what)
        for some in batches([ids[number] for number in fresh]):
            plains = self._fetch(some)
            self.nodes += len(some)
            self._advance(len(some))
            if level == 0:
                found = [chunk_ids(plain, f"map node {node.hex()}") for node, plain in zip(some, plains, strict=True)]
                self._mark(b"".join(found), what)
                continue
            for node, plain in zip(some, plains, strict=True):
                self._walk(child_ids(plain, level, f"map node {node.hex()}"), level - 1, what)

    def _mark(self, ids: bytes, what: str) -> list[int]:
        """Marks rows; returns which of the ids were not marked before, each once."""
        prefixes, first = np.unique(prefixes_of(ids), return_index=True)
        found = self._holdings.find(prefixes)
        lost = len(prefixes) - int(np.count_nonzero(found.there))
        if lost:
            raise Unresolvable(what, lost)
        # Whether one that clashes was walked cannot be told from its mark.
        fresh = ~self.needed[found.rows] | self._holdings.clashing[found.rows]
        self.needed[found.rows] = True
        return sorted(int(number) for number in first[fresh])


def batches(ids: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Nodes that are fetched together: most lie beside each other in one pack."""
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]
