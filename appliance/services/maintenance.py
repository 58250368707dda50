"""Looking after the repository: which points go, what that frees, and freeing it.

The rule: what would happen is told by the same code that does it; deleting a point and giving back its space are two
steps, as only the second cannot be undone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import tzinfo
from typing import TYPE_CHECKING

from appliance.doing import Subject, about
from appliance.errors import StrongroomError
from appliance.models import MachineRecord, new_id
from appliance.policy.keeping import keep
from appliance.policy.policies import assign_keeping
from appliance.policy.retention import Candidate, ClockDoubtful, NoRules, Rules, Verdict, check_clock, decide
from appliance.progress import SILENT, Progress
from appliance.services.choosing import machines_named
from appliance.services.copying import SameRepository
from appliance.services.holds import held_meanwhile
from appliance.services.points import PointService
from imaging.collecting import Collected, Options
from imaging.collection import CollectionPlan
from imaging.copying import SamePoints
from imaging.errors import PointHeld, PointNotFound, SeriesBusy
from imaging.points import Point

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.healing import Healed
    from imaging.repairing import Repaired


Deciding = Callable[[MachineRecord, Sequence[Candidate]], tuple[Verdict, ...]]


class CollectionBusy(StrongroomError):
    def __init__(self, busy: SeriesBusy) -> None:
        super().__init__(f"another collection of this repository is at work: {busy}", hint=busy.hint)


@dataclass(frozen=True, slots=True)
class MachineForecast:
    """What a machine's points need alone: what deleting all of them would free."""

    machine: MachineRecord
    points: int
    exclusive_bytes: int


@dataclass(frozen=True, slots=True)
class PointForecast:
    point: Point
    exclusive_bytes: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """`unneeded_bytes` are needed by no point: a collection frees them."""

    machines: tuple[MachineForecast, ...]
    unneeded_bytes: int


@dataclass(frozen=True, slots=True)
class MachinePruned:
    """`doubt`: why none of its points goes, whatever the verdicts say. `guarded`: ids of points that the repository's
    guard keeps, though no rule does."""

    machine: MachineRecord
    verdicts: tuple[Verdict, ...]
    doubt: ClockDoubtful | None
    guarded: frozenset[str] = frozenset()

    @property
    def going(self) -> tuple[str, ...]:
        return tuple(id for id in self.unkept if id not in self.guarded)

    @property
    def unkept(self) -> tuple[str, ...]:
        """What goes, if the guard lets it."""
        if self.doubt is not None:
            return ()
        return tuple(verdict.candidate.id for verdict in self.verdicts if not verdict.kept)


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """`freed_bytes`: what a collection frees once these points are gone, beside what it would free now. `guarded`:
    points that the guard keeps, though no rule does."""

    machines: tuple[MachinePruned, ...]
    freed_bytes: int
    guarded: tuple[Point, ...] = ()

    @property
    def going(self) -> tuple[str, ...]:
        return tuple(id for machine in self.machines for id in machine.going)


_TOLD_MOST = 1000  # points that one entry of the audit names


