"""A machine that is on no host any more, removed by mistake perhaps: its tags are gone, and its points are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.hypervisor.protocol import HostConfig, MachineState
from appliance.inventory import SeenMachine
from appliance.models import HostRecord, RecoveryRecord, RecoveryState, new_id
from appliance.policy.policies import Policy, assign, assign_keeping, read_policy
from appliance.policy.selectors import Clause, Kind, Machine, Selector
from appliance.services.access import Actor, ActorKind, Role
from appliance.services.maintenance import MaintenanceService
from appliance.services.points import PointService
from appliance.services.policies import PolicyService
from appliance.services.policies.known import known_machines
from appliance.settings import load
from imaging import manifest
from tests.faults.repositories import content, draft, write_disks
from tests.unit.cli_runner import CommandLine
from tests.unit.records import NOW

UUID = "6b4f1c3e-0f0e-4a67-9d2a-1f2e3d4c5b6a"


@pytest.fixture
def appliance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Appliance]:
    line = CommandLine(tmp_path, capsys)
    line.init()
    with Appliance(load(line.environment)) as made:
        made.attach()
        made.catalog.hosts.add(HostRecord(HostConfig("here"), NOW))
        yield made


def policy(name: str, last: int, *include: dict[str, object], exclude: tuple[dict[str, object], ...] = ()) -> Policy:
    return read_policy(
        {
            "version": 1, "name": name, "select": {"include": list(include), "exclude": list(exclude)},
            "schedule": {"cron": "0 22 * * *"}, "retention": {"last": last},
        }
    )  # fmt: skip


def points_of(appliance: Appliance, days: int) -> list[str]:
    """Of a virtual machine, one a day."""
    made = []
    for day in range(days):
        with appliance.repository.begin_run(appliance.repository.series_of("vm", UUID), host="here") as run:
            entries = write_disks(appliance.repository, run, {"vda": content(day, 4096)})
            moment = datetime.now(UTC) - timedelta(days=days - day)
            drafted = replace(
                draft("web-1", entries, moment), machine=manifest.Machine("vm", "web-1", UUID, "here")
            )  # fmt: skip
            made.append(run.commit(drafted).id)
    PointService(appliance).refresh()
    return made


def seen(*tags: str) -> SeenMachine:
    return SeenMachine("here", UUID, "web-1", MachineState.RUNNING, "", 1 << 30, 1, True, 1 << 30, (), tags, NOW)


def answered(appliance: Appliance, *machines: SeenMachine) -> None:
    appliance.catalog.inventory.answered("here", machines, NOW, NOW)


def test_what_a_tag_kept_stays_when_the_machine_is_gone(appliance: Appliance) -> None:
    points = points_of(appliance, 6)
    service, plan = PolicyService(appliance), MaintenanceService(appliance).plan_policies
    service.add(policy("gold", 5, {"tag": "gold"}))
    service.add(policy("all", 2, {"all": True}))
    answered(appliance, seen("gold"))
    assert plan().going == (points[0],)
    answered(appliance)  # somebody has undefined it
    assert plan().going == (points[0],), "and not all that a year of 'gold' has kept"
    assert service.losing("gold", None)[0].points != ()
    answered(appliance, seen("silver"))
    assert plan().going == tuple(points[:4]), "another tag, that is known, is another matter"
    appliance.catalog.hosts.remove("here")
    assert plan().going == (points[0],)


def test_what_is_protected_of_a_machine_that_runs_out_of_the_repository_keeps_no_policy_from_changing(
    appliance: Appliance,
) -> None:
    points_of(appliance, 3)
    answered(appliance, seen())
    appliance.catalog.recoveries.add(
        RecoveryRecord(new_id(), RecoveryState.RUNNING, "7" * 32, "manifests/x", "web-0", "here", "web-1", UUID,
                       "none", NOW, NOW, appliance=appliance.catalog.me)
    )  # fmt: skip
    assert known_machines(appliance) == ()
    service = PolicyService(appliance)
    service.add(policy("all", 1, {"all": True}))
    assert service.losing("all", policy("all", 2, {"all": True})) == ()


GONE = Machine(Kind.VM, UUID, "web-1", "here", tags_known=False)
BARE = Machine(Kind.VM, UUID, "web-1", "here")


@pytest.mark.parametrize(
    ("include", "exclude", "bare", "may", "surely"),
    [
        ({"all": True}, (), True, True, True),
        ({"tag": "gold"}, (), False, True, False),
        ({"tag": "gold", "name": "db-*"}, (), False, False, False),
        ({"tag": "gold", "host": "here"}, (), False, True, False),
        ({"all": True}, ({"tag": "scratch"},), True, True, False),
        ({"all": True}, ({"tag": "scratch", "host": "there"},), True, True, True),
        ({"tag": "gold"}, ({"name": "web-*"},), False, False, False),
    ],
    ids=str,
)
def test_what_is_not_known_of_tags_speaks_for_keeping_and_against_showing(
    include: dict[str, object], exclude: tuple[dict[str, object], ...], bare: bool, may: bool, surely: bool
) -> None:
    one = policy("one", 1, include, exclude=exclude)
    assert bool(assign([one], [BARE])[BARE.key]) is bool(assign_keeping([one], [BARE])[BARE.key]) is bare
    assert one.select.surely_selects(BARE) is bare
    assert bool(assign_keeping([one], [GONE])[GONE.key]) is may
    actor = Actor(ActorKind.USER, "1" * 32, "alice", Role.OPERATOR, grants=(one.select,))
    assert actor.granted(GONE) is surely


def test_images_have_no_tags_that_could_be_unknown() -> None:
    image = Machine(Kind.IMAGE, "disk", "disk", tags_known=False)
    selector = Selector((Clause(image="d*"),), (Clause(tag="x"),))
    assert selector.may_select(image)
    assert selector.surely_selects(image)
    assert not Selector((Clause(tag="x"),)).may_select(image)
