"""The appliance is killed at every step of a recovery, one death after the other, and each time taken up again.

The machines have no guest: firmware that finds nothing to boot, whose disks are read and written through QEMU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from appliance.hypervisor.errors import HypervisorError, ImageToolFailed
from appliance.hypervisor.machines import LibvirtMachines
from appliance.hypervisor.overlays import Qcow2Overlays
from appliance.models import RecoveryRecord, RecoveryState
from appliance.services.recovery import RecoveryService
from appliance.services.recovery.errors import MachineIsOff, MigrationGoesElsewhere, PullNotWritten
from appliance.services.recovery.lifecycle import Recovery
from appliance.services.recovery.migrating import Migration
from tests.integration.backing_up import MIB, Progress, Rig, image_info, plain, rig
from tests.integration.recovering import (
    Protected,
    assert_export_gone,
    assert_nothing_left,
    exports_of,
    kill_all,
    look,
    no_supervisor,
    protect,
    reads_right,
    record_of,
    strongroom,
    supervised,
    supervisors_of,
    wait_until,
)
from tests.lab import Lab, LabGuest

__all__ = ["no_supervisor"]

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.usefixtures("no_supervisor")]

Place = tuple[str, str]
Result = TypeVar("Result")
_CATALOG = "appliance.catalog.recoveries:Recoveries"
_REPOSITORY = "imaging.repository:Repository"
_EXPORTS = "appliance.services.recovery.exporting:RecoveryExports"
_MACHINES = "appliance.hypervisor.machines:LibvirtMachines"
_JOBS = "appliance.hypervisor.block_jobs:LibvirtBlockJobs"
_OVERLAYS = "appliance.hypervisor.overlays:Qcow2Overlays"
_FILES = "appliance.hypervisor.local_files:LocalFiles"

START: list[Place] = [
    (f"{_CATALOG}.add", "after"),
    (f"{_REPOSITORY}.hold", "after"),
    (f"{_EXPORTS}.launch", "after"),
    (f"{_OVERLAYS}.create", "before"),
    (f"{_OVERLAYS}.create", "after"),
    (f"{_MACHINES}.define", "before"),
    (f"{_MACHINES}.define", "after"),
    (f"{_EXPORTS}.ensure", "after"),
    ("state:running", "after"),
]
FINISH: list[Place] = [
    (f"{_MACHINES}.define", "before"),
    (f"{_EXPORTS}.stop", "before"),
    (f"{_EXPORTS}.stop", "after"),
    (f"{_REPOSITORY}.release", "before"),
    ("state:migrated", "before"),
]
PAUSED: list[Place] = [(f"{_MACHINES}.suspend", "after"), (f"{_MACHINES}.resume", "before")]
PULL: list[Place] = [
    ("state:migrating", "after"),
    (f"{_JOBS}.pull", "after"),
    (f"{_JOBS}.info", "after"),
    (f"{_MACHINES}.suspend", "before"),
    *PAUSED,
    (f"{_MACHINES}.resume", "after"),
    *FINISH,
]
COPY: list[Place] = [
    ("state:migrating", "after"),
    (f"{_JOBS}.copy", "after"),
    (f"{_JOBS}.pivot", "before"),
    (f"{_JOBS}.pivot", "after"),
    (f"{_EXPORTS}.stop", "after"),
]
DISCARD: list[Place] = [
    ("state:discarding", "after"),
    (f"{_MACHINES}.destroy", "after"),
    (f"{_MACHINES}.undefine", "after"),
    (f"{_EXPORTS}.stop", "after"),
    (f"{_FILES}.remove_folder", "after"),
    (f"{_REPOSITORY}.release", "after"),
]


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Rig, Lab, Protected]]:
    with Lab() as lab, rig({"STRONGROOM_LIMITS_WORKERS": "1"}) as made:
        protected = protect(made, lab, "killed", [32 * MIB, 24 * MIB])
        with supervised(made):
            yield made, lab, protected


def begin(rig: Rig, lab: Lab, protected: Protected, name: str) -> tuple[RecoveryRecord, LabGuest]:
    """A machine that runs, which has written something, without a supervisor."""
    protected.reset()
    guest = lab.adopt(f"{lab.token}{name}")
    record = RecoveryService(rig.appliance).start(protected.name, "latest", new_name=guest.name)
    assert all(reads_right(guest, disk) for disk in protected.disks)
    for disk in protected.disks:
        disk.write(guest, 12 * MIB, b"written while it ran out of the repository" * 1000)
    return record, guest


def test_start_killed_at_every_step(site: tuple[Rig, Lab, Protected]) -> None:
    rig, lab, protected = site
    guest = lab.adopt(f"{lab.token}start")
    first, *rest = START
    rig.killed_at(first, "recovery", "start", protected.name, "--point", "latest", "--as", guest.name)
    (record,) = rig.appliance.catalog.recoveries.list(ended=False)
    assert record.state is RecoveryState.SERVING
    for place in rest:
        rig.killed_at(place, "recovery", "resume")
        assert not (guest.exists and guest.domain.isActive())
        assert len([hold for hold in rig.appliance.repository.holds() if record.id in hold.owner]) == 1
        assert len(exports_of(rig, record)) <= 2
    assert record_of(rig, record.id).state is RecoveryState.RUNNING
    rig.killed_at((f"{_MACHINES}.start", "after"), "recovery", "resume")
    (resumed,) = RecoveryService(rig.appliance).resume(supervise=False)
    assert resumed.problems == ()
    assert guest.running
    assert all(reads_right(guest, disk) for disk in protected.disks)
    assert len(exports_of(rig, record)) == 2
    RecoveryService(rig.appliance).discard(record.id)
    assert_nothing_left(rig, lab, record)


@pytest.mark.parametrize("at", [1, 2, 6], ids=[START[at][0].split(":")[1] for at in (1, 2, 6)])
def test_a_start_that_was_killed_can_be_discarded(site: tuple[Rig, Lab, Protected], at: int) -> None:
    rig, lab, protected = site
    name = f"{lab.token}undone-{at}"
    rig.killed_at(START[at], "recovery", "start", protected.name, "--point", "latest", "--as", name)
    (record,) = rig.appliance.catalog.recoveries.list(ended=False)
    RecoveryService(rig.appliance).discard(record.id)
    assert_nothing_left(rig, lab, record)


def test_a_start_that_is_interrupted_leaves_nothing(
    site: tuple[Rig, Lab, Protected], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, lab, protected = site

    def ctrl_c(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LibvirtMachines, "start", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        RecoveryService(rig.appliance).start(protected.name, "latest", new_name=f"{lab.token}interrupted")
    record = rig.appliance.catalog.recoveries.list()[-1]
    assert_nothing_left(rig, lab, record)
    assert record.error == "it was interrupted"


def test_what_a_failed_start_cannot_remove_is_removed_later(
    site: tuple[Rig, Lab, Protected], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, lab, protected = site
    progress = Progress()

    def refused(*_: object, **__: object) -> None:
        raise HypervisorError("the host says no")

    with monkeypatch.context() as patch:
        patch.setattr(LibvirtMachines, "start", refused)
        patch.setattr(LibvirtMachines, "undefine", refused)
        with pytest.raises(HypervisorError, match="says no"):
            RecoveryService(rig.appliance).start(
                protected.name, "latest", new_name=f"{lab.token}unremoved", progress=progress
            )
    (record,) = rig.appliance.catalog.recoveries.list(ended=False)
    assert (record.state, record.error) == (RecoveryState.DISCARDING, "the host says no")
    assert any("not removed yet" in note for note in progress.notes)
    look(rig).look()
    assert_nothing_left(rig, lab, record)


@pytest.mark.parametrize("method", ["pull", "copy"])
def test_migration_killed_at_every_step(site: tuple[Rig, Lab, Protected], method: str) -> None:
    rig, lab, protected = site
    record, guest = begin(rig, lab, protected, method)
    target = lab.folder / f"target-{method}"
    target.mkdir()
    first, *rest = COPY if method == "copy" else PULL
    rig.killed_at(first, "recovery", "migrate", record.id, *(["--to", str(target)] if method == "copy" else []))
    assert record_of(rig, record.id).state is RecoveryState.MIGRATING
    for place in rest:
        rig.killed_at(place, "recovery", "migrate", record.id)
        assert guest.running is (place not in PAUSED)
        assert record_of(rig, record.id).state is RecoveryState.MIGRATING
    (resumed,) = RecoveryService(rig.appliance).resume(supervise=False)
    assert (resumed.record.state, resumed.problems) == (RecoveryState.MIGRATED, ())
    assert_export_gone(rig, record)
    assert guest.running
    assert all(reads_right(guest, disk) for disk in protected.disks)
    paths = guest.disk_paths
    guest.remove()
    for disk in protected.disks:
        path = paths[disk.disk.target]
        assert path.parent == (target if method == "copy" else Path(record.folder))
        assert "full-backing-filename" not in image_info(path)
        assert plain(path) == disk.truth
    left = {path.name for path in Path(record.folder).glob("*.qcow2")} if Path(record.folder).exists() else set()
    assert left == ({"0.qcow2", "1.qcow2"} if method == "pull" else set())


def test_discard_killed_at_every_step(site: tuple[Rig, Lab, Protected]) -> None:
    rig, lab, protected = site
    record, _ = begin(rig, lab, protected, "discard")
    for number, place in enumerate(DISCARD):
        # whoever finds it so carries it on: the command again, or resume
        rig.killed_at(place, "recovery", *(["resume"] if number % 2 else ["discard", record.id, "--yes"]))
        assert record_of(rig, record.id).state is RecoveryState.DISCARDING
    look(rig).look()
    assert_nothing_left(rig, lab, record)


def test_a_supervisor_carries_on_what_a_killed_command_began(
    site: tuple[Rig, Lab, Protected], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, lab, protected = site
    record, guest = begin(rig, lab, protected, "carried")

    def ctrl_c(_: Migration) -> bool:
        raise KeyboardInterrupt

    progress = Progress()
    with monkeypatch.context() as patch:
        patch.setattr(Migration, "step", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            RecoveryService(rig.appliance).migrate(record.id, progress=progress)
    assert record_of(rig, record.id).state is RecoveryState.MIGRATING
    assert any("goes on by itself" in note for note in progress.notes)
    with pytest.raises(MigrationGoesElsewhere):
        RecoveryService(rig.appliance).migrate(record.id, to=str(lab.folder))
    rig.killed_at((f"{_JOBS}.pull", "after"), "recovery", "migrate", record.id)
    supervisor = look(rig)

    def ended() -> bool:
        supervisor.look()
        return record_of(rig, record.id).state.ended

    wait_until(ended, "it is carried on to its end")
    assert record_of(rig, record.id).state is RecoveryState.MIGRATED
    assert_export_gone(rig, record)
    assert all(reads_right(guest, disk) for disk in protected.disks)
    guest.remove()


@pytest.mark.parametrize(
    ("method", "when"),
    [
        ("pull", "while a disk moves"),
        ("pull", "before what was pulled is flushed"),
        ("pull", "when all have moved"),
        ("copy", "while a disk moves"),
        ("copy", "when all have moved"),
    ],
)
def test_a_machine_whose_qemu_dies_while_it_moves_is_started_again(
    site: tuple[Rig, Lab, Protected], method: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As QEMU 7.2 does by itself, seldom: see tests/faults/test_recovery_exports.py. What it had in its memory alone of
    what it had pulled is pulled again."""
    rig, lab, protected = site
    record, guest = begin(rig, lab, protected, f"crash{len(when)}-{method}")
    target = lab.path("copies")
    target.mkdir()
    for disk in protected.disks:
        disk.flush(guest)
    died: list[str] = []

    def die() -> None:
        if not died:
            died.append(guest.name)
            guest.kill_qemu()

    progress = Progress(die if when.startswith("while") else None)
    if when.startswith("when"):
        monkeypatch.setattr(Recovery, "finish", before(Recovery.finish, die))
    elif when.startswith("before"):
        monkeypatch.setattr(LibvirtMachines, "suspend", before(LibvirtMachines.suspend, die))
    migrated = RecoveryService(rig.appliance).migrate(
        record.id, to=str(target) if method == "copy" else None, bandwidth_bytes_s=32 * MIB, progress=progress
    )
    assert died
    assert migrated.state is RecoveryState.MIGRATED
    assert "started again" in migrated.notes[-1]
    assert not any("started again" in note for note in migrated.notes[:-1])
    assert guest.running
    assert_export_gone(rig, record)
    assert all(reads_right(guest, disk) for disk in protected.disks)
    for disk in protected.disks:
        assert "full-backing-filename" not in image_info(guest.disk_paths[disk.disk.target])
    guest.remove()


