"""`strongroom prune`, `repository collect` and `repository forecast`: which points go, and the space they give back."""

from __future__ import annotations

import re
from datetime import UTC, timedelta, tzinfo
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from appliance.cli.output import confirm, emit_json, facts, moment, say, size, table, tell, warn
from appliance.cli.requests import ask_for, ask_options
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, json_option, pass_session, queue_option, yes_option

if TYPE_CHECKING:
    from appliance.services.maintenance import MachinePruned, PrunePlan
    from imaging.collecting import Collected
    from imaging.collection import CollectionPlan

_SPAN = re.compile(r"(\d{1,6})([hdwmy])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1), "m": timedelta(days=31),
          "y": timedelta(days=366)}  # fmt: skip


class Span(click.ParamType[timedelta]):
    """A length of time: 36h, 14d, 8w, 6m (of 31 days), 2y (of 366)."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = _SPAN.fullmatch(str(value).strip().lower())
        if found is None:
            self.fail(f"{value!r} is not a length of time: write 36h, 14d, 8w, 6m or 2y", param, ctx)
        return int(found[1]) * _UNITS[found[2]]


class Zone(click.ParamType[tzinfo]):
    """A time zone by its name."""

    name = "zone"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tzinfo:
        if isinstance(value, tzinfo):
            return value
        try:
            return UTC if value.upper() == "UTC" else ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            self.fail(f"there is no time zone {value!r}: write for example Europe/Berlin", param, ctx)


_KEPT = click.IntRange(min=0)


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--keep-last", type=_KEPT, default=0, metavar="N", help="Keep the newest N points.")
@click.option("--keep-hourly", type=_KEPT, default=0, metavar="N", help="Keep the last point of each of N hours.")
@click.option("--keep-daily", type=_KEPT, default=0, metavar="N", help="… of each of N days.")
@click.option("--keep-weekly", type=_KEPT, default=0, metavar="N", help="… of each of N weeks (from Monday).")
@click.option("--keep-monthly", type=_KEPT, default=0, metavar="N", help="… of each of N months.")
@click.option("--keep-yearly", type=_KEPT, default=0, metavar="N", help="… of each of N years.")
@click.option(
    "--keep-within", type=Span(), metavar="SPAN", help="Keep all that are at most SPAN older than the newest: 48h, 14d."
)
@click.option("--zone", type=Zone(), default="UTC", metavar="ZONE", show_default=True, help="Where days begin.")
@click.option("--dry-run", is_flag=True, help="Only tell what would go, why the others stay, and what it would free.")
@ask_options
@yes_option
@json_option
@pass_session
def prune(
    session: Session,
    names: tuple[str, ...],
    keep_last: int,
    keep_hourly: int,
    keep_daily: int,
    keep_weekly: int,
    keep_monthly: int,
    keep_yearly: int,
    keep_within: timedelta | None,
    zone: tzinfo,
    dry_run: bool,
    ask: str | None,
    reason: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete restore points that no rule keeps: of the machines named, or of all.

    A point is kept if any rule keeps it. The newest of each machine always stays, and so does one that is protected or
    in use. Periods without a point do not count: --keep-daily 7 keeps the last seven days that have one. The space is
    given back by 'strongroom repository collect'; until then nothing is lost for good. Ends with exit code 3 when a
    machine is passed over, as its points' times are doubtful. What the repository's guard guarantees stays, whatever
    the rules; with --ask PERSON it is asked for, in one request.

    \b
    Examples:
      strongroom prune --keep-daily 14 --keep-weekly 8 --keep-monthly 12 --dry-run
      strongroom prune web-1 --keep-within 30d --keep-yearly 5 --zone Europe/Berlin --yes
    """
    from appliance.policy.retention import Rules
    from appliance.services.guard import GuardService
    from appliance.services.maintenance import MaintenanceService

    rules = Rules(keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly, keep_within)
    service = MaintenanceService(session.appliance)
    plan = service.plan_prune(names, rules, zone=zone, progress=session.progress)
    going = plan.going
    if not as_json:
        _show_plan(plan)
    held: tuple[Exception, ...] = ()
    if going and not dry_run:
        confirm(f"Delete {len(going)} restore points?", yes)
        held = service.prune(plan)
    if plan.guarded and ask is not None and not dry_run:
        ask_for(session, [GuardService(session.appliance).deleting(plan.guarded)], ask, reason, quiet=as_json)
    if as_json:
        emit_json(_plan_json(plan, dry_run))
    elif going and not dry_run:
        say(f"{len(going) - len(held)} restore points are deleted. Next: 'strongroom repository collect'.")
    doubts = [each.doubt for each in plan.machines if each.doubt is not None]
    for problem in (*held, *doubts):
        warn(str(problem))
    for doubt in doubts[:1]:
        tell(f"hint: {doubt.hint}")
    exit_with(EXIT_PARTLY if held or doubts else 0)


