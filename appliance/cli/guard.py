"""`strongroom repository guard`: who has to agree before something is deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.maintenance import Span
from appliance.cli.output import confirm, emit_json, facts, moment, say, table, tell, warn
from appliance.cli.passphrases import NEW_VARIABLE, new_passphrase, person_passphrase
from appliance.cli.requests import ask_for
from appliance.cli.session import Session, json_option, pass_session, yes_option

if TYPE_CHECKING:
    from imaging.guard.rules import Rules

_COUNT = click.IntRange(1, 100_000)


def _rule_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--keep-points", type=_COUNT, metavar="N", help="… and only when N later points are there. At first: 7."
        ),
        click.option("--keep-all", is_flag=True, help="No point ever goes without asking."),
        click.option(
            "--keep-days", type=_COUNT, metavar="N",
            help="A point goes freely only when points of N other days came after it. At first: 30.",
        ),
        click.option(
            "--delay", type=Span(), metavar="SPAN", help="From the confirmation until it may happen. At first: 24h."
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _edited(
    rules: Rules, delay: timedelta | None, keep_days: int | None, keep_all: bool, keep_points: int | None
) -> Rules:
    if keep_all and keep_days is not None:
        raise click.UsageError("--keep-all and --keep-days exclude each other")
    if delay is not None:
        rules = replace(rules, delay_s=round(delay.total_seconds()))
    if keep_days is not None or keep_all:
        rules = replace(rules, keep_days=keep_days)
    return rules if keep_points is None else replace(rules, keep_points=keep_points)


@click.group()
def guard() -> None:
    """The guard: what is deleted only when two persons agree, and after a delay.

    It holds for every appliance that works with the repository. It protects from who works through Strongroom with a
    stolen session, or errs; not from who holds the storage and a key: lock objects in the store against those.
    """


@guard.command()
@json_option
@pass_session
def show(session: Session, as_json: bool) -> None:
    """Show the guard's rules and persons.

    \b
    Example:
      strongroom repository guard show
    """
    from appliance.services.guard import GuardService

    service = GuardService(session.appliance)
    state, persons = service.state(), service.persons()
    rules = state.rules
    if as_json:
        emit_json(
            {
                "on": rules.on,
                "append_only": rules.append_only,
                "state": state.number,
                "since_utc": state.created_utc,
                "delay_s": rules.delay_s if rules.on else None,
                "keep_days": rules.keep_days if rules.on else None,
                "keep_points": rules.keep_points if rules.on else None,
                "persons": [
                    {"id": each.person.id, "name": each.person.name, "of_the_guard": each.counts} for each in persons
                ],
            }
        )
        return
    if not rules.on:
        say("The repository has no guard: whoever works with an appliance of it deletes what they want.")
    else:
        kept = "all" if rules.keep_days is None else f"until points of {rules.keep_days} other days came after"
        number = "" if rules.keep_days is None else f", {rules.keep_points} points at least"
        facts(
            [
                ("guard", "on, append-only: nobody can change it" if rules.append_only else "on"),
                ("since", moment(state.created_utc)),
                ("delay", f"{rules.delay_s / 3600:g} hours"),
                ("guaranteed", kept + number),
            ]
        )
    table(
        ["person", "id", "of the guard"],
        [(each.person.name, each.person.id, "yes" if each.counts else "no") for each in persons],
    )


@guard.command()
@click.argument("name")
@pass_session
def enrol(session: Session, name: str) -> None:
    """Make a key for a person, sealed under a passphrase of their own. To be typed by that person.

    By itself it entitles to nothing: 'guard on' and 'guard change --add' make somebody a person of the guard. The
    passphrase comes from STRONGROOM_NEW_PASSPHRASE or is asked for; nobody can tell or reset it.

    \b
    Example:
      strongroom repository guard enrol alice
    """
    from appliance.services.guard import GuardService

    made = GuardService(session.appliance).enrol(name, new_passphrase(NEW_VARIABLE))
    say(f"{made.name} is enrolled as {made.id}.")


@guard.command()
@click.argument("name")
@pass_session
def passphrase(session: Session, name: str) -> None:
    """Change a person's passphrase.

    The old one comes from STRONGROOM_PERSON_PASSPHRASE or is asked for, the new one from STRONGROOM_NEW_PASSPHRASE. The
    key stays: who has copied the repository and knows the old passphrase can still sign. If it was stolen, take the
    person out of the guard, and enrol them anew.

    \b
    Example:
      strongroom repository guard passphrase alice
    """
    from appliance.services.guard import GuardService

    service = GuardService(session.appliance)
    old = person_passphrase(name)
    service.check_passphrase(name, old)
    person = service.change_passphrase(name, old, new_passphrase(NEW_VARIABLE))
    say(f"The passphrase of {person.name} is changed.")


@guard.command("on")
@click.argument("names", metavar="[PERSON]...", nargs=-1)
@_rule_options
@click.option(
    "--append-only", is_flag=True, help="Without persons: what is guaranteed can never be deleted by anybody."
)
@yes_option
@pass_session
def turn_on(
    session: Session,
    names: tuple[str, ...],
    delay: timedelta | None,
    keep_days: int | None,
    keep_all: bool,
    keep_points: int | None,
    append_only: bool,
    yes: bool,
) -> None:
    """Guard the repository from now on, with these persons, who are enrolled.

    What then takes a request, another person's confirmation and the delay: deleting points that are guaranteed, or
    damaged; lifting the protection of a point; removing a key slot; any change of the guard. 'prune' goes on, and stops
    at what is guaranteed. Two persons are the least, three better: of two, one forgotten passphrase makes the guard one
    that nobody can change.

    \b
    Examples:
      strongroom repository guard on alice bob carol
      strongroom repository guard on alice bob carol --delay 72h --keep-days 90 --keep-points 14
      strongroom repository guard on --append-only --keep-days 30
    """
    from appliance.services.guard import GuardService, differences
    from imaging.guard.rules import Rules

    service = GuardService(session.appliance)
    wanted = _edited(Rules(on=True), delay, keep_days, keep_all, keep_points)
    change = service.plan_on(
        names,
        delay_s=wanted.delay_s,
        keep_days=wanted.keep_days,
        keep_points=wanted.keep_points,
        append_only=append_only,
    )
    for line in differences(service.state().rules, change.rules):
        tell(line)
    if append_only:
        warn("nobody will ever be able to delete what is guaranteed, remove a key, or turn this off")
    confirm("Turn the guard on?", yes)
    service.turn_on(change)
    say("The repository is guarded.")
    if len(change.rules.persons) == 2:
        warn("of two persons, one forgotten passphrase is enough that nobody can change the guard: make it three")


@guard.command()
@_rule_options
@click.option("--add", metavar="NAME", multiple=True, help="Make somebody who is enrolled a person of the guard.")
@click.option("--remove", metavar="NAME", multiple=True, help="Take a person out of the guard.")
@click.option("--ask", metavar="PERSON", required=True, help="Who asks for it.")
@click.option("--reason", metavar="TEXT", default="", help="Why, for who confirms it.")
@json_option
@pass_session
def change(
    session: Session,
    delay: timedelta | None,
    keep_days: int | None,
    keep_all: bool,
    keep_points: int | None,
    add: tuple[str, ...],
    remove: tuple[str, ...],
    ask: str,
    reason: str,
    as_json: bool,
) -> None:
    """Ask for other rules or persons. As for everything guarded, another person confirms it, and the delay counts.

    \b
    Examples:
      strongroom repository guard change --keep-days 60 --ask alice
      strongroom repository guard change --add dora --remove bob --ask alice --reason 'bob has left'
    """
    from appliance.services.guard import GuardService

    planned = GuardService(session.appliance).plan_change(
        lambda rules: _edited(rules, delay, keep_days, keep_all, keep_points), add=add, remove=remove
    )
    ask_for(session, [planned], ask, reason, as_json)


@guard.command("off")
@click.option("--ask", metavar="PERSON", required=True, help="Who asks for it.")
@click.option("--reason", metavar="TEXT", default="", help="Why, for who confirms it.")
@json_option
@pass_session
def turn_off(session: Session, ask: str, reason: str, as_json: bool) -> None:
    """Ask for the guard to be turned off. As for everything guarded, another person confirms it, and the delay counts.

    \b
    Example:
      strongroom repository guard off --ask alice
    """
    from appliance.services.guard import GuardService

    ask_for(session, [GuardService(session.appliance).plan_off()], ask, reason, as_json)
