"""`strongroom repository lock` and `repository undo`: Object Lock, and what it is for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.output import confirm, emit_json, facts, moment, say, size, table, tell, warn
from appliance.cli.passphrases import passphrase, read_key_file
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, json_option, pass_session, yes_option

if TYPE_CHECKING:
    from appliance.services.locks import LockService
    from imaging.lock_sweep import Swept
    from imaging.slots import Secret
    from imaging.undoing import Undo, Undone

_SHOWN = 10


@click.command()
@click.option("--dry-run", is_flag=True, help="Only tell until when everything is locked, and what would be done.")
@click.option("--ask-all", is_flag=True, help="Ask the store about every lock, also those that were seen before.")
@json_option
@pass_session
def lock(session: Session, dry_run: bool, ask_all: bool, as_json: bool) -> None:
    """Keep restore points locked in their bucket (S3 Object Lock), and tell until when they are.

    Whatever restore points need and is locked for less than s3.lock_days is locked for s3.lock_extra_days more than
    that. Run it every night: what is not renewed runs out. Deleted points are not renewed. Ends with exit code 3 when
    something is not locked, or was overwritten.

    \b
    Examples:
      strongroom repository lock
      strongroom repository lock --dry-run --json
    """
    from appliance.services.locks import LockService, whole_days

    swept = LockService(session.appliance).sweep(dry_run=dry_run, ask_all=ask_all, progress=session.progress)
    session.progress.finish()
    left = whole_days(swept.until_utc, swept.now_utc)
    if as_json:
        emit_json(_swept_json(swept, dry_run, left))
    else:
        what = f"{swept.objects} objects, {size(swept.size_bytes)}"
        if swept.until_utc is not None:
            say(f"Every restore point is locked until {moment(swept.until_utc)} ({left} days): {what}.")
        else:
            say(f"Not everything that restore points need is locked: {what}.")
        done = f"would be renewed, of {size(swept.due_bytes)}" if dry_run else f"renewed, of {swept.due} that were due"
        say(f"{swept.due if dry_run else swept.extended} locks {'' if dry_run else 'are '}{done}.")
    for name in swept.replaced[:_SHOWN]:
        warn(f"{name} was written over, and its earlier bytes are kept: 'strongroom repository undo' brings them back")
    if len(swept.replaced) > _SHOWN:
        warn(f"so were {len(swept.replaced) - _SHOWN} others")
    for problem in swept.problems[:_SHOWN]:
        warn(problem)
    if len(swept.problems) > _SHOWN:
        warn(f"there are {len(swept.problems) - _SHOWN} more problems")
    exit_with(EXIT_PARTLY if swept.problems or swept.replaced or swept.until_utc is None else 0)


def _swept_json(swept: Swept, dry_run: bool, left_days: int | None) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "now_utc": swept.now_utc,
        "locked_until_utc": swept.until_utc,
        "locked_days": left_days,
        "objects": swept.objects,
        "size_bytes": swept.size_bytes,
        "asked": swept.asked,
        "due": swept.due,
        "due_bytes": swept.due_bytes,
        "renewed": swept.extended,
        "overwritten": list(swept.replaced),
        "problems": list(swept.problems),
    }


@click.command()
@click.option("--since", metavar="TIME", help="Undo what was done from this moment on: '2026-11-25 14:00', UTC.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be undone.")
@click.option(
    "--recovery-key-file", metavar="FILE", type=click.Path(path_type=Path),
    help="Open the repository with the recovery key in this file, where this home has no key of its own.",
)  # fmt: skip
@yes_option
@json_option
@pass_session
def undo(
    session: Session, since: str | None, dry_run: bool, recovery_key_file: Path | None, yes: bool, as_json: bool
) -> None:
    """Undo what an intruder did to a repository in a bucket with Object Lock.

    What was deleted or overwritten since comes back as it was, and restore points that got a tombstone since count
    again; so do those that were deleted in good faith. Points that were made since stay. Without --since, it tells when
    things were deleted or overwritten. First take the intruder's credentials away, and let nothing else run: no backup,
    no collection, on no appliance. It may be repeated. Ends with exit code 3 when something cannot be undone.

    \b
    Examples:
      strongroom repository undo
      strongroom repository undo --since '2026-11-25 14:00' --dry-run
      strongroom repository undo --since 2026-11-25T14:00:00Z --yes
    """
    from appliance.services.locks import LockService
    from appliance.services.moments import parse_moment

    service = LockService(session.appliance)
    if since is None:
        _show_happened(service, as_json)
        return
    moment_utc = parse_moment(since)
    if re.search(r"\d:\d", since) is None:
        raise click.UsageError("--since needs a time of day, as in '2026-11-25 14:00'")
    plan = service.plan_undo(moment_utc, _secret(session, recovery_key_file), progress=session.progress)
    done: Undone | None = None
    if not as_json:
        _show_plan(plan)
    if not dry_run and not plan.is_empty:
        confirm(f"Undo this, back to {moment(moment_utc)}?", yes)
        done = service.undo(plan, progress=session.progress)
        session.progress.finish()
    if as_json:
        emit_json(_plan_json(plan, done, dry_run))
    elif done is not None:
        say(f"{done.returned} objects are back, {size(done.returned_bytes)}; {done.removed} are deleted.")
        tell(
            "Next: 'strongroom repository verify', then 'repository lock'. On other appliances of this repository,"
            " empty HOME/cache. Whoever had the machine key can read everything: then only a new repository helps."
        )
    problems = [*plan.problems, *(done.problems if done is not None else ())]
    for problem in problems:
        warn(problem)
    exit_with(EXIT_PARTLY if problems else 0)


def _secret(session: Session, recovery_key_file: Path | None) -> Secret | None:
    """None: this home has a key of its own."""
    from appliance import home
    from imaging.slots import Passphrase, RecoveryKey

    if recovery_key_file is not None:
        return RecoveryKey.parse(read_key_file(recovery_key_file))
    return None if home.in_use(session.settings()) else Passphrase(passphrase())


def _show_happened(service: LockService, as_json: bool) -> None:
    happened = service.happened()
    if as_json:
        emit_json(
            [
                {"hour_utc": each.hour_utc, "deleted": each.deleted, "overwritten": each.overwritten,
                 "points_deleted": each.buried}
                for each in happened
            ]
        )  # fmt: skip
        return
    table(
        ["from", "objects deleted", "overwritten", "points deleted"],
        [(moment(each.hour_utc), each.deleted, each.overwritten, each.buried) for each in happened],
        right=["objects deleted", "overwritten", "points deleted"],
        empty="Nothing was deleted or overwritten, as far back as the bucket remembers.",
    )
    if happened:
        tell("Collections delete, too. 'strongroom repository undo --since TIME --dry-run' tells what would come back.")


def _show_plan(plan: Undo) -> None:
    kinds = dict.fromkeys(version.name.partition("/")[0] for version in plan.returning)
    facts(
        [
            ("as it was before", moment(plan.since_utc)),
            ("restore points then", len(plan.points)),
            ("objects that come back", f"{len(plan.returning)}, {size(plan.returning_bytes)}"),
            *(
                (f"… of {kind}", sum(version.name.partition("/")[0] == kind for version in plan.returning))
                for kind in kinds
            ),
            ("objects that are deleted", len(plan.removing)),
        ]
    )
    slots = [version.name for version in plan.returning if version.name.startswith("keys/")]
    if slots:
        warn(f"{len(slots)} key slots come back; remove again what was removed on purpose: {', '.join(slots)}")


def _plan_json(plan: Undo, done: Undone | None, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "since_utc": plan.since_utc,
        "points": [point.id for point in plan.points],
        "returning": [version.name for version in plan.returning],
        "returning_bytes": plan.returning_bytes,
        "removing": list(plan.removing),
        "returned": 0 if done is None else done.returned,
        "returned_bytes": 0 if done is None else done.returned_bytes,
        "removed": 0 if done is None else done.removed,
        "problems": [*plan.problems, *(done.problems if done is not None else ())],
    }