def test_that_qemu_died_is_told_also_when_who_started_it_again_is_killed(site: tuple[Rig, Lab, Protected]) -> None:
    rig, lab, protected = site
    record, guest = begin(rig, lab, protected, "told")
    for disk in protected.disks:
        disk.flush(guest)
    rig.killed_at((f"{_JOBS}.pull", "after"), "recovery", "migrate", record.id)
    guest.kill_qemu()
    rig.killed_at((f"{_MACHINES}.start", "after"), "recovery", "migrate", record.id)
    migrated = RecoveryService(rig.appliance).migrate(record.id)
    assert migrated.state is RecoveryState.MIGRATED
    assert [note for note in migrated.notes if "QEMU died" in note] == [migrated.notes[-1]]
    assert all(reads_right(guest, disk) for disk in protected.disks)
    guest.remove()


def test_a_machine_that_was_started_by_somebody_else_before_it_was_flushed_is_not_called_moved(
    site: tuple[Rig, Lab, Protected], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, lab, protected = site
    record, guest = begin(rig, lab, protected, "started-anew")
    for disk in protected.disks:
        disk.flush(guest)

    def die_and_start() -> None:
        guest.kill_qemu()
        guest.domain.create()

    with monkeypatch.context() as patch:
        patch.setattr(LibvirtMachines, "suspend", before(LibvirtMachines.suspend, die_and_start))
        with pytest.raises(PullNotWritten):
            RecoveryService(rig.appliance).migrate(record.id)
    assert record_of(rig, record.id).state is RecoveryState.RUNNING
    assert "may be missing" in (record_of(rig, record.id).error or "")
    with pytest.raises(PullNotWritten):
        RecoveryService(rig.appliance).migrate(record.id)
    assert guest.running
    guest.kill()
    (resumed,) = RecoveryService(rig.appliance).resume(supervise=False)
    assert (resumed.record.state, resumed.problems) == (RecoveryState.RUNNING, ())
    assert guest.running
    assert all(reads_right(guest, disk) for disk in protected.disks)
    assert RecoveryService(rig.appliance).migrate(record.id).state is RecoveryState.MIGRATED
    assert all(reads_right(guest, disk) for disk in protected.disks)
    guest.remove()


@pytest.mark.parametrize("run", ["that pulled", "after a crash"])
def test_a_machine_that_goes_off_before_it_was_flushed_has_its_export_below_it_again(
    site: tuple[Rig, Lab, Protected], run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it went off: an orderly end of a later run says nothing of what an earlier one had written out."""
    rig, lab, protected = site
    record, guest = begin(rig, lab, protected, f"off{len(run)}")
    for disk in protected.disks:
        disk.flush(guest)

    def go_off() -> None:
        if run == "after a crash":
            guest.kill_qemu()
            guest.domain.create()
        guest.kill()

    with monkeypatch.context() as patch:
        patch.setattr(LibvirtMachines, "suspend", before(LibvirtMachines.suspend, go_off))
        with pytest.raises(MachineIsOff):
            RecoveryService(rig.appliance).migrate(record.id)
    guest.domain.create()
    assert all(reads_right(guest, disk) for disk in protected.disks)
    assert RecoveryService(rig.appliance).migrate(record.id).state is RecoveryState.MIGRATED
    assert all(reads_right(guest, disk) for disk in protected.disks)
    guest.remove()


def test_a_power_cut_before_what_was_pulled_is_flushed(site: tuple[Rig, Lab, Protected]) -> None:
    rig, lab, protected = site
    record, guest = begin(rig, lab, protected, "cut")
    for disk in protected.disks:
        disk.flush(guest)
    rig.killed_at((f"{_MACHINES}.suspend", "before"), "recovery", "migrate", record.id)
    kill_all(exports_of(rig, record))
    guest.kill_qemu()
    (resumed,) = RecoveryService(rig.appliance).resume(supervise=False)
    assert (resumed.record.state, resumed.problems) == (RecoveryState.MIGRATED, ())
    assert resumed.record.notes[-1].startswith("QEMU died or its guest crashed while the disks were moved, and the")
    assert guest.running
    assert all(reads_right(guest, disk) for disk in protected.disks)
    guest.remove()


def test_the_end_of_a_move_waits_for_a_machine_that_is_paused(site: tuple[Rig, Lab, Protected]) -> None:
    rig, lab, protected = site
    record, guest = begin(rig, lab, protected, "paused")
    guest.domain.suspend()

    class Resuming(Progress):
        def note(self, text: str) -> None:
            super().note(text)
            if "it is paused" in text:
                guest.domain.resume()

    progress = Resuming()
    migrated = RecoveryService(rig.appliance).migrate(record.id, progress=progress)
    assert any("it is paused: resume it" in note for note in progress.notes)
    assert (migrated.state, migrated.notes) == (RecoveryState.MIGRATED, record.notes)
    assert guest.running
    assert all(reads_right(guest, disk) for disk in protected.disks)
    guest.remove()


def test_a_medium_that_takes_too_long_is_asked_again_and_not_for_ever(
    site: tuple[Rig, Lab, Protected], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, lab, protected = site
    record, guest = begin(rig, lab, protected, "slow")
    asked = []

    def sync(_: Qcow2Overlays, path: str) -> None:
        asked.append(path)
        raise ImageToolFailed("sync", path, "it took longer than 120 s")

    with monkeypatch.context() as patch:
        patch.setattr(Qcow2Overlays, "sync", sync)
        with pytest.raises(ImageToolFailed):
            RecoveryService(rig.appliance).migrate(record.id)
    assert len(asked) > 10
    assert record_of(rig, record.id).state is RecoveryState.RUNNING
    assert len(exports_of(rig, record)) == len(protected.disks), "nothing was let go of"
    assert guest.running
    assert RecoveryService(rig.appliance).migrate(record.id).state is RecoveryState.MIGRATED
    assert all(reads_right(guest, disk) for disk in protected.disks)
    guest.remove()


def before(call: Callable[..., Result], act: Callable[[], None]) -> Callable[..., Result]:
    def acting(*arguments: Any, **named: Any) -> Result:
        act()
        return call(*arguments, **named)

    return acting


def test_a_machine_that_is_switched_off_while_it_moves_stays_off(site: tuple[Rig, Lab, Protected]) -> None:
    rig, lab, protected = site
    record, guest = begin(rig, lab, protected, "switched-off")
    progress = Progress(guest.kill, after_bytes=MIB)
    with pytest.raises(MachineIsOff):
        RecoveryService(rig.appliance).migrate(record.id, bandwidth_bytes_s=8 * MIB, progress=progress)
    assert progress.acted
    assert not guest.running
    assert record_of(rig, record.id).state is RecoveryState.RUNNING
    RecoveryService(rig.appliance).discard(record.id)


def test_after_a_power_cut_the_machine_runs_with_what_it_wrote(site: tuple[Rig, Lab, Protected]) -> None:
    """Everything dies at once: the machine, its exports, the supervisor; the hold and the overlays remain."""
    rig, lab, protected = site
    protected.reset()
    guest = lab.adopt(f"{lab.token}power")
    done = strongroom(rig, "recovery", "start", protected.name, "--point", "latest", "--as", guest.name, "--json")
    record = record_of(rig, done.json()["id"])
    for disk in protected.disks:
        disk.write_noise(guest, 20 * MIB, MIB)
    supervisors = supervisors_of(rig)
    assert len(supervisors) == 1
    kill_all(supervisors + exports_of(rig, record))
    guest.kill()
    for path in rig.settings.run_directory.glob("r*"):  # /run is empty after a reboot, locks are not held
        path.unlink()
    strongroom(rig, "recovery", "resume")
    assert guest.running
    assert all(reads_right(guest, disk) for disk in protected.disks)
    RecoveryService(rig.appliance).migrate(record.id)
    paths = guest.disk_paths
    guest.remove()
    for disk in protected.disks:
        assert plain(paths[disk.disk.target]) == disk.truth
