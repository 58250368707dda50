"""One limit for all that a command moves: whichever store, thread or direction; small objects never wait."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imaging.storage.limited import LimitedStore
from imaging.storage.local import LocalStore
from imaging.throttle import Ended, Throttle
from tests.faults.repositories import ManualClock
from tests.unit.cli_runner import CommandLine

MIB = 1 << 20
KIB = 1 << 10


class Waits(ManualClock):
    """Waiting is letting time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.slept.append(seconds)
        self.pass_s(seconds)
        return False


def test_two_stores_share_a_limit_in_both_directions(tmp_path: Path) -> None:
    clock = Waits()
    throttle = Throttle(MIB, clock, clock.wait)
    one = LimitedStore(LocalStore.make(tmp_path / "one"), throttle)
    two = LimitedStore(LocalStore.make(tmp_path / "two"), throttle)
    one.put("packs/aa/a", [bytes(MIB), memoryview(bytes(MIB))])
    assert clock.slept == []
    two.create("packs/aa/b", [bytes(3 * MIB)])
    assert clock.slept == [2.0], "for what went into the other store"
    assert one.get("packs/aa/a", 10, MIB) == bytes(MIB)
    assert clock.slept == [2.0, 3.0]
    assert len(two.get("packs/aa/b")) == 3 * MIB
    assert clock.slept == [2.0, 3.0, 1.0], "and what is read whole is paid for when its length is known"


def test_small_objects_are_paid_for_and_never_wait(tmp_path: Path) -> None:
    clock = Waits()
    store = LimitedStore(LocalStore.make(tmp_path / "store"), Throttle(MIB, clock, clock.wait))
    store.put("packs/aa/a", [bytes(10 * MIB)])
    for number in range(32):
        store.create(f"leases/aa/beat/{number:010}", [bytes(32 * KIB)])
        assert len(store.get(f"leases/aa/beat/{number:010}")) == 32 * KIB
    assert clock.slept == []
    store.put("packs/aa/b", [bytes(MIB)])
    assert clock.slept == [12.0]


def test_small_pieces_of_packs_wait_as_large_ones_do(tmp_path: Path) -> None:
    clock = Waits()
    store = LimitedStore(LocalStore.make(tmp_path / "store"), Throttle(MIB, clock, clock.wait))
    store.put("packs/aa/a", [bytes(MIB)])
    for number in range(64):
        store.get("packs/aa/a", number * 16 * KIB, 16 * KIB)
    assert sum(clock.slept) == pytest.approx(1 + 63 / 64)
    assert max(clock.slept) == 1.0


def test_who_is_told_to_end_moves_nothing_more(tmp_path: Path) -> None:
    ended = threading.Event()
    inner = LocalStore.make(tmp_path / "store")
    store = LimitedStore(inner, Throttle(1, ManualClock(), ended.wait))
    store.put("packs/aa/a", [bytes(MIB)])
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(store.put, f"packs/aa/{name}", [bytes(MIB)]) for name in "bc"]
        ended.set()
        for each in waiting:
            with pytest.raises(Ended):
                each.result()
    with pytest.raises(Ended):
        store.get("packs/aa/a", 0, MIB)
    store.create("leases/aa/end", [b"it still ends in order"])
    assert {listed.name for listed in inner.list("")} == {"packs/aa/a", "leases/aa/end"}


@pytest.fixture
def homes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[CommandLine, CommandLine]:
    return CommandLine.new(tmp_path / "one", capsys), CommandLine.new(tmp_path / "two", capsys)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, float], int]:
    """Bytes that waited their turn, by throttle and its rate."""
    found: dict[tuple[int, float], int] = {}

    def take(self: Throttle, count_bytes: int) -> None:
        found[id(self), self._rate] = found.get((id(self), self._rate), 0) + count_bytes

    monkeypatch.setattr(Throttle, "take", take)
    return found


def test_every_command_that_moves_much_keeps_to_its_limit(
    homes: tuple[CommandLine, CommandLine], taken: dict[tuple[int, float], int]
) -> None:
    one, two = homes
    image, back = one.folder / "disk.raw", one.folder / "back.raw"
    image.write_bytes(random.Random(1).randbytes(6 * MIB))
    backup = ("backup", "--image", str(image), "--format", "raw", "--name", "web")
    restore = ("restore", "web", "--point", "latest", "--to", str(back), "--format", "raw")

    def moved(line: CommandLine, *command: str, **environment: str) -> dict[float, int]:
        taken.clear()
        done = line(*command, **environment)
        assert done.code == 0, done.err
        assert len(taken) <= 1, "one limit for all of it"
        return {rate: count for (_, rate), count in taken.items()}

    for command, least in (
        (backup, 6 * MIB),
        (restore, 6 * MIB),
        (("repository", "verify", "--read-data"), 6 * MIB),
        (("repository", "copy", str(two.home)), 12 * MIB),
    ):
        (rate, count), = moved(one, *command, "--limit", "5 MB").items()  # fmt: skip
        assert (rate, count >= least) == (5e6, True), command
    image.write_bytes(random.Random(2).randbytes(6 * MIB))
    assert moved(one, *backup) == {}
    back.unlink()
    (rate,) = moved(one, *restore, STRONGROOM_LIMITS_BANDWIDTH_BYTES_S="7 MB")
    assert rate == 7e6
    back.unlink()
    (rate,) = moved(one, *restore, "--limit", "3MB/s", STRONGROOM_LIMITS_BANDWIDTH_BYTES_S="7 MB")
    assert rate == 3e6, "the command line says it last"


@pytest.mark.parametrize("wrong", ["0", "fast", "-3MB", "0/s"])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str) -> None:
    line = CommandLine(tmp_path, capsys)
    assert line("backup", "web", "--limit", wrong).code == 2
