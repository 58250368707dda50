"""What the scheduler goes by at one moment: policies, and the machines and images that are this appliance's to back up.

The rule: everything is read from the catalog, so that a host or repository that is away holds nobody up. A machine is
looked after by the appliance that has had its host longest, an image by the one that backed it up last, so never by two
of those that share a catalog.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from appliance.catalog.scheduling import BusyRun, KnownImage, SchedulerMark, Stamp
from appliance.models import RunKind, RunState
from appliance.policy.policies import Policy, assign
from appliance.policy.selectors import Kind, Machine
from appliance.policy.states import AHEAD, Busy, MachineState, PolicyState
from appliance.policy.stored import StoredPolicy
from appliance.services.policies.service import PolicyList, readable

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance


@dataclass(frozen=True, slots=True)
class Gathered:
    """`assigned`: which policies select each machine. `images`: where they are, by their keys. `begun`, `called_off`:
    when the newest run of each machine, or of other work, began, or was cancelled, by its key; `at_work`: keys of those
    that wait or are under way; `marks`: when the schedulers of the catalog looked. `problems`: why some of it does
    nothing, as sentences."""

    policies: tuple[PolicyState, ...]
    machines: tuple[MachineState, ...]
    assigned: Mapping[str, Sequence[str]]
    images: Mapping[str, KnownImage]
    begun: Mapping[str, datetime]
    called_off: Mapping[str, datetime]
    at_work: frozenset[str]
    marks: tuple[SchedulerMark, ...]
    problems: tuple[str, ...]
    stamp: Stamp


class Memory:
    """What is worth doing once for many looks: reading the policies' documents, and which machines they select."""

    def __init__(self) -> None:
        self._stored: tuple[StoredPolicy, ...] = ()
        self._read = PolicyList((), ())
        self._policies: tuple[Policy, ...] = ()
        self._known: dict[Machine, tuple[str, ...]] = {}

    def read(self, stored: tuple[StoredPolicy, ...]) -> PolicyList:
        if stored != self._stored:
            self._stored, self._read = stored, readable(stored)
        return self._read

    def assign(self, policies: tuple[Policy, ...], machines: Iterable[Machine]) -> Mapping[str, Sequence[str]]:
        wanted = tuple(machines)
        if policies != self._policies:
            self._policies, self._known = policies, {}
        new = [machine for machine in wanted if machine not in self._known]
        found = assign(policies, new) if new else {}
        self._known = {
            machine: self._known[machine] if machine in self._known else found[machine.key] for machine in wanted
        }
        return {machine.key: names for machine, names in self._known.items()}


def gather(appliance: Appliance, now_utc: datetime, memory: Memory) -> Gathered:
    """CatalogError."""
    known = appliance.catalog.scheduling.known(now_utc + AHEAD)
    found = memory.read(known.policies)
    images = {image.machine: image for image in known.images if image.appliance == appliance.catalog.me}
    machines = [
        (Machine(Kind.VM, vm.uuid, vm.name, vm.host, frozenset(vm.tags)), vm.known_utc, vm.point_utc)
        for vm in known.vms
    ]  # fmt: skip
    machines += [
        (Machine(Kind.IMAGE, image.name, image.name), image.started_utc, image.point_utc) for image in images.values()
    ]
    busy = _busy(known.busy, (machine for machine, _, _ in machines))
    states = tuple(
        MachineState(
            machine, known_utc, tuple(each[key] for each in (known.begun, known.called_off) if key in each), point_utc,
            busy.get(key), key in known.pauses,
        )
        for machine, known_utc, point_utc in machines
        for key in [machine.key]
    )  # fmt: skip
    return Gathered(
        tuple(each.state for each in found.readable), states,
        memory.assign(found.policies, (machine for machine, _, _ in machines)), images, known.begun, known.called_off,
        frozenset(run.machine for run in known.busy), known.marks, tuple(str(each) for each in found.unreadable),
        known.stamp,
    )  # fmt: skip


def _busy(runs: Iterable[BusyRun], machines: Iterable[Machine]) -> dict[str, Busy]:
    """By the machine's key. A run that was queued by name counts for the machine that has that name now."""
    named = {(machine.host, machine.name): machine.key for machine in machines}
    found: dict[str, Busy] = {}
    for run in runs:
        key = run.machine
        if run.kind is not RunKind.BACKUP:
            continue
        if run.machine_kind == Kind.VM and run.uuid is None:
            key = named.get((run.host, run.name), key)
        if found.get(key) is not Busy.RUNNING:
            found[key] = Busy.RUNNING if run.state is RunState.RUNNING else Busy.QUEUED
    return found
