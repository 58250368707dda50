"""A share of the data read at each verification: damage is found in time, and an interrupted one is gone on with."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from imaging.errors import StoreUnavailable
from imaging.scrub import Reading
from imaging.storage.local import LocalStore
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import back_up, content, make, reopen

MIB = 1 << 20


def read_whole(folder: Path) -> int:
    """How many packs were read whole so far, by the log."""
    entries = struct.iter_unpack("<32sI", (folder / "cache" / "read-packs").read_bytes())
    return sum(not day >> 31 for _, day in entries)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with make(tmp_path) as repository:
        for number in range(6):
            back_up(repository, f"m{number}", {"disk": content(number, MIB)})
    return tmp_path


def test_each_run_reads_a_share_and_all_is_read_in_time(folder: Path) -> None:
    read_bytes = []
    for _ in range(3):
        with reopen(folder) as repository:
            report = repository.verify(reading=Reading(3))
            assert report.ok
            assert (report.read_data, 0 < report.read_packs < report.packs) == (True, True)
            read_bytes.append(report.read_bytes)
    with reopen(folder) as repository:
        everything = repository.verify(read_data=True)
    assert everything.read_packs == everything.packs
    assert sum(read_bytes) >= everything.read_bytes, "what is more was read for the second time"
    assert max(read_bytes) < 0.6 * everything.read_bytes


def test_a_flipped_byte_is_found_within_so_many_runs(folder: Path) -> None:
    victim = max((folder / "store" / "packs").glob("*/*"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    found = []
    for _ in range(3):
        with reopen(folder) as repository:
            found.append(any(victim.name in each.name for each in repository.verify(reading=Reading(3)).problems))
    assert any(found)
    assert found == sorted(found), "once it was found, it is known"


def test_a_verification_that_was_interrupted_is_gone_on_with(folder: Path) -> None:
    store = FaultyStore(LocalStore(folder / "store"))
    store.fail("list", nth=1, prefix="manifests/", error=StoreUnavailable("list", "manifests/", "it is gone"))
    with reopen(folder, store=store) as repository, pytest.raises(StoreUnavailable):
        repository.verify(reading=Reading(2))
    packs = len(list((folder / "store" / "packs").glob("*/*")))
    assert 0 < read_whole(folder) < packs
    with reopen(folder) as repository:
        report = repository.verify(reading=Reading(2))
    assert report.ok
    assert report.read_packs < packs
    assert read_whole(folder) == packs, "the second half, and not the first again"


def test_hashes_alone_find_a_flipped_byte_and_take_no_verdict_back(folder: Path) -> None:
    victim, other = sorted((folder / "store" / "packs").glob("*/*"), key=lambda path: path.stat().st_size)[-2:]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with reopen(folder) as repository:
        report = repository.verify(reading=Reading(hashes_only=True))
        assert [victim.name in each.name for each in report.problems] == [True]
        assert len(report.affected) == 1, "what is bad in a pack that is not whole is told blob by blob"
        assert report.read_packs == report.packs
        assert read_whole(folder) == 0, "no chunk was opened"
        victim.write_bytes(whole)
        report = repository.verify(reading=Reading(hashes_only=True))
        assert [victim.name in each.name for each in report.problems] == [True], "only who opens all may say otherwise"
        assert repository.verify(read_data=True).ok
        assert repository.verify(reading=Reading(hashes_only=True)).ok
        other.unlink()
        assert not repository.verify(reading=Reading(hashes_only=True)).ok
