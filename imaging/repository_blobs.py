"""What an open repository reads its blobs with, made when it is first asked for: with a cache on disk, where there is
one.

Rule: the cache only makes it faster; where there is none to be had, everything is read from the store.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from imaging.blobs import BlobReader
from imaging.indexing import IndexKeeper
from imaging.keys import Keys
from imaging.packs import digest_of_name
from imaging.storage.block_cache import BlockCache
from imaging.storage.caching import CachedReads
from imaging.storage.contract import Store
from imaging.storage.pace import Pace

if TYPE_CHECKING:
    from imaging.ledger import Ledger


class RepositoryBlobs:
    """Thread-safe. Borrows the store and the keeper. `chunk_folder`: where the cache may be; None: nowhere."""

    def __init__(self, store: Store, keys: Keys, keeper: IndexKeeper, pace: Pace, chunk_folder: Path | None) -> None:
        self._store = store
        self._keys = keys
        self._keeper = keeper
        self._pace = pace
        self._chunk_folder = chunk_folder
        self._lock = threading.Lock()
        self._blobs: BlobReader | None = None
        self._cache: BlockCache | None = None

    @property
    def reader(self) -> BlobReader:
        with self._lock:
            if self._blobs is None:
                keeper = self._keeper
                self._blobs = BlobReader(
                    self._store, self._keys, keeper.locate_many, keeper.look_again, keeper.lost, keeper.back,
                    pace=self._pace, cache=self._cached_reads(),
                )  # fmt: skip
            return self._blobs

    def met_by(self, ledger: Ledger) -> BlobReader:
        """For map nodes: those that the ledger has just met are found without the index."""
        from imaging.node_places import NodePlaces

        keeper = self._keeper
        places = NodePlaces(ledger, keeper.locate_many, keeper.look_again)
        return BlobReader(self._store, self._keys, places.locate_many, places.refresh, keeper.lost, keeper.back)

    def close(self) -> None:
        """What is asked for afterwards is made anew."""
        with self._lock:
            blobs, self._blobs = self._blobs, None
            cache, self._cache = self._cache, None
        if blobs is not None:
            blobs.close()
        if cache is not None:
            cache.close()

    def _cached_reads(self) -> CachedReads | None:
        if self._chunk_folder is None:
            return None
        self._cache = BlockCache.open(self._chunk_folder, self._keys.repository_id, self._pace.cache_bytes)
        return None if self._cache is None else CachedReads(self._store, self._cache, self._size_of)

    def _size_of(self, name: str) -> int | None:
        pack = digest_of_name(name)
        return None if pack is None else self._keeper.size_of(pack)
