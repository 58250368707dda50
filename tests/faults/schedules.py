"""A random schedule of backups, deletions, collections and checks, by one or two appliances, killed at random moments.

The rule: what a restore point holds is told by its own seed, never by the product; a point that was acknowledged and
not deleted is there and bit-exact after every round, whatever was killed; one that was deleted stays gone; what nobody
of ours put into the store is never touched. In the end all of that is asked once more of tests/contract's reader, which
shares no code with the product: of every point, and of what packs are left that nothing needs.

What a round does is drawn from the seed and its number alone, so that a seed does the same again; a kill comes after a
drawn part of the time that such an action took before.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from imaging.census import CollectionRefused
from imaging.clock import SystemClock
from imaging.collecting import Options
from imaging.errors import Fenced, ImagingError, PointHeld, PointNotFound, SeriesBusy
from imaging.manifest import Machine, ManifestDraft, Statistics
from imaging.packs import listed_packs
from imaging.repository import Appliance, Repository
from imaging.storage.cloud import CloudStore
from imaging.storage.contract import Store
from imaging.storage.endpoints import parse_endpoint
from imaging.storage.gcs import GcsClient
from imaging.storage.local import LocalStore
from imaging.storage.retrying import RetryingStore
from imaging.storage.s3 import S3Store
from tests.contract.independent_reader import PACK_NAME, IndependentReader
from tests.faults.repositories import MACHINE, ME, OTHER, content, make, read_disk, write_disks
from tests.lab import gcs_server
from tests.lab.s3_server import running

_NAMES = ("web", "db", "mail")
_ACTIONS = ("backup", "delete", "collect", "verify")
_SHARES = (6, 3, 4, 1)
_KILLED = 0.5
_TOGETHER = 0.35
_PATIENCE_S = 120.0
_DEAD_AFTER_S = 1.5
_PIECE = 192 * 1024
_CHECKED = 0.34
"""Of the points, how many are read after each round; all are in the end."""

_STRANGE = (
    "unknown/object", "packs/aa/something-else", f"packs/ab/{'ab' * 31}", "manifests/notes", "index/notes",
    "leases/notes", "tombstones/notes", "epochs/notes", "claims/notes", "holds/notes", "damaged/notes",
)  # fmt: skip
"""Names that the format does not have, in folders that collections and runs remove things from."""

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
    killed_in: Counter[str] = field(default_factory=Counter)
    committed: int = 0  # points of backups that were killed before they could acknowledge them
    collections: int = 0
    freed_bytes: int = 0
    rescued: int = 0
    refused: int = 0
    points: int = 0
    took_s: float = 0.0

    def __str__(self) -> str:
        killed_in = ", ".join(f"{action} {count}" for action, count in sorted(self.killed_in.items()))
        return (
            f"seed {self.seed}: {self.rounds} rounds, {self.killed} processes killed ({killed_in or 'none'}),"
            f" {self.committed} of them after their point counted; {self.collections} collections ended and freed"
            f" {self.freed_bytes} bytes ({self.rescued} packs rescued), {self.refused} actions found another at work;"
            f" {self.points} points at the end, all bit-exact; {self.took_s:.0f} s"
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


def gcs_store() -> MakeStore:
    """As object_store, in Google's words. Each process lends tokens to itself: no thread may be answering others while
    its process is forked."""
    server = gcs_server.running()
    place = server.bucket(f"{secrets.token_hex(8)}/")

    def make_store(folder: Path) -> Store:
        tokens = parse_endpoint(gcs_server.TokenServer(server.tokens).url)
        account = replace(server.account, token_url=f"{tokens}/token", tokens=tokens)
        store = CloudStore(GcsClient(place, account))
        return RetryingStore(store, SystemClock(), time.sleep, random.SystemRandom().random)

    return make_store


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

    def kill(self) -> None:
        """Harmless when it has ended."""
        os.kill(self.process, signal.SIGKILL)

    def end(self) -> bool:
        """Waits for it; returns whether it was killed before its end."""
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
        self._seed = seed
        self._random = random.Random(seed)
        self._make_store = make_store
        self._appliances = appliances
        self.report = Report(seed)
        self._sure: dict[str, list[int]] = {}  # acknowledged and not deleted: point → pieces
        self._maybe: set[str] = set()  # a deletion of it was killed
        self._gone: set[str] = set()
        self._pieces: dict[str, list[int]] = {name: [] for name in _NAMES}
        self._took_s = dict.fromkeys(_ACTIONS, 0.3)
        child = self._fork("make", self._prepare)
        child.end()
        assert child.status == 0, child.said
        self._store = self._make_store(folder)
        for name in _STRANGE:
            self._store.put(name, [name.encode()])

    def _prepare(self, say: Callable[[dict[str, object]], None]) -> None:
        make(self._folder, store=self._make_store(self._folder)).close()

    # --- one round ---------------------------------------------------------------------------------------------------

    def round(self) -> str:
        """One or two actions at once, possibly killed; then every point is checked."""
        self.report.rounds += 1
        self._random = random.Random(f"{self._seed} {self.report.rounds}")
        count = 2 if self._random.random() < _TOGETHER else 1
        actions = [self._random.choices(_ACTIONS, _SHARES)[0] for _ in range(count)]
        fates = [self._random.uniform(0, 1.1) if self._random.random() < _KILLED else None for _ in actions]
        started = time.monotonic()
        children = [self._start(action, number, alone=count == 1) for number, action in enumerate(actions)]
        kills = sorted(
            (
                (self._took_s[child.action] * fate, number)
                for number, (child, fate) in enumerate(zip(children, fates, strict=True))
                if fate is not None
            )
        )
        for after_s, number in kills:
            time.sleep(max(0.0, started + after_s - time.monotonic()))
            children[number].kill()
        told = []
        for child in children:
            killed = child.end()
            if not killed and count == 1:
                self._took_s[child.action] = 0.5 * (self._took_s[child.action] + time.monotonic() - started)
            self._learn(child, killed)
            told.append(f"{child.action}{' killed' if killed else ''}")
        self._check()
        return " + ".join(told)

    def _start(self, action: str, number: int, *, alone: bool) -> Child:
        who = self._random.randrange(self._appliances) if number == 0 else number % self._appliances
        appliance = (ME, OTHER)[who]
        if action == "backup":
            name = self._random.choice(_NAMES)
            pieces = self._next(name)
            return self._fork(action, lambda say: self._backup(appliance, name, pieces, say))
        if action == "delete":
            if not self._sure:
                return self._start("backup", number, alone=alone)
            point = self._random.choice(list(self._sure))  # in the order in which they were made
            child = self._fork(action, lambda say: self._delete(appliance, point, say))
            child.about = point
            return child
        if action == "collect":
            wait_s = self._random.choice((0.0, 0.0, 30.0))
            return self._fork(action, lambda say: self._collect(appliance, wait_s, say))
        return self._fork(action, lambda say: self._verify(appliance, alone=alone))

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
        self.report.killed += killed
        self.report.killed_in[child.action] += killed
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
            dead_after_s=_DEAD_AFTER_S, beat_s=0.3,
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

    def _verify(self, appliance: Appliance, *, alone: bool) -> None:
        """Everything, whatever was killed before; while others write and collect, what is there comes and goes, and
        only points are looked at."""
        with self._open(appliance) as repository:
            if alone:
                _assert_well(repository)
                return
            for point in repository.points():
                for disk in point.manifest.disks:
                    try:
                        read_disk(repository, point, disk.name)
                    except ImagingError:
                        if any(each.id == point.id for each in repository.points()):
                            raise

    # --- checks ------------------------------------------------------------------------------------------------------

    def _check(self, share: float = _CHECKED) -> None:
        child = self._fork("check", lambda say: self._check_points(share, say))
        child.end()
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
            self.report.committed += point not in self._sure
            self._sure[point] = pieces
        for name in _STRANGE:
            assert self._store.get(name) == name.encode(), f"{name} is not as it was put there"

    def _check_points(self, share: float, say: Callable[[dict[str, object]], None]) -> None:
        """As a machine that knows nothing but the key would find them; so many of them are read."""
        fresh = Appliance(b"C" * 16, "checking")
        with self._open(fresh) as repository:
            survey = repository.survey()
            assert not survey.damaged, survey.damaged
            for point in survey.points:
                halves = json.loads(point.manifest.run or "{}")
                if self._random.random() < share:
                    for disk in point.manifest.disks:
                        wanted = disk_content(halves[disk.name])
                        assert read_disk(repository, point, disk.name) == wanted, f"{point.id} {disk.name} is wrong"
                say({"listed": point.id, "pieces": [*halves["low"], *halves["high"]]})

    def settle(self) -> None:
        """Without kills: collected until nothing is left to do, all verified, nothing unreferenced, nothing lost."""
        ended = self.report.collections + 4
        deadline = time.monotonic() + _PATIENCE_S
        while self.report.collections < ended:
            assert time.monotonic() < deadline, "no collection comes to its end"
            child = self._fork("collect", lambda say: self._collect(ME, 30.0, say))
            child.end()
            self._learn(child, False)
            if self.report.collections == ended - 3:
                time.sleep(_DEAD_AFTER_S)  # a dead appliance's lease has been seen, and stands still
        child = self._fork("settled", self._settled)
        child.end()
        assert child.status == 0, child.said
        self._check(share=1.0)
        self._read_independently()
        self.report.points = len(self._sure)

    def _settled(self, say: Callable[[dict[str, object]], None]) -> None:
        with self._open(Appliance(b"D" * 16, "settling")) as repository:
            _assert_well(repository)
            plan = repository.plan_collection(Options(), Silent())
            assert plan.empty, plan
            listed = set(repository.index.packs())
            assert set(listed_packs(repository.store)) <= listed, "a pack is left that no index object lists"

    def _read_independently(self) -> None:
        """Every point against the model, by a reader that is none of ours; what it needed for them is all there is."""
        with tempfile.TemporaryDirectory(prefix="mirror-", dir=self._folder) as name:
            mirror = Path(name)
            for listed in self._store.list(""):
                path = mirror / listed.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._store.get(listed.name))
            reader = _Noting(mirror, "machine", MACHINE.secret)
            points = reader.points()
            assert {manifest["id"] for manifest in points.values()} == set(self._sure)
            for manifest in points.values():
                halves = json.loads(manifest["run"])
                assert [*halves["low"], *halves["high"]] == self._sure[manifest["id"]]
                for disk, pieces in halves.items():
                    with tempfile.TemporaryFile(dir=mirror) as out:
                        reader.restore(manifest, disk, out)
                        out.seek(0)
                        assert out.read() == disk_content(pieces), f"{manifest['id']} {disk} is wrong"
            packs = {mirror / listed.name for listed in self._store.list("packs/") if PACK_NAME.fullmatch(listed.name)}
            idle = packs - reader.packs_of_what_was_read()
            assert not idle, f"nothing needs these packs: {sorted(path.name for path in idle)}"


class _Noting(IndependentReader):
    """Knows what it was asked for, and reads it once."""

    def __init__(self, root: Path, kind: str, secret: bytes) -> None:
        super().__init__(root, kind, secret)
        self._read: dict[tuple[int, bytes], bytes] = {}

    def blob(self, type_: int, id_: bytes, length: int | None = None) -> bytes:
        if (type_, id_) not in self._read:
            self._read[type_, id_] = super().blob(type_, id_, length)
        return self._read[type_, id_]

    def packs_of_what_was_read(self) -> set[Path]:
        return {pack for key in self._read for pack, _, _ in self._places[key]}


def _assert_well(repository: Repository) -> None:
    report = repository.verify(read_data=True)
    assert report.ok, [str(problem.error) for problem in report.problems] + [str(a) for a in report.affected]
    assert set(report.unknown) == set(_STRANGE), report.unknown


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
