"""`strongroom user`: who may sign in to the console, and what they may do there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import confirm, emit_json, moment, say, table, tell, warn
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, json_option, pass_session, yes_option

if TYPE_CHECKING:
    from appliance.accounts import UserRecord
    from appliance.policy.selectors import Selector
    from appliance.services.accounts.setting_up import Link

ROLES = ("admin", "operator", "restorer", "viewer", "auditor")


@click.group()
def user() -> None:
    """Users of the console: admin (everything), operator (backs up and recovers), restorer (files of the machines
    granted to them), viewer (looks), auditor (looks, also at accounts and at the audit).

    Whoever may run strongroom on the appliance's machine needs none.
    """


def grant_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What somebody is granted; each selects machines."""
    for name, what in (
        ("image", "Images of this name."),
        ("tag", "Machines with this tag."),
        ("host", "Machines on this host."),
        ("vm", "Machines of this name."),
    ):
        command = click.option(f"--{name}", metavar="PATTERN", multiple=True, help=f"Grant: {what}")(command)
    return click.option("--all", "everything", is_flag=True, help="Grant: every virtual machine.")(command)


def grants_of(given: dict[str, Any]) -> tuple[Selector, ...]:
    """The grants that the options say; none: ()."""
    from appliance.policy.selectors import Clause, Selector

    clauses = [
        *([Clause()] if given["everything"] else []),
        *(Clause(name=each) for each in given["vm"]),
        *(Clause(host=each) for each in given["host"]),
        *(Clause(tag=each) for each in given["tag"]),
        *(Clause(image=each) for each in given["image"]),
    ]
    return (Selector(tuple(clauses)),) if clauses else ()


def grant_words(grants: tuple[Selector, ...]) -> str:
    return "; ".join(map(str, grants))


@user.command("setup-link")
@click.argument("name", required=False)
@json_option
@pass_session
def setup_link(session: Session, name: str | None, as_json: bool) -> None:
    """Make a link by which the first admin sets up their account; or the user NAME theirs, anew.

    It is good once, for a day, and takes the place of an earlier one. Whoever has it has the account.

    \b
    Examples:
      strongroom user setup-link
      strongroom user setup-link alice
    """
    from appliance.services.access import local_actor
    from appliance.services.accounts.setting_up import SetUpService
    from appliance.services.accounts.users import UserService

    if name is None:
        link = SetUpService(session.appliance).first_link(local_actor())
    else:
        link = UserService(session.appliance).reset(local_actor(), name).link
    if as_json:
        emit_json(_link_json(session, link))
    else:
        _show_link(session, link)


def _link_json(session: Session, link: Link) -> dict[str, object]:
    return {"url": session.settings().web.url.rstrip("/") + link.path, "expires_utc": link.expires_utc}


def _show_link(session: Session, link: Link) -> None:
    say(str(_link_json(session, link)["url"]))
    tell(f"It is good once, until {moment(link.expires_utc)}; on another machine, with the console's name in it.")


@user.command("list")
@json_option
@pass_session
def list_users(session: Session, as_json: bool) -> None:
    """List the users.

    \b
    Example:
      strongroom user list
    """
    from appliance.services.access import local_actor
    from appliance.services.accounts.users import UserService

    found = UserService(session.appliance).list(local_actor())
    if as_json:
        emit_json([_json(each) for each in found])
        return
    table(
        ["name", "role", "granted", "state", "last signed in"],
        [
            (
                each.name,
                each.role,
                grant_words(each.selectors) or "everything",
                _state(each),
                moment(each.signed_in_utc),
            )
            for each in found
        ],
        empty="There is no user: 'strongroom user setup-link' makes a link for the first one.",
    )


def _state(user: UserRecord) -> str:
    return "disabled" if not user.enabled else "set up" if user.ready else "has not used their link"


def _json(user: UserRecord) -> dict[str, object]:
    return {
        "id": user.id,
        "name": user.name,
        "role": user.role.value,
        "grants": list(user.grants),
        "created_utc": user.created_utc,
        "disabled_utc": user.disabled_utc,
        "set_up": user.ready,
        "signed_in_utc": user.signed_in_utc,
    }


