"""What holds a point is told; what nobody uses any more is let go of, by itself or by an admin, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.models import (
    CleanupAction,
    CleanupRecord,
    ExportKind,
    ExportRecord,
    RecoveryRecord,
    RecoveryState,
    new_id,
)
from appliance.ownership import own
from appliance.services.files import sessions as readers
from appliance.services.files.sessions import Sessions
from appliance.settings import load
from imaging.errors import PointNotFound
from imaging.points import Hold
from tests.lab.filesystems import make_ext, make_tree
from tests.unit.cli_runner import PROJECT, CommandLine

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    line = CommandLine(tmp_path, capsys)
    line.init()
    line.backup(os.urandom(4096), "web")
    return line


def held(line: CommandLine, purpose: str, owner: str) -> Hold:
    with Appliance(load(line.environment)) as appliance:
        (point,) = appliance.repository.points()
        return appliance.repository.hold(point, purpose, owner)


def killed_export(line: CommandLine) -> None:
    """As SIGKILL of `export serve` leaves it: its server dies with it."""
    id = new_id()
    hold = held(line, "export", f"export-{id}")
    with Appliance(load(line.environment)) as appliance:
        record = ExportRecord(id, ExportKind.EXPORT, hold.point, hold.manifest, "web", ("disk",), NOW, hold.id)
        appliance.catalog.exports.save(record)


def killed_restore(line: CommandLine) -> None:
    owner = f"restore-{new_id()}"
    hold = held(line, "restore", owner)
    with Appliance(load(line.environment)) as appliance:
        record = CleanupRecord(new_id(), f"{owner}-hold", CleanupAction.RELEASE_HOLD, NOW, subject=hold.id)
        appliance.catalog.cleanups.add(record)


def holds(line: CommandLine) -> list[str]:
    with Appliance(load(line.environment)) as appliance:
        return [hold.purpose for hold in appliance.repository.holds()]


def delete(line: CommandLine) -> tuple[int, str]:
    (point,) = line("point", "list", "--json").json()
    done = line("point", "delete", point["id"], "--yes")
    return done.code, done.err


def test_what_killed_commands_held_does_not_keep_a_point(strongroom: CommandLine) -> None:
    killed_export(strongroom)
    killed_restore(strongroom)
    assert sorted(holds(strongroom)) == ["export", "restore"]
    assert delete(strongroom)[0] == 0
    assert holds(strongroom) == []


def test_a_backup_lets_go_of_it_too(strongroom: CommandLine) -> None:
    killed_export(strongroom)
    killed_restore(strongroom)
    strongroom.backup(os.urandom(4096), "other")
    assert holds(strongroom) == []
    assert strongroom("status").code == 0


def test_what_a_lost_catalog_held_is_named_and_let_go_of_by_an_admin(strongroom: CommandLine) -> None:
    hold = held(strongroom, "recovery", f"recovery-{new_id()}")
    code, told = delete(strongroom)
    assert code == 1
    assert "repository hold list" in told
    assert hold.id[:12] in strongroom("status").out
    listed = strongroom("repository", "hold", "list")
    assert hold.id[:12] in listed.out
    assert "not known to this home" in listed.out
    (as_json,) = strongroom("repository", "hold", "list", "--json").json()
    assert (as_json["id"], as_json["name"], as_json["known"]) == (hold.id, "web", False)
    assert strongroom("repository", "hold", "release", hold.id[:8]).code == 2, "nothing is let go of unasked"
    assert strongroom("repository", "hold", "release", hold.id[:8], "--yes").code == 0
    assert holds(strongroom) == []
    assert "no hold" in strongroom("repository", "hold", "release", hold.id, "--yes").error()
    assert delete(strongroom)[0] == 0


def test_a_living_export_of_a_lost_catalog_is_told(strongroom: CommandLine) -> None:
    id = new_id()
    held(strongroom, "recovery", f"recovery-{id}")
    with own(strongroom.home / "run" / f"r{id[:12]}.0.lock", "an export"):
        assert "its export still runs" in strongroom("repository", "hold", "list").out
    assert "its export still runs" not in strongroom("repository", "hold", "list").out


def test_one_that_cannot_be_read_hides_no_other_and_is_let_go_of(strongroom: CommandLine) -> None:
    whole, broken = (held(strongroom, "restore", f"restore-{new_id()}") for _ in range(2))
    path = strongroom.repository / "holds" / broken.id
    path.write_bytes(path.read_bytes()[:-1])
    listed = strongroom("repository", "hold", "list", "--json")
    assert (listed.code, [each["id"] for each in listed.json()]) == (3, [whole.id])
    assert strongroom("repository", "hold", "release", whole.id, "--yes").code == 0
    code, told = delete(strongroom)
    assert (code, f"repository hold release {broken.id}" in told) == (1, True)
    assert strongroom("repository", "hold", "release", broken.id[:8]).code == 2, "nothing is let go of unasked"
    assert strongroom("repository", "hold", "release", broken.id[:8], "--yes").code == 0
    assert delete(strongroom)[0] == 0


def test_what_is_in_use_is_not_let_go_of(strongroom: CommandLine) -> None:
    (point,) = strongroom("point", "list", "--json").json()
    strongroom("point", "protect", point["id"])
    recovery, restore = new_id(), f"restore-{new_id()}"
    held(strongroom, "recovery", f"recovery-{recovery}")
    held(strongroom, "restore", restore)
    with Appliance(load(strongroom.environment)) as appliance, appliance.own(restore, "a restore"):
        appliance.catalog.recoveries.add(
            RecoveryRecord(
                recovery, RecoveryState.RUNNING, point["id"], "m", "web", "here", "web-r", "u", "none", NOW, NOW
            )
        )
        found = strongroom("repository", "hold", "list", "--json").json()
        ways = {}
        for hold in found:
            refused = strongroom("repository", "hold", "release", hold["id"], "--yes")
            assert refused.code == 1
            ways[hold["purpose"]] = refused.error()
    assert sorted(holds(strongroom)) == ["protected", "recovery", "restore"]
    assert f"point protect {point['id']} --off" in ways["protected"]
    assert "recovery discard" in ways["recovery"]
    assert "Wait" in ways["restore"]


def test_a_point_whose_files_are_read_is_held_and_a_moment_longer(
    strongroom: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has looked into it can delete it, once nobody reads any more; who comes back then is told that it is gone."""
    with Appliance(load(strongroom.environment)) as appliance:
        (point,) = appliance.repository.points()
        sessions = Sessions(appliance)
        try:
            with sessions.one(point) as reading:
                assert reading.volumes()
                assert holds(strongroom) == ["restore"]
                (told,) = strongroom("repository", "hold", "list", "--json").json()
                assert (told["use"], told["known"]) == ("files are taken out of it", True)
                assert "restore" in delete(strongroom)[1]
                sessions._look()
            sessions._look()
            assert holds(strongroom) == ["restore"], "the next look is likely to come soon"
            monkeypatch.setattr(readers, "HELD_S", 0.0)
            sessions._look()
            assert holds(strongroom) == []
            with sessions.one(point) as again:
                assert again is reading
                assert holds(strongroom) == ["restore"]
            sessions._look()
            assert delete(strongroom)[0] == 0
            with pytest.raises(PointNotFound), sessions.one(point):
                raise AssertionError("nothing is read of what is gone")
        finally:
            sessions.close()
        assert holds(strongroom) == []
        assert list((strongroom.home / "run").glob("files-*")) == []


def test_what_a_killed_reader_of_files_held_does_not_keep_a_point(strongroom: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    image = make_ext(tmp_path / "fs", make_tree(tmp_path / "tree"))
    (old,) = strongroom("point", "list", "--json").json()
    assert strongroom("point", "delete", old["id"], "--yes").code == 0
    strongroom.backup(image.read_bytes(), "files")
    words = [
        sys.executable,
        "-m",
        "appliance.cli",
        "files",
        "get",
        "files",
        "--point",
        "latest",
        "/sparse",
        "--to",
        "-",
    ]
    with subprocess.Popen(words, cwd=PROJECT, env=strongroom.environment, stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stdout.read(1)  # it has begun, and waits for somebody to take the rest
        assert holds(strongroom) == ["restore"]
        assert delete(strongroom)[0] == 1
        command.kill()
        command.stdout.read()
    assert delete(strongroom)[0] == 0
    assert holds(strongroom) == []
