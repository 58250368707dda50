"""`strongroom policy`: which machines are backed up when, and what is kept of them."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import click

from appliance.cli.output import confirm, emit_json, facts, moment, say, table, warn
from appliance.cli.policy_looks import (
    changed_json,
    kept,
    policy_facts,
    policy_json,
    preview_json,
    show_due,
    show_preview,
    show_standing,
    span_of,
    standing_concerns,
    standing_json,
)
from appliance.cli.policy_options import CLEARED, clear, document, policy_options, read_json
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, json_option, pass_session, yes_option

if TYPE_CHECKING:
    from appliance.policy.policies import Policy
    from appliance.remote.services import RemotePolicies
    from appliance.services.policies import PolicyService
    from appliance.services.policies.service import Losing

_dry_run = click.option("--dry-run", is_flag=True, help="Only tell what it would do.")
_version = click.option(
    "--if-version", "seen", type=click.IntRange(1), metavar="N", help="Only if it is of that version still."
)
_machine = click.option("--vm", "machine", metavar="VM", help="A machine, by name or UUID, or image:NAME.")
_host = click.option("--host", metavar="HOST", help="The machine's host, if several have one of that name.")


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
        emit_json(changed_json(service.preview(wanted), losing, known))
        return
    show_preview(service.preview(wanted))
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
        emit_json(changed_json(service.preview(wanted), losing, known))
        return
    show_preview(service.preview(wanted))
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
                    None if each.policy.rpo is None else span_of(each.policy.rpo),
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
    facts(policy_facts(known.policy))
    show_due(service.preview(known.policy))


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
        show_preview(found)


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
        show_standing(found)
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
