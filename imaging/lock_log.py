"""What sweeps have seen of locks: until when each version is locked, and what that promises.

Rules: it is a cache: without it, the store is asked again. A lock only ever gets longer, so what was seen once is the
least that there is (unless somebody has the right to bypass governance). It is written so that a crash leaves the old
one or the new.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from blake3 import blake3

from imaging import canonical
from imaging.storage.object_lock import MODES
from imaging.storage.versions import Retention, Version

_log = logging.getLogger(__name__)
_ENTRY: Final = struct.Struct("<16sIB")
_SAVE_EVERY: Final = 4096


@dataclass(frozen=True, slots=True)
class Promise:
    """What the last sweep left: every restore point of that time is locked until `until_utc` at the least, or None
    where something of it was not locked. Times are the store's."""

    swept_utc: datetime
    until_utc: datetime | None
    objects: int


class LockLog:
    """Not thread-safe. Files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._entries = folder / "object-locks"
        self._promise = folder / "object-lock-promise"
        self._known: dict[bytes, tuple[int, int]] = {}
        self._unsaved = 0
        with contextlib.suppress(OSError):
            data = self._entries.read_bytes()
            whole = data[: len(data) // _ENTRY.size * _ENTRY.size]
            self._known = {key: (until, mode) for key, until, mode in _ENTRY.iter_unpack(whole) if mode < len(MODES)}

    def retention(self, version: Version) -> Retention | None:
        """None where nothing was seen."""
        found = self._known.get(_key(version))
        return None if found is None else Retention(MODES[found[1]], datetime.fromtimestamp(found[0], UTC))

    def note(self, version: Version, retention: Retention) -> None:
        until = min(int(retention.until_utc.timestamp()), 0xFFFFFFFF)
        self._known[_key(version)] = until, MODES.index(retention.mode)
        self._unsaved += 1
        if self._unsaved >= _SAVE_EVERY:
            self.save()

    def keep_only(self, versions: Iterable[Version]) -> None:
        """Forgets those that are gone."""
        keys = {_key(version) for version in versions}
        self._known = {key: entry for key, entry in self._known.items() if key in keys}

    def save(self) -> None:
        """What cannot be written is asked for again."""
        self._unsaved = 0
        _write(self._entries, b"".join(_ENTRY.pack(key, *entry) for key, entry in sorted(self._known.items())))

    # What it promises

    def promise(self) -> Promise | None:
        """None where no sweep has told."""
        try:
            said = json.loads(self._promise.read_bytes())
            until = said["until_utc"]
            return Promise(
                datetime.fromisoformat(said["swept_utc"]),
                None if until is None else datetime.fromisoformat(until),
                int(said["objects"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_promise(self, promise: Promise) -> None:
        until = promise.until_utc
        said = {
            "swept_utc": canonical.utc_text(promise.swept_utc),
            "until_utc": None if until is None else canonical.utc_text(until),
            "objects": promise.objects,
        }
        _write(self._promise, json.dumps(said).encode())


def _key(version: Version) -> bytes:
    return blake3(f"{version.name}\0{version.id}".encode()).digest(length=16)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        _log.warning("what is known of locks cannot be kept, so the store is asked again: %s", error)
