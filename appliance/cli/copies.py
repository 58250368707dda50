"""`strongroom repository copy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.output import emit_json, moment, say, size, table
from appliance.cli.session import Session, json_option, limit_option, pass_session, queue_option

if TYPE_CHECKING:
    from appliance.services.copying import MachineToCopy


@click.command()
@click.argument("home", metavar="HOME", type=click.Path(path_type=Path))
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the newest N points of each machine.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be copied.")
@click.option("--verify/--no-verify", default=True, help="Read back what was stored (the default), or do not.")
@queue_option
@limit_option
@json_option
@pass_session
def copy(session: Session, home: Path, names: tuple[str, ...], last: int | None, dry_run: bool, verify: bool,
         queued: bool, as_json: bool) -> None:  # fmt: skip
    """Copy restore points into the repository of another home: the second copy, on another disk or in a bucket.

    HOME is a folder as STRONGROOM_HOME names one, with its own settings, keys and repository; make it once with
    'strongroom init'. Of each machine what is newer than its newest copy is copied, oldest first; only what changed is
    read and sent. A point counts there once all that was stored for it was read back and found whole. An interrupted
    copy is gone on with by the next, so this can run every night. To restore from a copy, use the other home. A limit
    is of what is read from one repository and what is written to the other, together.

    \b
    Examples:
      STRONGROOM_HOME=/srv/second strongroom init --repository /mnt/usb/backup
      strongroom repository copy /srv/second
      STRONGROOM_HOME=/srv/second strongroom recovery start web-1 --point latest
    """
    from appliance.services.copying import CopyService

    if queued:
        from appliance.cli.runs import show_asked
        from appliance.services.queue.service import QueueService

        if last is not None or dry_run or not verify:
            raise click.UsageError("--last, --dry-run and --no-verify do not go with --queue.")
        show_asked(
            session,
            QueueService(session.appliance).ask_copy(home, names, limit_bytes_s=session.limit_bytes_s),
            as_json,
        )
        return
    with session.appliance.of_home(home) as target:
        service = CopyService(session.appliance, target, verify=verify)
        plan = service.plan(names, last=last)
        if dry_run:
            if as_json:
                emit_json({"dry_run": True, "machines": [_plan_json(each) for each in plan]})
            else:
                _show(plan)
            return
        copied = []
        for done in service.copy(plan, progress=session.progress):
            copied.append(done)
            if not as_json:
                amounts = f"{size(done.read_bytes)} read, {size(done.stored_bytes)} stored"
                amounts += ", and read back" if done.verified_bytes else ""
                say(f"{done.machine}: {done.origin[:12]} is copied; {amounts}.")
    if as_json:
        emit_json(
            {
                "dry_run": False,
                "points": [
                    {
                        "name": each.machine,
                        "origin": each.origin,
                        "copy": each.copy,
                        "read_bytes": each.read_bytes,
                        "stored_bytes": each.stored_bytes,
                        "verified_bytes": each.verified_bytes,
                    }
                    for each in copied
                ],
            }
        )
    elif not copied:
        say("Every restore point is copied already.")


def _plan_json(each: MachineToCopy) -> dict[str, object]:
    return {"name": each.machine.name, "points": [point.id for point in each.points], "total": each.total}


def _show(plan: tuple[MachineToCopy, ...]) -> None:
    table(
        ["machine", "points", "would be copied", "the oldest of them"],
        [
            (
                each.machine.name,
                str(each.total),
                str(len(each.points)),
                moment(each.points[0].created_utc) if each.points else "–",
            )
            for each in plan
        ],
    )
