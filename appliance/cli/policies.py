"""`strongroom policy`: which machines are backed up when, and what is kept of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import IO, TYPE_CHECKING, Any

import click

from appliance.cli.output import confirm, emit_json, facts, moment, say, size, table, warn
from appliance.cli.policy_options import CLEARED, clear, document, policy_options, read_json
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, json_option, pass_session, yes_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.policy.policies import Policy
    from appliance.policy.previews import Chosen, Preview
    from appliance.policy.selectors import Machine
    from appliance.policy.windows import Window
    from appliance.remote.services import RemotePolicies
    from appliance.services.policies import KnownPolicy, PolicyService
    from appliance.services.policies.service import Losing
    from appliance.services.scheduling import Standing

_dry_run = click.option("--dry-run", is_flag=True, help="Only tell what it would do.")
_version = click.option(
    "--if-version", "seen", type=click.IntRange(1), metavar="N", help="Only if it is of that version still."
)
_machine = click.option("--vm", "machine", metavar="VM", help="A machine, by name or UUID, or image:NAME.")
_host = click.option("--host", metavar="HOST", help="The machine's host, if several have one of that name.")
_SHOWN = 20
_WEEK = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@click.group()
def policy() -> None:
    """Policies: which machines are backed up when, and what is kept of them."""


@policy.command()
@click.argument("policy_name", metavar="NAME")
@policy_options
@_dry_run
@yes_option
@json_option
@pass_session
def add(session: Session, /, policy_name: str, dry_run: bool, yes: bool, as_json: bool, **given: Any) -> None:
    """Add a policy: some machines, and when they are backed up. The scheduler of 'strongroom serve' sees to it.

    Each of --all, --vm, --host, --tag and --image selects machines. It is asked first if restore points would go that
    stay now. What the options cannot say (a host and a tag that both must fit) is said in JSON with --file.

    \b
    Examples:
      strongroom policy add nightly --all --at '0 22 * * *' --zone Europe/Berlin --keep-daily 14
      strongroom policy add gold --tag gold --except-host 'lab-*' --at '0 */4 * * *' --rpo 6h
      strongroom policy add office --file office.json --dry-run
    """
    from appliance.policy.policies import read_policy

    service = session.policies()
    wanted = read_policy(document(given, policy_name))
    losing = _ask(service, wanted.name, wanted, dry_run or yes)
    known = None if dry_run else service.add(wanted)
    if as_json:
        emit_json(_changed_json(service.preview(wanted), losing, known))
        return
    _show_preview(service.preview(wanted))
    if known is not None:
        say(f"Policy {known.name} is added.")


@policy.command()
@click.argument("policy_name", metavar="NAME")
@policy_options
@click.option(
    "--clear", "cleared", type=click.Choice(tuple(CLEARED)), multiple=True, help="Leave that out of the policy."
)
@_version
@_dry_run
@yes_option
@json_option
@pass_session
def edit(
    session: Session, /, policy_name: str, cleared: tuple[str, ...], seen: int | None, dry_run: bool, yes: bool,
    as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Change a policy: what an option says takes the place of what the policy said of that.

    With another schedule, due times that have passed are nobody's. It is asked first if restore points would go that
    stay now.

    \b
    Examples:
      strongroom policy edit nightly --keep-daily 30 --rpo 2d
      strongroom policy edit nightly --clear window --limit 50MB
      strongroom policy edit nightly --file nightly.json --if-version 3
    """
    from appliance.policy.policies import read_policy

    service = session.policies()
    stored = service.stored(policy_name)
    made = document(given, policy_name, stored.document)
    clear(made, cleared)
    wanted = read_policy(made)
    losing = _ask(service, policy_name, wanted, dry_run or yes)
    known = None if dry_run else service.replace(policy_name, wanted, seen=seen or stored.version)
    if as_json:
        emit_json(_changed_json(service.preview(wanted), losing, known))
        return
    _show_preview(service.preview(wanted))
    if known is not None:
        say(f"Policy {known.name} is changed: it is version {known.version} now.")


@policy.command()
@click.argument("policy_name", metavar="NAME")
@_version
@yes_option
@pass_session
def remove(session: Session, policy_name: str, seen: int | None, yes: bool) -> None:
    """Remove a policy. Restore points stay; of machines that another policy selects, some may go by that one's rules.

    \b
    Example:
      strongroom policy remove nightly
    """
    service = session.policies()
    stored = service.stored(policy_name)
    if not _ask(service, policy_name, None, yes):
        confirm(f"Remove policy {policy_name}?", yes)
    service.remove(policy_name, seen=seen or stored.version)
    say(f"Policy {policy_name} is removed.")


