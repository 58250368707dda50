"""`strongroom status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.output import emit_json, facts, moment, say, size, table, tell, warn
from appliance.cli.policy_looks import standing_concerns, standing_json
from appliance.cli.requests import request_json, standing_words
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.models import RunRecord
    from appliance.services.scheduling import Standing
    from appliance.services.status import Status, StatusService


@click.command()
@click.option(
    "--dismiss",
    metavar="NAME",
    help="Tell the failed last run of this machine or image no more (it is gone, say), until one fails again.",
)
@json_option
@pass_session
def status(session: Session, dismiss: str | None, as_json: bool) -> None:
    """Show how everything stands: repository, hosts, last points, recoveries, holds, debts.

    Asks no host. Ends with exit code 3 when something needs an eye.

    \b
    Examples:
      strongroom status
      strongroom status --json
      strongroom status --dismiss retired-server
    """
    from appliance.services.status import StatusService

    if session.url is not None and dismiss is None:
        _show_remote(session, as_json)
        return
    service = StatusService(session.appliance)
    if dismiss is not None:
        _dismiss(service, dismiss, as_json)
        return
    found = service.status()
    if as_json:
        emit_json(_json(found))
    else:
        _show(found)
    concerns = list(_concerns(found))
    for concern in concerns:
        warn(concern)
    if found.requests:
        tell("hint: 'strongroom request show ID' tells what a request is about; 'request refuse ID' stops it")
    if found.failed_runs:
        tell("hint: 'strongroom status --dismiss NAME' takes a machine that is not backed up any more off this list")
    exit_with(EXIT_PARTLY if concerns else 0)


def _show_remote(session: Session, as_json: bool) -> None:
    """What the console of the other appliance shows first."""
    found = session.client.get("/overview")
    if as_json:
        emit_json(found)
    else:
        states = found["last_day"]["states"]
        facts(
            [
                ("appliance", session.client.url),
                ("machines", ", ".join(f"{count} {name}" for name, count in found["standings"].items() if count)),
                ("hosts", ", ".join(host["name"] for host in found["hosts"]) or "none"),
                ("runs", f"{found['queued']} queued, {len(found['running'])} running"),
                ("last 24 hours", ", ".join(f"{count} {name}" for name, count in states.items() if count)),
                ("recoveries", len(found["recoveries"])),
                *_room(found["growth"]),
            ]
        )
    for concern in found["concerns"]:
        warn(concern)
    exit_with(0 if found["fine"] else EXIT_PARTLY)


def _room(growth: Mapping[str, int | None] | None) -> list[tuple[str, str]]:
    """None: who asks was granted some machines, and is told nothing of the whole."""
    return [] if growth is None else [("used", size(growth["used_bytes"])), ("free", size(growth["free_bytes"]))]


def _dismiss(service: StatusService, name: str, as_json: bool) -> None:
    runs = service.dismiss(name)
    if as_json:
        emit_json([_run_json(run) for run in runs])
        return
    for run in runs:
        say(f"The run of {run.name} of {moment(run.started_utc)} is dismissed.")


def _concerns(found: Status) -> list[str]:
    from appliance.models import RunState

    concerns = list(found.problems)
    concerns += [
        f"the run of {item.run.name} died; the next run cleans up" for item in found.runs if item.alive is False
    ]
    if found.unserved:
        concerns.append(f"runs wait in the queue, and no worker lives: {found.unserved}; 'strongroom serve' takes them")
    concerns += standing_concerns(found.policies)
    concerns += [
        f"the run of {run.name} waits to be tried again{_by(found, run.appliance)}: {run.error}"
        for run in found.waiting
        if run.attempts
    ]
    concerns += [
        f"a thaw of {debt.name} on {debt.host} is owed{_by(found, debt.appliance)} since {moment(debt.since_utc)}:"
        f" {debt.last_error or 'not tried yet'}"
        for debt in found.owed_thaws
        # Another appliance owes one for a moment with every backup; what it tried in vain is a debt.
        if debt.attempts or debt.appliance == found.me
    ]
    concerns += [
        f"to be cleaned up{_by(found, record.appliance)}: {record.action} {record.subject} of"
        f" {record.machine_name or record.owner}"
        + (f" (tried {record.attempts} times: {record.last_error})" if record.last_error else "")
        for record in found.cleanups
        # The checkpoint of a deleted point is no debt of a dead run: it goes when next the host is asked.
        if record.attempts or not record.owner.startswith("point-")
    ]
    concerns += [
        f"recovery {rec.id[:12]} of {rec.source_name}{_by(found, rec.appliance)}: {rec.error}"
        for rec in found.recoveries
        if rec.error
    ]
    concerns += [
        f"{item.export.kind} {item.export.address} of {item.export.name} is no longer served"
        for item in found.exports
        if item.alive is False and item.export.kind == "export"
    ]
    concerns += [
        f"the last {run.kind} of {run.name}{_by(found, run.appliance)}"
        f" {'failed' if run.state is RunState.FAILED else 'was interrupted'}: {run.error}"
        for run in found.failed_runs
    ]
    concerns += [
        f"request {told.request.id[:12]} of {told.asked_by}, to {told.request.ask.act.describe()}:"
        f" {standing_words(told)}"
        for told in found.requests
    ]
    return concerns


def _policies(found: Standing) -> str:
    due = len(found.look.requests) + len(found.look.waiting)
    return f"select {found.selected} machines, {due} due, {len(found.missed)} missed their RPO"


def _by(found: Status, appliance: str) -> str:
    name = found.whose(appliance)
    return "" if name is None else f" by appliance {name}"


def _show(found: Status) -> None:
    state = found.repository
    several = [("appliance", f"{found.names[found.me]}, one of {len(found.appliances)} with this catalog")]
    facts(
        [
            ("home", found.home),
            *(several if len(found.appliances) > 1 else ()),
            ("repository", f"{state.location} ({'reachable' if state.reachable else 'NOT REACHABLE'})"),
            ("free", size(state.free_bytes)),
            *([("locked until", moment(state.lock.until_utc))] if state.lock is not None else []),
            ("hosts", ", ".join(host.name for host in found.hosts) or "none"),
            ("runs", f"{len(found.waiting)} queued, {len(found.runs)} running"),
            *([("policies", _policies(found.policies))] if found.policies.selected else []),
        ]
    )
    last_run = {(run.machine_kind, run.uuid or run.name): run for run in found.last_runs}
    if found.machines:
        say()
    table(
        ["machine", "kind", "host", "last point", "of", "last run"],
        [
            (
                machine.name,
                machine.kind,
                machine.host,
                (machine.last_point or "")[:12],
                moment(machine.last_point_utc),
                run.state if (run := last_run.get((machine.kind, machine.uuid or machine.name))) else None,
            )
            for machine in found.machines
        ],
    )
    for heading, lines in (
        (
            "run",
            [
                (item.run.name, item.run.id[:12], moment(item.run.started_utc) + _by(found, item.run.appliance))
                for item in found.runs
            ],
        ),
        (
            "recovery",
            [
                (rec.machine_name, rec.id[:12], f"{rec.state} on {rec.host}{_by(found, rec.appliance)}")
                for rec in found.recoveries
            ],
        ),
        (
            "export",
            [
                (e.export.name, e.export.kind.value, e.export.address + _by(found, e.export.appliance))
                for e in found.exports
            ],
        ),
        (
            "hold",
            [(h.id[:12], f"{h.purpose} of point {h.point[:12]}", moment(h.created_utc)) for h in found.holds],
        ),
    ):
        if lines:
            say()
            table([heading, "", " "], lines)


def _run_json(run: RunRecord) -> dict[str, object]:
    return {
        "id": run.id,
        "name": run.name,
        "state": run.state.value,
        "started_utc": run.started_utc,
        "ended_utc": run.ended_utc,
        "error": run.error,
        "dismissed_utc": run.dismissed_utc,
        "appliance": run.appliance,
    }


def _json(found: Status) -> dict[str, object]:
    state = found.repository
    return {
        "home": found.home,
        "appliance": found.me,
        "appliances": [{"id": each.id, "name": found.names[each.id], "home": each.home, "seen_utc": each.seen_utc}
                       for each in found.appliances],
        "repository": {
            "id": state.id,
            "location": state.location,
            "reachable": state.reachable,
            "free_bytes": state.free_bytes,
            "lock": None if (lock := state.lock) is None else
            {"mode": lock.mode, "days": lock.days, "swept_utc": lock.swept_utc, "until_utc": lock.until_utc},
        },
        "hosts": [host.name for host in found.hosts],
        "machines": [
            {"name": m.name, "kind": m.kind, "uuid": m.uuid, "host": m.host, "last_point": m.last_point,
             "last_point_utc": m.last_point_utc}
            for m in found.machines
        ],
        "last_runs": [_run_json(run) for run in found.last_runs],
        "runs": [
            {"id": item.run.id, "name": item.run.name, "started_utc": item.run.started_utc, "alive": item.alive,
             "appliance": item.run.appliance}
            for item in found.runs
        ],
        "policies": standing_json(found.policies),
        "queued": [
            {"id": run.id, "name": run.name, "queued_utc": run.asked_utc, "attempts": run.attempts,
             "not_before_utc": run.not_before_utc, "error": run.error, "appliance": run.appliance}
            for run in found.waiting
        ],
        "workers": found.workers,
        "recoveries": [
            {"id": rec.id, "name": rec.source_name, "machine": rec.machine_name, "host": rec.host,
             "state": rec.state.value, "error": rec.error, "appliance": rec.appliance}
            for rec in found.recoveries
        ],
        "exports": [
            {"id": item.export.id, "kind": item.export.kind.value, "name": item.export.name, "point": item.export.point,
             "address": item.export.address, "alive": item.alive, "appliance": item.export.appliance}
            for item in found.exports
        ],
        "holds": [
            {"id": hold.id, "point": hold.point, "purpose": hold.purpose, "owner": hold.owner,
             "created_utc": hold.created_utc}
            for hold in found.holds
        ],
        "requests": [request_json(told) for told in found.requests],
        "owed_thaws": [
            {"machine": debt.name, "uuid": debt.machine_uuid, "host": debt.host, "since_utc": debt.since_utc,
             "attempts": debt.attempts, "error": debt.last_error, "appliance": debt.appliance}
            for debt in found.owed_thaws
        ],
        "cleanups": [
            {"owner": record.owner, "action": record.action.value, "subject": record.subject,
             "machine": record.machine_name, "attempts": record.attempts, "error": record.last_error,
             "appliance": record.appliance}
            for record in found.cleanups
        ],
        "problems": list(found.problems),
    }  # fmt: skip
