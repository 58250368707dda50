"""A fleet's catalog as it is after years: 1,000 machines, 200,000 points and 1,000,000 runs, made in minutes.

The rule: rows are what the product writes (they go through its records and its encoding), only their number is ours;
the same seed makes the same rows. `python -m tests.bench.fleet FILE-OR-URL` makes one to look at.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Table

from appliance.audit import Draft, Head, Result, chained, head_of
from appliance.catalog import Catalog, rows, tables
from appliance.catalog.database import Database
from appliance.catalog.runs import row_of
from appliance.hypervisor.protocol import MachineState, Transport
from appliance.inventory import SeenDisk, SeenMachine
from appliance.models import (
    ApplianceRecord,
    HostConfig,
    HostRecord,
    MachineDisk,
    MachineRecord,
    PointDisk,
    PointRecord,
    ReadKind,
    RecoveryDisk,
    RecoveryRecord,
    RecoveryState,
    RepositoryRecord,
    RunDisk,
    RunRecord,
    RunState,
)
from appliance.policy.policies import read_policy
from appliance.policy.stored import StoredPolicy
from appliance.proofs import Proof, ProofKind, Reading, RepositorySize, Verification

ME = "a" * 32
_CHUNK = 10_000
_ROLES = ("web", "db", "mail", "files", "build", "proxy", "ldap", "erp", "desk", "log")
_GIB = 1 << 30
AWAY = timedelta(minutes=25)  # for so long the last host does not answer


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything: `unprotected` machines have neither points nor runs, `images` are no machines of a host,
    `gone` have points and are on no host any more; all are among `machines`. `recovered`: instant recoveries that have
    ended."""

    machines: int = 1000
    points: int = 200_000
    runs: int = 1_000_000
    hosts: int = 20
    unprotected: int = 40
    images: int = 20
    gone: int = 10
    running: int = 8
    queued: int = 40
    policies: int = 20
    recovered: int = 20_000


