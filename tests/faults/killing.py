"""SIGKILL at random moments of real backups: the soak does it two hundred times, a test a few times.

The rule: after each kill the next run is started at once and must succeed, every point that counted before reads as it
did, and nothing is left: no job, checkpoint, bitmap, scratch, freeze, lock or process. What a disk held is known from
the test's own writes; while a running machine is backed up it is written to, and a point of it must be the disk as it
was between two of those writes.
"""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import libvirt

from appliance.models import RunState
from appliance.ownership import is_owned
from imaging.points import Point
from tests.integration.backing_up import MIB, Disk, Rig, blank, firmware_machine, plain, rig
from tests.lab import Lab, LabGuest, PrivateLibvirtd
from tests.lab.owned import processes_of

RUNNING, OFF, IMAGE = "running", "off", "image"
_KINDS, _SHARES = (RUNNING, OFF, IMAGE), (6, 2, 2)
_SIZE = 32 * MIB
_BEFORE_THE_RUN = 0.1
"""Of the kills, how many come before the run is recorded: while the interpreter loads and settles earlier debts."""

_PATIENCE_S = 60.0
_SAMPLED = 2


@dataclass(frozen=True, slots=True)
class Written:
    offset: int
    data: bytes


@dataclass(slots=True)
class Target:
    """Something that is backed up: its command, its disk, and the truth about it."""

    kind: str
    name: str
    disk: str  # on its points
    command: list[str]
    truth: bytearray
    write: Callable[[int, bytes], None]
    run_s: float = 1.0  # from the moment that a run is recorded to the end of its process, last time


@dataclass(slots=True)
class Report:
    """How the rounds went; a failed check is an AssertionError instead."""

    seed: int
    rounds: int = 0
    killed: int = 0  # before the process ended by itself
    found: Counter[str] = field(default_factory=Counter)  # what kills left behind, before it was cleaned up
    committed: int = 0  # runs whose point counted although they were killed
    longest_next_s: float = 0.0
    points: int = 0
    took_s: float = 0.0

    def __str__(self) -> str:
        found = ", ".join(f"{what} {count}" for what, count in sorted(self.found.items()))
        return (
            f"seed {self.seed}: {self.rounds} rounds, {self.killed} killed while they ran; left behind and cleaned up:"
            f" {found or 'nothing'}; {self.committed} killed after their point counted; {self.points} points verified;"
            f" the next run took {self.longest_next_s:.1f} s at most; {self.took_s:.0f} s in all"
        )


def rounds(count: int, seed: int, say: Callable[[str], None] = lambda _: None) -> Report:
    """Until `count` processes were killed before they ended by themselves.

    Raises AssertionError at the first thing that is not as it must be, naming seed and round.
    """
    report = Report(seed)
    started = time.monotonic()
    with _killing(seed, report) as killing:
        while report.killed < count:
            report.rounds += 1
            assert report.rounds <= 3 * count + 10, "most kills come too late"
            try:
                what = killing.round()
            except BaseException as error:
                error.add_note(f"killing: seed {seed}, round {report.rounds}\n{killing.output()}")
                raise
            say(f"{report.killed}/{count} {what}")
        killing.verify_everything()
    report.took_s = time.monotonic() - started
    return report


@contextmanager
def _killing(seed: int, report: Report) -> Iterator[Killing]:
    with (
        PrivateLibvirtd() as daemon,  # so that neither hours of this nor what others do to theirs hurts the other
        Lab(uri=daemon.uri) as lab,
        rig(socket=str(daemon.socket), timeout_s=10) as strongroom,
    ):
        yield Killing(lab, strongroom, seed, report)


