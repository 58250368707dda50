"""What a volume holds, by its first bytes: file systems that are read here, and others that can be named. Pure.

The rule: whatever would be read wrongly is named as what cannot be read, and why.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from imaging.filesystems.entries import Journal
from imaging.filesystems.windows import Bytes

LVM: Final = "lvm"
EXT: Final = ("ext2", "ext3", "ext4")
_SUPER_BYTES: Final = 0x11000
_NAMED: Final = (
    (0, b"LUKS\xba\xbe", "luks", "it is encrypted (LUKS), and its key is not known here"),
    (3, b"-FVE-FS-", "bitlocker", "it is encrypted (BitLocker), and its key is not known here"),
    (3, b"ReFS\0\0\0\0", "refs", "ReFS is not read here"),
    (4086, b"SWAPSPACE2", "swap", "it is swap space"),
    (0, b"hsqs", "squashfs", "SquashFS is not read here"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs", "F2FS is not read here"),
    (32769, b"CD001", "iso9660", "ISO 9660 is not read here"),
    (4096, b"\xfc\x4e\x2b\xa9", "mdraid", "it is part of a Linux RAID, which is not read here"),
    (0, b"\xfc\x4e\x2b\xa9", "mdraid", "it is part of a Linux RAID, which is not read here"),
)
_EXT_READ: Final = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
"""Of incompatible features: filetype, recover, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir,
inline_data, encrypt, casefold. linux/fs/ext4/ext4.h."""
_EXT_BIGALLOC: Final = 0x200


@dataclass(frozen=True, slots=True)
class Found:
    kind: str
    label: str = ""
    journal: Journal = Journal.CLEAN
    problem: str = ""
    identity: bytes = b""
    """Of file systems over several devices: the same on each."""


def recognise(volume: Bytes) -> Found:
    start = volume.pread(0, _SUPER_BYTES)
    if len(start) >= 2048 and start[1080:1082] == b"\x53\xef":
        return _ext(start[1024:2048])
    if start[:4] == b"XFSB":
        return _xfs(start)
    if start[0x10040:0x10048] == b"_BHRfS_M":
        return _btrfs(start[0x10000:])
    if start[3:11] == b"NTFS    ":
        return Found("ntfs", journal=Journal.UNKNOWN)
    if start[3:11] == b"EXFAT   ":
        return Found("exfat")
    if any(start[at : at + 8] == b"LABELONE" and start[at + 24 : at + 32] == b"LVM2 001" for at in range(0, 2048, 512)):
        return Found(LVM, problem="it is a part of a volume group")
    for offset, magic, kind, problem in _NAMED:
        if start[offset : offset + len(magic)] == magic:
            return Found(kind, problem=problem)
    if start[510:512] == b"\x55\xaa":
        if start[82:87] == b"FAT32":
            return Found("fat", _fat_label(start[71:82]))
        if start[54:57] == b"FAT":
            return Found("fat", _fat_label(start[43:54]))
    empty = not any(start)
    return Found("unknown", problem="nothing is on it" if empty else "what is on it is not known here")


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", "replace").strip()


def _fat_label(raw: bytes) -> str:
    label = raw.decode("cp437").strip("\0 ")
    return "" if label == "NO NAME" else label


def _ext(block: bytes) -> Found:
    compatible, incompatible, read_only = struct.unpack("<III", block[92:104])
    kind = "ext4" if incompatible & 0x2C0 else "ext3" if compatible & 0x4 else "ext2"
    problem = ""
    if incompatible & 0x8:
        problem = "it is the journal of another volume"
    elif incompatible & ~_EXT_READ:
        problem = f"it uses features that are not read here (0x{incompatible & ~_EXT_READ:x})"
    elif read_only & _EXT_BIGALLOC:
        problem = "it allocates by clusters (bigalloc), which is not read here"
    journal = Journal.PENDING if incompatible & 0x4 else Journal.CLEAN
    return Found(kind, _text(block[120:136]), journal, problem)


def _xfs(start: bytes) -> Found:
    (version,) = struct.unpack(">H", start[100:102])
    problem = ""
    if version & 0xF not in (4, 5):
        problem = f"it is XFS of version {version & 0xF}, and 4 and 5 are read here"
    elif start[192]:
        problem = "its folders have blocks of their own size (mkfs.xfs -n size=), which is not read here"
    return Found("xfs", _text(start[108:120]), Journal.UNKNOWN, problem)


def _btrfs(block: bytes) -> Found:
    (log_root,) = struct.unpack("<Q", block[0x60:0x68])
    return Found(
        "btrfs", _text(block[0x12B : 0x12B + 256]), Journal.PENDING if log_root else Journal.CLEAN,
        identity=block[0x20:0x30],
    )  # fmt: skip
