"""`strongroom request`: what was asked of a guarded repository, confirmed, refused and carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import confirm as confirmed
from appliance.cli.output import duration, emit_json, facts, moment, say, table, tell, warn
from appliance.cli.passphrases import person_passphrase
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, json_option, pass_session, yes_option

if TYPE_CHECKING:
    from appliance.services.guard import Told
    from imaging.guard.acts import Act
    from imaging.guard.requests import DamagedRequest


def ask_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--ask and --reason, for commands that a guard may refuse."""
    command = click.option("--reason", metavar="TEXT", default="", help="With --ask: why, for who confirms it.")(
        command
    )
    return click.option(
        "--ask", metavar="PERSON", help="Where the guard does not let it go freely: ask for it, as this person."
    )(command)


def ask_for(
    session: Session,
    acts: Sequence[Act],
    person: str,
    reason: str,
    as_json: bool = False,
    quiet: bool = False,
) -> None:
    """Make a request for each of these, and say what comes next (`quiet`: on standard error alone)."""
    from appliance.services.guard import GuardService

    service = GuardService(session.appliance)
    passphrase = person_passphrase(person)
    asked = [service.ask(act, person, passphrase, reason) for act in acts]
    if as_json:
        emit_json([request_json(told) for told in asked])
        return
    for told in asked:
        for line in (f"Request {told.request.id}: {told.request.ask.act.describe()}.", *told.subjects):
            (tell if quiet else say)(line)
    tell("Next: another person gives 'strongroom request confirm ID --person NAME'; after the delay, 'request apply'.")


def request_json(told: Told) -> dict[str, object]:
    """The form that scripts rely on."""
    from imaging.guard.acts import encode_act

    request = told.request
    return {
        "id": request.id,
        "standing": request.standing.value,
        "act": encode_act(request.ask.act),
        "words": request.ask.act.describe(),
        "subjects": list(told.subjects),
        "asked_by": told.asked_by,
        "reason": request.ask.reason,
        "created_utc": request.ask.created_utc,
        "expires_utc": request.ask.expires_utc,
        "confirmed_by": list(told.confirmed_by),
        "remaining_s": None if request.remaining_s is None else round(request.remaining_s),
        "refused_because": request.decision.reason if request.decision and request.standing == "refused" else None,
        "void_because": request.flaw if request.standing == "void" else None,
    }


def standing_words(told: Told) -> str:
    request = told.request
    match request.standing.value:
        case "asked":
            return "waits for another person's confirmation"
        case "waiting":
            return f"confirmed; {duration(request.remaining_s or 0.0)} of the delay are left"
        case "due":
            return "can be carried out"
        case "released":
            return "is being carried out, or was interrupted: 'request apply' goes on"
        case "done":
            return "carried out"
        case "refused":
            return f"refused: {request.decision.reason if request.decision else ''}"
        case "expired":
            return "too old"
        case _:
            return f"counts no more: {request.flaw}"


@click.group()
def request() -> None:
    """Requests: what a guarded repository lets go only when a second person confirms it, and after a delay."""


@request.command("list")
@click.option("--all", "closed", is_flag=True, help="Also those that are over.")
@json_option
@pass_session
def list_requests(session: Session, closed: bool, as_json: bool) -> None:
    """List the open requests, oldest first.

    Ends with exit code 3 when a request cannot be read.

    \b
    Examples:
      strongroom request list
      strongroom request list --all --json
    """
    from appliance.services.guard import GuardService

    found, damaged = GuardService(session.appliance).requests(closed=closed)
    if as_json:
        emit_json([request_json(told) for told in found])
    else:
        table(
            ["id", "to", "asked by", "on", "confirmed by", "how it stands"],
            [
                (
                    told.request.id[:12],
                    told.request.ask.act.describe(),
                    told.asked_by,
                    moment(told.request.ask.created_utc),
                    ", ".join(told.confirmed_by),
                    standing_words(told),
                )
                for told in found
            ],
            empty="There is no open request." if not closed else "There is no request.",
        )
    warn_damaged_requests(damaged)
    exit_with(EXIT_PARTLY if damaged else 0)


