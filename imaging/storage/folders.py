"""Where a local store's objects lie: the folder that it was given, and what stands at the first level below.

Rules: a folder at the first level may be a link or a file system of its own (a bigger disk for packs/); any other link
where an object or a folder of objects belongs is refused by every operation alike, as whoever skips one takes what
lies behind it for lost. The folder and those at the first level stay the ones that they were when first seen: a disk
that is not mounted is an error and never an empty store.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from pathlib import Path
from typing import Final, NoReturn, TypeAlias

from imaging.errors import StoreError
from imaging.storage.durable import System

TEMPORARY_FOLDER: Final = "tmp"
_TEMPORARY_ELSEWHERE: Final = ".tmp"
"""In a folder at the first level that is another file system. No object's name begins with a dot."""

Identity: TypeAlias = tuple[int, int]
"""Device and inode number."""
_MOUNTS: Final = Path("/proc/self/mountinfo")


class Folders:
    """Borrows `system`; thread-safe. `root` must exist before anything is asked for."""

    def __init__(self, root: Path, system: System, mounts: Path = _MOUNTS) -> None:
        self.root = root
        self._mounts = mounts
        self._system = system
        self._lock = threading.Lock()
        self._durable: set[Path] = set()
        self._elsewhere: set[str] = set()
        self._seen: dict[str, Identity] = {}
        root_identity = _identity_of(root)
        if root_identity is not None:
            self._seen[""] = root_identity
            for top in _folders_in(root):
                self._look_at(top)

    def path(self, operation: str, name: str) -> str:
        """Where an object is or, for a name that ends in a slash, a folder. StoreError when a link is in its way."""
        at = str(self.root)
        for number, part in enumerate(name.split("/")):
            at = f"{at}/{part}"
            if (number or "/" not in name) and os.path.islink(at):
                refuse_link(operation, name, at)
        return at

    def check(self, operation: str, name: str) -> None:
        """StoreError unless the store's folder, and the one at the first level that `name` is in, are those that they
        were. An empty name is in all of them."""
        with self._lock:
            tops = ("", top_of(name)) if name else ("", *self._seen)
        for top in dict.fromkeys(tops):
            known, found = self._seen.get(top), self._look_at(top)
            folder = self.root / top
            if found is None and (known is not None or not top or folder.is_symlink()):
                where = f"{folder} (a link to {os.readlink(folder)})" if folder.is_symlink() else str(folder)
                raise StoreError(operation, name or "the repository", f"the folder {where} is not there")
            if known is not None and found is not None and found != known and self._may_be_renumbered(known, found):
                with self._lock:
                    self._seen[top] = found
                continue
            if known is not None and found != known:
                detail = f"the folder {folder} is no longer the one that was opened"
                hint = "check that the repository's disks are mounted; if it was moved on purpose, start anew"
                raise StoreError(operation, name or "the repository", detail, hint=hint)

    def _may_be_renumbered(self, known: Identity, found: Identity) -> bool:
        """Whether it may be the same folder with another inode number: overlay and FUSE file systems make up a new one
        whenever the kernel has forgotten the last. A disk that is not mounted is another device all the same."""
        kind = kind_of_mount(found[0], self._mounts) if known[0] == found[0] else ""
        return kind == "overlay" or kind.startswith("fuse")

    def _look_at(self, top: str) -> Identity | None:
        found = _identity_of(self.root / top)
        if found is not None:
            with self._lock:
                self._seen.setdefault(top, found)
        return found

    def make(self, folder: Path) -> None:
        """Makes `folder`, and makes its own entry durable: once per folder and process, whoever made it first."""
        if folder in self._durable:
            return
        if folder == self.root:
            self.check("write to", "")
            return
        self.make(folder.parent)
        with contextlib.suppress(FileExistsError):
            self._system.make_directory(folder)
        self._system.fsync_directory(folder.parent)
        if folder.parent == self.root and folder.name != TEMPORARY_FOLDER:
            self.check("write to", f"{folder.name}/")
        with self._lock:
            self._durable.add(folder)

    def forget_made(self) -> None:
        """What was made may be gone: remove_empty() ran in another thread or process, or the disk went away."""
        with self._lock:
            self._durable.clear()

    def settle(self, folder: Path) -> None:
        """Makes what was done in `folder` durable, or, where it was removed since, that. OSError."""
        while True:
            try:
                self._system.fsync_directory(folder)
            except (FileNotFoundError, NotADirectoryError):
                if folder == self.root:
                    raise
                folder = folder.parent
            else:
                return

    def remove_empty(self, folder: Path) -> None:
        """Leases come and go in folders of their own; the first level stays."""
        while folder != self.root and folder.parent != self.root:
            try:
                os.rmdir(folder)
            except OSError:
                return  # not empty, as a rule; an empty folder that stays is harmless and shows in no listing
            with self._lock:
                self._durable.discard(folder)
            folder = folder.parent

    # Temporaries

    def temporary_for(self, name: str) -> Path:
        """Where an object is written before it gets its name: on the same file system."""
        top = top_of(name)
        return self.root / top / _TEMPORARY_ELSEWHERE if top in self._elsewhere else self.root / TEMPORARY_FOLDER

    def learn_elsewhere(self, name: str) -> bool:
        """`name` turned out to lie on another file system than the store's folder. False if that was known, or cannot
        be: then something else went wrong."""
        top = top_of(name)
        if not top or top in self._elsewhere:
            return False
        with self._lock:
            self._elsewhere.add(top)
        return True

    def temporaries(self) -> list[Path]:
        """Every folder that may hold some."""
        elsewhere = (self.root / top / _TEMPORARY_ELSEWHERE for top in _folders_in(self.root))
        return [self.root / TEMPORARY_FOLDER, *elsewhere]

    def file_systems(self) -> list[Path]:
        """One folder on each file system that the store is on."""
        with self._lock:
            by_device = {device: top for top, (device, _) in reversed(self._seen.items())}
        return [self.root / top for top in by_device.values()]


def kind_of_mount(device: int, mounts: Path = _MOUNTS) -> str:
    """The type of a mounted file system, as `ext4`, by its device number; empty if it is not mounted (proc(5),
    mountinfo). OSError."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.read_text(errors="replace").splitlines():
        mounted, _, about = line.partition(" - ")
        if mounted.split()[2] == wanted:
            return about.split()[0]
    return ""


def top_of(name: str) -> str:
    """The folder at the first level that an object, or all with a prefix, are in; empty for none."""
    top, slash, _ = name.partition("/")
    return top if slash else ""


def refuse_link(operation: str, name: str, link: str) -> NoReturn:
    raise StoreError(
        operation,
        name or "the repository",
        f"{link} is a link",
        hint="only folders directly in the repository may be links, each to a folder that is there: put what the link"
        " leads to in its place",
    )


def _folders_in(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and entry.name != TEMPORARY_FOLDER)
    except OSError:
        return []  # whoever uses it next is told


def _identity_of(folder: Path) -> Identity | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None
