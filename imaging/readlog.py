"""When packs were read whole, so that a verification that reads a share each time comes round to all.

Rules: it is a cache: without it everything counts as never read; days are those of the clock, which decides nothing but
the order. It is written so that a crash leaves the old one or the new, and often enough that an interrupted
verification goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_ENTRY: Final = struct.Struct("<32sI")
_SAVE_EVERY: Final = 64
_UNREAD: Final = 1 << 31  # beside the day on which a pack was first seen


class ReadLog:
    """Not thread-safe. `path` may be None: then it forgets at the end."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._days: dict[bytes, int] = {}
        self._unsaved = 0
        with contextlib.suppress(OSError):
            data = path.read_bytes() if path is not None else b""
            self._days = dict(_ENTRY.iter_unpack(data[: len(data) // _ENTRY.size * _ENTRY.size]))

    def due(self, packs: Mapping[bytes, int], every_days: int, today: int) -> frozenset[bytes]:
        """Of these packs (hash → size in bytes), those to read today, so that all are read in `every_days` runs: one
        share of the bytes, those never read first and then the longest ago; and whatever was seen or read so many days
        ago, however much is new."""
        share_bytes = -(-sum(packs.values()) // every_days)
        chosen: set[bytes] = set()
        taken_bytes = 0
        for pack in packs:
            self._days.setdefault(pack, _UNREAD | today)

        def age(pack: bytes) -> tuple[bool, int, bytes]:
            return not self._days[pack] & _UNREAD, self._days[pack] & ~_UNREAD, pack

        for pack in sorted(packs, key=age):
            if taken_bytes >= share_bytes and (self._days[pack] & ~_UNREAD) + every_days > today:
                continue
            chosen.add(pack)
            taken_bytes += packs[pack]
        return frozenset(chosen)

    def note(self, pack: bytes, today: int) -> None:
        """It was read whole."""
        self._days[pack] = today
        self._unsaved += 1
        if self._unsaved >= _SAVE_EVERY:
            self.save()

    def keep_only(self, packs: Mapping[bytes, int]) -> None:
        """Forgets those that are gone."""
        self._days = {pack: day for pack, day in self._days.items() if pack in packs}

    def save(self) -> None:
        """What cannot be written is read again some day."""
        self._unsaved = 0
        if self._path is None:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        with contextlib.suppress(OSError):
            temporary.write_bytes(b"".join(_ENTRY.pack(pack, day) for pack, day in sorted(self._days.items())))
            temporary.replace(self._path)