def _fate(machine: MachinePruned, id: str) -> str:
    if machine.doubt:
        return "stays: its times are doubtful"
    return "guard" if id in machine.guarded else "goes"


def _show_plan(plan: PrunePlan) -> None:
    lines = [
        (
            verdict.candidate.id[:12],
            each.machine.name,
            moment(verdict.candidate.created_utc),
            ", ".join(verdict.reasons) or _fate(each, verdict.candidate.id),
        )
        for each in plan.machines
        for verdict in each.verdicts
    ]
    table(["id", "name", "created", "kept by"], lines, empty="There is no restore point.")
    if plan.going:
        say(f"{len(plan.going)} of {len(lines)} points go; collecting then frees {size(plan.freed_bytes)}.")
    elif lines:
        say("All restore points stay.")
    if plan.guarded:
        tell(f"{len(plan.guarded)} more would go, but for the repository's guard; --ask PERSON asks for that.")


def _plan_json(plan: PrunePlan, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "freed_bytes": plan.freed_bytes,
        "points": [
            {
                "id": verdict.candidate.id,
                "name": each.machine.name,
                "created_utc": verdict.candidate.created_utc,
                "kept": verdict.candidate.id not in each.going,
                "reasons": list(verdict.reasons)
                or (["doubtful times"] if each.doubt else ["guard"] if verdict.candidate.id in each.guarded else []),
            }
            for each in plan.machines
            for verdict in each.verdicts
        ],
    }


@click.command()
@click.option("--dry-run", is_flag=True, help="Only tell what would be freed.")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0), default=600.0, show_default=True, metavar="SECONDS",
    help="How long to wait for backups that began before; what must wait longer, the next collection frees.",
)  # fmt: skip
@queue_option
@json_option
@pass_session
def collect(session: Session, dry_run: bool, wait_s: float, queued: bool, as_json: bool) -> None:
    """Give back the space of what no restore point needs. Backups go on meanwhile.

    Nothing is removed when anything in the repository is not understood. A collection that was interrupted is gone on
    with by the next. Ends with exit code 3 when something stays that should have gone.

    \b
    Examples:
      strongroom repository collect --dry-run
      strongroom repository collect
    """
    from appliance.services.maintenance import MaintenanceService

    if queued:
        from appliance.cli.runs import show_asked
        from appliance.services.queue.service import QueueService

        if dry_run:
            raise click.UsageError("--dry-run does not go with --queue.")
        show_asked(session, QueueService(session.appliance).ask_collect(), as_json)
        return
    service = MaintenanceService(session.appliance)
    if dry_run:
        plan = service.plan_collection(progress=session.progress)
        if as_json:
            emit_json({"dry_run": True, **_collection_json(plan)})
        else:
            _show_collection(plan)
        return
    done = service.collect(wait_s=wait_s, progress=session.progress)
    if as_json:
        emit_json({"dry_run": False, **_collection_json(done.plan), **_done_json(done)})
    else:
        net = size(done.freed_bytes - done.copied_bytes)
        moved = f"; {size(done.copied_bytes)} in them were needed and are moved" if done.copied_bytes else ""
        say(f"{net} are freed: {done.deleted_packs} packs of {size(done.freed_bytes)}{moved}.")
        if done.removed_points:
            say(f"{done.removed_points} deleted restore points are gone for good.")
        if done.deleted_packs and session.appliance.settings.s3.lock_mode:
            tell("The bucket gives this back when the locks have run out, and its rule for old versions has come by.")
    if done.waiting_packs:
        warn(
            f"{done.waiting_packs} packs stay until {len(done.waiting_for)} backups that began before have ended;"
            " the next collection removes them"
        )
    for problem in done.problems:
        warn(problem)
    exit_with(EXIT_PARTLY if done.problems or done.waiting_packs else 0)


