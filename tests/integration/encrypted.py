"""Images that QEMU encrypts, with a key that nobody else is told."""

from __future__ import annotations

import subprocess
from pathlib import Path

_ATTEMPTS = 50


def make_encrypted(path: Path, size_bytes: int) -> Path:
    """An empty LUKS qcow2. qemu-img measures the processor for it, and gives up whenever the kernel's count of its
    time looks wrong ("Unable to get accurate CPU usage", one time in five here): it is asked again.
    """
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=k,data=key", "-o",
               "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10", str(path), str(size_bytes)]  # fmt: skip
    for _ in range(_ATTEMPTS):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "accurate CPU usage" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    return path
