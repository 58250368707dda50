"""A served disk as an image file of another format (qemu-img), and as a raw file in a folder (nbdfuse).

Rules: formats are stated, never probed; what is being made has a name of its own until it is whole and durable, so
that nothing half done ever has the name asked for; what a killed restore left under that other name, the next one
removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from imaging.errors import MountFailed, TargetFailed, TargetRefused
from imaging.images import bare_environment, cpu_limit_s, dying_with_parent, limited

OPTIONS: Final = {
    "qcow2": "compat=1.1,lazy_refcounts=off",
    "vmdk": "subformat=monolithicSparse",
    "vhdx": "subformat=dynamic",
    "vpc": "subformat=fixed,force_size=on",  # fixed and of the exact size: what Azure takes
}
FORMATS: Final = ("raw", *OPTIONS)
_SECTOR_BYTES: Final = 512
_VPC_BYTES_MAX: Final = 2040 << 30
_PROGRESS: Final = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
_READY_S: Final = 60.0
_UNMOUNT_S: Final = 10.0


@contextmanager
def new_file(path: Path, *, replace: bool) -> Iterator[Path]:
    """Yields the name to write to; when the body ends well, the file is made durable and gets the name asked for.

    Raises TargetRefused before anything is written; removes what was written when the body fails.
    """
    path = path.resolve() if replace and path.is_file() else path
    if os.path.lexists(path) and not (replace and path.is_file()):
        raise TargetRefused(str(path), "it exists already", hint="choose another name, or replace it with --force")
    part = path.with_name(f"{path.name}.strongroom-part")
    with _own_part(part, path):
        try:
            yield part
            _durable(part, path, replace)
        except OSError as err:
            raise TargetFailed(str(path), err.strerror or str(err)) from err
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _own_part(part: Path, path: Path) -> Iterator[None]:
    """Nobody else writes this part file; one that a killed restore left is removed."""
    lock_path = part.with_name(part.name + ".lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as err:
        raise TargetRefused(
            str(path), err.strerror or str(err), hint="choose a folder that exists and may be written"
        ) from err
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise TargetRefused(
                str(path), "another restore is writing it", hint="wait until that one has ended"
            ) from err
        part.unlink(missing_ok=True)
        yield
    finally:
        lock_path.unlink(missing_ok=True)
        os.close(lock)


def _durable(part: Path, path: Path, replace: bool) -> None:
    descriptor = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if replace:
        part.rename(path)
    else:
        try:
            os.link(part, path)
        except FileExistsError as err:
            raise TargetRefused(str(path), "it exists already", hint="choose another name") from err
        except OSError as err:
            if err.errno not in (errno.EPERM, errno.EOPNOTSUPP):  # a file system without links
                raise
            part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_format(image_format: str, size_bytes: int, target: Path) -> None:
    """Raises TargetRefused for a format that cannot hold such a disk."""
    if image_format not in FORMATS:
        hint = f"formats are {', '.join(FORMATS)}"
        raise TargetRefused(str(target), f"{image_format!r} is not a format that can be written", hint=hint)
    if image_format == "vpc" and size_bytes > _VPC_BYTES_MAX:
        hint = "use vhdx"
        raise TargetRefused(str(target), f"vpc holds at most 2040 GiB, and the disk has {size_bytes} bytes", hint=hint)
    if image_format != "raw" and size_bytes % _SECTOR_BYTES:
        hint = "restore it to raw"
        raise TargetRefused(
            str(target), f"{image_format} holds whole sectors, and the disk has {size_bytes} bytes", hint=hint
        )


def convert(uri: str, target: Path, image_format: str, size_bytes: int, advance: Callable[[int], None]) -> None:
    """Copy an NBD export into a new image file at `target`. Raises TargetFailed with qemu-img's own words."""
    command = [
        "qemu-img",
        "convert",
        "-p",
        "-W",
        "-m",
        "8",
        "-T",
        "writeback",
        "-t",
        "writeback",
        "-f",
        "raw",
        "-O",
        image_format,
    ]
    if image_format in OPTIONS:
        command += ["-o", OPTIONS[image_format]]
    command += [uri, os.path.abspath(target)]
    with subprocess.Popen(
        dying_with_parent(limited(command, cpu_s=cpu_limit_s(size_bytes))),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        umask=0o077,
        env=bare_environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            _follow(process.stdout.fileno(), size_bytes, advance)
            errors = process.stderr.read()
        except BaseException:
            process.kill()
            raise
    if process.returncode == -signal.SIGXCPU:
        raise TargetFailed(str(target), "qemu-img used more processor time than such a disk needs")
    if process.returncode != 0:
        said = errors.decode(errors="replace").strip().splitlines()
        raise TargetFailed(str(target), said[-1] if said else f"qemu-img ended with {process.returncode}")


def _follow(descriptor: int, size_bytes: int, advance: Callable[[int], None]) -> None:
    """Turn qemu-img's percentages into bytes."""
    told, waiting = 0, b""
    while part := os.read(descriptor, 4096):
        waiting = (waiting + part)[-256:]
        found = _PROGRESS.findall(waiting)
        if found:
            done = int(float(found[-1]) / 100 * size_bytes)
            if done > told:
                advance(done - told)
                told = done


def mount_file(uri: str, path: Path, pid_file: Path, log: Path) -> None:
    """Show an export as the read-only raw file `path`, by a process that outlives this one. Raises MountFailed."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o400))
    except OSError as err:
        raise MountFailed(
            str(path), err.strerror or str(err), hint="give a folder that is empty and may be written"
        ) from err
    pid_file.unlink(missing_ok=True)
    with log.open("ab") as words:
        process = subprocess.Popen(
            ["nbdfuse", "--readonly", "--pidfile", str(pid_file), str(path), uri],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=bare_environment(),
            cwd="/",  # it outlives its caller, whose folder must not stay in use
            start_new_session=True,
        )
    deadline = time.monotonic() + _READY_S
    while not (pid_file.exists() and pid_file.read_text()):  # it is there before it is written
        if process.poll() is not None or time.monotonic() > deadline:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            said = log.read_text(errors="replace").strip().splitlines()
            unmount_file(path)
            raise MountFailed(
                str(path), said[-1] if said else "nbdfuse did not come up", hint="check that FUSE works here"
            )
        time.sleep(0.01)


def unmount_file(path: Path) -> None:
    """Take the file away again, and its place. Safe when it is not mounted. Raises MountFailed while it is in use."""
    if is_mounted(path):
        done = subprocess.run(["umount", "--no-canonicalize", str(path)], capture_output=True, check=False, timeout=60)
        deadline = time.monotonic() + _UNMOUNT_S
        while done.returncode == 0 and is_mounted(path) and time.monotonic() < deadline:
            time.sleep(0.01)
        if is_mounted(path):
            said = done.stderr.decode(errors="replace").strip()
            hint = "close what uses it (see 'fuser -m' or 'losetup'), then unmount again"
            raise MountFailed(str(path), said or "it stays mounted", hint=hint)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISREG(os.lstat(path).st_mode) and os.lstat(path).st_size == 0:
            path.unlink()


def is_mounted(path: Path) -> bool:
    """Whether something is mounted on exactly this path."""
    wanted = str(path)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place = line.split(" ")[4]
        if re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), place) == wanted:
            return True
    return False
