"""`strongroom repository`: where everything is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.lazily import LazyGroup
from appliance.cli.output import confirm, emit_json, facts, moment, say, size, table, tell, warn
from appliance.cli.passphrases import NEW_VARIABLE, KeySink, new_passphrase, passphrase, read_key_file
from appliance.cli.points import warn_damaged
from appliance.cli.requests import ask_for, ask_options
from appliance.cli.session import (
    EXIT_FAILED,
    EXIT_PARTLY,
    Session,
    exit_with,
    json_option,
    limit_option,
    pass_session,
    queue_option,
    yes_option,
)

if TYPE_CHECKING:
    from appliance.services.repositories import Founded
    from imaging.scrub import VerifyReport
    from imaging.slots import Secret, Slot


@click.group(
    cls=LazyGroup,
    lazy={
        "collect": "appliance.cli.maintenance:collect",
        "forecast": "appliance.cli.maintenance:forecast",
        "repair": "appliance.cli.repairs:repair",
        "copy": "appliance.cli.copies:copy",
        "hold": "appliance.cli.holds:hold",
        "lock": "appliance.cli.locks:lock",
        "undo": "appliance.cli.locks:undo",
        "guard": "appliance.cli.guard:guard",
    },
)
def repository() -> None:
    """The repository of this home: its state, its keys, its health."""


@repository.command()
@json_option
@pass_session
def info(session: Session, as_json: bool) -> None:
    """Show what the repository is and holds.

    \b
    Example:
      strongroom repository info --json
    """
    from appliance.services.repositories import RepositoryService

    found = RepositoryService(session.appliance).info()
    if as_json:
        emit_json(
            {
                "id": found.id,
                "location": found.location,
                "created_utc": found.created_utc,
                "compression_level": found.compression_level,
                "objects": found.object_count,
                "size_bytes": found.size_bytes,
                "free_bytes": found.free_bytes,
                "machines": found.machines,
                "points": found.points,
                "protected_bytes": found.protected_bytes,
                "damaged_points": [{"id": each.id, "error": str(each.error)} for each in found.damaged],
            }
        )
    else:
        facts(
            [
                ("repository", found.id),
                ("location", found.location),
                ("made", moment(found.created_utc)),
                ("size", f"{size(found.size_bytes)} in {found.object_count} objects"),
                ("free", size(found.free_bytes)),
                ("machines", found.machines),
                ("restore points", found.points),
                ("protected", size(found.protected_bytes)),
                ("compression level", found.compression_level),
            ]
        )
    warn_damaged(found.damaged)
    exit_with(EXIT_PARTLY if found.damaged else 0)


@repository.command()
@click.option("--read-data", is_flag=True, help="Also read, decrypt and recompute every chunk.")
@click.option(
    "--hashes-only", is_flag=True,
    help="Compare what is read with its hashes, and open no chunk: faster (with --read-data).",
)  # fmt: skip
@click.option(
    "--every", "every_days", type=click.IntRange(2, 3650), metavar="DAYS",
    help="Read such a share of the data that daily runs read everything in so many days (with --read-data).",
)  # fmt: skip
@queue_option
@limit_option
@json_option
@pass_session
def verify(
    session: Session, read_data: bool, hashes_only: bool, every_days: int | None, queued: bool, as_json: bool
) -> None:
    """Check every object of the repository. Ends with exit code 1 when anything is damaged.

    Names what is damaged and the restore points that it touches, with the byte ranges of each disk that cannot be read
    (--json has all of them, half open); all others restore. Removes and changes no data; packs found damaged are noted
    in the repository. With --every, what was read the longest ago is read first, and an interrupted run is gone on with
    by the next. With --hashes-only all bytes are compared with the hashes that name them, which finds whatever changed
    since it was stored.

    \b
    Examples:
      strongroom repository verify
      strongroom repository verify --read-data --json
      strongroom repository verify --read-data --every 30 --limit 100MB
      strongroom repository verify --read-data --hashes-only
    """
    from appliance.services.repositories import RepositoryService

    if not read_data and (every_days is not None or hashes_only):
        raise click.UsageError("--every and --hashes-only say how data is read: add --read-data")
    if hashes_only and every_days is not None:
        raise click.UsageError("--hashes-only reads everything, and --every a share of it: choose one")
    if queued:
        from appliance.cli.runs import show_asked
        from appliance.services.queue.service import QueueService

        show_asked(
            session,
            QueueService(session.appliance).ask_verify(
                read_data=read_data, every_days=every_days, hashes_only=hashes_only, limit_bytes_s=session.limit_bytes_s
            ),
            as_json,
        )
        return
    report = RepositoryService(session.appliance).verify_at_once(
        read_data=read_data, every_days=every_days, hashes_only=hashes_only, progress=session.progress
    )
    session.progress.finish()
    if as_json:
        emit_json(_report_json(report))
    elif report.ok:
        checked = "data was not read (--read-data does)"
        if read_data:
            some = report.read_packs < report.packs
            checked = f"{size(report.read_bytes)} of data were read" if some else "every chunk was read"
            if report.hashes_only:
                checked = f"{size(report.read_bytes)} of data have the hashes that they were stored with"
        found = f"{report.points} restore points, {report.objects} objects, {size(report.size_bytes)}"
        say(f"Nothing is damaged: {found}; {checked}.")
    else:
        table(["damaged", "reason"], [(each.name, str(each.error)) for each in report.problems])
        for hit in report.affected:
            warn(f"restore point {hit.id} of {hit.machine or 'an unknown machine'}: {hit.detail}")
    if report.unknown:
        tell(f"{len(report.unknown)} objects have names that the format does not know; they are left alone.")
    if not report.ok:
        tell(f"error: {len(report.problems)} objects are damaged or missing, {len(report.affected)} points touched")
        tell(
            "hint: all other points restore; 'repository repair --from HOME' takes what is lost out of a copy, and a"
            " full backup ('--full') stores anew what the machines still hold of it"
        )
        exit_with(EXIT_FAILED)


def _report_json(report: VerifyReport) -> dict[str, object]:
    return {
        "ok": report.ok,
        "read_data": report.read_data,
        "hashes_only": report.hashes_only,
        "read_packs": report.read_packs,
        "read_bytes": report.read_bytes,
        "objects": report.objects,
        "size_bytes": report.size_bytes,
        "packs": report.packs,
        "points": report.points,
        "damaged": [{"object": each.name, "reason": str(each.error)} for each in report.problems],
        "affected_points": [
            {
                "id": hit.id,
                "name": hit.machine,
                "disks": list(hit.disks),
                "reason": hit.detail,
                "damage": [each.facts() for each in hit.damage],
            }
            for hit in report.affected
        ],
        "unknown_objects": list(report.unknown),
    }


@repository.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option(
    "--recovery-key-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Open it with the recovery key in this file instead of the passphrase.",
)
@json_option
@pass_session
def adopt(session: Session, path: Path | None, recovery_key_file: Path | None, as_json: bool) -> None:
    """Take an existing repository into use, with nothing but itself and a secret.

    PATH is the repository's folder; without it, the repository is where the settings say, in an object store for
    example. The secret is the passphrase (STRONGROOM_PASSPHRASE, or asked for) or the recovery key. Everything in it
    can be restored at once; hosts have to be added again for backups.

    \b
    Examples:
      strongroom repository adopt /srv/backup
      strongroom repository adopt /srv/backup --recovery-key-file /media/usb/recovery.key
    """
    from appliance import home
    from appliance.services import repositories

    settings = session.settings()
    if home.in_use(settings):
        raise home.HomeInUse(settings.home)
    founded = repositories.adopt(settings, None if path is None else path.absolute(), _secret(recovery_key_file))
    if as_json:
        _emit_founded(founded)
    else:
        say(f"Repository {founded.repository_id} is adopted: {len(founded.points)} restore points.")
        table(
            ["name", "kind", "newest point", "of"],
            [(m.name, m.kind, (m.last_point or "")[:12], moment(m.last_point_utc)) for m in founded.machines],
        )
        tell(
            "Whether the repository was set back to an older state cannot be told from a key alone: check that the"
            " newest points above are the ones that you expect."
        )
    warn_damaged(founded.damaged)
    exit_with(EXIT_PARTLY if founded.damaged else 0)


def _emit_founded(founded: Founded) -> None:
    emit_json(
        {
            "id": founded.repository_id,
            "location": founded.location,
            "points": len(founded.points),
            "machines": [
                {
                    "name": m.name,
                    "kind": m.kind,
                    "uuid": m.uuid,
                    "last_point": m.last_point,
                    "last_point_utc": m.last_point_utc,
                }
                for m in founded.machines
            ],
            "damaged_points": [{"id": each.id, "error": str(each.error)} for each in founded.damaged],
        }
    )


def _secret(recovery_key_file: Path | None) -> Secret:
    from imaging.slots import Passphrase, RecoveryKey

    if recovery_key_file is not None:
        return RecoveryKey.parse(read_key_file(recovery_key_file))
    return Passphrase(passphrase())


@repository.group()
def key() -> None:
    """Key slots: each wraps the repository's keys under one secret."""