def _ask(service: PolicyService | RemotePolicies, name: str, wanted: Policy | None, yes: bool) -> tuple[Losing, ...]:
    """Before points would go that stay now."""
    losing = service.losing(name, wanted)
    for each in losing:
        first, last = each.points[0].created_utc, each.points[-1].created_utc
        warn(
            f"{len(each.points)} restore points of {each.machine.name} would go that stay now, of {moment(first)} to"
            f" {moment(last)}"
        )
    if losing:
        count = sum(len(each.points) for each in losing)
        confirm(f"{count} restore points of {len(losing)} machines go by this, at the next pruning. Shall they?", yes)
    return losing


@policy.command("list")
@json_option
@pass_session
def list_policies(session: Session, as_json: bool) -> None:
    """List policies, and what is paused. Ends with exit code 3 when one cannot be used.

    \b
    Example:
      strongroom policy list
    """
    service = session.policies()
    found, pauses = service.list(), service.pauses()
    if as_json:
        emit_json(
            {
                "policies": [policy_json(each) for each in found.readable],
                "unreadable": [{"error": str(each)} for each in found.unreadable],
                "paused_machines": [
                    {"machine": each.machine, "name": each.name, "paused_utc": each.paused_utc} for each in pauses
                ],
            }
        )
    else:
        table(
            ["name", "when", "zone", "machines", "kept", "RPO", "state"],
            [
                (
                    each.name,
                    each.policy.schedule.words,
                    each.policy.schedule.zone,
                    len(service.preview(each.policy).selected),
                    kept(each.policy),
                    None if each.policy.rpo is None else _span(each.policy.rpo),
                    "active" if each.paused_utc is None else f"paused since {moment(each.paused_utc)}",
                )
                for each in found.readable
            ],
            right=["machines"],
            empty="There is no policy." if not found.unreadable else "",
        )
        for pause in pauses:
            say(f"{pause.machine.partition(':')[0]} {pause.name} is paused since {moment(pause.paused_utc)}.")
    for broken in found.unreadable:
        warn(f"{broken}")
    exit_with(EXIT_PARTLY if found.unreadable else 0)


@policy.command()
@click.argument("policy_name", metavar="NAME")
@json_option
@pass_session
def show(session: Session, policy_name: str, as_json: bool) -> None:
    """Show a policy, in words or in JSON.

    \b
    Example:
      strongroom policy show nightly
    """
    service = session.policies()
    known = service.get(policy_name)
    if as_json:
        emit_json(policy_json(known))
        return
    paused = [] if known.paused_utc is None else [("paused since", moment(known.paused_utc))]
    facts([("policy", known.name), ("version", known.version), ("changed", moment(known.changed_utc)), *paused])
    facts(_facts(known.policy))
    _show_due(service.preview(known.policy))


@policy.command()
@click.argument("policy_name", metavar="NAME", required=False)
@click.option(
    "--file", "file", type=click.File("rb"), metavar="FILE", help="One that is not kept yet, in JSON ('-': from input)."
)
@json_option
@pass_session
def preview(session: Session, policy_name: str | None, file: IO[bytes] | None, as_json: bool) -> None:
    """Tell which machines a policy selects and by what, when it is due next, and what may not be meant.

    \b
    Examples:
      strongroom policy preview nightly
      strongroom policy preview --file office.json
    """
    from appliance.policy.policies import read_policy

    if (policy_name is None) == (file is None):
        raise click.UsageError("Give the name of a policy, or a --file.")
    service = session.policies()
    wanted = read_policy(read_json(file)) if file is not None else service.get(policy_name or "").policy
    found = service.preview(wanted)
    if as_json:
        emit_json(preview_json(found))
    else:
        _show_preview(found)


@policy.command()
@click.argument("policy_name", metavar="NAME", required=False)
@_machine
@_host
@pass_session
def pause(session: Session, policy_name: str | None, machine: str | None, host: str | None) -> None:
    """Pause a policy, or a machine under all policies: no run begins by it. What is under way goes on.

    \b
    Examples:
      strongroom policy pause nightly
      strongroom policy pause --vm web-1
    """
    _one(policy_name, machine)
    service = session.policies()
    if machine is not None:
        say(f"{service.pause_machine(machine, host).name} is paused.")
    else:
        say(f"Policy {service.pause(policy_name or '').name} is paused.")


@policy.command()
@click.argument("policy_name", metavar="NAME", required=False)
@_machine
@_host
@pass_session
def resume(session: Session, policy_name: str | None, machine: str | None, host: str | None) -> None:
    """End the pause of a policy or machine. A policy goes on with its next due time; a machine catches up once.

    \b
    Examples:
      strongroom policy resume nightly
      strongroom policy resume --vm web-1
    """
    _one(policy_name, machine)
    service = session.policies()
    if machine is None:
        say(f"Policy {service.resume(policy_name or '').name} is active.")
    elif service.resume_machine(machine, host):
        say(f"{machine} is active.")
    else:
        say(f"{machine} was not paused.")


