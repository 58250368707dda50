"""Restore points on the command line: lists, times, differences, deletion, and the JSON that scripts rely on."""

from __future__ import annotations

import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.bootstrap import Appliance
from appliance.services.choosing import NewerDamaged
from appliance.services.point_records import oldest_first
from appliance.services.points import PointService
from appliance.settings import load
from imaging.errors import PointNotFound
from tests.unit.cli_runner import CommandLine
from tests.unit.records import point_record

PAGE = 4096
KEYS = {"id", "name", "created_utc", "kind", "consistency", "read_bytes", "stored_bytes", "disks"}


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    line = CommandLine(tmp_path, capsys)
    line.init()
    return line


def test_an_empty_list_is_an_empty_array(strongroom: CommandLine) -> None:
    assert strongroom("point", "list", "--json").json() == []
    done = strongroom("point", "list")
    assert (done.code, done.out) == (0, "")
    assert "strongroom backup" in done.err


def test_the_list_has_what_scripts_rely_on(strongroom: CommandLine) -> None:
    data = os.urandom(40 * PAGE)
    made = strongroom.backup(data, "disk-1")
    strongroom.backup(data, "other")
    listed = strongroom("point", "list", "--json").json()
    assert sorted(point["name"] for point in listed) == ["disk-1", "other"]
    (point,) = strongroom("point", "list", "disk-1", "--json").json()
    assert point["id"] == made["id"]
    assert set(point) >= KEYS
    assert len(point["id"]) == 32
    moment = datetime.fromisoformat(point["created_utc"])
    assert point["created_utc"].endswith("Z")
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=5)
    assert point["kind"] == "full"
    assert point["consistency"] == "offline"
    assert [disk["name"] for disk in point["disks"]] == ["disk"]
    assert point["disks"][0]["size_bytes"] == len(data)
    assert point["read_bytes"] >= len(data)
    assert point["stored_bytes"] > len(data)
    (other,) = strongroom("point", "list", "other", "--json").json()
    assert other["stored_bytes"] < point["stored_bytes"] / 4, "the same content is not stored again"


def test_points_are_named_by_id_prefix_latest_and_time(strongroom: CommandLine) -> None:
    points = [strongroom.backup(os.urandom(PAGE), "web")]
    time.sleep(1.1)  # moments of points are whole seconds
    points.append(strongroom.backup(os.urandom(PAGE), "web"))
    foreign = strongroom.backup(os.urandom(PAGE), "db")
    first, second = (point["id"] for point in points)
    at = [datetime.fromisoformat(point["created_utc"]) for point in points]
    assert at[0] < at[1]
    with Appliance(load(strongroom.environment)) as appliance:
        service = PointService(appliance)

        def found(wanted: str, name: str | None = "web") -> str:
            return service.resolve(wanted, name).id

        assert found(first) == first
        assert found(first[:8].upper()) == first
        assert found(first, None) == first
        assert found("latest") == second
        assert found(at[1].isoformat()) == second
        assert found((at[1] - timedelta(seconds=0.5)).isoformat()) == first
        assert found("2999-01-01") == second
        assert found(at[1].strftime("%Y-%m-%d")) == second
        with pytest.raises(Exception, match=r"no restore point at or before 2000-01-01T23:59:59.999999Z; its oldest"):
            found("2000-01-01")
        with pytest.raises(PointNotFound, match="of web"):
            found(foreign["id"])
        for nothing in ("latest", "2026-01-01", "zz", "", "0" * 32):
            with pytest.raises(PointNotFound):
                found(nothing, None)
        with pytest.raises(Exception, match="no restore point of 'nobody'") as caught:
            found("latest", "nobody")
        assert "db, web" in caught.value.hint  # type: ignore[attr-defined]


def test_the_newest_point_is_told_by_its_place_not_by_the_clock() -> None:
    late = datetime(2027, 1, 1, tzinfo=UTC)
    wrong_clock = [
        point_record(generation=0, created_utc=late),
        point_record(generation=1, created_utc=late - timedelta(days=365)),
        point_record(series="6" * 32, generation=0, created_utc=late - timedelta(days=1)),
    ]
    assert oldest_first(wrong_clock) == (wrong_clock[2], wrong_clock[0], wrong_clock[1])


@pytest.mark.parametrize(
    "arguments",
    [
        ("point", "show", "00000000"),
        ("point", "delete", "00000000", "--yes"),
        ("point", "protect", "00000000"),
        ("point", "diff", "00000000", "11111111"),
        ("point", "show", "../../etc/passwd"),
        ("point", "show", ""),
    ],
)
def test_unknown_points_are_told_in_a_sentence(strongroom: CommandLine, arguments: tuple[str, ...]) -> None:
    done = strongroom(*arguments)
    assert done.code == 1
    assert "no restore point" in done.error()
    assert "point list" in done.error()


def test_show(strongroom: CommandLine) -> None:
    point = strongroom.backup(os.urandom(10 * PAGE), "web")
    shown = strongroom("point", "show", point["id"][:6], "--json").json()
    assert {key: shown[key] for key in ("id", "name", "kind")} == {key: point[key] for key in ("id", "name", "kind")}
    assert shown["disks"][0]["source"].endswith("image.raw")
    assert shown["holds"] == []
    text = strongroom("point", "show", point["id"][:6])
    assert text.code == 0
    assert point["id"] in text.out


