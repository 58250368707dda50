"""`repository repair --from`: what is lost in one home comes back out of another, whatever ends the command."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli_runner import PROJECT, CommandLine

MIB = 1 << 20


@pytest.fixture
def homes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[CommandLine, CommandLine]:
    return CommandLine.new(tmp_path / "one", capsys), CommandLine.new(tmp_path / "two", capsys)


def content(seed: int, size_bytes: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


STATES = [content(1, 3 * MIB) + bytes(20 * MIB) + content(2, 300_032)]
STATES.append(STATES[0][: 2 * MIB] + content(3, 100_000) + STATES[0][2 * MIB + 100_000 :])


def copied(one: CommandLine, two: CommandLine) -> list[str]:
    """Ids of two points that both homes have."""
    points = [str(one.backup(state, "web")["id"]) for state in STATES]
    assert one("repository", "copy", str(two.home)).code == 0
    return points


def packs(line: CommandLine) -> list[Path]:
    """The largest first."""
    return sorted((line.repository / "packs").glob("*/*"), key=lambda path: -path.stat().st_size)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def all_restores(line: CommandLine, points: list[str]) -> None:
    for point, state in zip(points, STATES, strict=True):
        path = line.folder / "back.raw"
        done = line("restore", "web", "--point", point, "--to", str(path), "--format", "raw")
        assert done.code == 0, done.err
        assert path.read_bytes() == state
        path.unlink()


def test_a_damaged_pack_is_told_healed_and_collected(homes: tuple[CommandLine, CommandLine]) -> None:
    one, two = homes
    points = copied(one, two)
    flip(packs(one)[0])
    target = one.folder / "back.raw"
    failed = one("restore", "web", "--point", points[0], "--to", str(target), "--format", "raw")
    assert (failed.code, target.exists()) == (1, False)
    assert "known to be so: disk: " in failed.error()
    assert "repair --from HOME" in failed.error()

    report = one("repository", "verify", "--read-data", "--json").json()
    (damage,) = report["affected_points"][0]["damage"]
    ((start, stop),) = damage["ranges"]
    assert damage["damaged_bytes"] == stop - start <= 256 * 1024
    assert (damage["disk"], damage["exact"], damage["size_bytes"]) == ("disk", True, len(STATES[0]))
    assert f"at {start} to {stop}" in failed.err
    for image_format in ("qcow2", "raw"):
        again = one("restore", "web", "--point", points[0], "--to", str(target), "--format", image_format)
        assert (again.code, target.exists()) == (1, False)
        assert f"at {start} to {stop}" in again.error()

    told = one("repository", "repair", "--from", str(two.home), "--dry-run", "--json").json()
    assert (told["healed"]["copied_blobs"], told["healed"]["left"]) == (1, [])
    assert told["healed"]["copied_bytes"] == stop - start
    assert two("repository", "hold", "list", "--json").json() == []
    done = one("repository", "repair", "--from", str(two.home))
    assert done.code == 0, done.err
    assert "1 chunks and map nodes" in done.out
    assert two("repository", "hold", "list", "--json").json() == []
    all_restores(one, points)
    assert one("repository", "collect").code == 0
    assert one("repository", "verify", "--read-data").code == 0
    all_restores(one, points)
    nothing = one("repository", "repair", "--from", str(two.home))
    assert (nothing.code, "Nothing that a restore point needs" in nothing.out) == (0, True)


def test_an_index_that_is_damaged_is_mended_first(homes: tuple[CommandLine, CommandLine]) -> None:
    one, two = homes
    points = copied(one, two)
    for path in (one.repository / "index").iterdir():
        flip(path)
    packs(one)[0].unlink()
    dry = one("repository", "repair", "--from", str(two.home), "--dry-run")
    assert (dry.code, "would be made anew" in dry.out, "repair' first" in dry.err) == (0, True, True)
    assert one("repository", "repair", "--from", str(two.home), "--dry-run", "--json").json()["healed"] is None
    done = one("repository", "repair", "--from", str(two.home), "--json").json()
    assert len(done["set_aside"]) == 2
    assert (done["healed"]["left"], done["healed"]["moved_blobs"]) == ([], 0)
    all_restores(one, points)
    assert one("repository", "collect").code == 0
    assert one("repository", "verify", "--read-data").code == 0


def test_what_no_copy_has_is_named_and_the_exit_code_says_so(homes: tuple[CommandLine, CommandLine]) -> None:
    one, two = homes
    copied(one, two)
    only_here = one.backup(content(7, MIB), "db")["id"]
    for path in packs(one):
        path.unlink()
    assert one("repository", "verify").code == 1
    done = one("repository", "repair", "--from", str(two.home), "--json")
    assert done.code == 3
    (left,) = done.json()["healed"]["left"]
    assert (left["id"], left["name"], left["ranges"]) == (only_here, "db", [[0, MIB]])
    assert f"restore point {only_here} of db stays damaged" in done.err
    hits = one("repository", "verify", "--json").json()["affected_points"]
    assert [hit["id"] for hit in hits] == [only_here]


def test_what_cannot_be_a_copy_is_refused(homes: tuple[CommandLine, CommandLine], tmp_path: Path) -> None:
    one, _ = homes
    one.backup(b"x" * MIB, "web")
    same = one("repository", "repair", "--from", str(one.home))
    assert (same.code, "same repository" in same.error()) == (2, True)
    assert one("repository", "repair", "--from", str(tmp_path / "nowhere")).code == 2


def test_killed_before_it_counts_nothing_is_wrong_and_the_next_finishes(
    homes: tuple[CommandLine, CommandLine],
) -> None:
    one, two = homes
    points = copied(one, two)
    for path in packs(one):
        path.unlink()
    assert one("repository", "verify").code == 1
    command = [sys.executable, "-m", "tests.faults.crash", "imaging.running:Run.conclude", "before", "1"]
    killed = subprocess.run(
        [*command, "repository", "repair", "--from", str(two.home)],
        cwd=PROJECT, env=os.environ | one.environment, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = one("repository", "repair", "--from", str(two.home))
    assert done.code == 0, done.err
    all_restores(one, points)
    for _ in range(2):  # the packs of a dead lease go with the second one
        assert one("repository", "collect").code == 0
    assert one("repository", "verify", "--read-data").code == 0
    all_restores(one, points)
    assert two("repository", "hold", "list", "--json").json() == []
