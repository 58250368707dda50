"""Copies in a second repository: complete, incremental, gone on with, and good for a restore by themselves."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from imaging.errors import StoreUnavailable
from imaging.storage.contract import Buffer
from imaging.storage.local import LocalStore
from tests.unit.cli_runner import CommandLine

MIB = 1 << 20


@pytest.fixture
def homes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[CommandLine, CommandLine]:
    return CommandLine.new(tmp_path / "one", capsys), CommandLine.new(tmp_path / "two", capsys)


def points(line: CommandLine, *names: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = line("point", "list", *names, "--json").json()
    return found


def restored(line: CommandLine, name: str, point: str) -> bytes:
    path = line.folder / "back.raw"
    path.unlink(missing_ok=True)
    done = line("restore", name, "--point", point, "--to", str(path), "--format", "raw")
    assert done.code == 0, done.err
    return path.read_bytes()


def changed(data: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    new = bytearray(data)
    at = rng.randrange(len(data) - 5000)
    new[at : at + 5000] = rng.randbytes(5000)
    return bytes(new)


def test_a_copy_is_incremental_and_restores_without_the_original(homes: tuple[CommandLine, CommandLine]) -> None:
    one, two = homes
    states = [random.Random(1).randbytes(20 * MIB) + bytes(4 * MIB) + random.Random(2).randbytes(1536)]
    one.backup(states[0], "web")
    first = one("repository", "copy", str(two.home), "--json").json()
    assert len(first["points"]) == 1
    assert first["points"][0]["read_bytes"] >= 20 * MIB
    for seed in (3, 4):
        states.append(changed(states[-1], seed))
        one.backup(states[-1], "web")
    one.backup(b"x" * MIB, "db")
    dry = one("repository", "copy", str(two.home), "--dry-run", "--json").json()
    assert {each["name"]: len(each["points"]) for each in dry["machines"]} == {"web": 2, "db": 1}
    second = one("repository", "copy", str(two.home), "--json").json()["points"]
    read = [each["read_bytes"] for each in second if each["name"] == "web"]
    assert len(read) == 2
    assert all(0 < each < 8 * MIB for each in read), "what changed, what cutting needs, and a sample"
    again = one("repository", "copy", str(two.home))
    assert (again.code, "copied already" in again.out) == (0, True)

    shutil.rmtree(one.folder)
    copies = points(two, "web")
    assert [each["kind"] for each in copies] == ["full", "incremental", "incremental"]
    for point, state in zip(copies, states, strict=True):
        assert restored(two, "web", str(point["id"])) == state
    assert restored(two, "db", "latest") == b"x" * MIB
    assert two("repository", "verify", "--read-data").code == 0
    assert two("repository", "collect").code == 0


def test_what_was_pruned_there_stays_away_and_last_copies_the_newest(homes: tuple[CommandLine, CommandLine]) -> None:
    one, two = homes
    state = os.urandom(2 * MIB)
    for seed in range(3):
        state = changed(state, seed)
        one.backup(state, "web")
    copied = one("repository", "copy", str(two.home), "--last", "1", "--json").json()["points"]
    assert [each["origin"] for each in copied] == [points(one)[-1]["id"]]
    assert one("repository", "copy", str(two.home), "--json").json()["points"] == [], "older ones were passed over"
    state = changed(state, 9)
    one.backup(state, "web")
    assert len(one("repository", "copy", str(two.home), "web", "--json").json()["points"]) == 1
    two("prune", "--keep-last", "1", "--yes")
    assert one("repository", "copy", str(two.home), "--json").json()["points"] == []
    assert restored(two, "web", "latest") == state


def test_an_interrupted_copy_is_gone_on_with(
    homes: tuple[CommandLine, CommandLine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = homes
    state = os.urandom(3 * MIB)
    one.backup(state, "web")
    one.backup(changed(state, 1), "web")
    real = LocalStore.put
    puts = 0

    def fail(self: LocalStore, name: str, data: object) -> None:
        nonlocal puts
        if name.startswith("packs/"):
            puts += 1
            if puts == 3:
                raise StoreUnavailable("write", name, "Input/output error")
        real(self, name, data)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalStore, "put", fail)
    broken = one("repository", "copy", str(two.home))
    assert (broken.code, "Input/output error" in broken.error()) == (1, True)
    monkeypatch.undo()
    assert len(points(two)) == 1
    assert one("repository", "hold", "list", "--json").json() == []
    assert len(one("repository", "copy", str(two.home), "--json").json()["points"]) == 1
    assert restored(two, "web", "latest") == changed(state, 1)
    assert two("repository", "verify", "--read-data").code == 0


def test_what_cannot_be_a_copy_is_refused(homes: tuple[CommandLine, CommandLine], tmp_path: Path) -> None:
    one, two = homes
    one.backup(b"x" * MIB, "web")
    same = one("repository", "copy", str(one.home))
    assert (same.code, "same repository" in same.error()) == (2, True)
    nowhere = one("repository", "copy", str(tmp_path / "nowhere"))
    assert nowhere.code == 2
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").mkdir()
    empty = one("repository", "copy", str(tmp_path / "empty"))
    assert (empty.code, "has no repository yet" in empty.error()) == (1, True)
    unknown = one("repository", "copy", str(two.home), "nobody")
    assert unknown.code == 1
    assert points(two) == []


def test_a_copy_that_does_not_read_back_does_not_count(
    homes: tuple[CommandLine, CommandLine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that says that it has written, and has written something else."""
    one, two = homes
    state = os.urandom(3 * MIB)
    one.backup(state, "web")
    real = LocalStore.put
    spoilt: list[str] = []

    def spoil(self: LocalStore, name: str, data: Sequence[Buffer]) -> None:
        if name.startswith("packs/") and not spoilt:
            spoilt.append(name)
            whole = bytearray(b"".join(bytes(each) for each in data))
            whole[len(whole) // 2] ^= 1
            data = [memoryview(whole)]
        real(self, name, data)

    monkeypatch.setattr(LocalStore, "put", spoil)
    broken = one("repository", "copy", str(two.home))
    assert broken.code == 1
    assert spoilt, "no pack was written"
    assert spoilt[0] in broken.error()
    assert "does not read back" in broken.error()
    assert points(two) == []
    assert one("repository", "hold", "list", "--json").json() == []
    monkeypatch.undo()
    done = one("repository", "copy", str(two.home), "--json").json()["points"]
    assert [each["verified_bytes"] >= len(state) for each in done] == [True]
    assert restored(two, "web", "latest") == state
    one.backup(changed(state, 1), "web")
    done = one("repository", "copy", str(two.home), "--no-verify", "--json").json()["points"]
    assert [each["verified_bytes"] for each in done] == [0]
