"""Empty qcow2 files, whole before a running machine is told of them.

The rule: a QEMU that runs a guest makes no qcow2 image for its backup. While QEMU 7.2 does, anybody's look at the
machine's disks ends it by an assertion, and the guest with it (docs/decisions, 30).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from appliance.hypervisor.tools import LocalTools


def blank_qcow2(size_bytes: int) -> bytes:
    """The bytes of such a file: 200 KiB, some more for a disk of many TiB. ImageToolFailed.

    Made here and then written there: as root, no tool follows a link that QEMU's user put into a folder of its own.
    """
    with tempfile.TemporaryDirectory(prefix="strongroom-") as folder:
        path = Path(folder, "blank.qcow2")
        LocalTools().run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size_bytes)], path.name)
        return path.read_bytes()
