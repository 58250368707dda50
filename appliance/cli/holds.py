"""`strongroom repository hold`: what keeps restore points from being deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.output import confirm, emit_json, moment, say, table
from appliance.cli.session import Session, json_option, pass_session, yes_option

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

    \b
    Example:
      strongroom repository hold list
    """
    from appliance.services.holds import HoldService

    found = HoldService(session.appliance).list()
    if as_json:
        emit_json([_json(held) for held in found])
        return
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
        empty="No restore point is held.",
    )


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
@yes_option
@pass_session
def release(session: Session, id: str, yes: bool) -> None:
    """Let go of a hold that nobody uses any more, by its id or a unique beginning of it.

    For what a lost catalog or another appliance, gone by now, has left. A hold whose use this home knows is refused:
    end that use. If something still reads the point and the point is then deleted, it loses its disks.

    \b
    Example:
      strongroom repository hold release 5c1d
    """
    from appliance.services.holds import HoldService

    service = HoldService(session.appliance)
    held = service.find(id)
    if not held.way_out:
        confirm(
            f"Let go of restore point {held.hold.point[:12]} of {held.name or 'an unknown machine'}, held for"
            f" {held.hold.purpose} since {moment(held.hold.created_utc)} ({held.use})?",
            yes,
        )
    service.release(held)
    say(f"Hold {held.hold.id} is released.")
