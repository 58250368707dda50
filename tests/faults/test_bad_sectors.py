"""Sectors that are bad for good are damage, and a disk that does not answer for a moment is none: both are EIO.

A pack is replaced by what nbdkit serves of it through FUSE: its ddrescue filter has bad sectors, its error filter fails
everything while a trigger is there.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from imaging.errors import Damaged, StoreUnavailable
from imaging.extents import PAGE_BYTES
from imaging.packs import pack_name
from imaging.repository import Point, Repository
from imaging.soundness import known_damage
from imaging.storage.local import LocalStore
from imaging.storage.sectors import bad_for_good
from tests.faults.repositories import back_up, content, make, read_disk, reopen

pytestmark = pytest.mark.faults

DATA = content(1, 1_500_000)
BAD_PAGE = 100


@dataclass(frozen=True)
class Scene:
    folder: Path
    point: Point
    pack: str

    @property
    def path(self) -> Path:
        return self.folder / "store" / self.pack

    def verdicts(self) -> list[str]:
        return [path.name for path in (self.folder / "store" / "damaged").glob("*")]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": DATA})
        (pack,) = (pack for pack, each in repository.index.packs().items() if each.blob_type == 0)
    return Scene(tmp_path, point, pack_name(pack))


@contextmanager
def served(scene: Scene, *options: str) -> Iterator[None]:
    """The pack, as nbdkit serves a copy of it."""
    backing = scene.folder / "backing"
    backing.write_bytes(scene.path.read_bytes())
    ready = scene.folder / "nbdfuse.pid"
    command = ["nbdfuse", "--readonly", "--pidfile", str(ready), str(scene.path)]
    command += ["[", "nbdkit", "--exit-with-parent", *options[:1], "file", str(backing), *options[1:], "]"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not ready.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(scene.path)], check=False, capture_output=True)
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        ready.unlink(missing_ok=True)


@contextmanager
def bad_sectors(scene: Scene) -> Iterator[None]:
    """One page of the pack."""
    start, size = BAD_PAGE * PAGE_BYTES, -(-scene.path.stat().st_size // PAGE_BYTES) * PAGE_BYTES
    lines = [(0, start, "+"), (start, PAGE_BYTES, "-"), (start + PAGE_BYTES, size - start - PAGE_BYTES, "+")]
    text = "".join(f"{at:#x} {length:#x} {state}\n" for at, length, state in lines)
    ddrescue = scene.folder / "map"
    ddrescue.write_text(f"0x0 + 1\n{text}")
    with served(scene, "--filter=ddrescue", f"ddrescue-mapfile={ddrescue}"):
        fails(scene.path, start)
        yield


def fails(path: Path, at: int) -> None:
    """The fault is there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError) as caught:
            os.pread(descriptor, 100, at)
        assert caught.value.errno == errno.EIO
    finally:
        os.close(descriptor)


def lost_ranges(repository: Repository, point: Point) -> list[tuple[int, int]]:
    (damage,) = known_damage(repository, point.manifest.disks)
    return [(each.start, each.stop) for each in damage.ranges]


def test_a_bad_sector_is_damage_and_costs_what_lies_in_it(scene: Scene) -> None:
    with bad_sectors(scene), reopen(scene.folder) as repository:
        with pytest.raises(Damaged, match="again and again"):
            read_disk(repository, scene.point)
        assert scene.verdicts() == [scene.path.name]
        ((start, stop),) = lost_ranges(repository, scene.point)
        assert 0 < stop - start <= 2 * 256 * 1024, "a chunk, or two that meet there"
        report = repository.verify(read_data=True)
        assert [problem.name for problem in report.problems] == [scene.pack]
        at = BAD_PAGE * PAGE_BYTES
        assert f"cannot read its bytes {at} to {at + PAGE_BYTES}" in str(report.problems[0].error)
        ((hit,),) = [each.damage for each in report.affected]
        assert [(each.start, each.stop) for each in hit.ranges] == [(start, stop)]
        back_up(repository, "web", {"disk": DATA})
        assert read_disk(repository, scene.point) == DATA, "the next run has stored anew what lay there"
        assert repository.verify(read_data=True).affected == ()


def test_a_verification_alone_finds_it_too(scene: Scene) -> None:
    with bad_sectors(scene), reopen(scene.folder) as repository:
        assert repository.verify().ok, "the table can be read, and no more was asked for"
        report = repository.verify(read_data=True)
        assert [problem.name for problem in report.problems] == [scene.pack]
        assert scene.verdicts() == [scene.path.name]
        assert repository.index_has_losses()


def test_a_disk_that_gives_nothing_for_a_moment_is_no_damage(scene: Scene) -> None:
    trigger = scene.folder / "trigger"
    options = ("error-pread=EIO", "error-pread-rate=100%", f"error-pread-file={trigger}")
    with served(scene, "--filter=error", *options), reopen(scene.folder) as repository:
        trigger.touch()
        fails(scene.path, 0)
        with pytest.raises(StoreUnavailable):
            read_disk(repository, scene.point)
        report = repository.verify(read_data=True)
        assert [type(problem.error) for problem in report.problems] == [StoreUnavailable]
        assert scene.verdicts() == []
        trigger.unlink()
        assert read_disk(repository, scene.point) == DATA
        assert repository.verify(read_data=True).ok
        assert not repository.index_has_losses()


def test_where_nothing_fails_nothing_is_bad(scene: Scene) -> None:
    descriptor = os.open(scene.path, os.O_RDONLY)
    try:
        assert bad_for_good(descriptor, 0, scene.path.stat().st_size) is None
        assert bad_for_good(descriptor, scene.path.stat().st_size - 1, 1) is None
    finally:
        os.close(descriptor)


def test_a_file_of_one_page_proves_nothing(scene: Scene) -> None:
    """There is no other page that could be read."""
    small = scene.folder / "store" / "config"
    lone = Scene(scene.folder, scene.point, "config")
    assert small.stat().st_size < PAGE_BYTES
    ddrescue = scene.folder / "map"
    ddrescue.write_text("0x0 + 1\n0x0 0x1000 -\n")
    with served(lone, "--filter=ddrescue", f"ddrescue-mapfile={ddrescue}"):
        fails(small, 0)
        with pytest.raises(StoreUnavailable):
            LocalStore(scene.folder / "store").get("config")
