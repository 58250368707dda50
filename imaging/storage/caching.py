"""Reading from a store, with what was read kept near: blocks of packs, in memory and on local disk.

Rules: what is kept is what the store gave, sealed as it is, and is as hostile as the store; whoever cannot open it asks
the store itself, and says so with forget(). Several readers that want the same block fetch it once. Neighbouring blocks
that are missing are one request. An object that another process deletes is still given as long as its blocks are kept:
for whoever must know what is in the store, this is not the place to ask.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Final, Protocol, TypeAlias

from imaging.recent import Recent
from imaging.storage.block_cache import BLOCK_BYTES
from imaging.storage.contract import Store

_CACHED: Final = "packs/"
"""Named by the hash of their bytes, so what was kept once is right for ever."""

_RECENT_BYTES: Final = 16 << 20
_LONGEST_BYTES: Final = 8 << 20
"""Whoever reads more at once goes through all of it, once."""

_Block: TypeAlias = tuple[str, int]


class Blocks(Protocol):
    """Where blocks are kept: `imaging.storage.block_cache.BlockCache`."""

    def get(self, name: str, number: int) -> bytes | None:
        """A block, or None."""

    def put(self, name: str, number: int, data: bytes) -> None:
        """Keeps a block, if that can be done."""

    def forget(self, name: str, number: int) -> None:
        """The block is not given again until it is put again."""


class CachedReads:
    """Thread-safe. Borrows everything. `size_of` tells how long an object is, or None where it does not know: then all
    is asked of `inner`."""

    def __init__(self, inner: Store, blocks: Blocks, size_of: Callable[[str], int | None]) -> None:
        self._inner = inner
        self._blocks = blocks
        self._size_of = size_of
        self._lock = threading.Lock()
        self._recent: Recent[_Block, bytes] = Recent(_RECENT_BYTES, len)
        self._loading: dict[_Block, Future[bytes]] = {}

    def get(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        """See Store."""
        if not name.startswith(_CACHED) or offset_bytes < 0 or not 0 < length_bytes <= _LONGEST_BYTES:
            return self._inner.get(name, offset_bytes, length_bytes)
        stop = offset_bytes + length_bytes
        size = self._size_of(name)
        if size is None or stop > size:
            return self._inner.get(name, offset_bytes, length_bytes)
        first = offset_bytes // BLOCK_BYTES
        blocks = self._blocks_of(name, size, range(first, -(-stop // BLOCK_BYTES)))
        if blocks is None:
            return self._inner.get(name, offset_bytes, length_bytes)
        whole = memoryview(blocks[0] if len(blocks) == 1 else b"".join(blocks))
        return bytes(whole[offset_bytes - first * BLOCK_BYTES : stop - first * BLOCK_BYTES])

    def forget(self, name: str, offset_bytes: int, length_bytes: int) -> None:
        """What is kept of this range cannot be opened: the next one who wants it asks the store."""
        for number in range(offset_bytes // BLOCK_BYTES, -(-(offset_bytes + length_bytes) // BLOCK_BYTES)):
            with self._lock:
                self._recent.drop((name, number))
            self._blocks.forget(name, number)

    # Blocks

    def _blocks_of(self, name: str, size: int, numbers: range) -> list[bytes] | None:
        """These blocks, or None where another reader failed to get one. Raises what the store raises."""
        found: dict[int, bytes] = {}
        mine: dict[int, Future[bytes]] = {}
        others: dict[int, Future[bytes]] = {}
        with self._lock:
            for number in numbers:
                recent = self._recent.get((name, number))
                if recent is not None:
                    found[number] = recent
                elif (name, number) in self._loading:
                    others[number] = self._loading[name, number]
                else:
                    mine[number] = self._loading[name, number] = Future()
        if mine:
            found |= self._load(name, size, mine)
        for number, other in others.items():
            if other.exception() is not None:
                return None  # it may have failed over another block: whoever asks for this one fails on its own
            found[number] = other.result()
        return [found[number] for number in numbers]

    def _load(self, name: str, size: int, mine: dict[int, Future[bytes]]) -> dict[int, bytes]:
        """For this thread and all that wait for one of these."""
        found: dict[int, bytes] = {}
        try:
            for number in mine:
                kept = self._blocks.get(name, number)
                if kept is not None and len(kept) == _length(size, number):
                    found[number] = kept
            for span in _spans(number for number in mine if number not in found):
                found |= self._fetch(name, size, span)
        except BaseException as error:
            with self._lock:
                for number in mine:
                    del self._loading[name, number]
            for future in mine.values():
                future.set_exception(error)
            raise
        with self._lock:
            for number, data in found.items():
                self._recent.put((name, number), data)
                del self._loading[name, number]
        for number, future in mine.items():
            future.set_result(found[number])
        return found

    def _fetch(self, name: str, size: int, span: range) -> dict[int, bytes]:
        start, stop = span.start * BLOCK_BYTES, min(span.stop * BLOCK_BYTES, size)
        whole = self._inner.get(name, start, stop - start)
        found = {}
        for number in span:
            at = number * BLOCK_BYTES - start
            found[number] = whole if len(span) == 1 else whole[at : at + BLOCK_BYTES]
            self._blocks.put(name, number, found[number])
        return found


def _length(size: int, number: int) -> int:
    return min(BLOCK_BYTES, size - number * BLOCK_BYTES)


def _spans(numbers: Iterable[int]) -> list[range]:
    """Growing numbers, those that follow one another together."""
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found
