"""`strongroom run`: what waits in the queue, what runs and what became of it."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from appliance.amounts import duration
from appliance.cli.output import emit_json, facts, moment, say, size, table, tell, warn
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, json_option, limit_option, pass_session
from appliance.cli.signals import end_this_process

if TYPE_CHECKING:
    from appliance.models import RunArguments, RunRecord
    from appliance.services.queue.service import Asked, Seen
    from appliance.services.runlogs import RunLog

_STATES = ("queued", "running", "succeeded", "partial", "failed", "interrupted", "cancelled")
_SHOWN = 50


@click.group()
def run() -> None:
    """Runs: backups, restores and other work that wait in the queue, that are under way, and that are over."""


@run.command("list")
@click.option("--state", type=click.Choice(_STATES), help="Only those.")
@click.option("--last", metavar="N", type=click.IntRange(1), default=_SHOWN, show_default=True, help="The newest N.")
@json_option
@pass_session
def list_runs(session: Session, state: str | None, last: int, as_json: bool) -> None:
    """List runs, newest first, of all appliances that share the catalog.

    \b
    Examples:
      strongroom run list
      strongroom run list --state queued
      strongroom run list --state failed --last 10 --json
    """
    from appliance.models import RunState

    runs = session.queue().runs(None if state is None else RunState(state), last)
    if as_json:
        emit_json([run_json(each) for each in runs])
        return
    me, names = session.members()
    table(
        ["id", "kind", "name", "state", "by", "attempts", "started", "ended", "error"],
        [
            (
                each.id[:12],
                each.kind,
                each.name,
                each.state + ("" if each.appliance == me else f" on {names.get(each.appliance, each.appliance[:12])}"),
                ", ".join(due.policy for due in each.due) or None,
                each.attempts or None,
                None if each.state is RunState.QUEUED else moment(each.started_utc),
                moment(each.ended_utc),
                each.error,
            )
            for each in runs
        ],
        right=["attempts"],
        empty="There is no such run." if state else "There is no run.",
    )


@run.command()
@click.argument("id")
@click.option("--log", is_flag=True, help="What it said, and how fast it went, if it ran on this appliance.")
@json_option
@pass_session
def show(session: Session, id: str, log: bool, as_json: bool) -> None:
    """Show a run: what was asked for, how it stands and, while it runs here, how far it is; with --log, what it said.

    \b
    Examples:
      strongroom run show 5c1d
      strongroom run show 5c1d --log
    """
    seen = session.queue().run(id)
    if log:
        _show_log(session, seen, as_json)
        return
    if as_json:
        emit_json(run_json(seen.run) | {"alive": seen.alive, "progress": _progress_json(seen)})
        return
    found = seen.run
    facts(
        [
            ("run", found.id),
            ("kind", found.kind),
            (found.machine_kind, found.name + (f" on {found.host}" if found.host else "")),
            *([("image", f"{found.image_path} ({found.image_format})")] if found.image_path else []),
            *(("by", f"{d.cause} of {d.policy}, due {moment(d.due_utc)}") for d in found.due),
            *([("frozen", "no: the policy does not want it")] if not found.quiesce else []),
            ("state", found.state.value + ("; its process is dead" if seen.alive is False else "")),
            *([("progress", _progress(seen))] if seen.far is not None else []),
            ("queued", moment(found.asked_utc)),
            *([("attempts", found.attempts)] if found.from_queue else []),
            *([("not before", moment(found.not_before_utc))] if found.not_before_utc else []),
            *([("cancelling since", moment(found.cancel_requested_utc))] if found.cancel_requested_utc else []),
            ("started", moment(found.started_utc) if found.attempts or not found.from_queue else None),
            ("ended", moment(found.ended_utc)),
            *([(name, value) for name, value in _given(found.arguments).items()] if found.arguments else []),
            *([("result", found.result)] if found.result else []),
            *([("point", found.point)] if found.kind == "backup" else []),
            ("error", found.error),
        ]
    )
    if found.disks:
        say()
        table(
            ["disk", "read", "bytes read", "stored", "why"],
            [(d.name, d.read, size(d.read_bytes), size(d.stored_bytes), d.reason) for d in found.disks],
            right=["bytes read", "stored"],
        )
    for note in found.notes:
        warn(note)


def _show_log(session: Session, seen: Seen, as_json: bool) -> None:
    from appliance.throughput import bytes_s

    found = _log(session, seen.run.id)
    samples = seen.far.samples if seen.far is not None else found.samples
    if as_json:
        emit_json(
            {
                "lines": [{"at_utc": line.at_utc, "level": line.level, "text": line.text} for line in found.lines],
                "samples": [{"at_s": each.at_s, "done_bytes": each.done_bytes} for each in samples],
            }
        )
        return
    for line in found.lines:
        say(f"{moment(line.at_utc)}  {'' if line.level == 'info' else line.level + ': '}{line.text}")
    speeds = [speed for _, speed in bytes_s(samples)]
    if samples and samples[-1].at_s > 0:
        mean = samples[-1].done_bytes / samples[-1].at_s
        say(f"{size(samples[-1].done_bytes)} in {duration(samples[-1].at_s)}: {size(round(mean))}/s, at most"
            f" {size(round(max(speeds)))}/s")  # fmt: skip
    if not found.lines and not samples:
        tell("It has said nothing here: it waits, is older than what is kept, or ran on another appliance.")


def _log(session: Session, id: str) -> RunLog:
    if session.url is not None:
        from appliance.remote.services import RemoteQueue

        return RemoteQueue(session.client).log(id)
    from appliance.services.runlogs import read_run_log

    return read_run_log(session.appliance.settings, id)


@run.command()
@click.argument("id")
@json_option
@pass_session
def cancel(session: Session, id: str, as_json: bool) -> None:
    """Cancel a run: one that waits is not begun, one that runs ends in order within seconds, and makes no point.

    It may run in any process of this home, or on another appliance that shares the catalog.

    \b
    Example:
      strongroom run cancel 5c1d
    """
    found = session.queue().cancel(id, warn)
    if as_json:
        emit_json(run_json(found))
    elif found.state == "cancelled":
        say(f"The run of {found.name} is cancelled.")
    else:
        say(f"The run of {found.name} is asked to end: 'strongroom run show {found.id[:12]}' tells when it has.")


@run.command()
@click.argument("id")
@json_option
@pass_session
def retry(session: Session, id: str, as_json: bool) -> None:
    """Queue what a run that is over was about once more, as a new run; let one that waits for its next attempt wait no
    longer.

    \b
    Example:
      strongroom run retry 5c1d
    """
    show_asked(session, session.queue().again(id), as_json)


@run.command(hidden=True)
@click.argument("id")
@limit_option
@pass_session
def execute(session: Session, id: str) -> None:
    """Make an attempt at a run of the queue: what a worker starts.

    \b
    Example:
      strongroom run execute 5c1d…
    """
    from appliance.models import RunState
    from appliance.services.queue.executing import Executor
    from appliance.services.recovery.supervisor import LoggedProgress
    from imaging.errors import SeriesBusy

    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {id[:12]} %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        state = Executor(session.appliance, end_this_process).execute(id, LoggedProgress())
    except SeriesBusy as err:
        logging.getLogger(__name__).info("it waits: another run is at work on the same machine, by %s", err.holder)
        return
    exit_with(EXIT_PARTLY if state is RunState.PARTIAL else 0)


def show_asked(session: Session, asked: Asked, as_json: bool) -> None:
    """The id of a run that was queued, and whether anybody takes it."""
    found = asked.run
    if as_json:
        emit_json(run_json(found) | {"new": asked.new})
    elif asked.new:
        say(f"Run {found.id[:12]} of {found.name} is queued.")
    else:
        say(f"Run {found.id[:12]} of {found.name} was queued already, {moment(found.asked_utc)}.")
    if asked.worker is False:
        warn("no worker lives: 'strongroom serve' takes runs from the queue (with queue.workers above 0)")


def run_json(found: RunRecord) -> dict[str, object]:
    """The form that scripts rely on."""
    return {
        "id": found.id,
        "name": found.name,
        "kind": found.kind.value,
        "machine_kind": found.machine_kind,
        "uuid": found.uuid,
        "host": found.host,
        "image": found.image_path,
        "format": found.image_format,
        "full": found.full_read,
        "limit_bytes_s": found.limit_bytes_s,
        "quiesce": found.quiesce,
        "due": [{"policy": each.policy, "due_utc": each.due_utc, "cause": each.cause} for each in found.due],
        "state": found.state.value,
        "queued_utc": found.asked_utc,
        "started_utc": found.started_utc if found.attempts or not found.from_queue else None,
        "ended_utc": found.ended_utc,
        "attempts": found.attempts,
        "not_before_utc": found.not_before_utc,
        "cancel_requested_utc": found.cancel_requested_utc,
        "arguments": None if found.arguments is None else _given(found.arguments),
        "result": found.result,
        "point": found.point,
        "error": found.error,
        "notes": list(found.notes),
        "appliance": found.appliance,
    }


def _given(arguments: RunArguments) -> dict[str, object]:
    return {name: value for name, value in asdict(arguments).items() if value not in (None, False, ())}


def _progress(seen: Seen) -> str | None:
    far = seen.far
    if far is None:
        return None
    share = f" of {size(far.total_bytes)} ({100 * far.done_bytes // far.total_bytes} %)" if far.total_bytes else ""
    return f"{far.label}: {size(far.done_bytes)}{share}"


def _progress_json(seen: Seen) -> dict[str, object] | None:
    far = seen.far
    if far is None:
        return None
    return {"label": far.label, "done_bytes": far.done_bytes, "total_bytes": far.total_bytes}
