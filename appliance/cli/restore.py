"""`strongroom restore`."""

from __future__ import annotations

from pathlib import Path

import click

from appliance.cli.output import confirm, duration, emit_json, say, size, warn
from appliance.cli.session import (
    EXIT_PARTLY,
    Session,
    exit_with,
    json_option,
    limit_option,
    pass_session,
    point_option,
    queue_option,
    yes_option,
)

FORMATS = ("qcow2", "raw", "vmdk", "vhdx", "vpc")


@click.command()
@click.argument("name", metavar="NAME")
@point_option
@click.option("--disk", metavar="DISK", help="Restore this disk only; not needed when the point has a single one.")
@click.option("--to", "target", metavar="FILE", type=click.Path(path_type=Path), help="The new file the disk goes to.")
@click.option("--format", "image_format", type=click.Choice(FORMATS), default=None, help="Its format (default: qcow2).")
@click.option("--host", metavar="HOST", help="Restore the whole machine to this host.")
@click.option("--as", "new_name", metavar="NEW", help="Under this name. Without it, the machine is restored in place.")
@click.option("--storage", metavar="POOL|DIR", help="Where new disks of a machine go: a pool of the host, or a folder.")
@click.option("--force", is_flag=True, help="Overwrite what is there: in place, or an existing file.")
@yes_option
@queue_option
@limit_option
@json_option
@pass_session
def restore(
    session: Session,
    name: str,
    point: str,
    disk: str | None,
    target: Path | None,
    image_format: str | None,
    host: str | None,
    new_name: str | None,
    storage: str | None,
    force: bool,
    yes: bool,
    queued: bool,
    as_json: bool,
) -> None:
    """Restore a disk to a file, or a whole machine to a host.

    A machine is restored under a new name, or in place: that needs --force, and the machine has to be off (it is never
    switched off by surprise). Where its old disks are still there, only blocks that differ are written.

    \b
    Examples:
      strongroom restore web-1 --point latest --disk vda --to /srv/web-1.qcow2 --format qcow2
      strongroom restore web-1 --point '2026-11-23 14:00' --host rack2 --as web-1-copy
      strongroom restore web-1 --point latest --host here --force
    """
    if (target is None) == (host is None):
        raise click.UsageError("Give --to FILE for a disk, or --host HOST for the whole machine.")
    if session.url is not None and force and (target is not None or new_name is not None or storage is not None):
        raise click.UsageError("With --url, --force is for a machine in place, with --host alone.")
    if host is not None:
        if disk is not None or image_format is not None:
            raise click.UsageError("--disk and --format go with --to.")
        if force:
            confirm(f"Overwrite the disks of {new_name or name} on {host} with restore point {point}?", yes)
        if queued:
            from appliance.cli.runs import show_asked

            asked = session.queue().ask_restore(
                name, point, host, new_name=new_name, force=force, storage=storage, limit_bytes_s=session.limit_bytes_s
            )
            show_asked(session, asked, as_json)
            return
        _machine(session, name, point, host, new_name, storage, force, as_json)
        return
    if new_name is not None or storage is not None:
        raise click.UsageError("--as and --storage go with --host.")
    assert target is not None
    if force and target.exists():
        confirm(f"Overwrite {target}?", yes)
    if queued:
        from appliance.cli.runs import show_asked

        asked = session.queue().ask_restore_disk(
            name, point, disk, target, image_format or "qcow2", force=force, limit_bytes_s=session.limit_bytes_s
        )
        show_asked(session, asked, as_json)
        return
    _disk(session, name, point, disk, target, image_format or "qcow2", force, as_json)


def _disk(
    session: Session,
    name: str,
    point: str,
    disk: str | None,
    target: Path,
    image_format: str,
    force: bool,
    as_json: bool,
) -> None:
    from appliance.services.restore import RestoreService

    restored = RestoreService(session.appliance).disk(
        name, point, disk, target, image_format, force=force, progress=session.progress
    )
    session.progress.finish()
    if as_json:
        emit_json(
            {
                "disk": restored.disk,
                "target": str(restored.target),
                "format": restored.image_format,
                "size_bytes": restored.size_bytes,
                "written_bytes": restored.written_bytes,
                "duration_ms": restored.duration_ms,
            }
        )
        return
    took = duration(restored.duration_ms / 1000)
    say(
        f"{restored.disk} is restored to {restored.target} ({restored.image_format}):"
        f" {size(restored.size_bytes)}, {size(restored.written_bytes)} written, {took}."
    )


def _machine(
    session: Session,
    name: str,
    point: str,
    host: str,
    new_name: str | None,
    storage: str | None,
    force: bool,
    as_json: bool,
) -> None:
    from appliance.services.restore import RestoreService

    restored = RestoreService(session.appliance).machine(
        name, point, host, new_name=new_name, force=force, storage=storage, progress=session.progress
    )
    session.progress.finish()
    if as_json:
        emit_json(
            {
                "host": restored.host,
                "name": restored.name,
                "uuid": restored.uuid,
                "disks": [
                    {
                        "name": each.target,
                        "path": each.path,
                        "format": each.format,
                        "size_bytes": each.size_bytes,
                        "written_bytes": each.written_bytes,
                        "kept_bytes": each.kept_bytes,
                    }
                    for each in restored.disks
                ],
                "notes": list(restored.notes),
                "duration_ms": restored.duration_ms,
            }
        )
    else:
        say(f"{restored.name} is restored to {restored.host} in {duration(restored.duration_ms / 1000)}; it is off.")
        for each in restored.disks:
            say(
                f"  {each.target}: {each.path} ({each.format}), {size(each.written_bytes)} written,"
                f" {size(each.kept_bytes)} were right already"
            )
    for note in restored.notes:
        warn(note)
    exit_with(EXIT_PARTLY if restored.notes else 0)
