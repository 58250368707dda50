"""`strongroom repository hold`: what keeps restore points from being deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.output import confirm, emit_json, moment, say, table, warn
from appliance.cli.requests import ask_for, ask_options
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, json_option, pass_session, yes_option

if TYPE_CHECKING:
    from appliance.services.holds import HeldPoint


@click.group()
def hold() -> None:
    """Holds: each keeps a restore point from being deleted while something uses it."""


@hold.command("list")
@json_option
@pass_session
def list_holds(session: Session, as_json: bool) -> None:
    """List the holds, oldest first, and what uses each.

    Ends with exit code 3 when a hold cannot be read.

    \b
    Example:
      strongroom repository hold list
    """
    from appliance.services.holds import HoldService

    found, damaged = HoldService(session.appliance).list()
    if as_json:
        emit_json([_json(held) for held in found])
    else:
        table(
            ["id", "point", "of", "for", "since", "used by"],
            [
                (
                    held.hold.id[:12],
                    held.hold.point[:12],
                    held.name,
                    held.hold.purpose,
                    moment(held.hold.created_utc),
                    held.use,
                )
                for held in found
            ],
            empty="No restore point is held." if not damaged else "",
        )
    for each in damaged:
        warn(f"hold {each.id} cannot be read, so nothing is deleted: {each.error}")
    exit_with(EXIT_PARTLY if damaged else 0)


def _json(held: HeldPoint) -> dict[str, object]:
    return {
        "id": held.hold.id,
        "point": held.hold.point,
        "name": held.name,
        "purpose": held.hold.purpose,
        "owner": held.hold.owner,
        "created_utc": held.hold.created_utc,
        "use": held.use,
        "known": bool(held.way_out),
    }


@hold.command()
@click.argument("id")
@ask_options
@yes_option
@pass_session
def release(session: Session, id: str, ask: str | None, reason: str, yes: bool) -> None:
    """Let go of a hold that nobody uses any more, by its id or a unique beginning of it.

    For what a lost catalog or another appliance, gone by now, has left. A hold whose use this home knows is refused:
    end that use. If something still reads the point and the point is then deleted, it loses its disks.

    So is one that cannot be read: while it is there, nothing is deleted. It may be a protection, so that a guarded
    repository wants to be asked for it.

    \b
    Examples:
      strongroom repository hold release 5c1d
      strongroom repository hold release 5c1d --ask alice --reason 'its disk lost it'
    """
    from appliance.services.guard import GuardService
    from appliance.services.holds import HoldService
    from imaging.points import DamagedHold

    service = HoldService(session.appliance)
    held = service.find(id)
    if ask is not None:
        ask_for(session, [GuardService(session.appliance).releasing(held)], ask, reason)
        return
    if isinstance(held, DamagedHold):
        warn(f"hold {held.id} cannot be read: {held.error}")
        confirm("Which point it keeps is not known, nor whether an admin protected it. Let go of it?", yes)
        service.release(held)
        say(f"Hold {held.id} is released.")
        return
    if not held.way_out:
        confirm(
            f"Let go of restore point {held.hold.point[:12]} of {held.name or 'an unknown machine'}, held for"
            f" {held.hold.purpose} since {moment(held.hold.created_utc)} ({held.use})?",
            yes,
        )
    service.release(held)
    say(f"Hold {held.hold.id} is released.")
