"""A random schedule of backups, deletions, collections and checks, by one or two appliances, killed at random moments.

The rule: what a restore point holds is told by its own seed, never by the product; a point that was acknowledged and
not deleted is there and bit-exact after every round, whatever was killed; one that was deleted stays gone; what nobody
of ours put into the store is never touched.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from imaging.census import CollectionRefused
from imaging.clock import SystemClock
from imaging.collecting import Options
from imaging.errors import Fenced, ImagingError, PointHeld, PointNotFound, SeriesBusy
from imaging.manifest import Machine, ManifestDraft, Statistics
from imaging.packs import listed_packs
from imaging.repository import Appliance, Repository
from imaging.storage.contract import Store
from imaging.storage.local import LocalStore
from imaging.storage.retrying import RetryingStore
from imaging.storage.s3 import S3Store
from tests.faults.repositories import MACHINE, ME, OTHER, content, make, read_disk, write_disks
from tests.lab.s3_server import running

_NAMES = ("web", "db", "mail")
_ACTIONS = ("backup", "delete", "collect", "verify")
_SHARES = (6, 3, 4, 1)
_KILLED = 0.5
_TOGETHER = 0.35
_PATIENCE_S = 120.0
_PIECE = 192 * 1024
MakeStore = Callable[[Path], Store]


class Silent:
    def start(self, label: str, total_bytes: int | None) -> None: ...
    def advance(self, count_bytes: int) -> None: ...
    def note(self, text: str) -> None: ...
    def finish(self) -> None: ...


@dataclass
class Report:
    seed: int
    rounds: int = 0
    killed: int = 0
    collections: int = 0
    freed_bytes: int = 0
    rescued: int = 0
    refused: int = 0
    points: int = 0
    took_s: float = 0.0

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.rounds} rounds, {self.killed} processes killed, {self.collections} collections"
            f" ended and freed {self.freed_bytes} bytes ({self.rescued} packs rescued), {self.refused} actions found"
            f" another at work; {self.points} points at the end, all bit-exact; {self.took_s:.0f} s"
        )


def local_store(folder: Path) -> Store:
    return LocalStore.make(folder / "store")


def object_store() -> MakeStore:
    """Below a new prefix of the lab's server, which is started here, so that it outlives every process of a schedule;
    with patience, as a product uses it."""
    server = running()
    place = server.bucket(f"{secrets.token_hex(8)}/")
    return lambda folder: RetryingStore(
        S3Store(place, server.credentials), SystemClock(), time.sleep, random.SystemRandom().random
    )


def disk_content(pieces: list[int]) -> bytes:
    """A disk made of pieces, some of them holes: what a point with these numbers holds."""
    return b"".join(bytes(_PIECE) if piece == 0 else content(piece, _PIECE) for piece in pieces)


@dataclass
class Child:
    """One action in a process of its own, with a pipe to what it acknowledged."""

    action: str
    process: int
    pipe: int
    about: str = ""
    said: list[dict[str, object]] = field(default_factory=list)
    status: int | None = None

    def end(self, *, kill_after_s: float | None) -> bool:
        """Waits for it; returns whether it was killed before its end."""
        killed = False
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(self.process, signal.SIGKILL)
        with os.fdopen(self.pipe) as pipe:
            self.said = [json.loads(line) for line in pipe if line.endswith("\n")]
        _, status = os.waitpid(self.process, 0)
        killed = os.WIFSIGNALED(status)
        self.status = -os.WTERMSIG(status) if killed else os.WEXITSTATUS(status)
        return killed


class Schedule:
    """Owns everything below `folder`."""

    def __init__(self, folder: Path, seed: int, make_store: MakeStore = local_store, *, appliances: int = 2) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._make_store = make_store
        self._appliances = appliances
        self.report = Report(seed)
        self._sure: dict[str, list[int]] = {}  # acknowledged and not deleted: point → pieces
        self._maybe: set[str] = set()  # a deletion of it was killed
        self._gone: set[str] = set()
        self._pieces: dict[str, list[int]] = {name: [] for name in _NAMES}
        self._took_s = dict.fromkeys(_ACTIONS, 0.3)
        self._fork("make", self._prepare).end(kill_after_s=None)
        self._strange = self._make_store(folder)
        for name in ("unknown/object", "packs/aa/something-else"):
            self._strange.put(name, [b"not ours"])

    def _prepare(self, say: Callable[[dict[str, object]], None]) -> None:
        make(self._folder, store=self._make_store(self._folder)).close()

    # --- one round ---------------------------------------------------------------------------------------------------

    def round(self) -> str:
        """One or two actions at once, possibly killed; then every point is checked."""
        self.report.rounds += 1
        count = 2 if self._random.random() < _TOGETHER else 1
        started = time.monotonic()
        children = [self._start(self._random.choices(_ACTIONS, _SHARES)[0], number) for number in range(count)]
        told = []
        for child in children:
            kill = self._random.random() < _KILLED
            after = self._random.uniform(0, self._took_s[child.action] * 1.1) if kill else None
            killed = child.end(kill_after_s=after)
            self.report.killed += killed
            if not killed and count == 1:
                self._took_s[child.action] = 0.5 * (self._took_s[child.action] + time.monotonic() - started)
            self._learn(child, killed)
            told.append(f"{child.action}{' killed' if killed else ''}")
        self._check()
        return " + ".join(told)

    def _start(self, action: str, number: int) -> Child:
        who = self._random.randrange(self._appliances) if number == 0 else number % self._appliances
        appliance = (ME, OTHER)[who]
        if action == "backup":
            name = self._random.choice(_NAMES)
            pieces = self._next(name)
            return self._fork(action, lambda say: self._backup(appliance, name, pieces, say))
        if action == "delete":
            if not self._sure:
                return self._start("backup", number)
            point = self._random.choice(sorted(self._sure))
            child = self._fork(action, lambda say: self._delete(appliance, point, say))
            child.about = point
            return child
        if action == "collect":
            wait_s = self._random.choice((0.0, 0.0, 30.0))
            return self._fork(action, lambda say: self._collect(appliance, wait_s, say))
        return self._fork(action, lambda say: self._verify(appliance))

    def _next(self, name: str) -> list[int]:
        """Most of what the machine held before, of what others hold, and something new."""
        before = self._pieces[name] or [self._random.randrange(1, 10**9) for _ in range(8)]
        pieces = list(before)
        for _ in range(self._random.randrange(1, 5)):
            at = self._random.randrange(len(pieces))
            other = self._pieces[self._random.choice(_NAMES)] or [0]
            pieces[at] = self._random.choice((0, self._random.choice(other), self._random.randrange(1, 10**9)))
        self._pieces[name] = pieces
        return pieces

    def _learn(self, child: Child, killed: bool) -> None:
        assert killed or child.status == 0, f"{child.action} ended with {child.status}: {child.said}"
        for said in child.said:
            if "point" in said:
                self._sure[str(said["point"])] = list(said["pieces"])  # type: ignore[call-overload]
            if "deleted" in said:
                self._sure.pop(str(said["deleted"]), None)
                self._maybe.discard(str(said["deleted"]))
                self._gone.add(str(said["deleted"]))
            self.report.collections += "freed" in said
            self.report.freed_bytes += int(str(said.get("freed", 0)))
            self.report.rescued += int(str(said.get("rescued", 0)))
            self.report.refused += "refused" in said
        if child.action == "delete" and child.about in self._sure:
            self._maybe.add(child.about)

    def _fork(self, action: str, work: Callable[[Callable[[dict[str, object]], None]], None]) -> Child:
        read, write = os.pipe()
        process = os.fork()
        if process:
            os.close(write)
            return Child(action, process, read)
        status = 70
        try:
            os.close(read)

            def say(value: dict[str, object]) -> None:
                os.write(write, json.dumps(value).encode() + b"\n")

            try:
                work(say)
            except (SeriesBusy, Fenced, PointHeld, PointNotFound) as error:
                say({"refused": str(error)})
            status = 0
        except BaseException:  # noqa: BLE001  (a child must never go on as its parent)
            os.write(write, json.dumps({"failed": traceback.format_exc()}).encode() + b"\n")
        finally:
            os._exit(status)

    # --- what a child does -------------------------------------------------------------------------------------------

    def _open(self, appliance: Appliance) -> Repository:
        return Repository.open(
            self._make_store(self._folder), MACHINE, cache=self._folder / appliance.host, appliance=appliance,
            dead_after_s=1.5, beat_s=0.3,
        )  # fmt: skip

    def _backup(
        self, appliance: Appliance, name: str, pieces: list[int], say: Callable[[dict[str, object]], None]
    ) -> None:
        """Half of the disk is taken over from the parent without a look at it, where it has not changed."""
        with self._open(appliance) as repository:
            deadline = time.monotonic() + _PATIENCE_S
            while True:
                try:
                    run = repository.begin_run(repository.series_of("image", name))
                    break
                except SeriesBusy:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
            with run:
                half = len(pieces) // 2
                halves = {"low": pieces[:half], "high": pieces[half:]}
                taken = []
                if run.parent is not None and run.parent.manifest.run is not None:
                    before = json.loads(run.parent.manifest.run)
                    taken = [disk for disk in run.parent.manifest.disks if before[disk.name] == halves[disk.name]]
                fresh = {
                    disk: disk_content(numbers)
                    for disk, numbers in halves.items()
                    if disk not in {entry.name for entry in taken}
                }
                entries = sorted((*taken, *write_disks(repository, run, fresh)), key=lambda entry: entry.name)
                point = run.commit(
                    ManifestDraft(
                        machine=Machine("image", name), created_utc=datetime.now(UTC), kind="incremental",
                        consistency="offline", disks=tuple(entries), statistics=Statistics(), run=json.dumps(halves),
                    )
                )  # fmt: skip
            say({"point": point.id, "pieces": pieces})

    def _delete(self, appliance: Appliance, wanted: str, say: Callable[[dict[str, object]], None]) -> None:
        with self._open(appliance) as repository:
            repository.delete_point(repository.point(wanted), by="schedule")
            say({"deleted": wanted})

    def _collect(self, appliance: Appliance, wait_s: float, say: Callable[[dict[str, object]], None]) -> None:
        with self._open(appliance) as repository:
            try:
                done = repository.collect(Options(wait_s=wait_s), Silent())
            except CollectionRefused as error:
                if "another collection" in str(error):
                    raise SeriesBusy("collection", "another", "another", 0) from error
                raise
            say({"freed": done.freed_bytes, "rescued": done.rescued_packs})

    def _verify(self, appliance: Appliance) -> None:
        """While others write and collect, what is there comes and goes: only points are looked at."""
        with self._open(appliance) as repository:
            for point in repository.points():
                for disk in point.manifest.disks:
                    try:
                        read_disk(repository, point, disk.name)
                    except ImagingError:
                        if any(each.id == point.id for each in repository.points()):
                            raise

    # --- checks ------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        child = self._fork("check", self._check_points)
        child.end(kill_after_s=None)
        assert child.status == 0, child.said
        listed = {str(said["listed"]): list(said["pieces"]) for said in child.said if "listed" in said}  # type: ignore[call-overload]
        missing = set(self._sure) - set(listed) - self._maybe
        assert not missing, f"acknowledged points are gone: {missing}"
        back = self._gone & set(listed)
        assert not back, f"deleted points are back: {back}"
        for point in self._maybe - set(listed):
            self._sure.pop(point, None)
            self._gone.add(point)
        self._maybe.clear()
        for point, pieces in listed.items():
            assert self._sure.get(point, pieces) == pieces, f"point {point} holds another state"
            self._sure[point] = pieces
        for name in ("unknown/object", "packs/aa/something-else"):
            assert self._strange.get(name) == b"not ours"

    def _check_points(self, say: Callable[[dict[str, object]], None]) -> None:
        """As a machine that knows nothing but the key would find them; a third of them is read."""
        fresh = Appliance(b"C" * 16, "checking")
        with self._open(fresh) as repository:
            survey = repository.survey()
            assert not survey.damaged, survey.damaged
            for point in survey.points:
                halves = json.loads(point.manifest.run or "{}")
                if self._random.random() < 0.34:
                    for disk in point.manifest.disks:
                        wanted = disk_content(halves[disk.name])
                        assert read_disk(repository, point, disk.name) == wanted, f"{point.id} {disk.name} is wrong"
                say({"listed": point.id, "pieces": [*halves["low"], *halves["high"]]})

    def settle(self) -> None:
        """Without kills: collected until nothing is left to do, all verified, nothing unreferenced, nothing lost."""
        ended = self.report.collections + 3
        deadline = time.monotonic() + _PATIENCE_S
        while self.report.collections < ended:
            assert time.monotonic() < deadline, "no collection comes to its end"
            child = self._fork("collect", lambda say: self._collect(ME, 30.0, say))
            child.end(kill_after_s=None)
            self._learn(child, False)
            time.sleep(0.5)  # a dead appliance's lease has to be seen standing still
        child = self._fork("settled", self._settled)
        child.end(kill_after_s=None)
        assert child.status == 0, child.said
        self._check()
        self.report.points = len(self._sure)

    def _settled(self, say: Callable[[dict[str, object]], None]) -> None:
        with self._open(Appliance(b"D" * 16, "settling")) as repository:
            report = repository.verify(read_data=True)
            assert report.ok, [str(problem.error) for problem in report.problems] + [str(a) for a in report.affected]
            assert set(report.unknown) == {"unknown/object", "packs/aa/something-else"}, report.unknown
            plan = repository.plan_collection(Options(), Silent())
            assert plan.empty, plan
            listed = set(repository.index.packs())
            assert set(listed_packs(repository.store)) <= listed, "a pack is left that no index object lists"


def run(
    folder: Path,
    rounds: int,
    seed: int,
    make_store: MakeStore = local_store,
    *,
    appliances: int = 2,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Raises AssertionError at the first thing that is not as it must be, naming seed and round."""
    began = time.monotonic()
    schedule = Schedule(folder, seed, make_store, appliances=appliances)
    for number in range(rounds):
        try:
            told = schedule.round()
        except BaseException as error:
            error.add_note(f"schedule: seed {seed}, round {number + 1}")
            raise
        say(f"{number + 1}/{rounds} {told}")
    schedule.settle()
    schedule.report.took_s = time.monotonic() - began
    return schedule.report