class Killing:
    """A guest with an agent, a machine that is off, and an image, in one repository. Borrows lab and rig."""

    def __init__(self, lab: Lab, strongroom: Rig, seed: int, report: Report) -> None:
        self._lab = lab
        self._rig = strongroom
        self._random = random.Random(seed)
        self._report = report
        self._known: dict[str, dict[str, str]] = {}  # point → disk → hash, as they were read first
        self._log = lab.path("commands.log")
        self._before = b""
        self._written: list[Written] = []  # since then, to the disk that is backed up
        live = blank(lab, "vdb", _SIZE, seed)
        self._guest = lab.machine("kill-live", disks=[lab.ext4_disk("vda", 16 * MIB), live.disk], agent=True)
        still = blank(lab, "vda", _SIZE, seed + 1)
        self._off = firmware_machine(lab, [still.disk], "kill-off")
        self._image = lab.path("kill.raw")
        self._image.write_bytes(bytes(_SIZE))
        self._guest.start()
        self._guest.wait_agent()
        self._targets = [
            self._target(RUNNING, "vdb", live, partial(live.write, self._guest)),
            self._target(OFF, "vda", still, still.write_off),
            Target(IMAGE, "kill-image", "disk", self._image_command(), bytearray(_SIZE), self._write_image),
        ]
        for target in self._targets:
            self._write(target, 0, self._random.randbytes(6 * MIB))
            self._write(target, 28 * MIB, self._random.randbytes(4 * MIB))
            for _ in range(2):  # the second is what rounds are like
                self._run_to_its_end(target)
                self._check_points(target, ends_exactly=True)

    def _target(self, kind: str, disk: str, model: Disk, write: Callable[[int, bytes], None]) -> Target:
        guest = self._guest if kind == RUNNING else self._off
        return Target(kind, guest.name, disk, self._rig.command("backup", guest.name), model.truth, write)

    def _image_command(self) -> list[str]:
        return self._rig.command("backup", "--image", self._image, "--format", "raw", "--name", "kill-image")

    def _write_image(self, offset: int, data: bytes) -> None:
        with self._image.open("r+b") as file:
            file.seek(offset)
            file.write(data)
        self._targets[2].truth[offset : offset + len(data)] = data

    # --- one round ---------------------------------------------------------------------------------------------------

    def round(self) -> str:
        """Write, back up, kill, look what is left, back up again, and check."""
        target = self._random.choices(self._targets, _SHARES)[0]
        for _ in range(self._random.randrange(1, 6)):
            length = self._random.choice((512, 4096, 70_000, 300_032))
            self._write(target, self._random.randrange((_SIZE - length) // 512) * 512, self._random.randbytes(length))
        after = "start" if self._random.random() < _BEFORE_THE_RUN else "run"
        delay_s = self._random.uniform(0, 0.8 if after == "start" else target.run_s)
        self._written.clear()
        before = len(self._points(target))
        alive = self._kill_one(target, after, delay_s)
        left = self._left_behind(target)
        committed = len(self._points(target)) - before
        assert committed in (0, 1)
        next_s = self._run_to_its_end(target)
        self._check_points(target, ends_exactly=True)
        self._check_nothing_left()
        self._check_sample()
        self._report.killed += alive
        self._report.found.update(left)
        self._report.committed += committed if alive else 0
        self._report.longest_next_s = max(self._report.longest_next_s, next_s)
        fate = "killed" if alive else "had ended"
        found = ", ".join(left) or "nothing"
        return f"{target.kind}: {fate} {delay_s:.2f} s after {after}; left {found}; next {next_s:.1f} s"

    def _kill_one(self, target: Target, after: str, delay_s: float) -> bool:
        """Whether the process was still there to be killed. A running machine is written to meanwhile."""
        self._before = bytes(target.truth)
        process = self._start(target)
        try:
            if after == "run":
                self._wait_recorded(process)
            end = time.monotonic() + delay_s
            while (left_s := end - time.monotonic()) > 0:
                if target.kind == RUNNING:
                    self._write(target, self._random.randrange(_SIZE // 4096 - 4) * 4096, self._random.randbytes(8192))
                time.sleep(min(left_s, 0.01))
            alive = process.poll() is None
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert alive or process.returncode == 0, self.output()
        return alive

    def _wait_recorded(self, process: subprocess.Popen[bytes]) -> None:
        """Until its run holds a lock, or the process has ended."""
        deadline = time.monotonic() + _PATIENCE_S
        while process.poll() is None:
            if any(is_owned(lock) for lock in self._rig.settings.run_directory.glob("run-*.lock")):
                return
            assert time.monotonic() < deadline, "the run does not begin"
            time.sleep(0.002)

    def _left_behind(self, target: Target) -> list[str]:
        """For the report: what the killed process left, so that it shows that kills hit where it hurts."""
        catalog = self._rig.appliance.catalog
        left = {record.action.value for record in catalog.cleanups.list()}
        if catalog.thaws.list():
            left.add("thaw owed")
        if target.kind == RUNNING:
            try:
                left |= {"backup job"} if self._guest.domain.jobInfo()[0] else set()
            except libvirt.libvirtError as error:
                if "backup job data missing" not in str(error):
                    raise
                left.add("backup job that is beginning")
        return sorted(left)

    # --- running -----------------------------------------------------------------------------------------------------

    def _start(self, target: Target) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                target.command, env=self._rig.process_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _run_to_its_end(self, target: Target) -> float:
        """Seconds from the start to the end. It must succeed, without a warning."""
        started = time.monotonic()
        process = self._start(target)
        self._wait_recorded(process)
        recorded = time.monotonic()
        status = process.wait(_PATIENCE_S)
        assert status == 0, f"the next run ended with {status}: {self.output()}"
        target.run_s = time.monotonic() - recorded
        return time.monotonic() - started

    def output(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _write(self, target: Target, offset: int, data: bytes) -> None:
        target.write(offset, data)
        self._written.append(Written(offset, data))

    # --- checks ------------------------------------------------------------------------------------------------------

    def _points(self, target: Target) -> list[Point]:
        kind = "image" if target.kind == IMAGE else "vm"
        name = target.name if target.kind == IMAGE else self._machine(target).domain.UUIDString()
        repository = self._rig.appliance.repository
        return repository.points(repository.series_of(kind, name))

    def _machine(self, target: Target) -> LabGuest:
        return self._guest if target.kind == RUNNING else self._off

    def _check_points(self, target: Target, *, ends_exactly: bool) -> None:
        """No known point is gone; each new one is the disk as it was once; the newest is the disk as it is."""
        self._rig.appliance.repository.refresh_index()
        points = self._points(target)
        ids = {point.manifest.id for point in self._rig.points()}
        assert set(self._known) <= ids, "a point is gone"
        for point in points:
            if point.manifest.id in self._known:
                continue
            content = self._rig.content(point, target.disk)
            newest = point is points[-1]
            if newest and ends_exactly:
                assert content == target.truth, "the newest point is not the disk"
            else:
                assert self._was_once(content), "a point is no state that the disk ever had"
            self._known[point.manifest.id] = {
                disk.name: _hash(content if disk.name == target.disk else self._rig.content(point, disk.name))
                for disk in point.manifest.disks
            }
        assert points
        assert points[-1].manifest.id in self._known

    def _was_once(self, content: bytes) -> bool:
        """Whether this is the disk of before the killed run, with the first so many of the writes since."""
        state = bytearray(self._before)
        if content == state:
            return True
        for written in self._written:
            state[written.offset : written.offset + len(written.data)] = written.data
            if content == state:
                return True
        return False

    def _check_nothing_left(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while processes := processes_of(self._rig.home):
            assert time.monotonic() < deadline, f"processes are left: {processes}"
            time.sleep(0.02)
        self._rig.assert_nothing_left(self._guest, self._off)
        assert self._guest.freeze_status() == "thawed"
        assert [path.name for path in self._rig.settings.cache_directory.glob("pending-*")] == []
        runs = self._rig.appliance.catalog.runs.list()
        assert all(run.state is not RunState.RUNNING for run in runs), "a dead run counts as running"
        made = {run.point for run in runs if run.point is not None}
        assert made == {point.manifest.id for point in self._rig.points()}, "runs and points do not tell the same"

    def _check_sample(self) -> None:
        by_id = {point.manifest.id: point for point in self._rig.points()}
        for id in self._random.sample(sorted(self._known), min(_SAMPLED, len(self._known))):
            self._verify(by_id[id])

    def _verify(self, point: Point) -> None:
        for disk, expected in self._known[point.manifest.id].items():
            assert _hash(self._rig.content(point, disk)) == expected, f"disk {disk} of {point.manifest.id} has changed"

    def verify_everything(self) -> None:
        """Every point of every round once more, the whole repository, and the guest's own file system."""
        points = self._rig.points()
        assert {point.manifest.id for point in points} == set(self._known)
        for point in points:
            self._verify(point)
        found = self._rig.appliance.repository.verify(read_data=True)
        assert found.ok, found.problems
        self._report.points = len(points)
        self._guest.run("echo done >/mnt/vda/marker; sync; umount /mnt/vda")
        self._guest.domain.suspend()
        self._run_to_its_end(self._targets[0])
        last = self._points(self._targets[0])[-1]
        paths = self._guest.disk_paths
        self._guest.kill()
        for disk, path in paths.items():
            assert self._rig.content(last, disk) == plain(path)


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content).hexdigest()
