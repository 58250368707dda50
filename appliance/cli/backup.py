"""`strongroom backup`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.output import duration, emit_json, say, size, warn
from appliance.cli.points import point_json
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, json_option, limit_option, pass_session, queue_option
from appliance.cli.signals import end_this_process

if TYPE_CHECKING:
    from appliance.services.backup import RunResult

IMAGE_FORMATS = ("raw", "qcow2", "vmdk", "vhdx", "vdi", "vpc")


def _image_name(_context: click.Context, _option: click.Parameter, name: str | None) -> str | None:
    if name is not None and not name.strip():
        raise click.BadParameter("it is empty, and the image's restore points are found by it.")
    try:
        (name or "").encode()
    except UnicodeEncodeError as err:
        raise click.BadParameter("it is not UTF-8.") from err
    return name


@click.command()
@click.argument("vm", metavar="VM", required=False)
@click.option("--host", metavar="HOST", help="The host that runs it, if several have one of that name.")
@click.option("--full", is_flag=True, help="Read everything. What is in the repository already is not stored again.")
@click.option("--image", "path", metavar="PATH", type=click.Path(path_type=Path), help="An image file or block device.")
@click.option("--format", "image_format", type=click.Choice(IMAGE_FORMATS), help="Its format; it is never guessed.")
@click.option("--name", metavar="NAME", callback=_image_name, help="The name under which the image is protected.")
@queue_option
@limit_option
@json_option
@pass_session
def backup(
    session: Session,
    vm: str | None,
    host: str | None,
    full: bool,
    path: Path | None,
    image_format: str | None,
    name: str | None,
    queued: bool,
    as_json: bool,
) -> None:
    """Back up a virtual machine, running or off, or an image file or block device.

    Reads only what changed since the last restore point where that is known for certain, everything else in full, disk
    by disk; the result says which and why. Ends with exit code 3 when some disk is not on the point or something needs
    an eye.

    With --queue, the run's id is printed at once; 'strongroom run show ID' tells how it goes. A machine or image waits
    in the queue once: asked for again, it is the same run.

    \b
    Examples:
      strongroom backup web-1
      strongroom backup web-1 --host rack2 --full --limit 20MB
      strongroom backup --image /srv/disk.vmdk --format vmdk --name old-server
      strongroom backup web-1 --queue
    """
    from appliance.services.backup.recorded import RunBusy
    from imaging.errors import SeriesBusy

    what = _Wanted.checked(vm, host, full, path, image_format, name)
    if queued:
        _ask(session, what, as_json)
        return
    try:
        result = _run(session, what)
    except SeriesBusy as err:
        raise RunBusy(vm or name or "", err.holder, err.hint) from err
    session.progress.finish()
    _show(session, result, as_json)
    exit_with(EXIT_PARTLY if result.partial else 0)


@dataclass(frozen=True, slots=True)
class _Wanted:
    vm: str = ""
    host: str | None = None
    full: bool = False
    image: tuple[Path, str, str] | None = None  # with its format and name

    @classmethod
    def checked(
        cls, vm: str | None, host: str | None, full: bool, path: Path | None, image_format: str | None, name: str | None
    ) -> _Wanted:
        if path is not None:
            if vm is not None or host is not None:
                raise click.UsageError("Give a machine or --image, not both.")
            if image_format is None or name is None:
                raise click.UsageError("--image needs --format and --name.")
            # An image has no bitmap: it is read in full every time, asked to or not.
            return cls(image=(path, image_format, name))
        if vm is None:
            raise click.UsageError("Give the name of a machine, or --image PATH --format F --name N.")
        if image_format is not None or name is not None:
            raise click.UsageError("--format and --name go with --image.")
        return cls(vm, host, full)


def _run(session: Session, what: _Wanted) -> RunResult:
    from appliance.services.backup import BackupService

    service = BackupService(session.appliance, end_this_process)
    if what.image is not None:
        return service.run_image(*what.image, progress=session.progress)
    return service.run_machine(what.vm, what.host, full=what.full, progress=session.progress)


def _ask(session: Session, what: _Wanted, as_json: bool) -> None:
    from appliance.cli.runs import show_asked

    service, limit = session.queue(), session.limit_bytes_s
    if what.image is not None:
        asked = service.ask_image(*what.image, limit_bytes_s=limit)
    else:
        asked = service.ask_machine(what.vm, what.host, full=what.full, limit_bytes_s=limit)
    show_asked(session, asked, as_json)


def _show(session: Session, result: RunResult, as_json: bool) -> None:
    from appliance.services.point_records import record_of

    record = record_of(result.point)
    if as_json:
        emit_json(point_json(record) | {"run": result.run.id, "state": result.run.state.value})
    else:
        took = duration(record.duration_ms / 1000)
        say(
            f"{record.name}: {record.kind}, {record.consistency}-consistent point {record.id}:"
            f" {size(record.size_bytes)}, of which {size(record.read_bytes)} read, {size(record.stored_bytes)} stored,"
            f" in {took}"
        )
        for disk in record.disks:
            why = f" ({disk.reason})" if disk.reason else ""
            say(f"  {disk.name}: {size(disk.size_bytes)}, {disk.read} read{why}")
    for skipped in record.skipped:
        warn(f"not on the point: {skipped}")
    for note in record.notes:
        warn(note)
