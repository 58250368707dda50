"""`strongroom files`, on a real image in a real repository."""

from __future__ import annotations

import os
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from appliance.bootstrap import Appliance
from appliance.services.access.audits import AuditService
from appliance.services.files.sessions import READERS_MAX, Sessions
from appliance.services.points import PointService
from appliance.settings import load
from imaging.filesystems.errors import ReaderEnded
from imaging.reader import DiskReader
from tests.lab.disks import run_tool
from tests.lab.filesystems import make_ext, make_tree
from tests.unit.cli_runner import CommandLine


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine.new(tmp_path / "strongroom", capsys)


def image_of(folder: Path) -> bytes:
    """With an entry that leads upwards, a set-uid file, and a journal that was not replayed."""
    tree = make_tree(folder / "tree")
    (tree / "docs" / "deep" / "tool").write_bytes(b"#!")
    (tree / "docs" / "deep" / "tool").chmod(0o4755)
    image = make_ext(folder / "fs", tree)
    run_tool("/usr/sbin/debugfs", "-w", "-R", "link empty docs/qqqqqqqqq", image)
    run_tool("/usr/sbin/debugfs", "-w", "-R", "feature needs_recovery", image)
    return image.read_bytes().replace(b"qqqqqqqqq", b"../../etc")


def test_files_are_listed_and_taken_and_nothing_else_is_written(strongroom: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "made" / "tree").mkdir(parents=True)
    strongroom.backup(image_of(tmp_path / "made"), "web")
    tree, out = tmp_path / "made" / "tree", tmp_path / "out"
    out.mkdir()
    at = ("web", "--point", "latest")

    volumes = strongroom("files", "list", *at, "--json").json()["volumes"]
    assert [(each["kind"], each["label"], each["problem"]) for each in volumes] == [("ext4", "system", "")]
    assert "journal" in volumes[0]["caution"]
    volume = volumes[0]["name"]
    listed = strongroom("files", "list", *at, f"{volume}:/docs", "--json").json()
    assert ([each["name"] for each in listed["entries"]], listed["refused"]) == (["deep", "data.bin"], 1)
    shown = strongroom("files", "list", *at, "/unix")
    assert "link -> ../../etc/shadow" in shown.out
    assert "no \\udcff utf-8" in shown.out
    assert "newest may be missing" in shown.err

    got = strongroom("files", "get", *at, "/sparse", "/docs/data.bin", "--to", str(out))
    assert got.code == 0, got.err
    assert (out / "sparse").read_bytes() == (tree / "sparse").read_bytes()
    assert (out / "sparse").stat().st_blocks * 512 < 1 << 20
    assert (out / "data.bin").read_bytes() == (tree / "docs" / "data.bin").read_bytes()
    assert (out / "data.bin").stat().st_mtime == int((tree / "docs" / "data.bin").stat().st_mtime)

    assert "exists already" in strongroom("files", "get", *at, "/sparse", "--to", str(out)).error()
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (out / "sparse").unlink()
    (out / "sparse").symlink_to(victim)
    assert strongroom("files", "get", *at, "/sparse", "--to", str(out), "--force").code == 0
    assert (victim.read_text(), (out / "sparse").is_symlink()) == ("untouched", False)

    part = strongroom("files", "get", *at, "/", "--to", str(out / "all.tar"))
    assert part.code == 3
    assert "/unix/pipe: it is a device" in part.err
    with tarfile.open(out / "all.tar") as tar:
        members = {member.name: member for member in tar}
        assert members[f"{volume}/docs/deep/tool"].mode == 0o755
        assert members[f"{volume}/unix/link"].linkname == "../../etc/shadow"
        assert f"{volume}/unix/no \udcff utf-8" in members
        assert not [name for name in members if ".." in name]
        told = tar.extractfile(f"{volume}-left-out.txt")
        assert told is not None
        assert "/docs: 1 entries with names that no file may have" in told.read().decode()
        data = tar.extractfile(f"{volume}/docs/data.bin")
        assert data is not None
        assert data.read() == (tree / "docs" / "data.bin").read_bytes()

    for place, words in {
        "/unix/link": "Links are not followed", "/docs/../unix": "no path within",
        "/docs/none": "there is no '/docs/none'", "nowhere:/": "no volume 'nowhere'",
        "/docs/data.bin/x": "not a folder",
    }.items():  # fmt: skip
        refused = strongroom("files", "get", *at, place, "--to", str(out / "refused"))
        assert words in refused.error(), place
        assert refused.code in (1, 2)
    assert sorted(path.name for path in out.iterdir()) == ["all.tar", "data.bin", "sparse"]
    assert {path.name for path in tmp_path.iterdir()} >= {"made", "out", "victim"}

    with Appliance(load(strongroom.environment)) as appliance:
        entries = [each for each in AuditService(appliance).newest(limit=50) if each.act.startswith("file.")]
        assert entries[-1].act == "file.browse"
        read = next(each for each in entries if each.act == "file.read" and each.result == "partly")
        assert (read.subject_kind, read.details["volume"], read.details["path"]) == ("point", volume, "/")


@pytest.mark.parametrize("program", ["/nowhere/python", "/bin/false"])
def test_a_worker_that_does_not_start_leaves_nothing_open(
    strongroom: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """Neither the disks, nor its connection, nor a hold on the point; and there is room for others."""
    (tmp_path / "made" / "tree").mkdir(parents=True)
    strongroom.backup(image_of(tmp_path / "made"), "web")
    disks: list[DiskReader] = []
    closed: list[DiskReader] = []
    made, ended = DiskReader.__init__, DiskReader.close

    def make(self: DiskReader, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        disks.append(self)

    def close(self: DiskReader) -> None:
        ended(self)
        closed.append(self)

    monkeypatch.setattr(DiskReader, "__init__", make)
    monkeypatch.setattr(DiskReader, "close", close)
    with Appliance(load(strongroom.environment)) as appliance, closing(Sessions(appliance)) as sessions:
        point = PointService(appliance).resolve("latest", "web")
        with sessions.one(point) as session:
            assert session.volumes()
        sessions.close()
        assert len(closed) == len(disks) == len(point.manifest.disks)
        before = descriptors()
        with monkeypatch.context() as here:
            here.setattr(sys, "executable", program)
            for _ in range(READERS_MAX + 1):
                # Caught with its frames, in which nothing that was not closed is collected.
                with pytest.raises((FileNotFoundError, ReaderEnded)) as caught, sessions.one(point):
                    pass
                assert descriptors() == before, caught
        assert closed == disks
        assert len(disks) == (READERS_MAX + 2) * len(point.manifest.disks)
        assert appliance.repository.holds() == []
        with sessions.one(point) as session:
            assert session.volumes()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_readers_are_kept_and_bounded(strongroom: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "made" / "tree").mkdir(parents=True)
    strongroom.backup(image_of(tmp_path / "made"), "web")
    with Appliance(load(strongroom.environment)) as appliance:
        point = PointService(appliance).resolve("latest", "web")
        sessions = Sessions(appliance)
        with sessions.one(point) as first, sessions.one(point) as second:
            assert first is not second
        with sessions.one(point) as again:
            assert again in (first, second)
            again._process.kill()
            again._process.wait()
        assert not again.alive
        with sessions.one(point) as other:
            assert other is not again
            assert other.volumes()
        assert len(sessions._readers) == 1 <= READERS_MAX
        sessions.close()
        assert not other.alive