FULL = Size()
SMALL = Size(
    machines=30, points=600, runs=1500, hosts=3, unprotected=4, images=3, gone=2, running=2, queued=3, policies=0,
    recovered=0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Member:
    number: int
    name: str
    uuid: str | None
    host: str | None
    series: str
    size_bytes: int
    seen: bool
    protected: bool

    @property
    def kind(self) -> str:
        return "image" if self.uuid is None else "vm"


def seed(catalog: Catalog, size: Size = FULL, *, now_utc: datetime, number: int = 1) -> None:
    """Into a catalog that is empty. Nightly runs up to `now_utc`, most machines backed up within the last day."""
    draw = random.Random(number)
    members = list(_members(draw, size))
    catalog.appliances.join(ApplianceRecord(ME, now_utc, "appliance", "/var/lib/strongroom", "", now_utc), "file")
    catalog.attach_repository(RepositoryRecord("e" * 32, "/srv/repository", now_utc))
    hosts = [f"rack{number:02}" for number in range(size.hosts)]
    for host in hosts:
        catalog.hosts.add(HostRecord(HostConfig(host, Transport.SSH, hostname=f"{host}.example"), now_utc))
        there = [_seen(draw, each, now_utc) for each in members if each.host == host and each.seen]
        looked = now_utc - AWAY if host == hosts[-1] else now_utc
        catalog.inventory.answered(host, there, looked, looked)
    since = now_utc - AWAY + timedelta(minutes=1)
    catalog.inventory.failed(hosts[-1], f"host {hosts[-1]} does not answer: no route to host", "", since)
    for policy in _policies(size, now_utc):
        catalog.policies.add(policy)
    protected = [each for each in members if each.protected]
    per_machine = size.points // len(protected)
    points = {each.series: list(_points(draw, each, per_machine, now_utc)) for each in protected}
    _fill(catalog, tables.machines, (_encoded_machine(each, points[each.series][-1]) for each in protected))
    _fill(catalog, tables.points, (rows.encode(point) for some in points.values() for point in some))
    newest = {series: some[-1].id for series, some in points.items()}
    _fill(catalog, tables.runs, (row_of(run) for run in _runs(draw, protected, size, newest, now_utc)))
    _fill(catalog, tables.recoveries, (rows.encode(each) for each in _recovered(draw, points, size, now_utc)))
    _analyse(catalog)


def look_after(catalog: Catalog, nights: int, acts: int, *, now_utc: datetime, number: int = 1) -> None:
    """What so many nights of looking after a fleet leave, beside what was seeded: verifications in shares, proofs of
    recoveries, sizes of the repository, an instant recovery of each kind, and an audit with so many acts."""
    draw = random.Random(number)
    newest: dict[str, PointRecord] = {point.series: point for point in catalog.points.list()}
    for night in range(nights):
        began = now_utc - timedelta(days=nights - night - 1, hours=3)
        ended = began + timedelta(minutes=draw.randrange(20, 50))
        catalog.proofs.verified(
            Verification(draw.randbytes(16).hex(), began, ended, Reading.HASHES, 7, draw.randrange(1 << 38), 0)
        )
        used = 9 * 10**12 + night * 11 * 10**9 + draw.randrange(6 * 10**9)
        catalog.proofs.took(RepositorySize("e" * 32, began.date(), began, used, 16 * 10**12 - used))
    for point in newest.values():
        for _ in range(draw.randrange(3)):
            moment = now_utc - timedelta(days=draw.randrange(1, 120), seconds=draw.randrange(86_400))
            catalog.proofs.proven(
                Proof(
                    draw.randbytes(16).hex(),
                    point.series,
                    point.id,
                    ProofKind.RECOVERY,
                    moment,
                    draw.randrange(3000, 9000),
                )
            )
    states = (RecoveryState.RUNNING, RecoveryState.MIGRATED, RecoveryState.DISCARDED)
    for state, point in zip(states, (each for each in newest.values() if each.host is not None), strict=False):
        assert point.host is not None
        catalog.recoveries.add(_recovery(draw, state, point, point.host, now_utc))
    _fill(catalog, tables.audit, _acts(draw, [*newest.values()], acts, now_utc))


def _recovered(
    draw: random.Random, points: Mapping[str, Sequence[PointRecord]], size: Size, now_utc: datetime
) -> Iterator[RecoveryRecord]:
    machines = [some for some in points.values() if some[0].host is not None]
    for _ in range(size.recovered):
        point = draw.choice(draw.choice(machines))
        assert point.host is not None
        ended = draw.choice((RecoveryState.MIGRATED, RecoveryState.DISCARDED))
        yield _recovery(draw, ended, point, point.host, now_utc)


def _recovery(
    draw: random.Random, state: RecoveryState, point: PointRecord, host: str, now_utc: datetime
) -> RecoveryRecord:
    began = now_utc - timedelta(minutes=draw.randrange(5, 4000))
    disks = (RecoveryDisk("vda", point.size_bytes, "/run/0", "/run/0", "/var/lib/strongroom/overlays/vda.qcow2"),)
    return RecoveryRecord(
        draw.randbytes(16).hex(), state, point.id, point.manifest_name, point.name, host, f"{point.name}-recovered",
        str(UUID(bytes=draw.randbytes(16), version=4)), "none", began, began, disks=disks, start_ms=3400,
        notes=("its network card has another address", "its network is none"), appliance=ME,
    )  # fmt: skip


def _acts(draw: random.Random, points: list[PointRecord], count: int, now_utc: datetime) -> Iterator[dict[str, Any]]:
    """As people and programs do them, chained as the appliance chains them."""
    head: Head | None = None
    for number in range(count):
        point = draw.choice(points)
        at = now_utc - timedelta(minutes=(count - number) * 7)
        act, kind, name, machine = draw.choice((
            ("run.start", "machine", point.name, f"vm:{point.uuid}"),
            ("recovery.start", "machine", point.name, f"vm:{point.uuid}"),
            ("session.start", "user", "alice", None),
            ("policy.save", "policy", "nightly", None),
            ("host.test", "host", point.host or "rack00", None),
        ))  # fmt: skip
        result = draw.choices((Result.OK, Result.FAILED), (90, 10))[0] if kind in ("machine", "host") else Result.OK
        error = "host does not answer: no route to host" if result is Result.FAILED else ""
        who = draw.choice(("alice", "bob", "monitoring"))
        draft = Draft(
            draw.randbytes(16).hex(), at, at + timedelta(seconds=2), ME, act, result, error,
            "token" if who == "monitoring" else "user", who, who, "operator", draw.choice(("console", "api")),
            "192.0.2.7", kind, name, name, machine, {},
        )  # fmt: skip
        entry = chained(draft, head)
        head = head_of(entry)
        yield rows.encode(entry)


def _policies(size: Size, now_utc: datetime) -> Iterator[StoredPolicy]:
    """One for each host."""
    for number in range(size.policies):
        document = {
            "version": 1,
            "name": f"policy-{number:03}",
            "select": {"include": [{"host": f"rack{number % size.hosts:02}"}], "exclude": [{"tag": "dev*"}]},
            "schedule": {"cron": f"{number % 60} 22 * * *", "zone": "Europe/Berlin"},
            "retention": {"daily": 14, "weekly": 8, "monthly": 12},
            "rpo_minutes": 26 * 60,
        }
        assert read_policy(document).name == document["name"]
        yield StoredPolicy(str(document["name"]), document, 1, now_utc, now_utc)


def _members(draw: random.Random, size: Size) -> Iterator[_Member]:
    for number in range(size.machines):
        image = number < size.images
        gone = size.images <= number < size.images + size.gone
        protected = number < size.machines - size.unprotected
        role = draw.choice(_ROLES)
        yield _Member(
            number=number,
            name=f"{role}-{number:04}" + (".raw" if image else ""),
            uuid=None if image else str(UUID(bytes=draw.randbytes(16), version=4)),
            host=None if image else f"rack{number % size.hosts:02}",
            series=draw.randbytes(16).hex(),
            size_bytes=draw.randrange(20, 2000) * _GIB,
            seen=not image and not gone,
            protected=protected,
        )


def _seen(draw: random.Random, member: _Member, now_utc: datetime) -> SeenMachine:
    assert member.uuid is not None
    assert member.host is not None
    disks = (
        SeenDisk("vda", "disk", f"/var/lib/libvirt/images/{member.name}.qcow2", "qcow2", member.size_bytes, True),
        SeenDisk("sda", "cdrom", "", "raw", None, False, "it is a cdrom drive without a medium"),
    )
    state = draw.choices(tuple(MachineState), (90, 1, 9))[0]
    tags = tuple(sorted({f"role={member.name.split('-')[0]}", draw.choice(("prod", "test", "dev"))}))
    return SeenMachine(
        member.host, member.uuid, member.name, state, "", draw.randrange(1, 64) * _GIB, draw.randrange(1, 16),
        draw.random() < 0.8, member.size_bytes, disks, tags, now_utc - timedelta(days=draw.randrange(1, 900)),
    )  # fmt: skip


def _points(draw: random.Random, member: _Member, count: int, now_utc: datetime) -> Iterator[PointRecord]:
    for number in range(count):
        created = now_utc - timedelta(days=count - number - 1, seconds=draw.randrange(86_400))
        full = number == 0
        read_bytes = member.size_bytes // 3 if full else draw.randrange(1 << 20, 8 * _GIB)
        yield PointRecord(
            id=draw.randbytes(16).hex(),
            manifest_name=f"manifests/{member.series}/{number:010}-{draw.randbytes(16).hex()}",
            manifest_hash=draw.randbytes(32).hex(),
            series=member.series,
            generation=number,
            machine_kind=member.kind,
            name=member.name,
            uuid=member.uuid,
            host=member.host,
            created_utc=created,
            kind=ReadKind.FULL if full else ReadKind.INCREMENTAL,
            consistency="application" if draw.random() < 0.8 else "crash",
            size_bytes=member.size_bytes,
            read_bytes=read_bytes,
            stored_bytes=read_bytes // draw.randrange(2, 9),
            duration_ms=draw.randrange(4_000, 4_000_000),
            checkpoint=str(UUID(bytes=draw.randbytes(16), version=4)),
            disks=(PointDisk("vda", member.size_bytes, "qcow2", ReadKind.INCREMENTAL, None),),
            skipped=("sda: it is a cdrom drive without a medium",),
        )


def _encoded_machine(member: _Member, newest: PointRecord) -> dict[str, Any]:
    disks = (MachineDisk("vda", f"/var/lib/libvirt/images/{member.name}.qcow2", None, member.size_bytes, "c"),)
    return rows.encode(
        MachineRecord(
            member.series, member.kind, member.name, member.uuid, member.host, newest.id, newest.created_utc, disks
        )
    )


def _runs(
    draw: random.Random, members: list[_Member], size: Size, newest: dict[str, str], now_utc: datetime
) -> Iterator[RunRecord]:
    states = (RunState.SUCCEEDED, RunState.PARTIAL, RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED)
    for number in range(size.runs):
        member = members[number % len(members)]
        night = number // len(members)
        started = now_utc - timedelta(days=night, seconds=60 + draw.randrange(86_000))
        state = draw.choices(states, (960, 20, 15, 3, 2))[0]
        run = RunRecord(
            id=draw.randbytes(16).hex(),
            name=member.name,
            machine_kind=member.kind,
            uuid=member.uuid,
            host=member.host,
            state=state,
            started_utc=started,
            ended_utc=started + timedelta(seconds=draw.randrange(4, 4000)),
            point=newest[member.series] if state in (RunState.SUCCEEDED, RunState.PARTIAL) else None,
            error="host does not answer: no route to host" if state is RunState.FAILED else None,
            disks=(RunDisk("vda", ReadKind.INCREMENTAL, None, _odd(number, 9000) << 20, _odd(number, 2000) << 20),),
            notes=("sda was skipped",) if state is RunState.PARTIAL else (),
            appliance=ME,
            asked_utc=started - timedelta(seconds=5),
            attempts=1,
        )
        if number < size.running + size.queued:  # of the newest night
            live = RunState.RUNNING if number < size.running else RunState.QUEUED
            run = replace(run, state=live, started_utc=now_utc - timedelta(seconds=60), ended_utc=None, point=None,
                          error=None, notes=(), disks=(), attempts=int(live is RunState.RUNNING))  # fmt: skip
        yield run


def _odd(number: int, most: int) -> int:
    """One that looks drawn."""
    return number * 7919 % most + 9


def _fill(catalog: Catalog, table: Table, values: Iterable[dict[str, Any]]) -> None:
    left = iter(values)
    with catalog.database.write() as connection:
        while some := list(islice(left, _CHUNK)):
            connection.execute(table.insert(), some)


def _analyse(catalog: Catalog) -> None:
    """As PostgreSQL does by itself, some time after rows were added."""
    if catalog.database.is_shared:
        with catalog.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fleet", description=__doc__)
    parser.add_argument("where", help="a file that is not there yet, or the URL of an empty PostgreSQL database")
    parser.add_argument("--small", action="store_true", help="a few machines, as tests have it")
    options = parser.parse_args(arguments)
    where: str = options.where
    database = Database.shared(where) if "://" in where else Database.at(Path(where))
    began = time.monotonic()
    lock = Path(f"/tmp/strongroom-fleet-{random.SystemRandom().randrange(1 << 32):x}.lock")
    catalog = Catalog.open(database, lock, ME)
    seed(catalog, SMALL if options.small else FULL, now_utc=datetime.now(UTC))
    catalog.close()
    lock.unlink(missing_ok=True)
    print(f"made in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
