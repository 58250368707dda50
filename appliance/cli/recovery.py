"""`strongroom recovery`: machines that run straight out of the repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.output import confirm, emit_json, moment, say, size, table, tell, warn
from appliance.cli.session import (
    EXIT_FAILED,
    EXIT_PARTLY,
    Session,
    exit_with,
    json_option,
    pass_session,
    point_option,
    yes_option,
)
from appliance.setting_values import parse_size

if TYPE_CHECKING:
    from appliance.models import RecoveryRecord


class Size(click.ParamType[int]):
    """A number of bytes, or 4GiB and the like."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value)
        except ValueError as err:
            self.fail(f"{value!r}: {err}", param, ctx)


@click.group()
def recovery() -> None:
    """Instant recovery: run a lost machine straight out of the repository, then move it while it runs."""


def _json(record: RecoveryRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "name": record.source_name,
        "point": record.point,
        "host": record.host,
        "appliance": record.appliance,
        "machine": record.machine_name,
        "uuid": record.machine_uuid,
        "network": record.network,
        "state": record.state.value,
        "started_utc": record.started_utc,
        "updated_utc": record.updated_utc,
        "start_ms": record.start_ms,
        "disks": [
            {
                "name": disk.target,
                "size_bytes": disk.size_bytes,
                "overlay": disk.overlay,
                "destination": disk.destination,
                "migrated": disk.migrated,
            }
            for disk in record.disks
        ],
        "error": record.error,
        "notes": list(record.notes),
    }


@recovery.command()
@click.argument("name", metavar="NAME")
@point_option
@click.option("--host", metavar="HOST", help="Where it runs (default: the host that it was backed up from).")
@click.option("--as", "new_name", metavar="NEW", help="Its name there (default: one made from the old name).")
@click.option(
    "--network",
    metavar="none|keep|NAME",
    help="none: no network; keep: as it was; else the name of a network (default: recovery.network of the settings).",
)
@click.option(
    "--memory", "memory_bytes", metavar="SIZE", type=Size(), help="Its memory, such as 4GiB (default: as it was)."
)
@click.option("--vcpus", metavar="N", type=click.IntRange(min=1), help="Its CPUs (default: as it was).")
@json_option
@pass_session
def start(
    session: Session,
    name: str,
    point: str,
    host: str | None,
    new_name: str | None,
    network: str | None,
    memory_bytes: int | None,
    vcpus: int | None,
    as_json: bool,
) -> None:
    """Start a machine out of a restore point, in seconds, whatever its size.

    The restore point is not changed: what the machine writes goes to an overlay, which survives crashes and restarts.
    Move it to production storage with 'recovery migrate', or throw it away with 'recovery discard'.

    \b
    Examples:
      strongroom recovery start web-1 --point latest
      strongroom recovery start web-1 --point '2026-11-23 14:00' --host rack2 --as web-1-test
    """
    record = session.recoveries().start(
        name,
        point,
        host=host,
        new_name=new_name,
        network=network,
        memory_bytes=memory_bytes,
        vcpus=vcpus,
        progress=session.progress,
    )
    session.progress.finish()
    if as_json:
        emit_json(_json(record))
    else:
        took = f" in {record.start_ms / 1000:.1f} s" if record.start_ms is not None else ""
        say(f"{record.machine_name} runs on {record.host}{took}: recovery {record.id}")
        tell(f"To keep it: strongroom recovery migrate {record.id[:12]}")
        tell(f"To end it:  strongroom recovery discard {record.id[:12]}")
    _notes(record)


def _notes(record: RecoveryRecord) -> None:
    for note in record.notes:
        warn(note)
    exit_with(EXIT_PARTLY if record.notes else 0)


