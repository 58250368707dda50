"""`strongroom files`: single files and folders out of restore points."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.output import emit_json, is_terminal, moment, say, size, table, tell, warn
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, json_option, pass_session, point_option

if TYPE_CHECKING:
    from appliance.services.files.service import Seen, Taken
    from imaging.filesystems.entries import Entry

_PAGE = 500


@click.group()
def files() -> None:
    """Look into the disks of restore points, and take files out of them.

    Nothing is mounted: file systems are read by a process without rights. docs/files.md says which.
    """


@files.command("list")
@click.argument("name", metavar="NAME")
@click.argument("place", metavar="[VOLUME:]/PATH", required=False)
@point_option
@click.option("--disk", metavar="DISK", help="Only volumes of this disk.")
@json_option
@pass_session
def list_files(session: Session, name: str, place: str | None, point: str, disk: str | None, as_json: bool) -> None:
    """List a folder of a restore point; without a path, the volumes of its disks.

    \b
    Examples:
      strongroom files list web-1 --point latest
      strongroom files list web-1 --point latest vda1:/etc
    """
    found = session.files().of(name, point)
    if place is None:
        _volumes(found.id, found.volumes(disk), as_json)
        return
    first = found.listing(place, 0, _PAGE, disk)
    entries = list(first.listing.entries)
    while len(entries) < first.listing.total:
        entries += found.listing(place, len(entries), _PAGE, disk).listing.entries
    if as_json:
        emit_json(
            {
                "point": found.id, "volume": first.volume.name, "path": "/" + "/".join(first.path),
                "refused": first.listing.refused, "caution": first.caution,
                "entries": [_entry_json(entry) for entry in entries],
            }
        )  # fmt: skip
        return
    table(
        ["kind", "size", "modified", "name"],
        [
            (
                entry.kind,
                size(entry.size_bytes) if entry.kind == "file" else "",
                moment(entry.modified_utc),
                f"{entry.name} -> {entry.link}" if entry.link else entry.name,
            )
            for entry in entries
        ],
        right=["size"],
        empty="It is empty.",
    )
    if first.listing.refused:
        warn(f"{first.listing.refused} entries have names that no file may have, and are not shown")
    if first.caution:
        tell(f"note: {first.caution}")


@files.command()
@click.argument("name", metavar="NAME")
@click.argument("places", metavar="[VOLUME:]/PATH...", nargs=-1, required=True)
@point_option
@click.option("--to", "target", required=True, metavar="DIR|FILE|-", help="Where to; '-' is standard output.")
@click.option("--disk", metavar="DISK", help="Only volumes of this disk.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@pass_session
def get(
    session: Session, name: str, places: tuple[str, ...], point: str, target: str, disk: str | None, force: bool
) -> None:
    """Take files out of a restore point, or whole folders, each as a tar.

    Ends with exit code 3 when something of a folder could not be read and was left out.

    \b
    Examples:
      strongroom files get web-1 --point latest vda1:/etc/fstab --to .
      strongroom files get web-1 --point 2026-11-23 vda1:/etc --to etc.tar
    """
    from appliance.services.files.errors import TargetUnfit

    if len(places) > 1 and (target == "-" or not Path(target).is_dir()):
        raise TargetUnfit(target, "several were asked for", "Give a folder that exists.")
    if target == "-" and is_terminal(sys.stdout):
        raise TargetUnfit(target, "it is a terminal", "Redirect standard output to a file or a program.")
    found = session.files().of(name, point)
    left_out = 0
    for place in places:
        with found.take(place, disk) as taken:
            _get(session, taken, target, force)
            if taken.caution:
                tell(f"note: {taken.caution}")
            for line in taken.tar.left_out if taken.tar is not None else ():
                warn(f"left out: {line}")
                left_out += 1
    exit_with(EXIT_PARTLY if left_out else 0)


def _get(session: Session, taken: Taken, target: str, force: bool) -> None:
    from appliance.services.files import writing

    progress = session.progress
    if target == "-":
        progress.start(taken.name, taken.size_bytes)
        writing.pour(sys.stdout.buffer, taken.pieces, progress.advance)
        progress.finish()
        return
    path = writing.target_of(Path(target), taken)
    writing.check(path, force)
    progress.start(taken.name, taken.size_bytes)
    writing.write(path, taken, force, progress.advance)
    progress.finish()
    say(str(path))


def _volumes(point: str, seen: tuple[Seen, ...], as_json: bool) -> None:
    volumes = [(each.volume, each.caution) for each in seen]
    if as_json:
        emit_json(
            {
                "point": point,
                "volumes": [
                    {
                        "name": volume.name, "disk": volume.disk, "kind": volume.kind, "label": volume.label,
                        "size_bytes": volume.size_bytes, "problem": volume.problem, "caution": caution,
                    }
                    for volume, caution in volumes
                ],
            }
        )  # fmt: skip
        return
    table(
        ["volume", "disk", "holds", "label", "size", "remarks"],
        [
            (each.name, each.disk, each.kind, each.label, size(each.size_bytes), each.problem or caution)
            for each, caution in volumes
        ],
        right=["size"],
        empty="The restore point has no disk.",
    )


def _entry_json(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name, "kind": entry.kind.value, "size_bytes": entry.size_bytes,
        "modified_utc": entry.modified_utc, "mode": entry.mode, "uid": entry.uid, "gid": entry.gid,
        "link": entry.link, "problem": entry.problem,
    }  # fmt: skip
