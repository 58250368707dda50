"""Which rows of which packs restore points need: a walk over their disk maps that visits every node once, and reads
only those that the ledger does not know.

Rules: a node counts as walked, and is noted in the ledger, only when its whole subtree was; an id that no pack holds
ends the walk, as nothing can be concluded from what is left. No chunk is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

import numpy as np

from imaging.diskmap import child_ids, chunk_ids, root_level
from imaging.errors import ImagingError
from imaging.holdings import Flags, Holdings
from imaging.ids import ID_BYTES
from imaging.sorted_ids import Array

FetchNodes = Callable[[Sequence[bytes]], list[bytes]]
_READ_AT_ONCE: Final = 256
_WALKED_AT_ONCE: Final = 4096


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


class LedgerBroken(ImagingError):
    """The ledger knows a node, and not one below it: our own mistake. It is to be thrown away."""

    def __init__(self) -> None:
        super().__init__("what earlier collections noted does not agree with itself", hint="run it again")


class Walk:
    """Goes down trees, wherever `claim` says so. Borrows everything."""

    def __init__(self, fetch: FetchNodes, holdings: Holdings, claim: Callable[[Array], Array],
                 advance: Callable[[int], None] | None = None) -> None:  # fmt: skip
        """`claim` is given rows that are referred to, any of them several times, and returns those that are to be gone
        into; `advance` is told of nodes that were read."""
        self._fetch = fetch
        self._holdings = holdings
        self._ledger = holdings.ledger
        self._claim = claim
        self._advance = advance or (lambda _: None)
        self.nodes = 0

    def go(self, trees: Iterable[Tree], what: str) -> None:
        """`what` is for messages. Unresolvable; LedgerBroken; what reading nodes raises."""
        for tree in trees:
            if tree.root is not None:
                rows = self._resolve(tree.root, what)
                self._visit(rows, dict.fromkeys(rows.tolist(), tree.root), root_level(tree.size_bytes), what)

    def _resolve(self, ids: bytes, what: str) -> Array:
        rows = self._ledger.rows_of(ids)
        lost = np.flatnonzero(rows < 0).tolist()
        if lost:
            raise Unresolvable(what, len({ids[at * ID_BYTES : (at + 1) * ID_BYTES] for at in lost}))
        return rows

    def _take(self, rows: Array, what: str) -> Array:
        taken = self._claim(rows)
        lost = int(np.count_nonzero(self._holdings.nowhere[taken]))
        if lost:
            raise Unresolvable(what, lost)
        return taken

    def _visit(self, rows: Array, ids: dict[int, bytes], level: int, what: str) -> None:
        """Nodes of one level; `ids` by row, of all that may not be in the ledger."""
        taken = np.unique(self._take(rows, what))
        for start in range(0, len(taken), _WALKED_AT_ONCE):
            some = taken[start : start + _WALKED_AT_ONCE]
            below, known = self._ledger.below(some, level)
            if level == 0:
                self._take(below, what)
            else:
                self._visit(below, {}, level - 1, what)
            self._read(some[~known], ids, level, what)

    def _read(self, rows: Array, ids: dict[int, bytes], level: int, what: str) -> None:
        for start in range(0, len(rows), _READ_AT_ONCE):
            some = rows[start : start + _READ_AT_ONCE]
            try:
                names = [ids[row] for row in some.tolist()]
            except KeyError:
                raise LedgerBroken from None
            below = [_refers_to(plain, level, name) for name, plain in zip(names, self._fetch(names), strict=True)]
            self.nodes += len(some)
            self._advance(len(some))
            joined = b"".join(below)
            found = self._resolve(joined, what)
            if level == 0:
                self._take(found, what)
            else:
                self._visit(found, _by_row(found, joined), level - 1, what)
            self._ledger.note(some, level, found, np.array([len(each) // ID_BYTES for each in below]))


def _refers_to(plain: bytes, level: int, node: bytes) -> bytes:
    name = f"map node {node.hex()}"
    return chunk_ids(plain, name) if level == 0 else b"".join(child_ids(plain, level, name))


def _by_row(rows: Array, ids: bytes) -> dict[int, bytes]:
    return {row: ids[at * ID_BYTES : (at + 1) * ID_BYTES] for at, row in enumerate(rows.tolist())}


class Marker:
    """Marks rows as needed. Borrows everything."""

    def __init__(self, fetch: FetchNodes, holdings: Holdings, advance: Callable[[int], None] | None = None) -> None:
        self._holdings = holdings
        self._walk = Walk(fetch, holdings, self._claim, advance)
        self._marked: Flags = np.zeros(holdings.row_count, np.bool_)

    @property
    def nodes(self) -> int:
        """How many were read."""
        return self._walk.nodes

    def mark(self, trees: Iterable[Tree], what: str) -> None:
        """All that these need. As Walk.go."""
        self._walk.go(trees, what)

    def needed(self) -> Flags:
        """By row. Nothing can be marked any more."""
        return self._holdings.placed(self._marked, nothing=False, kept=True)

    def _claim(self, rows: Array) -> Array:
        fresh = rows[~self._marked[rows]]
        self._marked[fresh] = True
        return fresh