def _show_collection(plan: CollectionPlan) -> None:
    facts(
        [
            ("would be freed", size(plan.freed_bytes)),
            ("packs that nothing needs", len(plan.dead) + len(plan.orphans)),
            ("packs to be emptied", sum(len(group) for group in plan.moved)),
            ("moved meanwhile", size(plan.copied_bytes)),
            ("stays", size(plan.kept_bytes)),
            ("unneeded of that", size(plan.unneeded_bytes)),
        ]
    )


def _collection_json(plan: CollectionPlan) -> dict[str, object]:
    return {
        "planned": {
            "freed_bytes": plan.freed_bytes,
            "dead_packs": len(plan.dead),
            "orphaned_packs": len(plan.orphans),
            "emptied_packs": sum(len(group) for group in plan.moved),
            "moved_bytes": plan.copied_bytes,
            "kept_bytes": plan.kept_bytes,
            "unneeded_bytes": plan.unneeded_bytes,
        }
    }


def _done_json(done: Collected) -> dict[str, object]:
    return {
        "freed_bytes": done.freed_bytes,
        "deleted_packs": done.deleted_packs,
        "moved_bytes": done.copied_bytes,
        "rescued_packs": done.rescued_packs,
        "removed_points": done.removed_points,
        "rewritten_index_objects": done.rewritten_objects,
        "waiting_packs": done.waiting_packs,
        "waiting_for": list(done.waiting_for),
        "problems": list(done.problems),
    }


@click.command()
@click.argument("name", required=False)
@json_option
@pass_session
def forecast(session: Session, name: str | None, as_json: bool) -> None:
    """Tell what deleting restore points would free: all of a machine, or, with NAME, each of its points alone.

    Counted is what nothing else needs, to the byte, without reading data. Points of one machine share most of what
    they hold, so deleting several frees more than the sum.

    \b
    Examples:
      strongroom repository forecast
      strongroom repository forecast web-1 --json
    """
    from appliance.services.maintenance import MaintenanceService

    service = MaintenanceService(session.appliance)
    if name is not None:
        points = service.forecast_points(name, progress=session.progress)
        if as_json:
            emit_json(
                [
                    {"id": each.point.id, "created_utc": each.point.created_utc, "frees_bytes": each.exclusive_bytes}
                    for each in points
                ]
            )
            return
        table(
            ["id", "created", "deleting it frees"],
            [(each.point.id[:12], moment(each.point.created_utc), size(each.exclusive_bytes)) for each in points],
            right=["deleting it frees"],
        )
        return
    found = service.forecast(progress=session.progress)
    if as_json:
        emit_json(
            {
                "machines": [
                    {"name": each.machine.name, "kind": each.machine.kind, "uuid": each.machine.uuid,
                     "points": each.points, "frees_bytes": each.exclusive_bytes}
                    for each in found.machines
                ],
                "unneeded_bytes": found.unneeded_bytes,
            }
        )  # fmt: skip
        return
    table(
        ["name", "points", "deleting it frees"],
        [(each.machine.name, each.points, size(each.exclusive_bytes)) for each in found.machines],
        right=["points", "deleting it frees"],
        empty="Nothing is protected yet.",
    )
    if found.unneeded_bytes:
        say(f"{size(found.unneeded_bytes)} are needed by no point: 'strongroom repository collect' frees them.")
