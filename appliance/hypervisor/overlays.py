"""Overlays: qcow2 files that hold what a recovered machine writes, above the served disk of a restore point.

The rule: the format of both layers is stated, and the export below is not opened to make the overlay, so that it takes
milliseconds whatever the disk's size.
"""

from __future__ import annotations

import posixpath
from urllib.parse import quote

from appliance.hypervisor.protocol import HostFiles
from appliance.hypervisor.tools import Tools


class Qcow2Overlays:
    """Implements protocol.Overlays. Borrows tools and files."""

    def __init__(self, tools: Tools, files: HostFiles) -> None:
        self._tools = tools
        self._files = files

    def create(self, path: str, socket: str, size_bytes: int) -> None:
        """Replaces what is at `path`. ImageToolFailed, HostFileError."""
        self._files.remove(path)
        self._tools.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-u", "-b", _url(socket), path, str(size_bytes)],
            path,
        )
        self._files.give_to_qemu(path)
        # What is defined on it afterwards outlives a power cut, and so must this.
        self._tools.run(["sync", path, posixpath.dirname(path)], path)

    def put_below(self, path: str, socket: str) -> None:
        """ImageToolFailed, also while a machine has it open."""
        self._tools.run(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", _url(socket), path], path)
        self.sync(path)

    def sync(self, path: str) -> None:
        """ImageToolFailed, also when it takes too long: then much of it is done."""
        self._tools.run(["sync", "--data", path], path)


def _url(socket: str) -> str:
    return f"nbd+unix:///?socket={quote(socket)}"
