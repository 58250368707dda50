"""What the scheduler is told by every engine of the catalog: of whom, since when, and up to when runs answer."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from appliance.catalog import Catalog
from appliance.catalog.scheduling import SchedulerMark
from appliance.hypervisor.protocol import HostConfig, MachineState, Transport
from appliance.inventory import SeenMachine
from appliance.models import HostRecord, RunDue, RunRecord, RunState, new_id
from appliance.policy.stored import MachinePause, StoredPolicy
from tests.contract.catalogs import ME, OTHER
from tests.unit.records import NOW, machine_record

HOUR = timedelta(hours=1)
DUE = (RunDue("a", NOW - HOUR, "schedule"), RunDue("ö", NOW, "catch-up"))


def run(name: str = "web", state: RunState = RunState.SUCCEEDED, hours: int = 0, **more: object) -> RunRecord:
    begun = NOW + hours * HOUR
    made = RunRecord(new_id(), name, "vm", f"u-{name}", "here", state, begun, asked_utc=begun)
    return replace(made, **more)  # type: ignore[arg-type]


def image(name: str, path: str | None, hours: int = 0) -> RunRecord:
    return run(name, hours=hours, machine_kind="image", uuid=None, host=None, image_path=path, image_format="raw")


def test_why_a_run_was_asked_for_comes_back_as_it_went_in(catalog: Catalog) -> None:
    wanted = catalog.queue.put(run(state=RunState.QUEUED, due=DUE, quiesce=False, limit_bytes_s=5))
    assert catalog.runs.get(wanted.id) == wanted
    assert (wanted.due, wanted.quiesce) == (DUE, False)
    asked = catalog.queue.put(
        run(state=RunState.QUEUED, due=(RunDue("a", NOW, "schedule"), RunDue("z", NOW, "schedule")))
    )
    assert asked == catalog.runs.get(wanted.id)
    assert asked.due == (RunDue("a", NOW, "schedule"), DUE[1], RunDue("z", NOW, "schedule"))
    assert (asked.quiesce, asked.limit_bytes_s) == (True, None)
    claimed = catalog.queue.claim(wanted.id, NOW)
    assert claimed is not None
    assert claimed.due == asked.due


def test_runs_answer_up_to_when_they_began_or_were_cancelled(catalog: Catalog, other: Catalog) -> None:
    for each in (run(hours=-5), run(hours=-3, state=RunState.FAILED), run(hours=-4), run(hours=9), run("db", hours=-2)):
        catalog.runs.save(each)
    other.runs.save(run(hours=-1))
    catalog.queue.put(run("db", RunState.QUEUED))
    waits = other.queue.put(run("new", RunState.QUEUED, hours=-6))
    known = catalog.scheduling.known(NOW + HOUR)
    assert known.begun == {"vm:u-web": NOW - HOUR, "vm:u-db": NOW - 2 * HOUR}, (
        "of the one in the future it knows nothing"
    )
    assert known.called_off == {}
    assert {(each.machine, each.state) for each in known.busy} == {
        ("vm:u-db", RunState.QUEUED), ("vm:u-new", RunState.QUEUED),
    }  # fmt: skip
    other.queue.cancel(waits.id, NOW)
    ahead = other.queue.put(run("ahead", RunState.QUEUED))
    other.queue.cancel(ahead.id, NOW + 9 * HOUR)
    assert catalog.scheduling.known(NOW + HOUR).called_off == {"vm:u-new": NOW}
    assert catalog.scheduling.known(NOW + 10 * HOUR).begun["vm:u-web"] == NOW + 9 * HOUR


def test_images_are_where_their_newest_run_says(catalog: Catalog, other: Catalog) -> None:
    catalog.points.replace([replace(machine_record(), kind="image", name="fw", uuid=None)], [])
    for each in (image("fw", "/old", -3), image("fw", "/new", -2), image("fw", None, -1), image("unknown", None)):
        catalog.runs.save(each)
    other.runs.save(image("zz", "/theirs"))
    catalog.runs.save(run("zzz"))
    known = catalog.scheduling.known(NOW)
    told = {each.name: (each.image_path, each.appliance, each.started_utc, each.point_utc) for each in known.images}
    assert told == {"fw": ("/new", ME, NOW - 2 * HOUR, NOW), "zz": ("/theirs", OTHER, NOW, None)}


def test_a_machine_is_looked_after_by_whoever_has_had_its_host_longest(catalog: Catalog, other: Catalog) -> None:
    for host, first, second in (("mine", catalog, other), ("theirs", other, catalog)):
        config = HostConfig(host, Transport.SSH, f"{host}.example")
        first.hosts.add(HostRecord(config, NOW))
        second.hosts.add(HostRecord(config, NOW + HOUR))
        vm = SeenMachine(host, f"u-{host}", host, MachineState.OFF, "", 1, 1, False, 1, (), ("gold", "x=y"), NOW)
        second.inventory.answered(host, [vm], NOW, NOW)
    catalog.points.replace([replace(machine_record(), uuid="u-mine")], [])
    (mine,), (theirs,) = catalog.scheduling.known(NOW).vms, other.scheduling.known(NOW).vms
    assert (mine.name, mine.tags, mine.known_utc, mine.point_utc) == ("mine", ("gold", "x=y"), NOW, NOW)
    assert (theirs.name, theirs.point_utc) == ("theirs", None)
    catalog.appliances.take_over(OTHER)
    assert [each.name for each in catalog.scheduling.known(NOW).vms] == ["mine", "theirs"]


def test_the_stamp_is_another_one_after_every_change(catalog: Catalog) -> None:
    stamps = [catalog.scheduling.stamp()]

    def changed() -> bool:
        stamps.append(catalog.scheduling.stamp())
        assert stamps[-1] == catalog.scheduling.known(NOW).stamp
        return stamps[-1] != stamps[-2]

    assert not changed()
    waits = catalog.queue.put(run(state=RunState.QUEUED))
    assert changed()
    attempt = catalog.queue.claim(waits.id, NOW)
    assert attempt is not None
    assert changed()
    catalog.queue.settle(attempt, replace(attempt, state=RunState.FAILED, ended_utc=NOW), NOW)
    assert changed()
    catalog.policies.add(StoredPolicy("a", {}, 1, NOW, NOW))
    assert changed()
    catalog.policies.set_paused("a", NOW, NOW)
    assert changed()
    catalog.policies.pause_machine(MachinePause("vm:u", "web", NOW))
    assert changed()
    catalog.policies.remove("a", seen=None)
    catalog.policies.add(StoredPolicy("a", {"x": 1}, 2, NOW, NOW + HOUR))
    assert changed()


def test_each_appliance_has_a_mark_of_its_own(catalog: Catalog, other: Catalog) -> None:
    assert catalog.scheduling.mark() is None
    catalog.scheduling.keep_mark(NOW, NOW)
    catalog.scheduling.keep_mark(NOW, NOW + HOUR)
    assert catalog.scheduling.mark() == SchedulerMark(ME, NOW, NOW + HOUR)
    assert other.scheduling.mark() is None
