"""Disk images and block devices as NBD exports, by QEMU's own tools.

Rules: the format is stated, never probed; only files and block devices reach a tool; an image that leads to other
files (backing file, data file, extents elsewhere) is refused unless the caller asked for its chain; the tools run
under limits of memory and of processor time, which grows with the disk, and see no secret in their environment, as an
image may be hostile.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from imaging.errors import ImageRefused, ImageUnreadable, SourceError
from imaging.source import DISK_BYTES_MAX, NbdSource

FORMATS: Final = ("raw", "qcow2", "vmdk", "vhdx", "vdi", "vpc")
SOCKET_FOLDER_PREFIX: Final = "nbd-"
_MEMORY_BYTES: Final = 2 << 30
_INSPECT_CPU_S: Final = 30
_CPU_S: Final = 300
_CPU_S_PER_GIB: Final = 120
_CPU_GRACE_S: Final = 5  # for whoever does not listen to SIGXCPU: SIGKILL
_START_S: Final = 60  # on a machine that is busy with many backups
_BURIAL_S: Final = 30  # of a server that lets nobody in any more: on a busy machine its end takes a while
_KEPT_VARIABLES: Final = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "STRONGROOM_HOME")
_OTHER_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a character device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image says of itself."""

    format: str
    size_bytes: int
    backing: str | None
    backing_format: str | None
    data_file: str | None
    extents: tuple[str, ...]


class ImageEncrypted(ImageRefused):
    """Encrypted by QEMU itself."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "it is encrypted by QEMU, and its key is not known here")
        self.hint = "decrypt a copy of it with qemu-img convert, and back up the copy with --image"


def limited(command: Sequence[str], *, cpu_s: int) -> list[str]:
    """The command under limits of address space and CPU seconds; the latter can be raised while it runs."""
    return ["prlimit", f"--as={_MEMORY_BYTES}", "--core=0", f"--cpu={cpu_s}:", "--", *command]


def cpu_limit_s(size_bytes: int) -> int:
    """What no tool needs for reading and writing such a disk, twice, in the costliest format, on a slow machine: who
    uses more is in a loop.
    """
    return _CPU_S + -(-size_bytes * _CPU_S_PER_GIB >> 30)


def bare_environment() -> dict[str, str]:
    """For tools: nothing that is secret, and whose they are."""
    return {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """The command, killed by the kernel when the thread that starts it dies: a server that nobody stops any more would
    keep its image locked. To be started by this process.

    Who dies before the kernel was asked for this is not waited for in vain: the command then does not begin.
    """
    unless_orphaned = 'parent=$1; shift; [ "$PPID" = "$parent" ] || exit 1; exec "$@"'
    shell = ["/bin/sh", "-c", unless_orphaned, "strongroom", str(os.getpid())]
    return ["setpriv", "--pdeathsig=KILL", "--", *shell, *command]


def inspect(path: Path, image_format: str) -> ImageInfo:
    """Ask qemu-img, which opens the image alone and none that it leads to. Raises ImageUnreadable; ImageRefused when it
    is encrypted.
    """
    if image_format not in FORMATS:
        raise ImageUnreadable(str(path), f"{image_format!r} is no format; known are {', '.join(FORMATS)}")
    _check_kind(path)
    command = ["qemu-img", "info", "--output=json", "-U", "-f", image_format, _plain_name(path)]
    try:
        done = subprocess.run(
            dying_with_parent(limited(command, cpu_s=_INSPECT_CPU_S)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
            env=bare_environment(),
        )
    except subprocess.TimeoutExpired as err:
        raise ImageUnreadable(str(path), f"qemu-img did not answer in {err.timeout:.0f} s") from err
    if done.returncode != 0:
        raise ImageUnreadable(str(path), _last_line(done.stderr) or f"qemu-img ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    if found.get("encrypted"):
        raise ImageEncrypted(str(path))
    specific = (found.get("format-specific") or {}).get("data") or {}
    return ImageInfo(
        format=found["format"],
        size_bytes=found["virtual-size"],
        backing=found.get("full-backing-filename") or found.get("backing-filename"),
        backing_format=found.get("backing-filename-format"),
        data_file=specific.get("data-file"),
        extents=tuple(e["filename"] for e in specific.get("extents", []) if "filename" in e),
    )


def _check_kind(path: Path) -> None:
    """Anything else would be read as empty, or for ever. Raises ImageUnreadable."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as err:
        raise ImageUnreadable(str(path), "there is no such file") from err
    except OSError as err:
        raise ImageUnreadable(str(path), err.strerror or str(err)) from err
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        kind = _OTHER_KINDS.get(stat.S_IFMT(mode), "something else")
        raise ImageUnreadable(str(path), f"it is {kind}, and only files and block devices can be read")


