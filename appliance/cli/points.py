"""`strongroom point`: what there is to go back to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.output import confirm, emit_json, facts, moment, say, size, table, tell, warn
from appliance.cli.requests import ask_for, ask_options
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, json_option, pass_session, yes_option

if TYPE_CHECKING:
    from datetime import datetime

    from appliance.models import PointRecord
    from appliance.services.points import PointDetails
    from imaging.points import DamagedPoint


@click.group()
def point() -> None:
    """Restore points. Each is complete on its own; deleting one never touches another."""


def point_json(record: PointRecord) -> dict[str, object]:
    """The form that scripts rely on."""
    return {
        "id": record.id,
        "name": record.name,
        "machine_kind": record.machine_kind,
        "uuid": record.uuid,
        "host": record.host,
        "created_utc": record.created_utc,
        "kind": record.kind.value,
        "consistency": record.consistency,
        "size_bytes": record.size_bytes,
        "read_bytes": record.read_bytes,
        "stored_bytes": record.stored_bytes,
        "duration_ms": record.duration_ms,
        "disks": [
            {
                "name": disk.name,
                "size_bytes": disk.size_bytes,
                "format": disk.format,
                "read": disk.read.value,
                "reason": disk.reason,
            }
            for disk in record.disks
        ],
        "skipped": list(record.skipped),
        "notes": list(record.notes),
    }


@point.command("list")
@click.argument("name", required=False)
@json_option
@pass_session
def list_points(session: Session, name: str | None, as_json: bool) -> None:
    """List restore points, oldest first: all, or those of one machine or image.

    Ends with exit code 3 when the manifest of some point is damaged.

    \b
    Examples:
      strongroom point list
      strongroom point list web-1 --json
    """
    service = session.points()
    damaged = service.refresh()
    records = service.list(name)
    if as_json:
        emit_json([point_json(record) for record in records])
    else:
        table(
            ["id", "name", "created", "kind", "consistency", "disks", "size", "read", "stored"],
            [
                (
                    record.id[:12],
                    record.name,
                    moment(record.created_utc),
                    record.kind,
                    record.consistency,
                    len(record.disks),
                    size(record.size_bytes),
                    size(record.read_bytes),
                    size(record.stored_bytes),
                )
                for record in records
            ],
            right=["disks", "size", "read", "stored"],
            empty="There is no restore point yet: 'strongroom backup VM' makes one.",
        )
    warn_damaged(damaged)
    exit_with(EXIT_PARTLY if damaged else 0)


def warn_damaged(damaged: tuple[DamagedPoint, ...]) -> None:
    for each in damaged:
        warn(f"restore point {each.id} cannot be read: {each.error}")


@point.command()
@click.argument("id")
@json_option
@pass_session
def show(session: Session, id: str, as_json: bool) -> None:
    """Show everything that is known of a restore point.

    \b
    Example:
      strongroom point show 3f9a
    """
    from appliance.services.locks import LockService, whole_days
    from appliance.services.point_records import record_of
    from appliance.services.points import PointService
    from imaging.errors import ImagingError

    details = PointService(session.appliance).details(id)
    locks = LockService(session.appliance)
    locked: datetime | None = None
    try:
        locked = None if locks.state() is None else locks.promise(details.point)
    except ImagingError as err:
        warn(f"until when it is locked cannot be told: {err}")
    left = whole_days(locked, session.appliance.clock.now_utc())
    if as_json:
        emit_json(_details_json(details) | {"locked_until_utc": locked, "locked_days": left})
        return
    record = record_of(details.point)
    manifest = details.point.manifest
    facts(
        [
            ("id", record.id),
            ("name", record.name),
            ("machine", f"{record.machine_kind} {record.uuid or ''}".strip()),
            ("host", record.host),
            ("created", moment(record.created_utc)),
            ("kind", record.kind),
            ("consistency", record.consistency),
            ("read", size(record.read_bytes)),
            ("stored", size(record.stored_bytes)),
            ("duration", f"{record.duration_ms / 1000:.1f} s"),
            ("sampled chunks", manifest.statistics.sampled_chunks),
            ("checkpoint", record.checkpoint),
            ("held for", ", ".join(sorted(hold.purpose for hold in details.holds))),
            ("locked until", f"{moment(locked)} ({left} days)" if locked else None),
        ]
    )
    say()
    table(
        ["disk", "size", "format", "read", "serial", "source", "reason"],
        [
            (disk.name, size(disk.size_bytes), disk.format, disk.read, disk.serial, disk.source, disk.reason)
            for disk in manifest.disks
        ],
        right=["size"],
        empty="It has no disk.",
    )
    if manifest.files:
        say()
        table(["file", "size", "path"], [(f.name, size(f.size_bytes), f.path) for f in manifest.files], right=["size"])
    for skipped in record.skipped:
        warn(f"not on the point: {skipped}")
    for note in record.notes:
        warn(note)


def _details_json(details: PointDetails) -> dict[str, object]:
    from appliance.services.point_records import record_of

    manifest = details.point.manifest
    shown = point_json(record_of(details.point))
    shown["disks"] = [
        {
            "name": disk.name,
            "size_bytes": disk.size_bytes,
            "format": disk.format,
            "read": disk.read,
            "reason": disk.reason,
            "serial": disk.serial,
            "source": disk.source,
            "root": disk.root.hex() if disk.root else None,
            "checkpoint": disk.checkpoint,
        }
        for disk in manifest.disks
    ]
    return shown | {
        "series": manifest.series,
        "generation": manifest.generation,
        "checkpoint": manifest.checkpoint,
        "run": manifest.run,
        "files": [{"name": f.name, "path": f.path, "size_bytes": f.size_bytes} for f in manifest.files],
        "chunks": manifest.statistics.chunks,
        "new_chunks": manifest.statistics.new_chunks,
        "sampled_chunks": manifest.statistics.sampled_chunks,
        "domain_xml": manifest.domain_xml,
        "holds": [
            {"id": hold.id, "purpose": hold.purpose, "owner": hold.owner, "created_utc": hold.created_utc}
            for hold in details.holds
        ],
    }


@point.command()
@click.argument("old", metavar="ID")
@click.argument("new", metavar="ID")
@json_option
@pass_session
def diff(session: Session, old: str, new: str, as_json: bool) -> None:
    """Show how much of each disk differs between two restore points. Reads no data, only the maps.

    \b
    Example:
      strongroom point diff 3f9a 77c0
    """
    from appliance.services.points import PointService

    differences = PointService(session.appliance).difference(old, new)
    if as_json:
        emit_json(
            [
                {
                    "disk": item.disk,
                    "old_size_bytes": item.old_size_bytes,
                    "new_size_bytes": item.new_size_bytes,
                    "changed_bytes": item.changed_bytes,
                    "ranges": item.ranges,
                }
                for item in differences
            ]
        )
        return
    table(
        ["disk", "old size", "new size", "differs", "ranges"],
        [
            (item.disk, size(item.old_size_bytes), size(item.new_size_bytes), size(item.changed_bytes), item.ranges)
            for item in differences
        ],
        right=["old size", "new size", "differs", "ranges"],
        empty="Neither point has a disk.",
    )


@point.command()
@click.argument("id")
@ask_options
@yes_option
@pass_session
def delete(session: Session, id: str, ask: str | None, reason: str, yes: bool) -> None:
    """Delete a restore point. No other point is touched; space comes back when the repository is collected.

    So is what is left of a point whose manifest is damaged: nothing can be restored from it, and as long as it is there
    nobody knows what it needs, so that nothing is collected. Of a guarded repository, see 'repository guard on --help'.

    \b
    Examples:
      strongroom point delete 3f9a --yes
      strongroom point delete 3f9a --ask alice --reason 'the machine is retired'
    """
    from appliance.services.guard import GuardService
    from appliance.services.points import PointService

    if session.url is not None and ask is None:
        _delete_there(session, id, yes)
        return
    service = PointService(session.appliance)
    if (broken := service.damaged(id)) is not None:
        warn(f"restore point {broken.id} cannot be read: {broken.error}")
        if ask is not None:
            ask_for(session, [GuardService(session.appliance).deleting([broken])], ask, reason)
            return
        confirm("If a copy of the repository exists, its manifest may still be there. Delete the point?", yes)
        service.delete_damaged(broken)
        say(f"Restore point {broken.id} is deleted.")
        return
    found = service.resolve(id)
    if ask is not None:
        ask_for(session, [GuardService(session.appliance).deleting([found])], ask, reason)
        return
    manifest = found.manifest
    confirm(
        f"Delete the restore point of {manifest.machine.name} of {moment(manifest.created_utc)} ({manifest.id})?", yes
    )
    service.delete(manifest.id)
    say(f"Restore point {manifest.id} is deleted.")


def _delete_there(session: Session, id: str, yes: bool) -> None:
    from appliance.remote.services import RemotePoints

    service = RemotePoints(session.client)
    found = service.find(id)
    confirm(f"Delete the restore point of {found.name} of {moment(found.created_utc)} ({found.id})?", yes)
    service.remove(found.id)
    say(f"Restore point {found.id} is deleted.")


@point.command()
@click.argument("id")
@click.option("--off", is_flag=True, help="Lift the protection.")
@ask_options
@pass_session
def protect(session: Session, id: str, off: bool, ask: str | None, reason: str) -> None:
    """Keep a restore point from being deleted, by anybody and any rule, until the protection is lifted.

    \b
    Examples:
      strongroom point protect 3f9a
      strongroom point protect 3f9a --off
      strongroom point protect 3f9a --off --ask alice
    """
    from appliance.services.guard import GuardService
    from appliance.services.points import PointService

    if session.url is not None and ask is None:
        from appliance.remote.services import RemotePoints

        _say_protected(RemotePoints(session.client).keep(id, off=off).id, off)
        return
    service = PointService(session.appliance)
    if ask is not None:
        if not off:
            raise click.UsageError("to protect a point nobody has to be asked: --ask goes with --off")
        acts = GuardService(session.appliance).lifting(id)
        if not acts:
            say("The restore point is not protected.")
            return
        ask_for(session, acts, ask, reason)
        return
    found = service.unprotect(id) if off else service.protect(id)
    _say_protected(found.manifest.id, off)


def _say_protected(id: str, off: bool) -> None:
    say(f"Restore point {id} is {'no longer protected' if off else 'protected'}.")
    if off:
        tell("It can be deleted now.")
