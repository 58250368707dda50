"""What can be said of a policy by options, as its JSON form: the common case without writing JSON.

The rule: nothing is checked here that reading the JSON form checks; what an option sets is what the document would say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import IO, Any

import click

from appliance.cli.maintenance import Span
from appliance.policy.errors import PolicyInvalid

_KEPT = click.IntRange(min=0)
_CLAUSES = ("host", "name", "tag", "image")
_RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_WINDOW = re.compile(r"(?:(?P<days>[a-z,-]+) +)?(?P<from>\d\d:\d\d) *- *(?P<to>\d\d:\d\d)", re.IGNORECASE | re.ASCII)
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
CLEARED = {
    "exclude": None, "window": "window", "limit": "limit_bytes_s", "verify": "verify_every_days", "copies": "copies",
    "rpo": "rpo_minutes", "retention": "retention",
}  # fmt: skip
"""What `policy edit --clear` names → its field; `exclude` is within `select`."""

_OPTIONS = (
    click.option("--all", "every", is_flag=True, help="Every virtual machine."),
    click.option("--vm", "name", metavar="NAME", multiple=True, help="Machines of that name; * and ? are patterns."),
    click.option("--host", metavar="HOST", multiple=True, help="Machines on hosts of that name."),
    click.option("--tag", metavar="TAG", multiple=True, help="Machines with that tag in their libvirt metadata."),
    click.option("--image", metavar="NAME", multiple=True, help="Images that are protected under that name."),
    click.option("--except-vm", "except_name", metavar="NAME", multiple=True, help="But not machines of that name."),
    click.option("--except-host", metavar="HOST", multiple=True, help="… nor those on hosts of that name."),
    click.option("--except-tag", metavar="TAG", multiple=True, help="… nor those with that tag."),
    click.option("--except-image", metavar="NAME", multiple=True, help="… nor images of that name."),
    click.option("--at", "cron", metavar="CRON", help="When: minute, hour, day, month, weekday: '0 22 * * MON-FRI'."),
    click.option("--zone", metavar="ZONE", help="Where that is the time, such as Europe/Berlin (default: UTC)."),
    click.option("--window", metavar="SPAN", multiple=True, help="Runs begin only then: 'mon-fri 22:00-06:00'."),
    click.option("--limit", metavar="SIZE", help="A run moves at most so much a second, such as 50MB."),
    click.option("--per-host", type=click.IntRange(1, 1000), metavar="N", help="Runs at once on a host (default: 2)."),
    click.option("--spread", type=click.IntRange(0, 86_400), metavar="SECONDS",
                 help="Over how long runs that are due together begin (default: 300)."),
    click.option("--quiesce/--no-quiesce", default=None, help="Freeze file systems by the guest agent (default: yes)."),
    click.option("--rpo", type=Span(), metavar="SPAN", help="How old the newest point may be: 26h, 2d."),
    click.option("--verify-every", type=click.IntRange(min=1), metavar="DAYS", help="How often points are verified."),
    click.option("--copy-to", metavar="NAME", multiple=True, help="Another repository that gets the points."),
    click.option("--keep-last", type=_KEPT, metavar="N", help="Keep the newest N points."),
    click.option("--keep-hourly", type=_KEPT, metavar="N", help="Keep the last point of each of N hours."),
    click.option("--keep-daily", type=_KEPT, metavar="N", help="… of each of N days, in the schedule's zone."),
    click.option("--keep-weekly", type=_KEPT, metavar="N", help="… of each of N weeks (from Monday)."),
    click.option("--keep-monthly", type=_KEPT, metavar="N", help="… of each of N months."),
    click.option("--keep-yearly", type=_KEPT, metavar="N", help="… of each of N years."),
    click.option("--keep-within", type=Span(), metavar="SPAN", help="Keep all at most SPAN older than the newest."),
    click.option("--file", "file", type=click.File("rb"), metavar="FILE",
                 help="The policy in JSON ('-': from standard input); options change what it says."),
)  # fmt: skip


def policy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command gets them as keyword arguments; `document` makes of them what they say."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def document(given: Mapping[str, Any], name: str, former: Mapping[str, object] | None = None) -> dict[str, Any]:
    """A policy's JSON form, of the options of a command line, over the file that they name, over `former`."""
    file = given["file"]
    made: dict[str, Any] = dict(former or {}) if file is None else read_json(file)
    if not isinstance(made, dict):
        raise PolicyInvalid("policy", "it must be an object with named fields")
    made = {"version": 1, **made}
    if former is None or file is None:
        made["name"] = name
    if (select := _select(given, made.get("select"))) is not None:
        made["select"] = select
    if (schedule := _given(given, {"cron": "cron", "zone": "zone"})) or former is None:
        known = made.get("schedule")
        made["schedule"] = {**(known if isinstance(known, dict) else {}), **schedule}
    if given["window"]:
        made["window"] = [_span(each) for each in given["window"]]
    if given["limit"] is not None:
        made["limit_bytes_s"] = _size(given["limit"])
    made |= _given(given, {
        "per_host": "per_host", "spread": "spread_s", "quiesce": "quiesce", "verify_every": "verify_every_days",
    })  # fmt: skip
    if given["copy_to"]:
        made["copies"] = list(given["copy_to"])
    if given["rpo"] is not None:
        made["rpo_minutes"] = given["rpo"] // timedelta(minutes=1)
    rules = _given(given, {f"keep_{rule}": rule for rule in _RULES})
    if given["keep_within"] is not None:
        rules["within_hours"] = given["keep_within"] // timedelta(hours=1)
    if rules:
        made["retention"] = {**(made.get("retention") or {}), **rules}
    return made