@recovery.command("list")
@click.option("--active", is_flag=True, help="Only those that have not ended.")
@json_option
@pass_session
def list_recoveries(session: Session, active: bool, as_json: bool) -> None:
    """List recoveries, oldest first, and the state of each.

    It goes from serving to running, migrating, migrated; or it is discarded, or failed (then resume or discard it).

    \b
    Example:
      strongroom recovery list --json
    """
    records = session.recoveries().list(ended=not active, everyones=True)
    if as_json:
        emit_json([_json(record) for record in records])
        return
    _, names = session.members()
    whose = ["appliance"] if len(names) > 1 else []
    table(
        ["id", "machine", "host", *whose, "of", "state", "disks", "size", "since", "error"],
        [
            (
                record.id[:12],
                record.machine_name,
                record.host,
                *(names.get(record.appliance, record.appliance[:12]) for _ in whose),
                record.source_name,
                record.state,
                len(record.disks),
                size(sum(disk.size_bytes for disk in record.disks)),
                moment(record.started_utc),
                record.error,
            )
            for record in records
        ],
        right=["disks", "size"],
        empty="There is no recovery.",
    )


@recovery.command()
@click.argument("id")
@click.option("--to", metavar="POOL|DIR", help="Copy the disks there (default: they stay where the overlays are).")
@click.option(
    "--format",
    "image_format",
    type=click.Choice(["qcow2", "raw"]),
    default="qcow2",
    show_default=True,
    help="With --to.",
)
@click.option(
    "--bandwidth", "bandwidth_bytes_s", metavar="SIZE", type=Size(), help="At most so much a second, as 200MiB."
)
@json_option
@pass_session
def migrate(
    session: Session, id: str, to: str | None, image_format: str, bandwidth_bytes_s: int | None, as_json: bool
) -> None:
    """Move a recovered machine to production storage while it runs. Then it needs the repository no more.

    Without --to the rest of each disk is pulled into its overlay. An interrupted migration goes on with the same
    command or with 'recovery resume'.

    \b
    Examples:
      strongroom recovery migrate 8d2e
      strongroom recovery migrate 8d2e --to default --format qcow2
    """
    record = session.recoveries().migrate(
        id, to=to, image_format=image_format, bandwidth_bytes_s=bandwidth_bytes_s, progress=session.progress
    )
    session.progress.finish()
    if as_json:
        emit_json(_json(record))
    else:
        say(
            f"Recovery {record.id} is {record.state}: {record.machine_name} on {record.host} stands on its own storage."
        )
        for disk in record.disks:
            say(f"  {disk.target}: {disk.destination or disk.overlay}")
    _notes(record)


@recovery.command()
@click.argument("id")
@yes_option
@json_option
@pass_session
def discard(session: Session, id: str, yes: bool, as_json: bool) -> None:
    """End a recovery: the machine and everything that it wrote since are removed. The restore point stays.

    \b
    Example:
      strongroom recovery discard 8d2e --yes
    """
    service = session.recoveries()
    record = service.find(id)
    confirm(
        f"Remove {record.machine_name} from {record.host}, with everything that it wrote since it was recovered?", yes
    )
    record = service.discard(record.id)
    if as_json:
        emit_json(_json(record))
    else:
        say(f"{record.machine_name} is removed from {record.host}: recovery {record.id} is {record.state}.")


@recovery.command()
@json_option
@pass_session
def resume(session: Session, as_json: bool) -> None:
    """Take up every recovery again after a crash or a restart: exports, paused machines, migrations, discards.

    Safe to run at any time. Ends with exit code 3 when some recovery still has a problem, and 1 when all have.

    \b
    Example:
      strongroom recovery resume
    """
    from appliance.services.recovery import RecoveryService

    resumed = RecoveryService(session.appliance).resume(progress=session.progress)
    session.progress.finish()
    if as_json:
        emit_json([_json(each.record) | {"problems": list(each.problems)} for each in resumed])
    elif not resumed:
        tell("No machine runs out of the repository.")
    else:
        for each in resumed:
            say(f"{each.record.machine_name} on {each.record.host}: {each.record.state}")
    troubled = [each for each in resumed if each.problems]
    for each in troubled:
        for problem in each.problems:
            warn(f"recovery {each.record.id[:12]} of {each.record.source_name}: {problem}")
    if troubled:
        exit_with(EXIT_FAILED if len(troubled) == len(resumed) else EXIT_PARTLY)
