"""Making and changing policies, pausing them and machines, and what a change would do.

The rule: a policy is checked as a whole before it is kept, and who changes one says which version he saw. What a change
would cost in restore points is told from the same decisions that prune them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from appliance.catalog.errors import RecordExists
from appliance.doing import Subject, about
from appliance.errors import StrongroomError
from appliance.policy.documents import Document
from appliance.policy.errors import PolicyInvalid
from appliance.policy.policies import Policy, read_policy
from appliance.policy.previews import Preview, losing, preview
from appliance.policy.retention import Candidate
from appliance.policy.selectors import Kind, Machine
from appliance.policy.states import PolicyState
from appliance.policy.stored import MachinePause, StoredPolicy
from appliance.services.policies.known import known_machines, machine_of

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance


class PolicyUnreadable(StrongroomError):
    """What the catalog has as a policy is not valid here."""

    def __init__(self, name: str, reason: PolicyInvalid) -> None:
        super().__init__(
            f"policy {name} cannot be used: {reason}",
            hint=f"Nothing happens by it. Correct it with 'strongroom policy edit {name} --file FILE', or remove it."
            f" {reason.hint}",
            name=name,
        )


class Renamed(StrongroomError):
    exit_code = 2

    def __init__(self, name: str, other: str) -> None:
        super().__init__(
            f"policy {name} cannot become {other}: a policy keeps its name",
            hint="Add one of the other name, then remove this one.",
            name=name,
        )


class MachineUnknown(StrongroomError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason, hint="'strongroom policy preview' shows those that policies select.", name=name)


@dataclass(frozen=True, slots=True)
class KnownPolicy:
    """`version` is what a change of it is checked against."""

    policy: Policy
    version: int
    since_utc: datetime
    changed_utc: datetime
    paused_utc: datetime | None

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def state(self) -> PolicyState:
        return PolicyState(self.policy, self.since_utc, self.paused_utc is not None)


@dataclass(frozen=True, slots=True)
class PolicyList:
    """By name. What is not `readable` does nothing."""

    readable: tuple[KnownPolicy, ...]
    unreadable: tuple[PolicyUnreadable, ...]

    @property
    def policies(self) -> tuple[Policy, ...]:
        return tuple(each.policy for each in self.readable)


@dataclass(frozen=True, slots=True)
class Losing:
    """Points that stay by the policies as they are, and go by those of a change, oldest first."""

    machine: Machine
    points: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Import:
    """`known`: the names among them that are there, with the versions that were seen."""

    policies: tuple[Policy, ...]
    known: Mapping[str, int]
    losing: tuple[Losing, ...]


class PolicyService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._stored = appliance.catalog.policies

    # Reading

    def list(self) -> PolicyList:
        return readable(self._stored.list())

    def get(self, name: str) -> KnownPolicy:
        """RecordMissing, PolicyUnreadable."""
        return _read(self._stored.get(name))

    def stored(self, name: str) -> StoredPolicy:
        """As it is kept, valid or not, for a change of it. RecordMissing."""
        return self._stored.get(name)

    def preview(self, policy: Policy) -> Preview:
        """What a policy would do, kept or not, beside the others."""
        return preview(policy, self.list().policies, known_machines(self._appliance), self._now())

    def losing(self, name: str, policy: Policy | None) -> tuple[Losing, ...]:
        """What would go that stays now, if the policy of this name became that one; None: if it was removed.
        ImagingError."""
        return self._losing({name: policy})

    def _losing(self, changes: Mapping[str, Policy | None]) -> tuple[Losing, ...]:
        before = self.list().policies
        after = [each for each in before if each.name not in changes]
        after += [each for each in changes.values() if each is not None]
        found = losing(before, after, self._points())
        ordered = sorted(found.items(), key=lambda each: (each[0].name, each[0].key))
        return tuple(Losing(machine, points) for machine, points in ordered)

    def _points(self) -> Mapping[Machine, Sequence[Candidate]]:
        uses: dict[str, set[str]] = defaultdict(set)
        for hold in self._appliance.repository.holds():
            uses[hold.point].add(hold.purpose)
        known = {machine.key: machine for machine in known_machines(self._appliance)}
        points: dict[Machine, list[Candidate]] = {}
        for record in self._appliance.catalog.points.machines():
            machine = machine_of(record)
            machine = known.get(machine.key, machine)  # what runs out of the repository is none that is known
            points.setdefault(machine, []).extend(
                Candidate(each.id, each.generation, each.created_utc, frozenset(uses[each.id]))
                for each in self._appliance.catalog.points.times(record.series)
            )
        return points

    # Changing

    def add(self, policy: Policy) -> KnownPolicy:
        """RecordExists."""
        _tell(policy.name, policy=policy.to_json())
        now = self._now()
        self._appliance.attach()
        self._stored.add(StoredPolicy(policy.name, policy.to_json(), 1, now, now))
        return self.get(policy.name)

    def replace(self, name: str, policy: Policy, *, seen: int | None = None) -> KnownPolicy:
        """`seen`: the version that the change was made on; None: whichever there is. Renamed, RecordMissing,
        PolicyChanged."""
        _tell(name, policy=policy.to_json())
        if policy.name != name:
            raise Renamed(name, policy.name)
        known, now = self._stored.get(name), self._now()
        record = StoredPolicy(name, policy.to_json(), 0, known.since_utc, now, known.paused_utc)
        if record.document["schedule"] != known.document.get("schedule"):
            record = StoredPolicy(name, record.document, 0, now, now, known.paused_utc)
        return _read(self._stored.change(record, seen=known.version if seen is None else seen))

    def remove(self, name: str, *, seen: int | None = None) -> None:
        """Its restore points stay. RecordMissing, PolicyChanged."""
        _tell(name)
        self._stored.remove(name, seen=seen)

    def pause(self, name: str) -> KnownPolicy:
        """No run begins by it. Paused already: fine. RecordMissing, PolicyUnreadable."""
        _tell(name)
        now = self._now()
        return _read(self._stored.set_paused(name, now, now))

    def resume(self, name: str) -> KnownPolicy:
        """What was due meanwhile is not made up for. Not paused: fine. RecordMissing, PolicyUnreadable."""
        _tell(name)
        return _read(self._stored.set_paused(name, None, self._now()))

    # Several at once

    def plan_import(self, policies: Sequence[Policy], *, replace: bool) -> Import:
        """What adding them would do; with `replace`, those of the same names are changed. RecordExists,
        ImagingError."""
        stored = {each.name: each for each in self._stored.list()}
        known = {each.name: stored[each.name].version for each in policies if each.name in stored}
        if known and not replace:
            raise RecordExists("policy", ", ".join(known), hint="With --replace, they are changed.")
        return Import(tuple(policies), known, self._losing({each.name: each for each in policies}))

    def take_in(self, plan: Import) -> None:
        """One after the other. PolicyChanged, RecordExists: if somebody else was at work meanwhile."""
        for policy in plan.policies:
            if policy.name in plan.known:
                self.replace(policy.name, policy, seen=plan.known[policy.name])
            else:
                self.add(policy)
        about(Subject("policy"), policy=None, policies=[policy.to_json() for policy in plan.policies])

    # Machines

    def pauses(self) -> tuple[MachinePause, ...]:
        return self._stored.pauses()

    def pause_machine(self, name: str, host: str | None = None) -> Machine:
        """No policy begins a run of it. By name, UUID, vm:NAME or image:NAME. MachineUnknown."""
        self._appliance.attach()
        machine = self._machine(name, host)
        about(Subject.of_machine(machine))
        self._stored.pause_machine(MachinePause(machine.key, machine.name, self._now()))
        return machine

    def resume_machine(self, name: str, host: str | None = None) -> bool:
        """It catches up once. False: it was not paused. MachineUnknown."""
        mine = [each for each in self.pauses() if name in (each.machine, each.name, each.machine.partition(":")[2])]
        if host is None and len(mine) == 1:  # it need not be known any more
            kind, _, id = mine[0].machine.partition(":")
            about(Subject.of_machine(Machine(Kind(kind), id, mine[0].name)))
            return self._stored.resume_machine(mine[0].machine)
        machine = self._machine(name, host)
        about(Subject.of_machine(machine))
        return self._stored.resume_machine(machine.key)

    def _machine(self, name: str, host: str | None) -> Machine:
        kind, _, bare = name.partition(":")
        prefixed = kind in tuple(Kind) and bare != ""
        found = [
            each
            for each in known_machines(self._appliance)
            if (each.kind == kind and bare in (each.name, each.id) if prefixed else name in (each.name, each.id))
            and (host is None or each.host == host)
        ]
        if len(found) > 1:
            told = ", ".join(f"{each.key} on {each.host}" if each.host else each.key for each in found)
            raise MachineUnknown(name, f"several are called {name}: {told}")
        if not found:
            raise MachineUnknown(name, f"there is no machine or image {name}" + (f" on {host}" if host else ""))
        return found[0]

    def _now(self) -> datetime:
        return self._appliance.clock.now_utc()


def read_policies(value: object) -> tuple[Policy, ...]:
    """What an export holds. PolicyInvalid."""
    document = Document(value, "import")
    items = document.items("policies")
    document.finish()
    found = []
    for where, item in items:
        try:
            found.append(read_policy(item))
        except PolicyInvalid as err:
            raise err.within(where) from err
    names = Counter(each.name for each in found)
    if names and max(names.values()) > 1:
        raise PolicyInvalid("import.policies", f"{names.most_common(1)[0][0]} is there more than once")
    return tuple(found)


def readable(stored: Iterable[StoredPolicy]) -> PolicyList:
    """One that cannot be read keeps no other from being used."""
    found: list[KnownPolicy] = []
    failed: list[PolicyUnreadable] = []
    for each in stored:
        try:
            found.append(_read(each))
        except PolicyUnreadable as err:
            failed.append(err)
    return PolicyList(tuple(found), tuple(failed))


def _read(stored: StoredPolicy) -> KnownPolicy:
    try:
        policy = read_policy(stored.document)
        if policy.name != stored.name:
            raise PolicyInvalid("policy.name", f"it is {policy.name}")
    except PolicyInvalid as err:
        raise PolicyUnreadable(stored.name, err) from err
    return KnownPolicy(policy, stored.version, stored.since_utc, stored.changed_utc, stored.paused_utc)


def _tell(name: str, **details: object) -> None:
    about(Subject("policy", name, name), **details)