def _one(policy_name: str | None, machine: str | None) -> None:
    if (policy_name is None) == (machine is None):
        raise click.UsageError("Give the name of a policy, or a machine with --vm.")


@policy.command()
@json_option
@pass_session
def due(session: Session, as_json: bool) -> None:
    """Tell which machines are due and wait for what, and which missed their RPO: of those that this appliance backs up.

    Ends with exit code 3 when an RPO is missed, or nobody looks.

    \b
    Example:
      strongroom policy due
    """
    from appliance.services.scheduling import SchedulingService

    found = SchedulingService(session.appliance).standing()
    if as_json:
        emit_json(standing_json(found))
    else:
        _show_standing(found)
    for concern in standing_concerns(found):
        warn(concern)
    exit_with(EXIT_PARTLY if standing_concerns(found) else 0)


@policy.command("export")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@pass_session
def export_policies(session: Session, names: tuple[str, ...]) -> None:
    """Print policies in JSON, all or those named: to be kept, or imported elsewhere.

    \b
    Example:
      strongroom policy export > policies.json
    """
    from appliance.services.policies import PolicyService

    service = PolicyService(session.appliance)
    found = [service.get(name).policy for name in names] if names else service.list().policies
    emit_json({"policies": [each.to_json() for each in found]})


@policy.command("import")
@click.argument("file", type=click.File("rb"), metavar="FILE")
@click.option("--replace", is_flag=True, help="Also those that are there under the same names.")
@_dry_run
@yes_option
@pass_session
def import_policies(session: Session, file: IO[bytes], replace: bool, dry_run: bool, yes: bool) -> None:
    """Add policies from what 'strongroom policy export' printed: all of them, or, if one is not valid, none.

    \b
    Example:
      strongroom policy import policies.json --dry-run
    """
    from appliance.services.policies import PolicyService
    from appliance.services.policies.service import read_policies

    service = PolicyService(session.appliance)
    wanted = read_policies(read_json(file))
    plan = service.plan_import(wanted, replace=replace)
    for each in plan.losing:
        warn(f"{len(each.points)} restore points of {each.machine.name} would go that stay now")
    table(
        ["name", "when", "becomes"],
        [(each.name, each.schedule.words, "changed" if each.name in plan.known else "added") for each in plan.policies],
        empty="There is no policy in it.",
    )
    if dry_run or not plan.policies:
        return
    if plan.losing:
        confirm(f"{sum(len(each.points) for each in plan.losing)} restore points go by this. Shall they?", yes)
    service.take_in(plan)
    say(f"Policies are taken in: {len(plan.policies)}.")


# How they look


def standing_concerns(found: Standing) -> list[str]:
    """What needs an eye, as sentences; of many that missed their RPO, some."""
    concerns = list(found.problems)
    if found.unserved:
        concerns.append(f"policies select {found.selected} machines, and nobody looks when: 'strongroom serve' does")
    for each in found.missed[:_SHOWN]:
        point = f"its newest restore point is of {moment(each.since_utc)}" if each.has_point else "it has none"
        paused = "; it is paused" if each.paused else ""
        concerns.append(f"{each.machine.name} misses its RPO of {_span(each.rpo)} ({each.policy}): {point}{paused}")
    if len(found.missed) > _SHOWN:
        concerns.append(f"{len(found.missed) - _SHOWN} more machines miss their RPO: 'strongroom policy due --json'")
    return concerns


def standing_json(found: Standing) -> dict[str, object]:
    """The form that scripts rely on."""
    return {
        "scheduler": {"alive": found.alive, "looked_utc": found.looked_utc, "next_utc": found.look.next_utc},
        "follows_utc": found.follows_utc,
        "selected": found.selected,
        "begins_now": [
            {
                **_machine_json(each.machine),
                "due": [{"policy": d.policy, "due_utc": d.due_utc, "cause": d.cause.value} for d in each.due],
            }
            for each in found.look.requests
        ],
        "waiting": [
            {
                **_machine_json(each.machine), "policies": list(each.policies), "why": each.why.name.lower(),
                "until_utc": each.until_utc,
            }
            for each in found.look.waiting
        ],
        "missed": [
            {
                **_machine_json(each.machine), "policy": each.policy, "rpo_minutes": each.rpo // timedelta(minutes=1),
                "since_utc": each.since_utc, "has_point": each.has_point, "paused": each.paused,
            }
            for each in found.missed
        ],
        "problems": list(found.problems),
    }  # fmt: skip


