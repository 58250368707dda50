"""The first bytes of a qcow2 file: what can be known of a disk without opening it with any tool.

The rule: a file is only ever given to a tool with the format its definition states, and only when its header agrees
and asks for no other file. Layout: QEMU's docs/interop/qcow2.txt, all integers big-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER_BYTES = 104
_MAGIC = b"QFI\xfb"
_V2 = struct.Struct(">4sIQIIQ")  # magic, version, backing offset, backing length, cluster bits, size
_INCOMPATIBLE_OFFSET = 72
_EXTERNAL_DATA = 1 << 2
_BITMAP_VERSION = 3
_SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    version: int
    size_bytes: int  # in whole sectors: QEMU shows no guest what is beyond the last
    has_backing: bool
    external_data: bool

    @property
    def can_hold_bitmap(self) -> bool:
        return self.version >= _BITMAP_VERSION and not self.external_data


def read_qcow2_header(head: bytes) -> Qcow2Header | None:
    """None when these are not the first bytes of a qcow2 file."""
    if len(head) < _V2.size or not head.startswith(_MAGIC):
        return None
    _, version, backing_offset, _, _, size_bytes = _V2.unpack_from(head)
    external = False
    if version >= _BITMAP_VERSION:
        if len(head) < HEADER_BYTES:
            return None
        (incompatible,) = struct.unpack_from(">Q", head, _INCOMPATIBLE_OFFSET)
        external = bool(incompatible & _EXTERNAL_DATA)
    return Qcow2Header(version, size_bytes // _SECTOR_BYTES * _SECTOR_BYTES, backing_offset != 0, external)
