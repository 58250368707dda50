"""Reading for lists, pages and the overview of a console.

The rule: it changes nothing, asks no host and no repository, and answers in under 100 ms with 1,000 machines, 200,000
points and 1,000,000 runs (`python -m tests.bench browsing` measures it). What somebody may see is decided before
anything is told: each method takes `may_see`, and what it gives has no trace of the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, TypeVar

from appliance.catalog.browsing import PointFilter, RecoveryFilter, RunFilter
from appliance.catalog.errors import RecordMissing
from appliance.inventory import KnownMachine
from appliance.models import PointRecord, RecoveryRecord, RunRecord, RunState
from appliance.paging import LIMIT, LIMIT_MAX, Page
from appliance.policy.selectors import Kind, Machine
from appliance.services.access.subjects import Subjects
from appliance.services.backup.watching import how_far
from appliance.services.browsing import overview as views
from appliance.services.browsing import searching, timeline
from appliance.services.browsing.fleet import Assigned, Fleet, MachineFilter, MachineRow, Sort, assemble
from appliance.services.browsing.growth import DAYS, STORED_DAYS, Growth, growth
from appliance.services.browsing.overview import Debts, LastDay, Overview, Under
from appliance.services.browsing.searching import Found
from appliance.services.browsing.timeline import Day, TimePoint
from appliance.services.policies.service import PolicyService
from appliance.services.spawning import WORKERS

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from appliance.proofs import Proof

MaySee = Callable[[Machine], bool]
P = ParamSpec("P")
R = TypeVar("R")
_ANY_MACHINE: Final = MachineFilter()
_ANY_POINT: Final = PointFilter()
_ANY_RUN: Final = RunFilter()
_DAY: Final = timedelta(days=1)
_RUNNING_MOST: Final = 100
_PROOFS: Final = 20
_TIME_LINE_MOST: Final = 5000  # hourly points of half a year


@dataclass(frozen=True, slots=True)
class MachinePage:
    """A machine with what its page shows besides lists. `seen`: where it is, with its disks; `hosts`: every host that
    has one of its UUID. `points` and `stored_bytes`: of all its restore points, the latter when they were made."""

    row: MachineRow
    seen: KnownMachine | None
    hosts: tuple[str, ...]
    points: int
    stored_bytes: int
    proofs: tuple[Proof, ...]


def _at_once(method: Callable[Concatenate[BrowsingService, P], R]) -> Callable[Concatenate[BrowsingService, P], R]:
    """With one connection to the catalog for all that it reads."""

    @wraps(method)
    def reading(self: BrowsingService, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.appliance.catalog.database.reading():
            return method(self, *args, **kwargs)

    return reading


class BrowsingService:
    """Borrows the appliance. Worth keeping: it remembers which policies select what."""

    def __init__(self, appliance: Appliance) -> None:
        self.appliance = appliance
        self._assigned = Assigned()

    @_at_once
    def fleet(self, may_see: MaySee | None = None) -> Fleet:
        return self._fleet(may_see)

    def _fleet(self, may_see: MaySee | None, machine: str | None = None) -> Fleet:
        """`machine`: of all machines this one alone (a key): a tenth of the time."""
        catalog = self.appliance.catalog
        policies = PolicyService(self.appliance).list().readable
        whole = catalog.machines.whole(machine)
        if machine is None:
            proofs = catalog.proofs.last()
        else:
            proofs = tuple(proof for each in whole.series for proof in catalog.proofs.of_series(each.series, 1))
        found = assemble(
            whole,
            [each.state for each in policies],
            self._assigned.among(each.policy for each in policies),
            frozenset(pause.machine for pause in catalog.policies.pauses()),
            {proof.series: proof for proof in proofs},
            self.appliance.clock.now_utc(),
        )
        return found if may_see is None else found.seen_by(may_see)

    @_at_once
    def machines(
        self,
        wanted: MachineFilter = _ANY_MACHINE,
        sort: Sort = Sort.NAME,
        *,
        falling: bool = False,
        after: str | None = None,
        limit: int = LIMIT,
        may_see: MaySee | None = None,
    ) -> Page[MachineRow]:
        """PageRefused."""
        return self.fleet(may_see).page(wanted, sort, falling=falling, after=after, limit=limit)

    @_at_once
    def machine(self, key: str) -> MachinePage:
        """By what tells it from all others: "vm:UUID" or "image:NAME". Whoever asks for one of somebody asks whether
        they may see it: a refusal is to be written down. RecordMissing."""
        row = self._row(key)
        catalog, machine = self.appliance.catalog, row.machine
        of_host = machine.kind is Kind.VM
        points, stored = (0, 0) if row.series is None else catalog.browsing.series_totals(row.series)
        return MachinePage(
            row=row,
            seen=catalog.inventory.machine(machine.id) if of_host else None,
            hosts=catalog.inventory.hosts_of(machine.id) if of_host else (),
            points=points,
            stored_bytes=stored,
            proofs=() if row.series is None else catalog.proofs.of_series(row.series, _PROOFS),
        )

    @_at_once
    def time_line(
        self, of: str | MachineRow, since_utc: datetime, until_utc: datetime, *, zone: tzinfo = UTC
    ) -> tuple[Day, ...]:
        """The points of a machine that were made in this time (its end is not in it), by the days of `zone`; the newest
        5,000, if there are more. `of`: its key, or its row by whoever has it, so that it is not looked for again.
        RecordMissing."""
        row = self._row(of) if isinstance(of, str) else of
        if row.series is None:
            return ()
        catalog, wanted = self.appliance.catalog, PointFilter(row.series, since_utc=since_utc, until_utc=until_utc)
        points: list[PointRecord] = []
        after = None
        while len(points) < _TIME_LINE_MOST:
            page = catalog.browsing.points(wanted, after=after, limit=LIMIT_MAX)
            points += page.items
            after = page.next
            if after is None:
                break
        return timeline.by_day(timeline.with_checks(points, catalog.proofs.verifications()), zone)

    @_at_once
    def point(self, of: MachineRow, id: str) -> PointRecord | None:
        """The one of this machine that has this id."""
        if searching.as_id(id) is None:
            return None
        found = self.appliance.catalog.history.points_of((id,))
        return next((each for each in found if each.series == of.series), None)

    @_at_once
    def row_of_point(self, id: str) -> MachineRow:
        """Of the machine that has the point of this id. RecordMissing."""
        found = () if searching.as_id(id) is None else self.appliance.catalog.history.points_of((id,))
        row = next((row for row in self.fleet().rows if row.series == found[0].series), None) if found else None
        if row is None:
            raise RecordMissing("point", id)
        return row

    @_at_once
    def checked(self, point: PointRecord) -> TimePoint:
        """With what verifications said of it."""
        return timeline.with_checks((point,), self.appliance.catalog.proofs.verifications())[0]

    @_at_once
    def points(
        self,
        wanted: PointFilter = _ANY_POINT,
        *,
        after: str | None = None,
        limit: int = LIMIT,
        oldest_first: bool = False,
        may_see: MaySee | None = None,
    ) -> Page[TimePoint]:
        """PageRefused."""
        catalog = self.appliance.catalog
        if may_see is not None:
            visible = self.fleet(may_see).serieses
            wanted = replace(wanted, serieses=visible if wanted.serieses is None else visible & wanted.serieses)
        page = catalog.browsing.points(wanted, after=after, limit=limit, oldest_first=oldest_first)
        checks = timeline.with_checks(page.items, catalog.proofs.verifications())
        return Page(checks, page.next, page.total)

    @_at_once
    def runs(
        self,
        wanted: RunFilter = _ANY_RUN,
        *,
        after: str | None = None,
        limit: int = LIMIT,
        oldest_first: bool = False,
        may_see: MaySee | None = None,
    ) -> Page[RunRecord]:
        """PageRefused."""
        if may_see is not None:
            visible = self.fleet(may_see).keys
            wanted = replace(wanted, machines=visible if wanted.machines is None else visible & wanted.machines)
        return self.appliance.catalog.browsing.runs(wanted, after=after, limit=limit, oldest_first=oldest_first)

    @_at_once
    def recoveries(
        self, *, ended: bool | None = None, after: str | None = None, limit: int = LIMIT, may_see: MaySee | None = None
    ) -> Page[RecoveryRecord]:
        """Of all appliances, newest first; `ended`: only those that have, or have not. PageRefused."""
        sources = None if may_see is None else Subjects(self.appliance, many=True).recoverable(may_see)
        return self.appliance.catalog.browsing.recoveries(RecoveryFilter(ended, sources), after=after, limit=limit)

    @_at_once
    def search(self, text: str, *, may_see: MaySee | None = None) -> Found:
        """Machines, hosts and policies by a part of their names; points and runs by the beginning of their ids, from
        four digits on. Policies are told to those alone who may see all."""
        text = searching.wanted(text)
        if not text:
            return Found()
        fleet = self.fleet(may_see)
        hosts = {host.name: host for host in fleet.hosts}
        machines = searching.machines(fleet.rows, text)
        host_names = searching.named(hosts, text)
        policies: list[str] = []
        if may_see is None:
            policies += searching.named((each.name for each in self.appliance.catalog.policies.list()), text)
        points, runs = self._by_id(text, None if may_see is None else fleet)
        shown = searching.SHOWN
        return Found(
            tuple(machines[:shown]),
            tuple(hosts[name] for name in host_names[:shown]),
            tuple(policies[:shown]),
            tuple(points[:shown]),
            tuple(runs[:shown]),
            more=any(len(some) > shown for some in (machines, host_names, policies, points, runs)),
        )

    @_at_once
    def growth(self) -> Growth:
        """Of the repository."""
        catalog, now = self.appliance.catalog, self.appliance.clock.now_utc()
        record = catalog.repository()
        since = (now - timedelta(days=DAYS)).date()
        sizes = () if record is None else catalog.proofs.sizes(record.id, since)
        return growth(sizes, catalog.browsing.stored_by_day(now, STORED_DAYS))

    @_at_once
    def overview(self, *, may_see: MaySee | None = None) -> Overview:
        catalog, now = self.appliance.catalog, self.appliance.clock.now_utc()
        fleet = self.fleet(may_see)
        machines = None if may_see is None else fleet.keys
        since = now - _DAY
        failed = RunFilter(frozenset({RunState.FAILED, RunState.INTERRUPTED}), machines=machines, since_utc=since)
        running = RunFilter(frozenset({RunState.RUNNING}), machines=machines)
        return Overview(
            now_utc=now,
            standings=views.standings(fleet),
            unprotected=views.unprotected(fleet),
            missed=views.missed(fleet),
            failing=views.failing(fleet),
            jobs=fleet.jobs,
            hosts=fleet.hosts,
            last_day=LastDay(
                since,
                catalog.browsing.run_states(since, machines),
                catalog.browsing.runs(failed, after=None, limit=views.SHOWN).items,
            ),
            running=tuple(
                self._under_way(run) for run in catalog.browsing.runs(running, after=None, limit=_RUNNING_MOST).items
            ),
            queued=sum(row.busy is RunState.QUEUED for row in fleet.rows),
            workers=self.appliance.alive(WORKERS),
            recoveries=self.recoveries(ended=False, limit=LIMIT_MAX, may_see=may_see).items,
            growth=self.growth() if may_see is None else None,
            proven=views.proven(fleet, now),
            debts=self._debts(may_see),
        )

    def _row(self, key: str) -> MachineRow:
        row = self._fleet(None, key).row(key)
        if row is None:
            raise RecordMissing("machine", key, hint="'strongroom vm list --known' shows those that were seen.")
        return row

    def _by_id(self, text: str, visible: Fleet | None) -> tuple[list[PointRecord], list[RunRecord]]:
        prefix, most = searching.as_id(text), searching.SHOWN + 1
        if prefix is None:
            return [], []
        browsing = self.appliance.catalog.browsing
        serieses, machines = (None, None) if visible is None else (visible.serieses, visible.keys)
        return (
            list(browsing.points_beginning(prefix, most, serieses)),
            list(browsing.runs_beginning(prefix, most, machines)),
        )

    def _under_way(self, run: RunRecord) -> Under:
        if run.appliance != self.appliance.catalog.me:
            return Under(run, None, None)
        alive = self.appliance.alive(f"run-{run.id}")
        return Under(run, alive, how_far(self.appliance.settings, run.id) if alive else None)

    def _debts(self, may_see: MaySee | None) -> Debts:
        catalog = self.appliance.catalog
        cleanups = [
            record
            for record in catalog.cleanups.list(everyones=True)
            if _told(may_see, record.machine_uuid, record.machine_name, record.host)
        ]
        dead = {record.owner for record in cleanups if not self.appliance.alive(record.owner)}
        return Debts(
            tuple(
                debt
                for debt in catalog.thaws.list(everyones=True)
                if _told(may_see, debt.machine_uuid, debt.name, debt.host)
            ),
            tuple(
                record
                for record in cleanups
                if (record.attempts if record.appliance != catalog.me else record.owner in dead)
            ),
        )


def _told(may_see: MaySee | None, uuid: str | None, name: str | None, host: str | None) -> bool:
    """Whether what is about this machine is told; what is about none is for those who may see all."""
    if may_see is None:
        return True
    return uuid is not None and may_see(Machine(Kind.VM, uuid, name or "", host, tags_known=False))
