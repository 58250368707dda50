"""Where a heal stores what it has found: in packs of its own, under leases of the collections' series.

Rules: no collection works meanwhile, and what was stored counts as soon as a slice is full, so that little is done
again after an interruption; without a lease nothing is stored, and what would be is only remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from imaging import running
from imaging.ids import CHUNK
from imaging.packing import PackWriter
from imaging.pending import PendingIndex
from imaging.places import PackRows
from imaging.running import Run, RunContext

if TYPE_CHECKING:
    from imaging.repository import Repository

SLICE_BYTES: Final = 1 << 30


class HealingStore(Protocol):
    """What a heal needs of the place that it stores into."""

    @property
    def stored_bytes(self) -> int: ...

    def put(self, blob_type: int, identity: bytes, plain: bytes | memoryview) -> None:
        """A blob that is in no sound pack."""

    def known(self, ids: Sequence[bytes]) -> list[bool]:
        """For each id, whether it was put here."""

    def publish(self) -> None:
        """Make what was put count, and the index tell of it."""

    def publish_if_much(self) -> bool:
        """As publish(), if it is worth it; returns whether it did."""


class OnlyTold:
    """Stores nothing. Owns what it remembers until close()."""

    def __init__(self, repository: Repository) -> None:
        self._would_be = repository.pending()
        self.stored_bytes = 0

    def put(self, blob_type: int, identity: bytes, plain: bytes | memoryview) -> None:
        _remember(self._would_be, identity)

    def known(self, ids: Sequence[bytes]) -> list[bool]:
        return self._would_be.known(ids)

    def publish(self) -> None: ...

    def publish_if_much(self) -> bool:
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._would_be.close()


@dataclass(frozen=True, slots=True)
class _Slice:
    run: Run
    writer: PackWriter
    put: PendingIndex


class LeasedStore:
    """A context manager: left by an error, what was not published yet is abandoned. Borrows repository and context."""

    def __init__(self, repository: Repository, context: RunContext, slice_bytes: int = SLICE_BYTES) -> None:
        self._repository = repository
        self._context = context
        self._slice_bytes = slice_bytes
        self._published_bytes = 0
        self._slice: _Slice | None = None
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def _begun(self) -> _Slice:
        if self._slice is None:
            repository = self._repository
            with ExitStack() as stack:
                run = running.begin(self._context, repository.collection_series, None, running.COLLECTION)
                stack.enter_context(run)
                repository.refresh_index(run.condemned)
                put = stack.enter_context(repository.pending())
                writer = PackWriter(
                    repository.store,
                    repository.keys,
                    repository.index,
                    stack.enter_context(repository.pending()),
                    run.put_index,
                    compression_level=repository.config.compression_level,
                    pack_bytes=repository.config.pack_bytes,
                )
                self._slice = _Slice(run, stack.enter_context(writer), put)
                self._closing = stack.pop_all()
        return self._slice

    @property
    def stored_bytes(self) -> int:
        return self._published_bytes + (0 if self._slice is None else self._slice.writer.stored.bytes)

    def put(self, blob_type: int, identity: bytes, plain: bytes | memoryview) -> None:
        """See HealingStore. SeriesBusy while a collection runs; Fenced, NoSpace, StoreError."""
        current = self._begun()
        if blob_type == CHUNK:
            current.writer.store_chunks([(identity, plain)])
        else:
            current.writer.store_node(bytes(plain))
        _remember(current.put, identity)

    def known(self, ids: Sequence[bytes]) -> list[bool]:
        return [False] * len(ids) if self._slice is None else self._slice.put.known(ids)

    def publish_if_much(self) -> bool:
        if self._slice is None or self._slice.writer.stored.bytes < self._slice_bytes:
            return False
        self.publish()
        return True

    def publish(self) -> None:
        """Fenced, NoSpace, StoreError."""
        if self._slice is None:
            return
        current = self._slice
        current.writer.flush()
        current.run.check()
        current.run.conclude()
        self._published_bytes += current.writer.stored.bytes
        self._slice = None
        self._closing.close()
        self._repository.refresh_index()


def _remember(index: PendingIndex, identity: bytes) -> None:
    index.add(PackRows(pack=b"", salt=b"", size_bytes=0, blob_type=0, rows=identity + bytes(8)))
