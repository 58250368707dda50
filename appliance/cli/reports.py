"""`strongroom report`: what was protected in a month, what was proven, and what was not as it should be."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from appliance.cli.output import duration, emit_json, facts, moment, say, size, table
from appliance.cli.session import Session, json_option, pass_session

if TYPE_CHECKING:
    from appliance.reports.compliance import Report


@click.command()
@click.option("--month", metavar="YYYY-MM", help="Which month (default: the last one that is over).")
@click.option("--zone", metavar="ZONE", help="The time zone of the month (default: notices.zone of the settings).")
@click.option(
    "--html", "html_file", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True),
    help="Write it as a page that can be printed ('-' for standard output).",
)  # fmt: skip
@json_option
@pass_session
def report(session: Session, month: str | None, zone: str | None, html_file: str | None, as_json: bool) -> None:
    """Report a month: which machines are protected how, points kept, verifications and test recoveries, missed RPOs,
    failed runs, machines without protection, and who changed what.

    It is made from the catalog, of all appliances that share it. What is only known as it is now (policies, points
    kept) is told as that.

    \b
    Examples:
      strongroom report --month 2026-10 --html report.html
      strongroom report --json
    """
    found = _report(session, month, zone)
    if html_file is not None:
        from appliance.services.reports.page import page

        with click.open_file(html_file, "w", "utf-8", atomic=True) as file:
            file.write(page(found).html)
    if as_json:
        emit_json(asdict(found))
    elif html_file is None:
        _show(found)


def _report(session: Session, month: str | None, zone: str | None) -> Report:
    if session.url is not None:
        from appliance.remote.services import RemoteReports

        return RemoteReports(session.client).month(month, zone)
    from appliance.notices.targets import read_zone
    from appliance.reports.months import Month
    from appliance.services.reports import ReportService

    try:
        where = read_zone(zone if zone is not None else session.settings().notices.zone)
    except ValueError as err:
        raise click.BadParameter(str(err), param_hint="--zone") from err
    wanted = Month.before(session.appliance.clock.now_utc(), where) if month is None else Month.parse(month, where)
    return ReportService(session.appliance).month(wanted)


def _show(found: Report) -> None:
    facts(
        [
            ("month", f"{found.month}, {found.zone}" + ("" if found.over else " (not over)")),
            ("runs", ", ".join(f"{count} {state}" for state, count in sorted(found.runs.items())) or "none"),
            ("stored", size(found.stored_bytes)),
            ("not protected", len(found.unprotected)),
            ("missed RPO", len(found.missed)),
            ("verifications", f"{len(found.verifications)}, {len(found.damaged)} found damage"),
            ("test recoveries", len(found.proofs)),
            ("changes", found.changes_count),
        ]
    )
    say()
    table(
        ["machine", "host", "standing", "policies", "runs", "failed", "made", "kept", "newest", "longest without"],
        [
            (
                line.name,
                line.host,
                line.standing,
                ", ".join(line.policies),
                line.runs.get("succeeded", 0) + line.runs.get("partial", 0),
                line.runs.get("failed", 0) + line.runs.get("interrupted", 0),
                line.made,
                line.kept,
                moment(line.newest_utc),
                None if line.longest_s is None else duration(line.longest_s),
            )
            for line in found.machines
        ],
        right=["runs", "failed", "made", "kept", "longest without"],
        empty="There are no machines.",
    )