@user.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True)
@grant_options
@json_option
@pass_session
def add(session: Session, /, name: str, role: str, as_json: bool, **given: Any) -> None:
    """Add a user, and print the link by which they set up their account.

    Without a grant they may do what their role says with every machine; a restorer has to be granted some. With one,
    they see and do nothing else.

    \b
    Examples:
      strongroom user add alice --role admin
      strongroom user add rita --role restorer --vm 'web-*' --tag team=web
    """
    from appliance.acts import Role
    from appliance.services.access import local_actor
    from appliance.services.accounts.users import UserService

    made = UserService(session.appliance).add(local_actor(), name, Role(role), grants_of(given))
    if as_json:
        emit_json(_json(made.user) | {"link": _link_json(session, made.link)})
        return
    tell(f"User {made.user.name} is added. Their link:")
    _show_link(session, made.link)


@user.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES))
@grant_options
@click.option("--no-grants", is_flag=True, help="Everything that the role says, with every machine.")
@json_option
@pass_session
def edit(session: Session, /, name: str, role: str | None, no_grants: bool, as_json: bool, **given: Any) -> None:
    """Give a user another role or other grants, which take the place of those they had. It counts at once.

    \b
    Examples:
      strongroom user edit bob --role viewer
      strongroom user edit rita --vm 'web-*' --vm 'shop-*'
    """
    from appliance.acts import Role
    from appliance.services.access import local_actor
    from appliance.services.accounts.users import UserService

    grants = grants_of(given)
    if no_grants and grants:
        raise click.UsageError("Give --no-grants, or grants.")
    if role is None and not grants and not no_grants:
        raise click.UsageError("Nothing is to change: give --role, or grants, or --no-grants.")
    changed = UserService(session.appliance).edit(
        local_actor(), name, role=Role(role) if role else None, grants=grants if grants or no_grants else None
    )
    if as_json:
        emit_json(_json(changed))
        return
    say(f"User {changed.name} is {changed.role}, with {grant_words(changed.selectors) or 'every machine'}.")


@user.command()
@click.argument("name")
@click.option("--off", is_flag=True, help="Let them sign in again.")
@json_option
@pass_session
def disable(session: Session, name: str, off: bool, as_json: bool) -> None:
    """Keep a user out: their sessions end at once, and their tokens count no more.

    \b
    Examples:
      strongroom user disable bob
      strongroom user disable bob --off
    """
    from appliance.services.access import local_actor
    from appliance.services.accounts.users import UserService

    service = UserService(session.appliance)
    changed = service.enable(local_actor(), name) if off else service.disable(local_actor(), name)
    if as_json:
        emit_json(_json(changed))
        return
    say(f"User {changed.name} {'may sign in again' if off else 'is disabled'}.")


@user.command()
@click.argument("name")
@json_option
@pass_session
def reset(session: Session, name: str, as_json: bool) -> None:
    """Make a link by which a user sets up password, second factor and recovery codes anew.

    Until it is used, they sign in as before. However many sign-ins failed, it waits for nothing.

    \b
    Example:
      strongroom user reset alice
    """
    from appliance.services.access import local_actor
    from appliance.services.accounts.users import UserService

    made = UserService(session.appliance).reset(local_actor(), name)
    if as_json:
        emit_json(_link_json(session, made.link))
    else:
        _show_link(session, made.link)


@user.command()
@click.argument("name")
@yes_option
@pass_session
def remove(session: Session, name: str, yes: bool) -> None:
    """Remove a user, with their sessions and tokens. What they did stays in the audit.

    \b
    Example:
      strongroom user remove bob --yes
    """
    from appliance.services.access import local_actor
    from appliance.services.accounts.users import UserService

    service = UserService(session.appliance)
    found = service.get(local_actor(), name)
    confirm(f"Remove user {found.name}?", yes)
    service.remove(local_actor(), found.id)
    say(f"User {found.name} is removed.")


@user.command("renew-key")
@yes_option
@pass_session
def renew_key(session: Session, yes: bool) -> None:
    """Seal the second factors in the catalog with a new key (keys/catalog-ID.key in the home).

    Where the old key is at hand, nobody notices but who has a set-up link: those count no more. Where it is lost,
    everybody has to set their second factor up anew. Another home of a shared catalog gets the new key from the
    repository.

    \b
    Example:
      strongroom user renew-key
    """
    from appliance.services.access import local_actor
    from appliance.services.accounts.users import UserService

    confirm("Make a new key for second factors? Set-up links that were not used yet count no more.", yes)
    lost = UserService(session.appliance).renew_key(local_actor())
    say("Second factors are sealed with a new key.")
    if lost:
        warn(f"the key before is lost, so these have to set up anew ('strongroom user reset NAME'): {', '.join(lost)}")
        exit_with(EXIT_PARTLY)
