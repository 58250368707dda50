"""Checkpoints of a machine that is off: persistent bitmaps in its qcow2 files, by qemu-img.

The rule: the format is stated (-f qcow2), never probed; a file whose header says otherwise, or that would open another
file for its data, reaches no tool. A bitmap is trusted only when it is recording and was closed properly: `in-use` on a
machine that is off means that QEMU was killed and the bitmap missed writes.
"""

from __future__ import annotations

import json
from typing import Any

from appliance.hypervisor.errors import BitmapUntrusted, ImageToolFailed
from appliance.hypervisor.image_header import HEADER_BYTES, Qcow2Header, read_qcow2_header
from appliance.hypervisor.protocol import BitmapInfo, HostFiles
from appliance.hypervisor.tools import Tools

GRANULARITY_BYTES = 65536


class Qcow2Bitmaps:
    """Implements protocol.OfflineBitmaps. Borrows tools and files."""

    def __init__(self, tools: Tools, files: HostFiles) -> None:
        self._tools = tools
        self._files = files

    def header(self, path: str) -> Qcow2Header:
        header = read_qcow2_header(self._files.head(path, HEADER_BYTES))
        if header is None:
            raise ImageToolFailed("qemu-img", path, "it is not a qcow2 file, although its definition says so")
        if header.external_data:
            raise ImageToolFailed("qemu-img", path, "it keeps its data in another file, which is not followed")
        return header

    def list(self, path: str) -> tuple[BitmapInfo, ...]:
        """-U reads beside a running QEMU; what it then says of `in_use` means nothing."""
        self.header(path)
        answer = self._tools.run(["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", path], path)
        try:
            found = json.loads(answer)["format-specific"]["data"].get("bitmaps", [])
            return tuple(_bitmap(path, bitmap) for bitmap in found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImageToolFailed("qemu-img info", path, f"its answer is not understood ({error!r})") from error

    def add(self, path: str, name: str) -> None:
        if not self.header(path).can_hold_bitmap:
            raise BitmapUntrusted(path, name, "the file is qcow2 version 2 (compat=0.10), which holds no bitmaps")
        self._tools.run(["qemu-img", "bitmap", "--add", "-g", str(GRANULARITY_BYTES), "-f", "qcow2", path, name], path)

    def remove(self, path: str, name: str) -> None:
        if any(bitmap.name == name for bitmap in self.list(path)):
            self._tools.run(["qemu-img", "bitmap", "--remove", "-f", "qcow2", path, name], path)

    def check(self, path: str, name: str, disk: str = "") -> None:
        found = next((bitmap for bitmap in self.list(path) if bitmap.name == name), None)
        if found is None:
            raise BitmapUntrusted(disk or path, name, "its bitmap is not in the file")
        if found.in_use:
            raise BitmapUntrusted(disk or path, name, "its bitmap was not closed: QEMU was killed while it recorded")
        if not found.recording:
            raise BitmapUntrusted(disk or path, name, "its bitmap is not recording")


def _bitmap(path: str, found: dict[str, Any]) -> BitmapInfo:
    flags = found["flags"]
    return BitmapInfo(
        disk=path,
        name=str(found["name"]),
        granularity_bytes=int(found["granularity"]),
        recording="auto" in flags,
        in_use="in-use" in flags,
    )