@key.command("list")
@json_option
@pass_session
def list_keys(session: Session, as_json: bool) -> None:
    """List the key slots.

    \b
    Example:
      strongroom repository key list
    """
    from appliance.services.repositories import RepositoryService

    slots = RepositoryService(session.appliance).keys()
    if as_json:
        emit_json([_slot_json(slot) for slot in slots])
        return
    table(
        ["id", "kind", "label", "made"],
        [(slot.id, slot.kind, slot.label, moment(slot.created_utc)) for slot in slots],
    )


def _slot_json(slot: Slot) -> dict[str, object]:
    return {"id": slot.id, "kind": slot.kind, "label": slot.label, "created_utc": slot.created_utc}


@key.command()
@click.option("--recovery", is_flag=True, help="Make a recovery key instead of setting a passphrase.")
@click.option("--recovery-key-file", metavar="FILE", type=click.Path(path_type=Path), help="Write it to this new file.")
@click.option("--label", metavar="TEXT", default="", help="What this slot is for.")
@pass_session
def add(session: Session, recovery: bool, recovery_key_file: Path | None, label: str) -> None:
    """Add a passphrase or a recovery key. What is stored is not encrypted again: a slot wraps the same keys.

    A new passphrase comes from STRONGROOM_NEW_PASSPHRASE or is asked for.

    \b
    Examples:
      strongroom repository key add --label 'night shift'
      strongroom repository key add --recovery --recovery-key-file /root/second.key
    """
    from appliance.services.repositories import RepositoryService

    service = RepositoryService(session.appliance)
    if recovery or recovery_key_file is not None:
        sink = KeySink(recovery_key_file)
        try:
            slot = service.add_recovery_key(label or "recovery key", sink.deliver)
        finally:
            sink.cancel()
    else:
        slot = service.add_passphrase(new_passphrase(NEW_VARIABLE), label or "passphrase")
    say(f"Key slot {slot.id} is added.")


@key.command()
@click.argument("id")
@ask_options
@yes_option
@pass_session
def remove(session: Session, id: str, ask: str | None, reason: str, yes: bool) -> None:
    """Remove a key slot, by its id or a unique beginning of it.

    This does not lock out whoever has an older copy of the repository's key slots, nor whoever has a recovery key and
    reads the repository's storage: only a new repository does.

    \b
    Example:
      strongroom repository key remove 5c1d --yes
    """
    from appliance.services.guard import GuardService
    from appliance.services.repositories import RepositoryService, still_opens

    service = RepositoryService(session.appliance)
    slot = service.find_key(id)
    if ask is not None:
        ask_for(session, [GuardService(session.appliance).removing(slot)], ask, reason)
        return
    confirm(f"Remove key slot {slot.id} ({slot.kind}, {slot.label})?", yes)
    service.remove_key(slot)
    say(f"Key slot {slot.id} is removed.")
    warn(still_opens(slot))