def test_differences_are_counted_in_pages(strongroom: CommandLine) -> None:
    data = bytearray(os.urandom(1 << 20))
    old = strongroom.backup(bytes(data), "web")
    data[100 * PAGE : 101 * PAGE] = os.urandom(PAGE)
    new = strongroom.backup(bytes(data) + os.urandom(PAGE), "web")
    (disk,) = strongroom("point", "diff", old["id"], new["id"], "--json").json()
    assert (disk["disk"], disk["old_size_bytes"], disk["new_size_bytes"]) == ("disk", 1 << 20, (1 << 20) + PAGE)
    assert 2 * PAGE <= disk["changed_bytes"] <= 4 * 256 * 1024
    (same,) = strongroom("point", "diff", old["id"], old["id"], "--json").json()
    assert (same["changed_bytes"], same["ranges"]) == (0, 0)
    assert strongroom("point", "diff", old["id"], new["id"]).out.splitlines()[1].startswith("disk ")


def test_delete_asks_and_touches_no_other_point(strongroom: CommandLine) -> None:
    old, new = (strongroom.backup(os.urandom(PAGE), "web") for _ in range(2))
    unasked = strongroom("point", "delete", old["id"])
    assert unasked.code == 2
    assert "--yes" in unasked.err
    assert len(strongroom("point", "list", "--json").json()) == 2
    assert strongroom("point", "delete", old["id"][:8], "--yes").code == 0
    (left,) = strongroom("point", "list", "--json").json()
    assert left["id"] == new["id"]
    assert strongroom("repository", "verify", "--read-data").code == 0
    again = strongroom("point", "delete", old["id"], "--yes")
    assert again.code == 1
    assert "no restore point" in again.error()


def test_a_protected_point_stays(strongroom: CommandLine) -> None:
    point = strongroom.backup(os.urandom(PAGE), "web")
    assert strongroom("point", "protect", point["id"]).code == 0
    assert strongroom("point", "protect", point["id"]).code == 0
    (hold,) = strongroom("status", "--json").json()["holds"]
    assert (hold["purpose"], hold["point"]) == ("protected", point["id"])
    refused = strongroom("point", "delete", point["id"], "--yes")
    assert refused.code == 1
    assert "protected" in refused.error()
    assert strongroom("point", "protect", point["id"], "--off").code == 0
    assert strongroom("point", "protect", point["id"], "--off").code == 0
    assert strongroom("point", "delete", point["id"], "--yes").code == 0


def test_hostile_names_reach_no_terminal(strongroom: CommandLine) -> None:
    name = "web\x1b]0;owned\x07\x9b31m\u202e"
    point = strongroom.backup(os.urandom(PAGE), name)
    for arguments in (
        ("point", "list"),
        ("point", "list", "--json"),
        ("point", "show", point["id"]),
        ("status",),
        ("point", "list", "nobody\x1b[31m"),
        ("restore", "nobody\x1b[31m", "--point", "latest", "--to", "x"),
    ):
        done = strongroom(*arguments)
        assert not set(done.out + done.err) & set("\x1b\x07\x9b\u202e"), arguments
    assert strongroom("point", "list", name, "--json").json()[0]["name"] == name


def test_a_damaged_manifest_hides_no_other_point(strongroom: CommandLine) -> None:
    kept, hit = (strongroom.backup(os.urandom(PAGE), name) for name in ("kept", "hit"))
    (manifest,) = strongroom.repository.glob(f"manifests/*/*-{hit['id']}")
    data = bytearray(manifest.read_bytes())
    data[len(data) // 2] ^= 1
    manifest.chmod(0o600)
    manifest.write_bytes(data)
    fresh = CommandLine(strongroom.folder / "fresh", strongroom.capsys)
    fresh.folder.mkdir()
    adopted = fresh("repository", "adopt", str(strongroom.repository))
    assert adopted.code == 3
    listed = fresh("point", "list", "--json")
    assert listed.code == 3
    assert [point["id"] for point in listed.json()] == [kept["id"]]
    assert hit["id"] in listed.err
    verified = fresh("repository", "verify", "--json")
    assert verified.code == 1
    report: dict[str, Any] = verified.json()
    assert report["ok"] is False
    assert [point["id"] for point in report["affected_points"]] == [hit["id"]]
    assert any(hit["id"] in damaged["object"] for damaged in report["damaged"])


def test_a_damaged_newest_point_is_not_silently_replaced_by_an_older_one(strongroom: CommandLine) -> None:
    old, new = (strongroom.backup(os.urandom(PAGE), "web") for _ in range(2))
    (manifest,) = strongroom.repository.glob(f"manifests/*/*-{new['id']}")
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes()[:-1])
    shutil.rmtree(strongroom.home / "cache")
    for wanted in ("latest", "2999-01-01"):
        with Appliance(load(strongroom.environment)) as appliance, pytest.raises(NewerDamaged) as caught:
            PointService(appliance).resolve(wanted, "web")
        assert new["id"] in str(caught.value)
        assert old["id"] in caught.value.hint
    with Appliance(load(strongroom.environment)) as appliance:
        assert PointService(appliance).resolve(old["id"][:8], "web").id == old["id"]


def test_status_json_has_every_part(strongroom: CommandLine) -> None:
    strongroom.backup(os.urandom(PAGE), "web")
    status = strongroom("status", "--json")
    assert status.code == 0, status.err
    assert set(status.json()) == {
        "home",
        "appliance",
        "appliances",
        "repository",
        "hosts",
        "machines",
        "last_runs",
        "runs",
        "policies",
        "queued",
        "workers",
        "recoveries",
        "exports",
        "holds",
        "requests",
        "owed_thaws",
        "cleanups",
        "problems",
    }
    assert status.json()["last_runs"][0]["state"] == "succeeded"
