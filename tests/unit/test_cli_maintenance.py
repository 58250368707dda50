"""Pruning, forecasting and collecting on the command line, on a real repository of images."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from appliance.bootstrap import Appliance
from appliance.clock import SystemClock
from appliance.policy.retention import Rules
from appliance.services.maintenance import MaintenanceService
from appliance.services.points import PointService
from appliance.settings import load
from imaging.errors import Damaged
from imaging.points import DamagedPoint, Point, Survey
from tests.unit.cli_runner import CommandLine

MIB = 1 << 20


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    line = CommandLine(tmp_path, capsys)
    line.init()
    return line


def packs_bytes(strongroom: CommandLine) -> int:
    folder = load(strongroom.environment).repository.path / "packs"
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_prune_collect_and_forecast_agree_on_what_is_freed(strongroom: CommandLine) -> None:
    shared = os.urandom(MIB)
    points = [strongroom.backup(shared + os.urandom(MIB), "web")["id"] for _ in range(3)]
    strongroom.backup(shared, "db")
    before = packs_bytes(strongroom)
    told = {
        each["name"]: each["frees_bytes"] for each in strongroom("repository", "forecast", "--json").json()["machines"]
    }
    assert 3 * MIB < told["web"] < 4 * MIB
    assert told["db"] < 320 * 1024, (
        "what it holds, web holds too, but for its last chunk (of 256 KiB at most) and its map"
    )
    alone = strongroom("repository", "forecast", "web", "--json").json()
    assert [each["id"] for each in alone] == points
    assert all(MIB < each["frees_bytes"] < 1.5 * MIB for each in alone)

    dry = strongroom("prune", "web", "--keep-last", "1", "--dry-run", "--json").json()
    assert [(each["id"], each["kept"], each["reasons"]) for each in dry["points"]] == [
        (points[0], False, []), (points[1], False, []), (points[2], True, ["newest", "last"]),
    ]  # fmt: skip
    assert len(strongroom("point", "list", "--json").json()) == 4, "nothing went yet"
    refused = strongroom("prune", "web", "--keep-last", "1")
    assert refused.code == 2
    assert "--yes" in refused.err

    done = strongroom("prune", "web", "--keep-last", "1", "--yes")
    assert done.code == 0, done.err
    assert [each["id"] for each in strongroom("point", "list", "web", "--json").json()] == points[2:]
    planned = strongroom("repository", "collect", "--dry-run", "--json").json()["planned"]
    assert packs_bytes(strongroom) == before
    freed = strongroom("repository", "collect", "--json").json()
    left = packs_bytes(strongroom)
    assert before - left == planned["freed_bytes"]
    assert abs(planned["freed_bytes"] - dry["freed_bytes"]) < 1024, "all but the frames of packs"
    assert freed["removed_points"] == 2
    assert strongroom("repository", "verify", "--read-data").code == 0
    assert strongroom("repository", "collect").code == 0


def test_a_protected_point_stays_and_says_so(strongroom: CommandLine) -> None:
    points = [strongroom.backup(os.urandom(20_000), "web")["id"] for _ in range(2)]
    strongroom("point", "protect", points[0])
    kept = strongroom("prune", "--keep-last", "1", "--yes", "--json").json()["points"]
    assert kept[0]["reasons"] == ["protected"]
    assert len(strongroom("point", "list", "--json").json()) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no rule says"),
        (("--keep-within", "soon"), "is not a length of time"),
        (("--keep-daily", "-1"), "-1"),
        (("--keep-last", "1", "--zone", "Mars/Olympus"), "there is no time zone"),
    ],
)
def test_wrong_rules_are_wrong_usage(strongroom: CommandLine, arguments: tuple[str, ...], says: str) -> None:
    done = strongroom("prune", *arguments)
    assert done.code == 2
    assert says in done.err


def test_a_machine_that_is_not_protected_is_named(strongroom: CommandLine) -> None:
    done = strongroom("prune", "nosuch", "--keep-last", "1")
    assert done.code == 1
    assert "nosuch" in done.err


class LateClock(SystemClock):
    """A machine whose clock is a year behind."""

    def now_utc(self) -> datetime:
        return super().now_utc() - timedelta(days=365)


def test_however_many_points_go_the_catalog_is_brought_up_to_date_once(
    strongroom: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [strongroom.backup(os.urandom(4096), "web")["id"] for _ in range(5)]
    looks = 0
    refresh = PointService.refresh

    def counted(self: PointService) -> tuple[DamagedPoint, ...]:
        nonlocal looks
        looks += 1
        return refresh(self)

    with Appliance(load(strongroom.environment)) as appliance:
        service = MaintenanceService(appliance)
        plan = service.plan_prune([], Rules(last=1), zone=UTC)
        appliance.repository.hold(appliance.repository.point(made[1]), "restore", "somebody")
        monkeypatch.setattr(PointService, "refresh", counted)
        (held,) = service.prune(plan)
        assert made[1] in str(held)
        assert looks == 1
        assert {record.id for record in appliance.catalog.points.list()} == {made[1], made[4]}
    assert [each["id"] for each in strongroom("point", "list", "--json").json()] == [made[1], made[4]]


def test_a_clock_that_went_back_prunes_nothing_and_the_reason_is_told(strongroom: CommandLine) -> None:
    for _ in range(3):
        strongroom.backup(os.urandom(20_000), "web")
    with Appliance(load(strongroom.environment), clock=LateClock()) as appliance:
        service = MaintenanceService(appliance)
        plan = service.plan_prune([], Rules(last=1), zone=UTC)
        assert plan.going == ()
        (machine,) = plan.machines
        assert "this machine says" in str(machine.doubt)
        assert service.prune(plan) == ()
        assert replace(machine, doubt=None).going, "but for the doubt, two would have gone"
    assert len(strongroom("point", "list", "--json").json()) == 3


def test_a_second_collection_at_once_is_refused_with_a_reason(strongroom: CommandLine) -> None:
    strongroom.backup(os.urandom(20_000), "web")
    with Appliance(load(strongroom.environment)) as appliance:
        with appliance.repository.begin_run(appliance.repository.collection_series):
            done = strongroom("repository", "collect")
        assert done.code == 1
        assert "another collection" in done.err
    assert strongroom("repository", "collect").code == 0


def test_a_point_with_a_damaged_manifest_is_deleted_by_its_id(strongroom: CommandLine) -> None:
    broken = strongroom.backup(os.urandom(MIB), "web")["id"]
    strongroom.backup(os.urandom(MIB), "web")
    (victim,) = (load(strongroom.environment).repository.path / "manifests").glob(f"*/*-{broken}")
    victim.write_bytes(victim.read_bytes()[:50])
    shutil.rmtree(load(strongroom.environment).cache_directory)  # which keeps what manifests said
    assert strongroom("repository", "collect").code == 1
    refused = strongroom("point", "delete", broken[:8])
    assert refused.code == 2
    assert "cannot be read" in refused.err
    done = strongroom("point", "delete", broken[:8], "--yes")
    assert (done.code, broken in done.out) == (0, True)
    assert strongroom("repository", "collect").code == 0
    assert len(strongroom("point", "list", "--json").json()) == 1
    assert strongroom("repository", "verify", "--read-data").code == 0


def test_a_damaged_index_is_repaired(strongroom: CommandLine) -> None:
    strongroom.backup(os.urandom(MIB), "web")
    nothing = strongroom("repository", "repair")
    assert (nothing.code, "nothing to repair" in nothing.out) == (0, True)
    (victim,) = (load(strongroom.environment).repository.path / "index").iterdir()
    victim.write_bytes(victim.read_bytes()[:-1])
    name = f"index/{victim.name}"
    dry = strongroom("repository", "repair", "--dry-run", "--json").json()
    assert dry == {"dry_run": True, "damaged_index_objects": [name], "put_back": []}
    assert strongroom("repository", "collect").code == 1
    done = strongroom("repository", "repair", "--json").json()
    assert (done["set_aside"], done["relisted_packs"], done["unreadable_packs"]) == ([name], 2, [])
    assert strongroom("repository", "collect").code == 0
    verified = strongroom("repository", "verify", "--read-data", "--json").json()
    assert (verified["damaged"], verified["unknown_objects"]) == ([], [])


def test_a_share_of_the_data_is_verified(strongroom: CommandLine) -> None:
    for number in range(4):
        strongroom.backup(os.urandom(MIB), f"m{number}")
    some = strongroom("repository", "verify", "--read-data", "--every", "4", "--json").json()
    assert some["ok"]
    assert 0 < some["read_packs"] < some["packs"]
    told = strongroom("repository", "verify", "--read-data", "--every", "4", "--limit", "1 GB")
    assert (told.code, "of data were read" in told.out) == (0, True)
    for wrong in (
        ("--every", "4"),
        ("--limit", "-1"),
        ("--read-data", "--limit", "0"),
        ("--read-data", "--limit", "x"),
    ):
        assert strongroom("repository", "verify", *wrong).code == 2
    every = strongroom("repository", "verify", "--read-data", "--json").json()
    assert every["read_packs"] == every["packs"]


def test_a_beginning_that_another_point_has_too_names_no_damaged_one(
    strongroom: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = Survey(
        (cast(Point, SimpleNamespace(id="ab" + "1" * 30)),),
        tuple(
            DamagedPoint(f"manifests/{'0' * 32}/0000000001-{id}", Damaged("it", "it is"))
            for id in ("ab" + "2" * 30, "cd" + "3" * 30, "cd" + "4" * 30)
        ),
    )
    with Appliance(load(strongroom.environment)) as appliance:
        service = PointService(appliance)
        monkeypatch.setattr(service, "_surveyed", lambda: survey)
        found = {wanted: service.damaged(wanted) for wanted in ("", "a", "ab", "AB2", "cd", "cd4", "ef")}
    assert {wanted: point and point.id[:3] for wanted, point in found.items()} == {
        "": None, "a": None, "ab": None, "AB2": "ab2", "cd": None, "cd4": "cd4", "ef": None,
    }  # fmt: skip
