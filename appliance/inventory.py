"""What the appliance has seen of the machines on its hosts: plain frozen values, and where one is that several have.

The rule: a host that answers tells everything that is on it, so what it does not tell any more is gone; one that does
not answer changes nothing: its machines stay as they were last seen, and why it does not is kept beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from appliance.hypervisor.protocol import DiskInfo, MachineInfo, MachineState
from appliance.policy.selectors import Kind, Machine

_SIZE_MOST: Final = (1 << 63) - 1  # a catalog's integer; the header of an image file may say anything


@dataclass(frozen=True, slots=True)
class SeenDisk:
    """`skip_reason`: why it cannot be backed up; None: it can."""

    name: str
    device: str
    source: str
    format: str
    size_bytes: int | None
    incremental: bool
    skip_reason: str | None = None


@dataclass(frozen=True, slots=True)
class SeenMachine:
    """A machine as one host has it. `size_bytes`: of the disks that can be backed up, as far as their sizes are known.
    `known_utc`: since when the appliance knows of it, on whatever host. `current`: this host is where it is.
    `unreadable`: why its definition cannot be read; name and state are told all the same, the rest is as it was seen
    before."""

    host: str
    uuid: str
    name: str
    state: MachineState
    state_reason: str
    memory_bytes: int
    vcpus: int
    agent: bool
    size_bytes: int
    disks: tuple[SeenDisk, ...]
    tags: tuple[str, ...]
    known_utc: datetime
    current: bool = True
    unreadable: str | None = None


@dataclass(frozen=True, slots=True)
class HostLook:
    """What came of looking at a host last. `answered_utc`: when it answered last; `failing_since_utc`: since when it
    has not; None: it answered the last time."""

    host: str
    asked_utc: datetime
    answered_utc: datetime | None
    failing_since_utc: datetime | None = None
    error: str | None = None
    hint: str | None = None
    appliance: str = ""


@dataclass(frozen=True, slots=True)
class KnownMachine:
    """A machine where it is, with what is known of its protection. `seen_utc`: when its host answered last. `series`:
    of its restore points; None: it has none. `recovered`: it is an instant recovery of ours, under way, and no machine
    to be protected."""

    seen: SeenMachine
    seen_utc: datetime | None
    series: str | None
    last_point: str | None
    last_point_utc: datetime | None
    recovered: bool

    @property
    def protected(self) -> bool:
        return self.last_point is not None

    @property
    def machine(self) -> Machine:
        """As selectors have it."""
        return Machine(Kind.VM, self.seen.uuid, self.seen.name, self.seen.host, frozenset(self.seen.tags))


def seen(host: str, machine: MachineInfo, known_utc: datetime) -> SeenMachine:
    disks = tuple(_disk(each) for each in machine.disks)
    return SeenMachine(
        host=host,
        uuid=machine.uuid,
        name=machine.name,
        state=machine.state,
        state_reason=machine.state_reason,
        memory_bytes=machine.memory_bytes,
        vcpus=machine.vcpus,
        agent=machine.agent_connected,
        size_bytes=min(sum(disk.size_bytes or 0 for disk in disks if disk.skip_reason is None), _SIZE_MOST),
        disks=disks,
        tags=tuple(sorted(machine.tags)),
        known_utc=known_utc,
        unreadable=machine.unreadable,
    )


def still_known(before: SeenMachine, found: SeenMachine) -> SeenMachine:
    """What is known of a machine that was seen before: of one that cannot be read now, what it had then. So it stays
    where policies look for it, and a run says what is wrong with it."""
    kept = replace(found, known_utc=before.known_utc, current=before.current)
    if found.unreadable is None:
        return kept
    return replace(
        before, name=found.name, state=found.state, state_reason=found.state_reason, unreadable=found.unreadable
    )


def where(found: Iterable[SeenMachine], answering: Iterable[str]) -> str:
    """The host that has the machine, of several that have one with its UUID, as after a migration that left the
    definition behind: the one where it runs; else one that answers; else the one that had it so far."""
    up = frozenset(answering)
    return min(
        found, key=lambda each: (each.state is MachineState.OFF, each.host not in up, not each.current, each.host)
    ).host


def _disk(disk: DiskInfo) -> SeenDisk:
    return SeenDisk(
        name=disk.target,
        device=disk.device.value,
        source=disk.source.description,
        format=disk.format,
        size_bytes=disk.size_bytes,
        incremental=disk.can_hold_bitmap,
        skip_reason=disk.skip_reason,
    )