def _show_standing(found: Standing) -> None:
    facts(
        [
            ("scheduler", "alive" if found.alive else "none"),
            ("looked", moment(found.looked_utc)),
            ("looks again", moment(found.look.next_utc)),
            *([("prunes, verifies, copies", moment(found.follows_utc))] if found.follows_utc else []),
            ("machines", f"{found.selected} selected, {len(found.missed)} missed their RPO"),
        ]
    )
    now = [(e.machine, ", ".join(each.policy for each in e.due), "it begins now", None) for e in found.look.requests]
    waits = [(each.machine, ", ".join(each.policies), each.why.value, each.until_utc) for each in found.look.waiting]
    if now or waits:
        say()
    table(
        ["due", "host", "policies", "why it waits", "until"],
        [
            (machine.name, machine.host, policies, why, None if until is None else moment(until))
            for machine, policies, why, until in (*now, *waits)
        ],
    )


def policy_json(known: KnownPolicy) -> dict[str, object]:
    """The form that scripts rely on; `policy` is what --file takes."""
    return {
        "name": known.name,
        "version": known.version,
        "since_utc": known.since_utc,
        "changed_utc": known.changed_utc,
        "paused_utc": known.paused_utc,
        "words": known.policy.schedule.words,
        "policy": known.policy.to_json(),
    }


def preview_json(found: Preview) -> dict[str, object]:
    return {
        "words": found.words,
        "due_utc": list(found.due_utc),
        "selected": [_chosen_json(each) for each in found.selected],
        "excluded": [_chosen_json(each) for each in found.excluded],
        "remarks": list(found.remarks),
    }


def _chosen_json(each: Chosen) -> dict[str, object]:
    return {
        **_machine_json(each.machine), "tags": sorted(each.machine.tags), "clause": each.clause.to_json(),
        "other_policies": list(each.others),
    }  # fmt: skip


def _machine_json(machine: Machine) -> dict[str, object]:
    return {"kind": machine.kind.value, "id": machine.id, "name": machine.name, "host": machine.host}


def _changed_json(found: Preview, losing: Sequence[Losing], known: KnownPolicy | None) -> dict[str, object]:
    going = [
        {"machine": each.machine.key, "name": each.machine.name, "points": [point.id for point in each.points]}
        for each in losing
    ]
    return {
        "kept": None if known is None else policy_json(known),
        "policy": found.policy.to_json(),
        "preview": preview_json(found),
        "losing": going,
    }


def _show_preview(found: Preview) -> None:
    table(
        ["machine", "host", "selected", "by", "other policies"],
        [
            (each.machine.name, each.machine.host, selected, str(each.clause), ", ".join(each.others))
            for selected, some in (("yes", found.selected), ("no", found.excluded))
            for each in some
        ],
        empty="No machine that is known now is selected.",
    )
    say()
    _show_due(found)


def _show_due(found: Preview) -> None:
    say(f"{found.words}, {found.policy.schedule.zone}; next:")
    for due in found.due_utc:
        say(f"  {local(due, found.zone)}")
    for remark in found.remarks:
        warn(remark)


def local(value: datetime, zone: tzinfo) -> str:
    """As the clock is there, with the UTC offset, since one hour of a year comes twice."""
    there = value.astimezone(zone)
    offset = "UTC" if zone is UTC else there.strftime("%Z (UTC%z)")
    return f"{_WEEK[there.weekday()]} {there:%Y-%m-%d %H:%M} {offset}"


def _facts(found: Policy) -> list[tuple[str, object]]:
    return [
        ("selects", "; ".join(map(str, found.select.include))),
        *([("but not", "; ".join(map(str, found.select.exclude)))] if found.select.exclude else []),
        ("window", "always" if found.window is None else _window(found.window)),
        ("limit", "none" if found.limit_bytes_s is None else f"{size(found.limit_bytes_s)}/s"),
        ("per host", found.per_host),
        ("spread", f"{found.spread_s} s"),
        ("quiesce", "yes" if found.quiesce else "no"),
        ("RPO", "not watched" if found.rpo is None else _span(found.rpo)),
        ("kept", kept(found)),
        ("verified", "not by it" if found.verify_every_days is None else f"every {found.verify_every_days} days"),
        ("copied to", ", ".join(found.copies) or "nowhere"),
    ]


def kept(found: Policy) -> str:
    rules = found.retention
    if rules.empty:
        return "all"
    counts = {kind: getattr(rules, kind) for kind in ("last", "hourly", "daily", "weekly", "monthly", "yearly")}
    told = [f"{count} {kind}" for kind, count in counts.items() if count]
    if rules.within is not None:
        told.append(f"within {_span(rules.within)}")
    return ", ".join(told)


def _window(found: Window) -> str:
    spans = []
    for span in found.spans:
        days = "" if len(span.days) == 7 else ", ".join(_WEEK[day] for day in sorted(span.days)) + " "
        spans.append(f"{days}{span.begins:%H:%M}-{span.ends:%H:%M}")
    return "; ".join(spans)


def _span(span: timedelta) -> str:
    minutes = span // timedelta(minutes=1)
    if minutes % 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 4320 or minutes % 1440 else f"{minutes // 1440} days"
