"""`strongroom token`: what programs show to the API."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import emit_json, moment, say, table, tell, warn
from appliance.cli.session import Session, json_option, pass_session
from appliance.cli.users import ROLES, grant_options, grant_words, grants_of

if TYPE_CHECKING:
    from appliance.services.accounts.tokens import TokenView

_OPENING = frozenset({"key.add", "token.add", "user.enable", "user.reset", "user.save"})


@click.group()
def token() -> None:
    """API tokens: who a program is."""


@token.command("list")
@json_option
@pass_session
def list_tokens(session: Session, as_json: bool) -> None:
    """List the tokens, newest first; never the secrets, which are not kept.

    \b
    Example:
      strongroom token list
    """
    from appliance.services.access import local_actor
    from appliance.services.accounts.tokens import TokenService

    found = TokenService(session.appliance).list(local_actor())
    if as_json:
        emit_json([_json(each) for each in found])
        return
    table(
        ["id", "name", "role", "acts", "granted", "owner", "good until", "last used", "from"],
        [
            (
                each.record.id[:12],
                each.record.name,
                each.record.role,
                "of the role" if each.record.acts is None else " ".join(each.record.acts),
                grant_words(each.record.selectors) or "everything",
                each.owner,
                "revoked" if each.record.revoked_utc else moment(each.record.expires_utc),
                moment(each.record.used_utc),
                each.record.used_from,
            )
            for each in found
        ],
        empty="There is no token.",
    )


def _json(view: TokenView) -> dict[str, object]:
    record = view.record
    return {
        "id": record.id,
        "name": record.name,
        "owner": view.owner,
        "role": record.role.value,
        "acts": None if record.acts is None else list(record.acts),
        "grants": list(record.grants),
        "created_utc": record.created_utc,
        "expires_utc": record.expires_utc,
        "revoked_utc": record.revoked_utc,
        "used_utc": record.used_utc,
        "used_from": record.used_from or None,
    }


@token.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="It may do what this role may, at most.")
@click.option("--act", "acts", metavar="ACT", multiple=True, help="Only this act, such as run.start; may be repeated.")
@click.option("--days", type=click.IntRange(1, 366), default=90, show_default=True, help="How long it is good.")
@click.option("--owner", metavar="USER", help="The user whose it is: worth no more than they are, and gone with them.")
@grant_options
@json_option
@pass_session
def add(
    session: Session, /, name: str, role: str, acts: tuple[str, ...], days: int, owner: str | None, as_json: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Make a token, and print its secret, which is shown this once.

    An act that loses something (point.delete, policy.save, …) is allowed only to a token that names it with --act.

    \b
    Examples:
      strongroom token add monitoring --role viewer
      strongroom token add ci --role operator --act run.start --vm 'web-*' --days 30
    """
    from appliance.acts import Act, Role
    from appliance.services.access import local_actor
    from appliance.services.accounts.tokens import TokenService

    unknown = [each for each in acts if each not in set(Act)]
    if unknown:
        raise click.UsageError(f"There is no act {unknown[0]}. Acts: {', '.join(sorted(Act))}.")
    made = TokenService(session.appliance).add(
        local_actor(), name, Role(role), acts=[Act(each) for each in acts] if acts else None, grants=grants_of(given),
        good_for=timedelta(days=days), owner=owner,
    )  # fmt: skip
    if as_json:
        emit_json({"id": made.record.id, "token": made.secret, "expires_utc": made.record.expires_utc})
        return
    opening = sorted(set(acts) & _OPENING)
    if opening:
        warn(
            f"whoever has this token can let others in ({', '.join(opening)}), as anybody but an admin: keep it as you"
            " keep a password, and revoke it when it is not needed any more"
        )
    tell(f"Token {made.record.id[:12]} is good until {moment(made.record.expires_utc)}. It is shown this once:")
    say(made.secret)


@token.command()
@click.argument("id")
@pass_session
def revoke(session: Session, id: str) -> None:
    """Make a token worthless, at once and for ever. The ID is that of 'token list', or a unique beginning of it.

    \b
    Example:
      strongroom token revoke 3f7a
    """
    from appliance.services.access import local_actor
    from appliance.services.accounts.tokens import TokenService

    record = TokenService(session.appliance).revoke(local_actor(), id)
    say(f"Token {record.id[:12]} ({record.name}) is revoked.")
