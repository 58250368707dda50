"""How policies look, in words and in JSON: as they are, previewed, and as they stand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING

from appliance.cli.output import facts, moment, say, size, table, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.policy.policies import Policy
    from appliance.policy.previews import Chosen, Preview
    from appliance.policy.selectors import Machine
    from appliance.policy.windows import Window
    from appliance.services.policies import KnownPolicy
    from appliance.services.policies.service import Losing
    from appliance.services.scheduling import Standing

_SHOWN = 20
_WEEK = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def standing_concerns(found: Standing) -> list[str]:
    """What needs an eye, as sentences; of many that missed their RPO, some."""
    concerns = list(found.problems)
    if found.unserved:
        concerns.append(f"policies select {found.selected} machines, and nobody looks when: 'strongroom serve' does")
    for each in found.missed[:_SHOWN]:
        point = f"its newest restore point is of {moment(each.since_utc)}" if each.has_point else "it has none"
        paused = "; it is paused" if each.paused else ""
        concerns.append(f"{each.machine.name} misses its RPO of {span_of(each.rpo)} ({each.policy}): {point}{paused}")
    if len(found.missed) > _SHOWN:
        concerns.append(f"{len(found.missed) - _SHOWN} more machines miss their RPO: 'strongroom policy due --json'")
    return concerns


def standing_json(found: Standing) -> dict[str, object]:
    """The form that scripts rely on."""
    return {
        "scheduler": {"alive": found.alive, "looked_utc": found.looked_utc, "next_utc": found.look.next_utc},
        "follows_utc": found.follows_utc,
        "selected": found.selected,
        "begins_now": [
            {
                **_machine_json(each.machine),
                "due": [{"policy": d.policy, "due_utc": d.due_utc, "cause": d.cause.value} for d in each.due],
            }
            for each in found.look.requests
        ],
        "waiting": [
            {
                **_machine_json(each.machine), "policies": list(each.policies), "why": each.why.name.lower(),
                "until_utc": each.until_utc,
            }
            for each in found.look.waiting
        ],
        "missed": [
            {
                **_machine_json(each.machine), "policy": each.policy, "rpo_minutes": each.rpo // timedelta(minutes=1),
                "since_utc": each.since_utc, "has_point": each.has_point, "paused": each.paused,
            }
            for each in found.missed
        ],
        "problems": list(found.problems),
    }  # fmt: skip


def show_standing(found: Standing) -> None:
    facts(
        [
            ("scheduler", "alive" if found.alive else "none"),
            ("looked", moment(found.looked_utc)),
            ("looks again", moment(found.look.next_utc)),
            *([("prunes, verifies, copies", moment(found.follows_utc))] if found.follows_utc else []),
            ("machines", f"{found.selected} selected, {len(found.missed)} missed their RPO"),
        ]
    )
    now = [(e.machine, ", ".join(each.policy for each in e.due), "it begins now", None) for e in found.look.requests]
    waits = [(each.machine, ", ".join(each.policies), each.why.value, each.until_utc) for each in found.look.waiting]
    if now or waits:
        say()
    table(
        ["due", "host", "policies", "why it waits", "until"],
        [
            (machine.name, machine.host, policies, why, None if until is None else moment(until))
            for machine, policies, why, until in (*now, *waits)
        ],
    )


def policy_json(known: KnownPolicy) -> dict[str, object]:
    """The form that scripts rely on; `policy` is what --file takes."""
    return {
        "name": known.name,
        "version": known.version,
        "since_utc": known.since_utc,
        "changed_utc": known.changed_utc,
        "paused_utc": known.paused_utc,
        "words": known.policy.schedule.words,
        "policy": known.policy.to_json(),
    }


def preview_json(found: Preview) -> dict[str, object]:
    return {
        "words": found.words,
        "due_utc": list(found.due_utc),
        "selected": [_chosen_json(each) for each in found.selected],
        "excluded": [_chosen_json(each) for each in found.excluded],
        "remarks": list(found.remarks),
    }


def _chosen_json(each: Chosen) -> dict[str, object]:
    return {
        **_machine_json(each.machine), "tags": sorted(each.machine.tags), "clause": each.clause.to_json(),
        "other_policies": list(each.others),
    }  # fmt: skip


def _machine_json(machine: Machine) -> dict[str, object]:
    return {"kind": machine.kind.value, "id": machine.id, "name": machine.name, "host": machine.host}


def changed_json(found: Preview, losing: Sequence[Losing], known: KnownPolicy | None) -> dict[str, object]:
    going = [
        {"machine": each.machine.key, "name": each.machine.name, "points": [point.id for point in each.points]}
        for each in losing
    ]
    return {
        "kept": None if known is None else policy_json(known),
        "policy": found.policy.to_json(),
        "preview": preview_json(found),
        "losing": going,
    }


def show_preview(found: Preview) -> None:
    table(
        ["machine", "host", "selected", "by", "other policies"],
        [
            (each.machine.name, each.machine.host, selected, str(each.clause), ", ".join(each.others))
            for selected, some in (("yes", found.selected), ("no", found.excluded))
            for each in some
        ],
        empty="No machine that is known now is selected.",
    )
    say()
    show_due(found)


def show_due(found: Preview) -> None:
    say(f"{found.words}, {found.policy.schedule.zone}; next:")
    for due in found.due_utc:
        say(f"  {local(due, found.zone)}")
    for remark in found.remarks:
        warn(remark)


def local(value: datetime, zone: tzinfo) -> str:
    """As the clock is there, with the UTC offset, since one hour of a year comes twice."""
    there = value.astimezone(zone)
    offset = "UTC" if zone is UTC else there.strftime("%Z (UTC%z)")
    return f"{_WEEK[there.weekday()]} {there:%Y-%m-%d %H:%M} {offset}"


def policy_facts(found: Policy) -> list[tuple[str, object]]:
    return [
        ("selects", "; ".join(map(str, found.select.include))),
        *([("but not", "; ".join(map(str, found.select.exclude)))] if found.select.exclude else []),
        ("window", "always" if found.window is None else _window(found.window)),
        ("limit", "none" if found.limit_bytes_s is None else f"{size(found.limit_bytes_s)}/s"),
        ("per host", found.per_host),
        ("spread", f"{found.spread_s} s"),
        ("quiesce", "yes" if found.quiesce else "no"),
        ("RPO", "not watched" if found.rpo is None else span_of(found.rpo)),
        ("kept", kept(found)),
        ("verified", "not by it" if found.verify_every_days is None else f"every {found.verify_every_days} days"),
        ("copied to", ", ".join(found.copies) or "nowhere"),
    ]


def kept(found: Policy) -> str:
    rules = found.retention
    if rules.empty:
        return "all"
    counts = {kind: getattr(rules, kind) for kind in ("last", "hourly", "daily", "weekly", "monthly", "yearly")}
    told = [f"{count} {kind}" for kind, count in counts.items() if count]
    if rules.within is not None:
        told.append(f"within {span_of(rules.within)}")
    return ", ".join(told)


def _window(found: Window) -> str:
    spans = []
    for span in found.spans:
        days = "" if len(span.days) == 7 else ", ".join(_WEEK[day] for day in sorted(span.days)) + " "
        spans.append(f"{days}{span.begins:%H:%M}-{span.ends:%H:%M}")
    return "; ".join(spans)


def span_of(span: timedelta) -> str:
    minutes = span // timedelta(minutes=1)
    if minutes % 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 4320 or minutes % 1440 else f"{minutes // 1440} days"
