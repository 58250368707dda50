"""A repository on a file system that is really full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from imaging.collecting import Options
from imaging.errors import NoSpace
from tests.faults.guarded import PERSONS, guarded
from tests.faults.repositories import back_up, content, make, read_disk, reopen

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root"),
]


def mounted(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "strongroom-test", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_store(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "store", "1m")


@pytest.fixture
def small_cache(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "cache", "128k")


def test_a_full_repository_refuses_cleanly_keeps_its_points_and_still_deletes(
    small_store: Path, tmp_path: Path
) -> None:
    data = {"disk": content(1, 300_000)}
    with make(tmp_path) as repository:
        first = back_up(repository, "web", data)
        for seed in (2, 3):
            with pytest.raises(NoSpace) as caught:
                back_up(repository, "web", {"disk": content(seed, 2_000_000)})
            assert "no space" in str(caught.value)
            assert caught.value.hint
        assert repository.points() == [first]
        assert read_disk(repository, first) == data["disk"]
        assert not list((small_store / "tmp").glob("*.part"))
    ballast = 0
    with reopen(tmp_path) as repository:
        while True:
            try:
                repository.store.put(f"packs/00/{ballast:064x}", [os.urandom(4096)])
            except NoSpace:
                break
            ballast += 1
        with pytest.raises(NoSpace):
            repository.begin_run(first.series)
        assert read_disk(repository, first) == data["disk"]
        repository.delete_point(first, "admin")
        assert repository.points() == []
        for number in range(ballast):
            repository.store.delete(f"packs/00/{number:064x}")
        again = back_up(repository, "web", data)
        assert again.generation > first.generation
        assert repository.verify(read_data=True).ok


@pytest.fixture
def roomy_store(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "store", "48m")


class Silent:
    def start(self, label: str, total_bytes: int | None) -> None: ...
    def advance(self, count_bytes: int) -> None: ...
    def finish(self) -> None: ...
    def note(self, text: str) -> None: ...


def test_a_full_repository_is_emptied_by_deleting_and_collecting_though_backups_are_tried_all_the_while(
    roomy_store: Path, tmp_path: Path
) -> None:
    with make(tmp_path) as repository:
        doomed = back_up(repository, "web", {"disk": content(1, 2_000_000)})
        kept = back_up(repository, "db", {"disk": content(2, 100_000)})

    def fill() -> None:
        with suppress(OSError), (roomy_store / "BALLAST").open("ab", buffering=0) as ballast:
            while True:
                ballast.write(b"x" * 4096)

    fill()
    reserve = roomy_store / "tmp" / "reserve"
    held = reserve.stat().st_size
    with reopen(tmp_path) as repository:
        assert read_disk(repository, doomed) == content(1, 2_000_000)
        repository.release(repository.hold(doomed, "restore", "as every restore does").id)
        repository.delete_point(doomed, "admin")
        for _ in range(50):
            with pytest.raises(NoSpace):
                repository.begin_run(doomed.series)
        fill()
        assert reserve.stat().st_size > held // 2, "backups that cannot succeed do not live off it"
        done = repository.collect(Options(wait_s=0.0), Silent())
        assert done.deleted_packs > 0
        assert reserve.stat().st_size == held
        (roomy_store / "BALLAST").unlink()
        assert read_disk(repository, kept) == content(2, 100_000)
        assert repository.verify(read_data=True).ok


def test_in_a_full_repository_that_is_guarded_two_persons_still_make_room(roomy_store: Path, tmp_path: Path) -> None:
    scene = guarded(tmp_path, 2)
    with scene.repository as repository:
        scene.turn_on(*PERSONS)
        with suppress(OSError), (roomy_store / "BALLAST").open("ab", buffering=0) as ballast:
            while True:
                ballast.write(b"x" * 4096)
        with pytest.raises(NoSpace):
            repository.store.put("packs/00/" + "0" * 64, [os.urandom(4096)])
        repository.delete_point(scene.points[0], "admin", scene.ready(scene.deletion(scene.points[0])))
        assert repository.points() == scene.points[1:]
        assert repository.collect(Options(wait_s=0.0), Silent()).deleted_packs > 0


def test_a_full_cache_ends_no_run_and_no_reader(small_cache: Path, tmp_path: Path) -> None:
    data = {"disk": content(1, 3_000_000)}
    with make(tmp_path) as repository:
        point = back_up(repository, "web", data)
        assert read_disk(repository, point) == data["disk"]
        assert back_up(repository, "web", data).manifest.predecessor == point.hash
    subprocess.run(["dd", "if=/dev/zero", f"of={small_cache}/ballast", "bs=4k"], check=False, capture_output=True)
    with reopen(tmp_path) as repository:
        assert read_disk(repository, repository.point(point.id)) == data["disk"]
