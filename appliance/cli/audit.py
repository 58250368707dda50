"""`strongroom audit`: who did what, from where, and what became of it."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import click

from appliance.cli.output import confirm, emit_json, moment, say, table, warn
from appliance.cli.session import Session, json_option, pass_session, yes_option

if TYPE_CHECKING:
    from appliance.audit import AuditEntry, Head

_HEAD = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})")


@click.group()
def audit() -> None:
    """The audit: every act, by whom, from where, on what, with what result."""


@audit.command("list")
@click.option("--act", metavar="ACT", help="Only this act, such as run.start; or all of a kind, such as run.")
@click.option("--actor", metavar="NAME", help="Only what this one did.")
@click.option("--machine", metavar="KEY", help="Only what was about this machine: vm:UUID, or image:NAME.")
@click.option("--result", type=click.Choice(["ok", "partly", "failed", "refused", "interrupted"]))
@click.option("--before", type=click.IntRange(1), metavar="NUMBER", help="Only entries older than this one.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
@json_option
@pass_session
def list_entries(
    session: Session,
    act: str | None,
    actor: str | None,
    machine: str | None,
    result: str | None,
    before: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """List what was done, newest first.

    \b
    Examples:
      strongroom audit list
      strongroom audit list --act point. --result refused
      strongroom audit list --actor alice --limit 500 --json
    """
    from appliance.audit import entry_json
    from appliance.catalog.audit import Filter
    from appliance.services.access.audits import AuditService

    wanted = Filter(act=act, actor=actor, machine=machine, result=result)
    found = AuditService(session.appliance).newest(wanted, before=before, limit=limit)
    if as_json:
        emit_json([entry_json(entry) for entry in found])
        return
    table(
        ["number", "when", "act", "on", "by", "via", "from", "result"],
        [
            (
                entry.number,
                moment(entry.at_utc),
                entry.act,
                entry.subject_name or entry.subject_id[:12],
                entry.actor_name or entry.actor_kind,
                entry.via,
                entry.address,
                _result(entry),
            )
            for entry in found
        ],
        right=["number"],
        empty="Nothing that fits was done.",
    )


def _result(entry: AuditEntry) -> str:
    return f"{entry.result}: {entry.error}" if entry.error else entry.result.value


def _read_head(_context: click.Context, _option: click.Parameter, value: str | None) -> Head | None:
    from appliance.audit import Head

    if value is None:
        return None
    match = _HEAD.fullmatch(value.strip().lower())
    if match is None:
        raise click.BadParameter("it is NUMBER:HASH, as 'strongroom audit verify' prints it")
    return Head(int(match[1]), match[2])


@audit.command()
@click.option(
    "--head", "known", callback=_read_head, metavar="NUMBER:HASH", help="What an earlier check printed, kept elsewhere."
)
@json_option
@pass_session
def verify(session: Session, known: Head | None, as_json: bool) -> None:
    """Check the whole chain: entries that were changed, removed, inserted or moved, and an end that was cut off.

    The home knows the newest entry that it wrote (audit.head). Whoever can write to the catalog and to the home can
    make a chain anew that looks good; not if the head is kept elsewhere, and given with --head later. Ends with exit
    code 1 when something is wrong.

    \b
    Examples:
      strongroom audit verify
      strongroom audit verify --head 4711:93f0…
    """
    from appliance.services.access.audits import AuditNotWhole, AuditService

    verdict = AuditService(session.appliance).verify(known)
    head = f"{verdict.head.number}:{verdict.head.hash}" if verdict.head else None
    if as_json:
        emit_json(
            {
                "good": verdict.good,
                "entries": verdict.head.number if verdict.head else 0,
                "head": head,
                "flaws": [{"number": flaw.number, "what": flaw.what} for flaw in verdict.flaws],
            }
        )
    elif head is None:
        say("The audit has no entry.")
    elif verdict.good:
        say(
            f"The audit is whole: {verdict.head.number if verdict.head else 0} entries. Its head, to be kept elsewhere:"
        )
        say(head)
    for flaw in verdict.flaws:
        warn(flaw.what)
    if not verdict.good:
        raise AuditNotWhole


@audit.command()
@click.option("--format", "form", type=click.Choice(["jsonl", "syslog"]), default="jsonl", show_default=True)
@click.option("--after", type=click.IntRange(0), default=0, metavar="NUMBER", help="Only entries after this one.")
@pass_session
def export(session: Session, form: str, after: int) -> None:
    """Print all entries, oldest first: a JSON object a line, or lines as syslog has them (RFC 5424).

    \b
    Examples:
      strongroom audit export > audit.jsonl
      strongroom audit export --format syslog --after 4711 | logger --rfc5424 --server loghost
    """
    from appliance.services.access.audits import AuditService, json_line, syslog_line

    host = socket.gethostname()
    for entry in AuditService(session.appliance).export(after):
        click.echo(json_line(entry) if form == "jsonl" else syslog_line(entry, host))


@audit.command()
@yes_option
@json_option
@pass_session
def accept(session: Session, yes: bool, as_json: bool) -> None:
    """Go by the chain as it is from now on, after the catalog was lost, restored or replaced.

    That this was done, and what the head was before, is in the audit itself.

    \b
    Example:
      strongroom audit accept --yes
    """
    from appliance.services.access.audits import AuditService

    confirm("Take the audit as it is for the right one?", yes)
    head = AuditService(session.appliance).accept()
    if as_json:
        emit_json({"number": head.number, "hash": head.hash})
        return
    say(f"The newest entry is {head.number} from now on.")
