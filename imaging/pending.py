"""What a run has stored itself, known to nobody else until it commits.

Rule: small runs stay in memory; a large one goes over to an LMDB of its own in a temporary folder, so that memory
stays bounded.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import lmdb

from imaging.errors import IndexUnavailable
from imaging.index_rows import BATCH_ENTRIES, KEY_BYTES
from imaging.places import ROW_BYTES, PackRows

PENDING_FOLDER_PREFIX: Final = "pending-"
_IN_MEMORY_MAX: Final = 250_000
_MAP_BYTES: Final = 1 << 38


class PendingIndex:
    """Thread-safe. Owns a temporary folder inside `folder`, if it needs one, until close()."""

    def __init__(self, folder: Path, in_memory_max: int = _IN_MEMORY_MAX) -> None:
        self._folder = folder
        self._in_memory_max = in_memory_max
        self._keys: set[bytes] = set()
        self._spilled: tempfile.TemporaryDirectory[str] | None = None
        self._environment: lmdb.Environment | None = None
        self._lock = threading.Lock()

    def add(self, rows: PackRows) -> None:
        """Remembers the blobs of a pack."""
        table = rows.rows
        with self._lock:
            self._keys.update(table[at : at + KEY_BYTES] for at in range(0, len(table), ROW_BYTES))
            if len(self._keys) > self._in_memory_max:
                self._spill()

    def known(self, ids: Sequence[bytes]) -> list[bool]:
        """For each id, whether this run has stored it."""
        keys = [identity[:KEY_BYTES] for identity in ids]
        with self._lock:
            found = {key for key in keys if key in self._keys}
            if self._environment is not None:
                try:
                    with self._environment.begin() as transaction:
                        found.update(key for key, _ in transaction.cursor().getmulti(keys))
                except lmdb.Error as error:
                    raise IndexUnavailable(str(self._folder), str(error)) from error
        return [key in found for key in keys]

    def _spill(self) -> None:
        try:
            if self._environment is None:
                self._spilled = tempfile.TemporaryDirectory(
                    dir=self._folder, prefix=PENDING_FOLDER_PREFIX, ignore_cleanup_errors=True
                )
                self._environment = lmdb.open(
                    self._spilled.name, map_size=_MAP_BYTES, sync=False, metasync=False, lock=False, readahead=False
                )
            ordered = sorted(self._keys)
            for start in range(0, len(ordered), BATCH_ENTRIES):
                with self._environment.begin(write=True) as transaction:
                    transaction.cursor().putmulti((key, b"") for key in ordered[start : start + BATCH_ENTRIES])
        except (lmdb.Error, OSError) as error:
            raise IndexUnavailable(
                str(self._folder), str(error), hint="free space there, or name another cache folder in the settings"
            ) from error
        self._keys = set()

    def close(self) -> None:
        with self._lock:
            if self._environment is not None:
                self._environment.close()
                self._environment = None
            if self._spilled is not None:
                self._spilled.cleanup()
                self._spilled = None
            self._keys = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
