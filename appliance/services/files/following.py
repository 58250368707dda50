"""A tar that passes on its way to a file, and what it says that it lacks.

The rule: `tarring` made it, on another appliance: every member is in the folder that is the first one, but for the file
at the end that names what was left out, and nothing of a guest can be called so. What passes is not changed, and no
more of it is kept than that file.
"""

from __future__ import annotations

import tarfile
from collections.abc import Generator
from typing import Final

from appliance.services.files.tarring import BLOCK_BYTES, LEFT_OUT, padding_bytes, printable

_PAX_BYTES_MAX: Final = 4 << 20  # the longest path and link by far
_TEXT_BYTES_MAX: Final = 64 << 20
_Walk = Generator[tuple[int, bool], bytes, None]
"""Asks for so many bytes, or that they pass, and is given those that it has asked for."""


class TarUnfit(Exception):
    """What passes is no tar, or none of ours."""


class Following:
    """`left_out`: as a `Tar` has it, once all of it has passed, which `ended` says."""

    def __init__(self) -> None:
        self.left_out: list[str] = []
        self.ended = False
        self._walk = self._members()
        self._wanted_bytes, self._keeps = next(self._walk)
        self._kept = bytearray()

    def feed(self, piece: bytes) -> None:
        """The next bytes of it. TarUnfit."""
        rest = memoryview(piece)
        while rest and not self.ended:
            passed = rest[: self._wanted_bytes]
            rest = rest[len(passed) :]
            self._wanted_bytes -= len(passed)
            if self._keeps:
                self._kept += passed
            if not self._wanted_bytes:
                kept, self._kept = bytes(self._kept), bytearray()
                try:
                    self._wanted_bytes, self._keeps = self._walk.send(kept)
                except StopIteration:
                    self.ended = True

    def _members(self) -> _Walk:
        folder, records = None, dict[bytes, bytes]()
        while any(block := (yield BLOCK_BYTES, True)):
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                name = records[b"path"].decode("utf-8", "surrogateescape") if b"path" in records else info.name
                size_bytes = int(records.get(b"size", info.size))
            except (tarfile.HeaderError, ValueError) as err:
                raise TarUnfit(str(err)) from err
            if size_bytes < 0:
                raise TarUnfit(f"a member of {size_bytes} bytes")
            is_pax = info.type == tarfile.XHDTYPE
            folder = name.rstrip("/") if folder is None and not is_pax else folder
            is_told = is_pax or name == f"{folder}{LEFT_OUT}"
            if is_told and size_bytes > (_PAX_BYTES_MAX if is_pax else _TEXT_BYTES_MAX):
                raise TarUnfit(f"{size_bytes} bytes of what is told of members")
            records = {}
            if size_bytes:
                data = yield size_bytes + padding_bytes(size_bytes), is_told
                if is_pax:
                    records = _records(data[:size_bytes])
                elif is_told:
                    self.left_out += map(printable, data[:size_bytes].removesuffix(b"\n").split(b"\n"))


def _records(data: bytes) -> dict[bytes, bytes]:
    """Of an extended header (POSIX, pax): each is "LENGTH KEYWORD=VALUE\\n", of that length in all. TarUnfit."""
    found: dict[bytes, bytes] = {}
    while data:
        digits, space, _ = data[:20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[len(digits) + 1 : length]
        keyword, equals, value = record.partition(b"=")
        if length > len(data) or not equals or not record.endswith(b"\n"):
            raise TarUnfit("an extended header that is none")
        found[keyword] = value[:-1]
        data = data[length:]
    return found
