"""NTFS, by dissect.ntfs.

What dissect.ntfs 3.16 gets wrong, and is put right: it lists blocks of a folder's index that are in use no more, and
passes over damaged ones; it returns what was never written of a file as what the disk held before, not as zeros. Not
read: what Windows keeps elsewhere or encrypts (EFS, files compressed by the system, deduplicated ones, those in a
cloud), which it would return as it is, or as zeros. Names of the old form (8.3) and the volume's own files are left
out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from dissect.ntfs.c_ntfs import ATTRIBUTE_TYPE_CODE
from dissect.ntfs.ntfs import NTFS
from dissect.util.stream import AlignedStream

from imaging.filesystems.engines import Content, NotRead, Number, Stat
from imaging.filesystems.entries import LINK_BYTES_MAX, Kind
from imaging.filesystems.windows import Window

_ROOT = 5
_OWN = 16  # numbers below are the volume's own files
_DOS = 2
_DIRECTORY, _REPARSE = 0x10000000, 0x400
_ENCRYPTED = 0x4000
_SYMLINK, _MOUNT_POINT = 0xA000000C, 0xA0000003
_REASONS = {
    0x80000017: "Windows compressed it (Compact OS), which is not read here",
    0x80000013: "Windows deduplicated it, which is not read here",
}
_DEPTH_MAX = 32


class Ntfs:
    root = _ROOT

    def __init__(self, volume: Window) -> None:
        self._fs = NTFS(volume.file())

    def children(self, folder: Number) -> Iterator[tuple[str, Kind | None, Number]]:
        index = self._fs.mft.get(folder).index("$I30")
        seen: set[int] = set()
        for entry in self._entries(index, index.root, seen, 0):
            flags, length, form = struct.unpack_from("<I4xBB", entry.buf, 56)
            if form == _DOS:
                continue
            number = entry.header.FileReference.SegmentNumberLowPart
            number |= entry.header.FileReference.SegmentNumberHighPart << 32
            if number < _OWN:
                continue
            name = entry.buf[66 : 66 + 2 * length].decode("utf-16-le", "replace")
            kind = Kind.FOLDER if flags & _DIRECTORY else Kind.FILE
            yield name, None if flags & _REPARSE else kind, int(number)

    def _entries(self, index: Any, node: Any, seen: set[int], depth: int) -> Iterator[Any]:
        """By the tree, as Windows does it: nodes that nothing leads to are old."""
        if depth > _DEPTH_MAX:
            raise NotRead("its index is too deep")
        for entry in node.entries():
            if entry.is_node:
                place = int(entry.node_vcn)
                if place in seen:
                    raise NotRead("its index leads back to itself")
                seen.add(place)
                yield from self._entries(index, index.index_buffer(place), seen, depth + 1)
            if entry.is_end:
                return
            yield entry

    def stat(self, number: Number) -> Stat:
        record = self._fs.mft.get(number)
        (standard, *_) = record.attributes[ATTRIBUTE_TYPE_CODE.STANDARD_INFORMATION] or [None]
        modified_ns = None if standard is None else int(standard.last_modification_time_ns)
        tag = _tag(record)
        if tag in (_SYMLINK, _MOUNT_POINT):
            link = str(record.reparse_point_name or record.reparse_point_substitute_name)
            return Stat(Kind.LINK, len(link), modified_ns, link=link[:LINK_BYTES_MAX])
        if record.is_dir():
            return Stat(Kind.FOLDER, 0, modified_ns)
        if not record.has_stream(""):
            return Stat(Kind.FILE, 0, modified_ns)
        return Stat(Kind.FILE, int(record.size("")), modified_ns, problem=_problem(record, tag))

    def content(self, number: Number) -> Content:
        record = self._fs.mft.get(number)
        problem = _problem(record, _tag(record))
        if problem:
            raise NotRead(problem)
        if not record.has_stream(""):
            raise NotRead("it has no content")
        size_bytes = int(record.size(""))
        file = record.open("")
        header = _first(record)
        if not header.resident:
            written = int(header.header.Form.Nonresident.ValidDataLength)
            if written < size_bytes:
                file = cast("BinaryIO", _Written(file, written, size_bytes))
        return Content(file, size_bytes)


class _Written(AlignedStream):  # type: ignore[misc]  # dissect.util's stream is typed as Any
    """A stream with zeros from where the file was never written on."""

    def __init__(self, file: BinaryIO, written_bytes: int, size_bytes: int) -> None:
        self._file = file
        self._written_bytes = written_bytes
        super().__init__(size_bytes, 65536)

    def _read(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        known = max(0, min(length, self._written_bytes - offset))
        self._file.seek(offset)
        found = self._file.read(known) if known else b""
        return found if len(found) < known else found + bytes(length - known)


def _first(record: Any) -> Any:
    """The header of the first part of a file's data."""
    parts = record.attributes.find("", ATTRIBUTE_TYPE_CODE.DATA)
    return min((part.header for part in parts), key=lambda header: 0 if header.resident else header.lowest_vcn)


def _tag(record: Any) -> int | None:
    found = record.attributes[ATTRIBUTE_TYPE_CODE.REPARSE_POINT]
    return int(found[0].tag) if found else None


def _problem(record: Any, tag: int | None) -> str:
    if tag is not None:
        return _REASONS.get(tag, f"its content is elsewhere (reparse tag 0x{tag:08x})")
    if record.has_stream("") and _first(record).flags & _ENCRYPTED:
        return "Windows encrypted it (EFS)"
    return ""
