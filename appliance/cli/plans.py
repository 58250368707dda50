"""`strongroom plan`: room, bandwidth, time to recover, and what another retention costs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import duration, emit_json, facts, is_terminal, moment, say, size, table, tell
from appliance.cli.session import Session, json_option, pass_session

if TYPE_CHECKING:
    from appliance.planning.plans import Plan

_RECOVERIES_SHOWN = 20
_BAR_CHARACTERS = 24


def _size(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    from appliance.setting_values import parse_size

    if value is None:
        return None
    try:
        found = parse_size(value.removesuffix("/s"))
    except ValueError as err:
        raise click.BadParameter(str(err)) from err
    if not found:
        raise click.BadParameter("it must be more than 0")
    return found


def _keeping(command: Callable[..., Any]) -> Callable[..., Any]:
    for kind in ("yearly", "monthly", "weekly", "daily", "hourly", "last"):
        command = click.option(
            f"--keep-{kind}", metavar="N", type=click.IntRange(0, 100_000), default=0,
            help=f"Compare with a retention that keeps so many {kind}.",
        )(command)  # fmt: skip
    return command


@click.command()
@click.option("--months", metavar="N", type=click.IntRange(1, 120), default=12, show_default=True, help="So far ahead.")
@_keeping
@click.option("--exact", is_flag=True, help="Ask the repository which points that lets go now, and what it frees.")
@click.option(
    "--window", metavar="HOURS", type=click.FloatRange(0.1, 24), help="In which a day's runs have to be done."
)
@click.option("--restore-speed", metavar="SIZE", callback=_size, help="Bytes a second that a restore writes.")
@click.option("--machines", metavar="N", type=click.IntRange(1, 1_000_000), help="Plan for so many machines, typed in:")
@click.option("--size", "machine_size", metavar="SIZE", callback=_size, help="the size of each, in use;")
@click.option("--change", metavar="PERCENT", type=click.FloatRange(0.001, 100), default=2.0, show_default=True,
              help="of it that changes in a day;")  # fmt: skip
@click.option("--reduction", metavar="TIMES", type=click.FloatRange(0.5, 1000), default=2.0, show_default=True,
              help="by how much it becomes smaller when stored;")  # fmt: skip
@click.option("--runs-a-day", metavar="N", type=click.FloatRange(0.03, 96), default=1.0, show_default=True,
              help="how often each is backed up;")  # fmt: skip
@click.option("--read-speed", metavar="SIZE", callback=_size, default="100MB", show_default=True,
              help="at which one is read.")  # fmt: skip
@json_option
@pass_session
def plan(
    session: Session,
    months: int,
    exact: bool,
    window: float | None,
    restore_speed: int | None,
    machines: int | None,
    machine_size: int | None,
    change: float,
    reduction: float,
    runs_a_day: float,
    read_speed: int,
    as_json: bool,
    keep_last: int,
    keep_hourly: int,
    keep_daily: int,
    keep_weekly: int,
    keep_monthly: int,
    keep_yearly: int,
) -> None:
    """Plan ahead from the fleet's history: how large the repository becomes, what reading asks of each host in its
    window, how long each machine takes to recover, and, with --keep-..., what another retention costs.

    With --machines and --size, a fleet that is not there yet is planned from what is typed in. Where the numbers are
    from is said below them.

    \b
    Examples:
      strongroom plan
      strongroom plan --keep-daily 30 --keep-monthly 12 --exact
      strongroom plan --machines 200 --size 100GiB --change 3 --keep-daily 14 --window 8
    """
    from appliance.planning.plans import Numbers
    from appliance.policy.retention import Rules

    rules = Rules(keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly)
    window_s = None if window is None else timedelta(hours=window).total_seconds()
    service = session.planning()
    if (machines is None) != (machine_size is None):
        raise click.UsageError("--machines and --size are given together, or neither")
    if exact and (rules.empty or machines is not None):
        raise click.UsageError("--exact asks what a retention of real points would free: add --keep-..., no --machines")
    if machines is not None and machine_size is not None:
        numbers = Numbers(machines, machine_size, change, reduction, runs_a_day, float(read_speed))
        found = service.plan_typed(numbers, rules, months=months, window_s=window_s, restore_bytes_s=restore_speed)
    else:
        found = service.plan(
            months=months, rules=None if rules.empty else rules, window_s=window_s, restore_bytes_s=restore_speed,
            exact=exact, progress=session.progress,
        )  # fmt: skip
    if as_json:
        emit_json(_json(found))
    else:
        _show(found)


def _show(found: Plan) -> None:
    changed = found.change
    facts(
        [
            ("machines", found.machines),
            ("stored by them" if found.room.shared else "used now", size(found.room.used_bytes)),
            ("free", size(found.room.free_bytes)),
            ("full", _full(found)),
            *([("other retention", f"{changed.going} points would go")] if changed else []),
            *([("it frees now", size(changed.freed_bytes))] if changed and changed.freed_bytes is not None else []),
        ]
    )
    say()
    others = changed.months if changed else ()
    drawn = is_terminal(sys.stdout)
    most = max(month.high_bytes for month in found.months)
    table(
        [
            "by", "low", "high", "trend", "points", *(["low then", "high then", "points then"] if changed else []),
            *(["low to high"] if drawn else []),
        ],
        [
            (
                moment(month.end_utc)[:10], size(month.low_bytes), size(month.high_bytes), size(month.trend_bytes),
                month.points,
                *((size(others[number].low_bytes), size(others[number].high_bytes), others[number].points)
                  if changed else ()),
                *([_bar(month.low_bytes, month.high_bytes, most)] if drawn else []),
            )
            for number, month in enumerate(found.months)
        ],
        right=["low", "high", "trend", "points", "low then", "high then", "points then"],
    )  # fmt: skip
    say()
    table(
        ["host", "machines", "read a day", "stored a day", "window", "needs", "runs take", "fits"],
        [
            (
                load.host or "this one (images)", load.machines, size(load.read_bytes), size(load.stored_bytes),
                duration(load.window_s), f"{size(round(load.needed_bytes_s))}/s", duration(load.busy_s),
                "yes" if load.fits else "NO",
            )
            for load in found.hosts
        ],
        right=["machines", "read a day", "stored a day", "window", "needs", "runs take"],
        empty="No machine has restore points enough to tell what it reads.",
    )  # fmt: skip
    say()
    table(
        ["machine", "host", "size", "instant recovery", "restore of all"],
        [
            (
                each.name, each.host, size(each.size_bytes),
                None if each.instant_s is None else duration(each.instant_s) + ("" if each.own else " (as others)"),
                None if each.restore_s is None else duration(each.restore_s),
            )
            for each in found.recoveries[:_RECOVERIES_SHOWN]
        ],
        right=["size", "instant recovery", "restore of all"],
    )  # fmt: skip
    if (more := len(found.recoveries) - _RECOVERIES_SHOWN) > 0:
        tell(f"{more} smaller machines are left out: --json has all.")
    for sentence in found.how:
        tell(sentence)


def _bar(low: int, high: int, most: int) -> str:
    """As a part of the largest of all."""
    full, part = (round(_BAR_CHARACTERS * each / max(1, most)) for each in (low, high))
    return "█" * full + "░" * (part - full)


def _full(found: Plan) -> str | None:
    if found.full_utc is not None:
        return f"by {moment(found.full_utc)[:10]}"
    return None if found.room.free_bytes is None else f"not within {len(found.months)} months"


def _json(found: Plan) -> dict[str, Any]:
    shown = asdict(found)
    if found.change is not None:
        within = found.change.rules.within
        shown["change"]["rules"]["within"] = None if within is None else within.total_seconds()
    return shown