def warn_damaged_requests(damaged: Sequence[DamagedRequest]) -> None:
    for each in damaged:
        warn(f"request {each.id} cannot be read, and is not carried out: {each.error}")


@request.command()
@click.argument("id")
@json_option
@pass_session
def show(session: Session, id: str, as_json: bool) -> None:
    """Show a request, and what it is about as the repository has it now.

    \b
    Example:
      strongroom request show 5c1d
    """
    from appliance.services.guard import GuardService

    told = GuardService(session.appliance).request(id)
    if as_json:
        emit_json(request_json(told))
    else:
        _show(told)


def _show(told: Told) -> None:
    ask = told.request.ask
    facts(
        [
            ("request", ask.id),
            ("to", ask.act.describe()),
            ("asked by", told.asked_by),
            ("because", ask.reason),
            ("on", moment(ask.created_utc)),
            ("good until", moment(ask.expires_utc)),
            ("confirmed by", ", ".join(told.confirmed_by)),
            ("how it stands", standing_words(told)),
        ]
    )
    table(["what it is about"], [(subject,) for subject in told.subjects])


@request.command()
@click.argument("id")
@click.option("--person", metavar="NAME", required=True, help="Who confirms it: not who asked.")
@yes_option
@json_option
@pass_session
def confirm(session: Session, id: str, person: str, yes: bool, as_json: bool) -> None:
    """Confirm a request, as another person of the guard than who asked. From then on the delay counts.

    The person's passphrase comes from STRONGROOM_PERSON_PASSPHRASE or is asked for.

    \b
    Example:
      strongroom request confirm 5c1d --person bob
    """
    from appliance.services.guard import GuardService

    service = GuardService(session.appliance)
    told = service.request(id)
    if not as_json:
        _show(told)
    confirmed("Confirm it?", yes)
    told = service.confirm(told.request.id, person, person_passphrase(person))
    if as_json:
        emit_json(request_json(told))
        return
    say(f"Request {told.request.id} is confirmed: it {standing_words(told).removeprefix('confirmed; ')}.")


@request.command()
@click.argument("id")
@click.option("--reason", metavar="TEXT", default="", help="Why, for those who signed it.")
@json_option
@pass_session
def refuse(session: Session, id: str, reason: str, as_json: bool) -> None:
    """Refuse a request, or take one's own back: for ever. It takes no passphrase.

    Whoever sees a request that should not be there can stop it, until it is being carried out.

    \b
    Example:
      strongroom request refuse 5c1d --reason 'nobody told me'
    """
    from appliance.services.guard import GuardService

    told = GuardService(session.appliance).refuse(id, reason)
    if as_json:
        emit_json(request_json(told))
    else:
        say(f"Request {told.request.id} is refused.")


@request.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@json_option
@pass_session
def apply(session: Session, ids: tuple[str, ...], as_json: bool) -> None:
    """Carry out requests that are confirmed and whose delay is over: those named, or all that are due.

    To be run by cron as well: it is also by this that the appliance sees confirmations and counts their delay. What was
    interrupted is gone on with. Deleted points can be collected afterwards. Ends with exit code 3 when something could
    not be done: it stays for the next time.

    \b
    Examples:
      strongroom request apply
      strongroom request apply 5c1d
    """
    from appliance.services.guard import GuardService

    done = GuardService(session.appliance).apply(ids)
    if as_json:
        emit_json([{"id": each.told.request.id, "problems": list(each.problems)} for each in done])
    elif not done:
        tell("No request is due.")
    for each in done:
        if not each.problems and not as_json:
            say(f"Request {each.told.request.id} is carried out: {each.told.request.ask.act.describe()}.")
        for problem in each.problems:
            warn(f"request {each.told.request.id}: {problem}")
    exit_with(EXIT_PARTLY if any(each.problems for each in done) else 0)
