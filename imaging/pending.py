"""What a run has stored itself, known to nobody else until it commits.

Rule: small runs stay in memory; a large one goes over to segments of its own (index_segments.py) in a temporary folder,
so that memory stays bounded.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from imaging.errors import IndexUnavailable
from imaging.index_rows import KEY_BYTES, entries_of_keys
from imaging.index_segments import Segment, SegmentFolder, columns_of, places_of
from imaging.places import ROW_BYTES, PackRows

PENDING_FOLDER_PREFIX: Final = "pending-"
_IN_MEMORY_MAX: Final = 250_000


class PendingIndex:
    """Thread-safe. Owns a temporary folder inside `folder`, if it needs one, until close()."""

    def __init__(self, folder: Path, in_memory_max: int = _IN_MEMORY_MAX) -> None:
        self._folder = folder
        self._in_memory_max = in_memory_max
        self._keys: set[bytes] = set()
        self._spilled: tempfile.TemporaryDirectory[str] | None = None
        self._segments: list[Segment] = []
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
        with self._lock:
            found = [identity[:KEY_BYTES] in self._keys for identity in ids]
            if self._segments:
                for at, _, _ in places_of(self._segments, ids):
                    found[at] = True
        return found

    def _spill(self) -> None:
        try:
            if self._spilled is None:
                self._spilled = tempfile.TemporaryDirectory(
                    dir=self._folder, prefix=PENDING_FOLDER_PREFIX, ignore_cleanup_errors=True
                )
            folder = SegmentFolder(Path(self._spilled.name))
            before = {segment.listed: segment for segment in self._segments}
            listed = folder.with_more(list(before), columns_of(entries_of_keys(self._keys)))
            self._segments = [before.get(each) or folder.open(each) for each in listed]
            folder.tidy(listed)
        except OSError as error:
            raise IndexUnavailable(
                str(self._folder), str(error), hint="free space there, or name another cache folder in the settings"
            ) from error
        self._keys = set()

    def close(self) -> None:
        with self._lock:
            self._segments = []
            if self._spilled is not None:
                self._spilled.cleanup()
                self._spilled = None
            self._keys = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
