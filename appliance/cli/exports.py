"""`strongroom export`, `mount` and `umount`: disks of a point for other programs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from appliance.cli.output import emit_json, say, tell
from appliance.cli.session import Session, json_option, pass_session, point_option


@click.group()
def export() -> None:
    """Serve disks of restore points to other programs, read-only."""


@export.command()
@click.argument("name", metavar="NAME")
@point_option
@click.option("--disk", metavar="DISK", help="Which one; not needed when the point has a single disk.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Serve on this port of the loopback address, to every user of this machine (default: a private socket).",
)
@pass_session
def serve(session: Session, name: str, point: str, disk: str | None, port: int | None) -> None:
    """Serve one disk over NBD until interrupted; prints its URI as the first line.

    \b
    Examples:
      strongroom export serve web-1 --point latest --disk vda
      qemu-img convert "$(uri)" -f raw -O qcow2 copy.qcow2        with the URI that was printed
    """
    from appliance.services.exports import ExportService

    for number in (signal.SIGTERM, signal.SIGINT):  # a script's background command begins with SIGINT ignored
        signal.signal(number, _end)
    try:
        with ExportService(session.appliance).serve(name, point, disk, port=port) as served:
            say(served.uri)
            sys.stdout.flush()
            tell("Serving; interrupt to end.")
            served.wait(tell)
    except KeyboardInterrupt:
        tell("Ended.")


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@click.command()
@click.argument("name", metavar="NAME")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@point_option
@json_option
@pass_session
def mount(session: Session, name: str, directory: Path, point: str, as_json: bool) -> None:
    """Show every disk of a restore point as a raw file in an empty folder, read-only, until 'umount'.

    The files can be opened with any tool: a loop device, a partition tool, a forensic one.

    \b
    Example:
      strongroom mount web-1 --point latest /mnt/web-1
      strongroom umount /mnt/web-1
    """
    from appliance.services.exports import ExportService

    record = ExportService(session.appliance).mount(name, point, directory)
    if as_json:
        emit_json(
            {
                "id": record.id,
                "point": record.point,
                "directory": record.address,
                "disks": [{"name": disk, "path": f"{record.address}/{disk}"} for disk in record.disks],
            }
        )
        return
    for disk in record.disks:
        say(f"{record.address}/{disk}")


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@pass_session
def umount(session: Session, directory: Path) -> None:
    """Take away what 'mount' put into a folder.

    \b
    Example:
      strongroom umount /mnt/web-1
    """
    from appliance.services.exports import ExportService

    record = ExportService(session.appliance).umount(directory)
    say(f"{record.address} is unmounted.")