def clear(made: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        field = CLEARED[name]
        if field is not None:
            made.pop(field, None)
        elif isinstance(made.get("select"), dict):
            made["select"] = {**made["select"], "exclude": []}


def read_json(file: IO[bytes]) -> Any:
    """PolicyInvalid."""
    try:
        return json.loads(file.read())
    except (ValueError, RecursionError) as err:
        raise PolicyInvalid(file.name, f"it is no JSON: {err}") from err


def _given(given: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    return {field: given[option] for option, field in fields.items() if given[option] is not None}


def _select(given: Mapping[str, Any], former: Any) -> dict[str, Any] | None:
    """Options that include replace all clauses that include; so do those that exclude."""
    include = [{"all": True}] if given["every"] else []
    include += [{clause: each} for clause in _CLAUSES for each in given[clause]]
    exclude = [{clause: each} for clause in _CLAUSES for each in given[f"except_{clause}"]]
    if not include and not exclude:
        return None
    known = former if isinstance(former, dict) else {}
    return {"include": include or known.get("include", []), "exclude": exclude or known.get("exclude", [])}


def _span(text: str) -> dict[str, Any]:
    match = _WINDOW.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is no span: write '22:00-06:00' or 'mon-fri 22:00-06:00'.")
    found: dict[str, Any] = {"from": match["from"], "to": match["to"]}
    if match["days"]:
        found["days"] = [day for part in match["days"].lower().split(",") for day in _days(part)]
    return found


def _days(part: str) -> list[str]:
    """ "mon-fri" → its days; over the end of the week too."""
    first, dash, last = part.partition("-")
    if dash and first in _DAYS and last in _DAYS:
        begin, end = _DAYS.index(first), _DAYS.index(last)
        return [_DAYS[number % 7] for number in range(begin, end + (1 if begin <= end else 8))]
    return [part]  # which reading it refuses, if it is no day


def _size(text: str) -> int:
    from appliance.setting_values import parse_size

    try:
        return parse_size(text.removesuffix("/s"))
    except ValueError as err:
        raise click.BadParameter(str(err)) from err
