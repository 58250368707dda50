"""Which machine, which restore point and which disk somebody means by what was typed, and what is said when none is.

A point is named by its id, a unique beginning of it, "latest", or a time, which means the newest point at or before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from appliance.clock import format_utc
from appliance.errors import StrongroomError
from appliance.models import MachineRecord
from appliance.services.moments import parse_moment
from imaging.manifest import ManifestName

if TYPE_CHECKING:
    from imaging.manifest import DiskEntry, Manifest
    from imaging.points import DamagedPoint, Point, Survey

LATEST = "latest"


class NotProtected(StrongroomError):
    def __init__(self, name: str, known: Sequence[str]) -> None:
        shown = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
        super().__init__(
            f"there is no restore point of {name!r}",
            hint=f"Protected are: {shown}."
            if known
            else "Nothing is protected yet: 'strongroom backup NAME' makes a point.",
            name=name,
        )


class NameAmbiguous(StrongroomError):
    def __init__(self, name: str, choices: Sequence[str]) -> None:
        super().__init__(
            f"{name!r} names {len(choices)} protected machines: {', '.join(choices)}",
            hint="Give the UUID, or vm:NAME or image:NAME, or the id of the point instead of 'latest' or a time.",
            name=name,
        )


class NothingThatOld(StrongroomError):
    def __init__(self, name: str, wanted: str, oldest: str) -> None:
        super().__init__(
            f"{name} has no restore point at or before {wanted}; its oldest is of {oldest}",
            hint="See 'strongroom point list'.",
            name=name,
        )


class NewerDamaged(StrongroomError):
    """What was asked for is a point that cannot be read; an older one is never given in its place unasked."""

    def __init__(self, name: str, damaged: DamagedPoint, older: Point) -> None:
        super().__init__(
            f"the restore point of {name} that is meant, or may be, is damaged: {damaged.error}",
            hint=f"The one before it, of {format_utc(older.created_utc)}, can be read: name it by its id, {older.id}.",
            name=name,
            damaged=damaged.id,
            older=older.id,
        )


class DiskNotOnPoint(StrongroomError):
    def __init__(self, point: str, disk: str, disks: Sequence[str], reason: str | None) -> None:
        why = f" ({reason})" if reason else ""
        super().__init__(
            f"restore point {point} has no disk {disk!r}{why}",
            hint=f"Its disks: {', '.join(disks) or 'none'}.",
            disk=disk,
        )


class DiskNotNamed(StrongroomError):
    exit_code = 2

    def __init__(self, point: str, disks: Sequence[str]) -> None:
        super().__init__(
            f"restore point {point} has {len(disks)} disks: {', '.join(disks)}", hint="Say which one with --disk."
        )


def choose_point(name: str, wanted: str, points: Sequence[Point], survey: Survey) -> Point:
    """Of a machine's points (at least one) the newest, or the newest at or before a moment.

    MomentNotUnderstood, NothingThatOld, NewerDamaged.
    """
    if wanted == LATEST:
        return _unless_damaged(max(points, key=lambda point: point.generation), points, survey)
    moment = parse_moment(wanted)
    older = [point for point in points if point.manifest.created_utc <= moment]
    if not older:
        oldest = format_utc(min(point.manifest.created_utc for point in points))
        raise NothingThatOld(name, format_utc(moment), oldest)
    newest = max(older, key=lambda point: (point.created_utc, point.generation))
    return _unless_damaged(newest, points, survey)


def _unless_damaged(chosen: Point, points: Sequence[Point], survey: Survey) -> Point:
    """The point that was chosen, unless a damaged one follows it directly: then that may be the one that is meant."""
    next_generation = min((p.generation for p in points if p.generation > chosen.generation), default=None)
    for damaged in survey.damaged:
        place = ManifestName.parse(damaged.name)
        if place is None or place.series != chosen.series or place.generation < chosen.generation:
            continue
        if next_generation is None or place.generation < next_generation:
            raise NewerDamaged(chosen.manifest.machine.name, damaged, chosen)
    return chosen


def choose_disk(manifest: Manifest, wanted: str | None) -> DiskEntry:
    """The disk that is meant; a point's only disk needs no name. DiskNotOnPoint, DiskNotNamed."""
    names = [disk.name for disk in manifest.disks]
    if wanted is None:
        if len(manifest.disks) != 1:
            raise DiskNotNamed(manifest.id, names)
        return manifest.disks[0]
    disk = manifest.disk(wanted)
    if disk is None:
        reason = next((skipped.reason for skipped in manifest.skipped if skipped.name == wanted), None)
        raise DiskNotOnPoint(manifest.id, wanted, names, reason)
    return disk


def machines_named(name: str, machines: Iterable[MachineRecord]) -> tuple[MachineRecord, ...]:
    """Those of that name, UUID or series, or vm:NAME / image:NAME. NotProtected when there is none.

    A machine that was recovered or made anew has another UUID, and so is another one of the same name.
    """
    known = tuple(machines)
    kind, separator, bare = name.partition(":")
    if separator and kind in ("vm", "image"):
        found = [machine for machine in known if machine.kind == kind and machine.name == bare]
    else:
        found = [machine for machine in known if name in (machine.name, machine.uuid, machine.series)]
    if not found:
        raise NotProtected(name, [machine.name for machine in known])
    return tuple(found)


def choose_machine(name: str, machines: Iterable[MachineRecord]) -> MachineRecord:
    """The one that is meant. NotProtected, NameAmbiguous."""
    found = machines_named(name, machines)
    if len(found) > 1:
        raise NameAmbiguous(name, [f"{m.kind} {m.uuid or m.name} on {m.host or 'no host'}" for m in found])
    return found[0]
