"""`strongroom appliance`: those that share the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from appliance.cli.output import confirm, emit_json, moment, say, table
from appliance.cli.session import Session, json_option, pass_session, yes_option

if TYPE_CHECKING:
    from appliance.services.fleet import Member


@click.group()
def appliance() -> None:
    """Appliances that share a catalog in PostgreSQL; without one, there is this one alone."""


@appliance.command("list")
@json_option
@pass_session
def list_appliances(session: Session, as_json: bool) -> None:
    """List the appliances of the catalog, when each was last seen, and what it has under way.

    \b
    Example:
      strongroom appliance list
    """
    from appliance.services.fleet import FleetService

    service = FleetService(session.appliance)
    members, names = service.members(), service.names()
    if as_json:
        emit_json([_json(member) for member in members])
        return
    table(
        ["id", "name", "home", "last seen", "under way"],
        [
            (
                member.record.id[:12],
                names[member.record.id] + (" (this one)" if member.own else ""),
                member.record.home,
                moment(member.record.seen_utc),
                _words(member.under_way),
            )
            for member in members
        ],
    )


@appliance.command("take-over")
@click.argument("id")
@yes_option
@json_option
@pass_session
def take_over(session: Session, id: str, yes: bool, as_json: bool) -> None:
    """Take on what an appliance that is gone for good has under way, and its hosts.

    What its dead processes left is then cleaned up from here, thaws that it owed are paid, and its recoveries are
    resumed or discarded here. If it still lives, its backups are cut off: only you can know.

    \b
    Example:
      strongroom appliance take-over 5c1d
    """
    from appliance.services.fleet import FleetService

    service = FleetService(session.appliance)
    member = service.find(id)
    name = service.name(member.record.id)
    confirm(
        f"Is appliance {name} ({member.record.home}, last seen {moment(member.record.seen_utc)}) gone for good? Take on"
        f" what it has under way ({_words(member.under_way)})?",
        yes,
    )
    done = service.take_over(member.record.id)
    if as_json:
        emit_json({"id": done.record.id, "taken": dict(done.taken), "hosts": list(done.hosts)})
        return
    say(f"Appliance {name} is taken over: {_words(done.taken)}.")
    if done.hosts:
        say(
            f"Its hosts are known here now: {', '.join(done.hosts)}. One that was local there means this machine here:"
            " remove it ('strongroom host remove') once nothing is owed to it any more."
        )
    say("'strongroom recovery resume' takes its recoveries up; the next backup, or 'strongroom serve', cleans up.")


def _words(under_way: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {count}" for what, count in under_way.items() if count) or "nothing"


def _json(member: Member) -> dict[str, object]:
    record = member.record
    return {
        "id": record.id,
        "name": record.name,
        "home": record.home,
        "own": member.own,
        "created_utc": record.created_utc,
        "seen_utc": record.seen_utc,
        "under_way": dict(member.under_way),
    }