def check_alone(path: Path, image_format: str) -> ImageInfo:
    """Refuse an image that is too large or leads elsewhere. Raises ImageRefused, ImageUnreadable."""
    info = inspect(path, image_format)
    if info.size_bytes > DISK_BYTES_MAX:
        raise ImageRefused(str(path), f"it claims a size of {info.size_bytes} bytes, more than {DISK_BYTES_MAX}")
    if info.backing is not None:
        raise ImageRefused(str(path), f"it has a backing file, {info.backing!r}, which would be read too")
    if info.data_file is not None:
        raise ImageRefused(str(path), f"it keeps its data in another file, {info.data_file!r}")
    folder = path.resolve().parent
    for extent in info.extents:
        if Path(extent).resolve().parent != folder:
            raise ImageRefused(str(path), f"it has an extent outside its own folder, {extent!r}")
    return info


def check_chain(path: Path, image_format: str, *, depth: int = 64) -> ImageInfo:
    """As check_alone, but a backing chain of plain files with stated formats is followed and checked too."""
    info = inspect(path, image_format)
    if info.backing is None:
        return check_alone(path, image_format)
    if info.data_file is not None or depth == 0:
        raise ImageRefused(str(path), "it keeps its data in another file" if depth else "its backing chain has no end")
    if info.backing_format is None or not info.backing.startswith("/"):
        raise ImageRefused(str(path), f"its backing file {info.backing!r} is no plain file of a stated format")
    check_chain(Path(info.backing), info.backing_format, depth=depth - 1)
    return info


@contextmanager
def serve(
    path: Path,
    image_format: str,
    folder: Path,
    *,
    bitmap: str | None = None,
    connections: int = 4,
    writable: bool = False,
) -> Iterator[Path]:
    """Export an image over a UNIX socket below `folder`, for as long as the context lasts; yields the socket.

    It is read-only unless `writable`. With `bitmap`, a qcow2's dirty bitmap of that name is the metadata context
    `qemu:dirty-bitmap:NAME`. The caller has checked the image. Raises ImageUnreadable, also in place of the SourceError
    of a body whose server ran out of processor time.
    """
    _check_kind(path)
    with tempfile.TemporaryDirectory(prefix=SOCKET_FOLDER_PREFIX, dir=folder) as own:
        listen = Path(own) / "s"
        access = "--discard=unmap" if writable else "--read-only"
        command = ["qemu-nbd", access, "--persistent", f"--shared={connections}", f"--format={image_format}",
                   "--cache=writeback", f"--socket={listen}"]  # fmt: skip
        if bitmap is not None:
            command.append(f"--bitmap={bitmap}")
        errors = Path(own) / "stderr"
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                dying_with_parent(limited([*command, _plain_name(path)], cpu_s=_CPU_S)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=bare_environment(),
            )
        try:
            _wait_ready(process, listen, path, errors)
            _allow_for_size(process, listen, path, errors)
            yield listen
        except SourceError as err:
            _bury(process, listen)
            if process.returncode == -signal.SIGXCPU:
                raise ImageUnreadable(str(path), "qemu-nbd used more processor time than such a disk needs") from err
            raise
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(process: subprocess.Popen[bytes], listen: Path, path: Path, errors: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _ended(process, path, errors)
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(listen)) == 0:
                return
        time.sleep(0.005)
    raise ImageUnreadable(str(path), f"qemu-nbd was not ready in {_START_S} s")


def _ended(process: subprocess.Popen[bytes], path: Path, errors: Path) -> ImageUnreadable:
    return ImageUnreadable(str(path), _last_line(errors.read_bytes()) or f"qemu-nbd ended with {process.returncode}")


def _allow_for_size(process: subprocess.Popen[bytes], listen: Path, path: Path, errors: Path) -> None:
    try:
        with NbdSource(listen, connections=1) as source:
            limit_s = cpu_limit_s(source.size_bytes)
    except SourceError as err:
        # It listens before it opens the image: one that it may not open, it leaves after the first client was let in.
        _bury(process, listen)
        if process.returncode is None or process.returncode == -signal.SIGXCPU:
            raise
        raise _ended(process, path, errors) from err
    with suppress(ProcessLookupError):  # it has just died: whoever reads from it will tell
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (limit_s, limit_s + _CPU_GRACE_S))


def _bury(process: subprocess.Popen[bytes], listen: Path) -> None:
    """Wait for the end of a server that is about to end: it does not listen any more. One that does is let be."""
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(listen)) == 0:
            return
    with suppress(subprocess.TimeoutExpired):
        process.wait(_BURIAL_S)


def _plain_name(path: Path) -> str:
    """An absolute path, so that no name is taken for a protocol ("nbd:…", "json:…") or an option."""
    return os.path.abspath(path)


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