class MaintenanceService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    # Pruning

    def plan_prune(self, names: Sequence[str], rules: Rules, *, zone: tzinfo, progress: Progress = SILENT) -> PrunePlan:
        """What `rules` keep of the machines of these names, or of all. NoRules, NotProtected; ImagingError."""
        if rules.empty:
            raise NoRules
        PointService(self._appliance).refresh()
        machines = self._machines(names)
        plan = self._plan(machines, lambda _, candidates: decide(candidates, rules, zone=zone))
        going = set(plan.going)
        if not going:
            return plan
        points = self._appliance.repository.points()
        sets = [[p for p in points if p.id in going], [p for p in points if p.id not in going]]
        return replace(plan, freed_bytes=self._appliance.repository.exclusive(sets, progress).sets_bytes[0])

    def plan_policies(self) -> PrunePlan:
        """What the policies keep together, of all machines; what it frees is not asked. PolicyUnreadable: which
        machines such a policy selects is not known, so nothing goes; ImagingError."""
        from appliance.services.policies import PolicyService
        from appliance.services.policies.known import known_machines, machine_of

        PointService(self._appliance).refresh()
        found = PolicyService(self._appliance).list()
        for unreadable in found.unreadable:
            raise unreadable
        known = {machine.key: machine for machine in known_machines(self._appliance)}
        selecting = assign_keeping(found.policies, known.values())
        named = {policy.name: policy for policy in found.policies}

        def decided(machine: MachineRecord, candidates: Sequence[Candidate]) -> tuple[Verdict, ...]:
            return keep([named[name] for name in selecting.get(machine_of(machine).key, ())], candidates)

        return self._plan(self._machines(()), decided)

    def _plan(self, machines: Sequence[MachineRecord], decided: Deciding) -> PrunePlan:
        points = self._appliance.repository.points()
        uses: dict[str, set[str]] = {}
        for hold in self._appliance.repository.holds():
            uses.setdefault(hold.point, set()).add(hold.purpose)
        of_series: dict[str, list[Candidate]] = {}
        for point in points:
            candidate = Candidate(point.id, point.generation, point.created_utc, frozenset(uses.get(point.id, ())))
            of_series.setdefault(point.series, []).append(candidate)
        pruned = []
        for machine in machines:
            candidates = of_series.get(machine.series, [])
            verdicts = decided(machine, candidates)
            doubt: ClockDoubtful | None = None
            try:
                check_clock(machine.name, candidates, verdicts, self._appliance.clock.now_utc())
            except ClockDoubtful as err:
                doubt = err
            pruned.append(MachinePruned(machine, verdicts, doubt))
        unkept = {id for each in pruned for id in each.unkept}
        guarded = self._guarded([point for point in points if point.id in unkept])
        held = frozenset(point.id for point in guarded)
        return PrunePlan(tuple(replace(each, guarded=held.intersection(each.unkept)) for each in pruned), 0, guarded)

    def _guarded(self, points: Sequence[Point]) -> tuple[Point, ...]:
        """Those of these points that the guard does not let go without asking."""
        guard = self._appliance.repository.guard
        rules = guard.state().rules
        kept = guard.kept({point.name for point in points}, rules) if rules.on and points else set()
        return tuple(point for point in points if point.name in kept)

    def prune(self, plan: PrunePlan) -> tuple[PointHeld, ...]:
        """Deletes the points that go; returns those that somebody has come to use meanwhile."""
        held = []
        gone = []
        with PointService(self._appliance).deletions() as delete:
            for id in plan.going:
                try:
                    delete(id)
                    gone.append(id)
                except PointHeld as err:
                    held.append(err)
                except PointNotFound:
                    continue  # somebody else has deleted it meanwhile
                finally:
                    beyond = {"deleted": len(gone)} if len(gone) > _TOLD_MOST else {}
                    about(Subject("repository"), points=gone[:_TOLD_MOST], **beyond)
        return tuple(held)

    # Forecasting

    def forecast(self, *, progress: Progress = SILENT) -> Forecast:
        """By machine. ImagingError."""
        PointService(self._appliance).refresh()
        machines = self._appliance.catalog.points.machines()
        points = self._appliance.repository.points()
        sets = [[point for point in points if point.series == machine.series] for machine in machines]
        found = self._appliance.repository.exclusive(sets, progress)
        told = zip(machines, sets, found.sets_bytes, strict=True)
        return Forecast(
            tuple(MachineForecast(machine, len(some), count) for machine, some, count in told), found.unneeded_bytes
        )

    def forecast_points(self, name: str, *, progress: Progress = SILENT) -> tuple[PointForecast, ...]:
        """By point of the machines of this name: what deleting one of them, and no other, would free. NotProtected."""
        PointService(self._appliance).refresh()
        series = {machine.series for machine in self._machines([name])}
        points = self._appliance.repository.points()
        mine = [point for point in points if point.series in series]
        sets = [*([point] for point in mine), [point for point in points if point.series not in series]]
        found = self._appliance.repository.exclusive(sets, progress)
        return tuple(PointForecast(point, count) for point, count in zip(mine, found.sets_bytes, strict=False))

    def _machines(self, names: Sequence[str]) -> list[MachineRecord]:
        known = self._appliance.catalog.points.machines()
        if not names:
            return list(known)
        found = {machine.series: machine for name in names for machine in machines_named(name, known)}
        return list(found.values())

    # Repairing

    def broken_index(self, *, progress: Progress = SILENT) -> tuple[str, ...]:
        """The index objects that a repair would set aside. ImagingError."""
        return self._appliance.repository.broken_index(progress)

    def remembered(self, *, progress: Progress = SILENT) -> tuple[str, ...]:
        """The manifests and ends of leases that a repair would put back. ImagingError."""
        return self._appliance.repository.remembered(progress)

    def repair(self, *, progress: Progress = SILENT) -> Repaired:
        """ImagingError."""
        about(Subject("repository", name="repository"))
        return self._appliance.repository.repair(progress)

    # Healing

    def check_other(self, other: Appliance) -> None:
        """SameRepository."""
        if other.repository.id == self._appliance.repository.id:
            raise SameRepository(other.repository.id.hex())

    def heal(self, other: Appliance, *, dry_run: bool = False, progress: Progress = SILENT) -> Healed:
        """Stores anew what is known to be damaged or missing, out of the points of another home that hold the same;
        each is held there while it is read. With `dry_run` all is read, and nothing written anywhere. SameRepository,
        CollectionBusy; ImagingError, and then what counted already stays healed."""
        self.check_other(other)

        def held(point: Point) -> AbstractContextManager[None]:
            return nullcontext() if dry_run else held_meanwhile(other, point, f"restore-{new_id()}")

        copies = SamePoints(self._appliance.repository, other.repository, held)
        try:
            return self._appliance.repository.heal(copies.of, progress, dry_run=dry_run)
        except SeriesBusy as err:
            raise CollectionBusy(err) from err

    # Collecting

    def plan_collection(self, *, progress: Progress = SILENT) -> CollectionPlan:
        """What a collection would do now. ImagingError."""
        return self._appliance.repository.plan_collection(Options(), progress)

    def collect(self, *, wait_s: float, progress: Progress = SILENT) -> Collected:
        """CollectionBusy; ImagingError, and then no restore point has lost anything."""
        about(Subject("repository", name="repository"))
        try:
            return self._appliance.repository.collect(Options(wait_s=wait_s), progress)
        except SeriesBusy as err:
            raise CollectionBusy(err) from err
