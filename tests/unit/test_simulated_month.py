"""March 2026, simulated: 50 machines on four hosts in Berlin and New York, whose clocks change on the 29th and the 8th,
and an appliance that is down from the 17th to the 19th.

What must come of it is computed here from tables of UTC times that are written down by hand, with none of the code that
is tested: which runs begin at which second and for which policies, and which points are there in the end.
"""

from __future__ import annotations

import bisect
import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from appliance.policy.due import Cause, look
from appliance.policy.policies import Policy, assign, read_policy
from appliance.policy.retention import Candidate, decide
from appliance.policy.selectors import Kind, Machine
from appliance.policy.states import Busy, MachineState, PolicyState

START, END = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
DOWN, UP = datetime(2026, 3, 17, 5, 20, tzinfo=UTC), datetime(2026, 3, 19, 5, 20, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
BERLIN_CHANGES, NEW_YORK_CHANGES = datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 3, 8, 7, tzinfo=UTC)
NIGHT = [{"from": "22:00", "to": "06:00"}]


def _policy(name: str, select: dict[str, Any], cron: str, zone: str, retention: dict[str, int], **more: Any) -> Policy:
    return read_policy({
        "version": 1, "name": name, "select": select, "schedule": {"cron": cron, "zone": zone},
        "retention": retention, "spread_s": 600, **more,
    })  # fmt: skip


POLICIES = {
    each.name: each
    for each in (
        _policy("berlin", {"include": [{"host": "ber-?"}], "exclude": [{"tag": "no-backup"}]}, "0 22 * * *",
                "Europe/Berlin", {"daily": 7, "weekly": 3}, window=NIGHT, per_host=2, limit_bytes_s=200_000_000),
        _policy("databases", {"include": [{"name": "db-*"}]}, "0 22 * * SUN",
                "Europe/Berlin", {"weekly": 8}, window=NIGHT, per_host=2, limit_bytes_s=50_000_000),
        _policy("early", {"include": [{"tag": "gold"}]}, "30 2 * * *", "Europe/Berlin", {"last": 3}, per_host=2),
        _policy("new-york", {"include": [{"host": "nyc-1"}]}, "0 1 * * MON-SAT", "America/New_York", {"daily": 5},
                window=[{"from": "01:00", "to": "05:00"}], per_host=3),
        _policy("frequent", {"include": [{"host": "nyc-2", "name": "api-*"}]}, "15 */4 * * *",
                "America/New_York", {"hourly": 12, "daily": 10}, per_host=1),
        _policy("evening", {"include": [{"host": "nyc-2"}], "exclude": [{"name": "api-*"}]}, "0 20 * * *",
                "America/New_York", {"daily": 31}, per_host=4),
        _policy("images", {"include": [{"image": "*"}]}, "0 5 * * *", "UTC", {"monthly": 1, "last": 2}),
    )
}  # fmt: skip


def _machines() -> list[Machine]:
    def vm(host: str, name: str, *tags: str) -> Machine:
        return Machine(Kind.VM, f"uuid-of-{host}-{name}", name, host, frozenset(tags))

    found = [vm("ber-1", f"app-{n}", *(["gold"] if n < 3 else [])) for n in range(11)]
    found += [vm("ber-1", f"db-{n}") for n in range(3)]
    found += [vm("ber-2", f"web-{n}") for n in range(10)]
    found += [vm("ber-2", "db-3"), vm("ber-2", "db-4"), vm("ber-2", "toy", "no-backup")]
    found += [vm("nyc-1", f"desk-{n}") for n in range(12)]
    found += [vm("nyc-2", f"api-{n}") for n in range(3)] + [vm("nyc-2", f"job-{n}") for n in range(8)]
    assert len(found) == 50
    return found + [Machine(Kind.IMAGE, name, name) for name in ("firewall", "router")]


MACHINES = _machines()


def length(machine: Machine, begins: datetime) -> timedelta:
    """How long a run takes. Those of nyc-1 do not all fit into their window, and one of db-3 takes 30 hours."""
    if machine.name == "db-3" and begins.day == 10:
        return 30 * HOUR
    number = int(machine.name.rpartition("-")[2]) if "-" in machine.name else 20
    return {"desk": 90, "api": 5, "job": 12}.get(machine.name.partition("-")[0], 25) * MINUTE + 2 * number * MINUTE


@dataclass(frozen=True, order=True)
class Begun:
    begins: datetime
    key: str
    policies: tuple[str, ...]
    catches_up: bool


# --- the scheduler, with a queue that begins what it is asked for ----------------------------------------------------


@dataclass
class Simulation:
    runs: list[Begun] = field(default_factory=list)
    points: dict[str, list[Candidate]] = field(default_factory=lambda: defaultdict(list))
    made: Counter[str] = field(default_factory=Counter)
    most: Counter[str | None] = field(default_factory=Counter)  # runs at once, by host
    limits: dict[tuple[str, ...], int | None] = field(default_factory=dict)

    def run(self) -> None:
        assigned = assign(POLICIES.values(), MACHINES)
        policies = [PolicyState(each, START) for each in POLICIES.values()]
        states = {each.key: MachineState(each, START) for each in MACHINES}
        under_way: list[tuple[datetime, str, datetime]] = []
        now, since = START, START
        while now < END:
            if DOWN <= now < UP:
                for _, key, _ in under_way:  # they died with it
                    states[key] = replace(states[key], busy=None)
                under_way, now, since = [], UP, UP
            while under_way and under_way[0][0] <= now:
                _, key, begun = heapq.heappop(under_way)
                states[key] = replace(states[key], busy=None, point_utc=begun)
                self._point(key, begun, assigned[key])
            found = look(policies, list(states.values()), assigned, now, looking_since_utc=since)
            for each in found.requests:
                key = each.machine.key
                states[key] = replace(states[key], busy=Busy.RUNNING, answers=(*states[key].answers[-2:], now))
                heapq.heappush(under_way, (now + length(each.machine, now), key, now))
                names = tuple(due.policy for due in each.due)
                self.runs.append(Begun(now, key, names, any(due.cause is Cause.CATCH_UP for due in each.due)))
                self.limits[names] = each.limit_bytes_s
            hosts = Counter(states[key].machine.host for _, key, _ in under_way)
            self.most |= hosts
            now = min([found.next_utc, *(ends for ends, _, _ in under_way[:1])])

    def _point(self, key: str, begun: datetime, policies: tuple[str, ...]) -> None:
        self.made[key] += 1
        points = [*self.points[key], Candidate(f"{begun}", self.made[key], begun)]
        kept = {
            verdict.candidate
            for name in policies
            for verdict in decide(points, POLICIES[name].retention, zone=ZoneInfo(POLICIES[name].schedule.zone))
            if verdict.kept
        }
        self.points[key] = [each for each in points if each in kept]


# --- what must come of it: tables of UTC times, and queues of their own ----------------------------------------------


def utc(day: int, hour: float) -> datetime:
    """Of a day of March; 0 is the last of February, and 32 the first of April."""
    return START + timedelta(days=day - 1, hours=hour)


def berlin(day: int, hour: float) -> datetime:
    return utc(day, hour - (2 if (day, hour) >= (29, 3) else 1))


def new_york(day: int, hour: float) -> datetime:
    return utc(day, hour + (4 if (day, hour) >= (8, 3) else 5))


DAYS = range(-6, 40)  # the 1st was a Sunday
SLOTS = {
    "berlin": [berlin(day, 22) for day in DAYS],
    "databases": [berlin(day, 22) for day in DAYS if day % 7 == 1],
    "early": [utc(29, 1) if day == 29 else berlin(day, 2.5) for day in DAYS],  # 02:30 is left out: 03:00
    "new-york": [new_york(day, 1) for day in DAYS if day % 7 != 1],
    "frequent": [new_york(day, hour + 0.25) for day in DAYS for hour in range(0, 24, 4)],
    "evening": [new_york(day, 20) for day in DAYS],
    "images": [utc(day, 5) for day in DAYS],
}
OPEN = {
    "berlin": [(berlin(day, 22), berlin(day + 1, 6)) for day in DAYS],
    "databases": [(berlin(day, 22), berlin(day + 1, 6)) for day in DAYS],
    "new-york": [(new_york(day, 1), new_york(day, 5)) for day in DAYS],
}
LANES = {"ber-1": 2, "ber-2": 2, "nyc-1": 3, "nyc-2": 1, None: 2}


def policies_of(machine: Machine) -> list[str]:
    if machine.host is None:
        return ["images"]
    if machine.name == "toy":
        return []
    if machine.host == "nyc-1":
        return ["new-york"]
    if machine.host == "nyc-2":
        return ["frequent" if machine.name.startswith("api") else "evening"]
    if machine.name.startswith("db"):
        return ["berlin", "databases"]
    return ["berlin", "early"] if machine.name in ("app-0", "app-1", "app-2") else ["berlin"]


def turn(machine: Machine, policy: str, last: datetime, now: datetime) -> tuple[datetime, datetime, bool] | None:
    """Of a policy that is due and open: the due time, when the machine's turn comes, and whether an earlier due time
    was missed as well."""
    slots = SLOTS[policy]
    newest = bisect.bisect_right(slots, now) - 1
    if slots[newest] <= last:
        return None
    missed = slots[newest - 1] > last
    counted, closes = slots[newest - missed], None
    if policy in OPEN:
        spans = [span for span in OPEN[policy] if span[0] <= now < span[1]]
        if not spans:
            return (slots[newest], END, missed)
        counted, closes = max(counted, spans[0][0]), spans[0][1]
    if now >= UP:
        counted = max(counted, UP)
    spread = min(10 * MINUTE, (slots[newest + 1] - slots[newest]) / 2)
    if closes is not None:
        spread = min(spread, (closes - counted) / 2)
    part = int(hashlib.sha256(machine.key.encode()).hexdigest()[:8], 16) / 16**8
    return (slots[newest], counted + spread * part, missed)


def expected_of_host(host: str | None) -> tuple[list[Begun], dict[str, list[datetime]]]:
    """The runs that begin there, and of each machine when those began that ended well."""
    machines = [each for each in MACHINES if each.host == host]
    last = dict.fromkeys((each.key for each in machines), START)
    times = {
        UP,
        *(slot for slots in SLOTS.values() for slot in slots),
        *(a for spans in OPEN.values() for a, _ in spans),
    }
    moments = sorted(times)
    busy: dict[str, tuple[datetime, datetime]] = {}  # ends, began
    runs: list[Begun] = []
    well: dict[str, list[datetime]] = defaultdict(list)
    while moments and (now := heapq.heappop(moments)) < END:
        if now < START or DOWN <= now < UP:
            continue
        if now == UP:
            busy.clear()
        for key in [key for key, (ends, _) in busy.items() if ends <= now]:
            well[key].append(busy.pop(key)[1])
        ready = []
        for machine in machines:
            turns = {name: turn(machine, name, last[machine.key], now) for name in policies_of(machine)}
            due = {name: each for name, each in turns.items() if each is not None}
            if machine.key in busy or not due:
                continue
            begins = min(each[1] for each in due.values())
            if begins > now and begins not in times:
                times.add(begins)
                heapq.heappush(moments, begins)
            if begins <= now + 10 * MINUTE:  # of those in the spread, it keeps places
                began_before = last[machine.key] if last[machine.key] > START else START - HOUR
                ready.append((began_before, min(each[0] for each in due.values()), machine.key, machine, due, begins))
        ready.sort(key=lambda each: each[:3])
        for _, _, key, machine, due, begins in ready[: LANES[host] - len(busy)]:
            if begins > now:
                continue
            runs.append(Begun(now, key, tuple(sorted(due)), any(each[2] for each in due.values())))
            busy[key], last[key] = (now + length(machine, now), now), now
            heapq.heappush(moments, busy[key][0])
    return runs, well


def local(moment: datetime, policy: str) -> datetime:
    if POLICIES[policy].schedule.zone == "Europe/Berlin":
        return moment + (2 if moment >= BERLIN_CHANGES else 1) * HOUR
    if POLICIES[policy].schedule.zone == "America/New_York":
        return moment - (4 if moment >= NEW_YORK_CHANGES else 5) * HOUR
    return moment


PERIODS: dict[str, Callable[[datetime], object]] = {
    "hourly": lambda moment: (moment.date(), moment.hour),
    "daily": lambda moment: moment.date(),
    "weekly": lambda moment: moment.date() - timedelta(days=moment.weekday()),
    "monthly": lambda moment: moment.month,
}
RETENTION = {
    "berlin": {"daily": 7, "weekly": 3}, "databases": {"weekly": 8}, "early": {"last": 3}, "new-york": {"daily": 5},
    "frequent": {"hourly": 12, "daily": 10}, "evening": {"daily": 31}, "images": {"monthly": 1, "last": 2},
}  # fmt: skip


def expected_points(machine: Machine, points: list[datetime]) -> list[datetime]:
    kept = set(points[-1:])
    for policy in policies_of(machine):
        for rule, count in RETENTION[policy].items():
            if rule == "last":
                kept |= set(points[-count:])
                continue
            newest = {PERIODS[rule](local(point, policy)): point for point in points}  # in order: the last one stays
            kept |= set(sorted(newest.values())[-count:])
    return sorted(kept)


def expected_of_all() -> tuple[list[Begun], dict[str, list[datetime]]]:
    """The runs in order, and when those of each machine ended well."""
    runs: list[Begun] = []
    well: dict[str, list[datetime]] = {}
    for host in LANES:
        of_host, ended = expected_of_host(host)
        runs += of_host
        well |= ended
    return sorted(runs), well


# --- the month -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def month() -> Simulation:
    simulation = Simulation()
    simulation.run()
    return simulation


@pytest.fixture(scope="module")
def expected() -> tuple[list[Begun], dict[str, list[datetime]]]:
    return expected_of_all()


def test_the_runs_are_those_that_the_policies_say(
    month: Simulation, expected: tuple[list[Begun], dict[str, list[datetime]]]
) -> None:
    assert len(month.runs) > 1500
    ours, theirs = set(month.runs), set(expected[0])
    assert (sorted(ours - theirs)[:3], sorted(theirs - ours)[:3]) == ([], [])
    assert sorted(month.runs) == expected[0]


def test_the_points_are_those_that_the_policies_say(
    month: Simulation, expected: tuple[list[Begun], dict[str, list[datetime]]]
) -> None:
    for machine in MACHINES:
        points = expected_points(machine, expected[1].get(machine.key, []))
        assert [each.created_utc for each in month.points[machine.key]] == points, machine.name
    assert sum(month.made.values()) > 3 * sum(map(len, month.points.values())), "most were pruned"


def of(month: Simulation, name: str) -> list[Begun]:
    (key,) = [each.key for each in MACHINES if each.name == name]
    return [each for each in month.runs if each.key == key]


def test_after_the_outage_each_machine_catches_up_once(month: Simulation) -> None:
    assert not [each for each in month.runs if DOWN <= each.begins < UP]
    soon = UP + timedelta(days=1)
    for machine in MACHINES:
        runs = [each for each in month.runs if each.key == machine.key and UP <= each.begins < soon]
        if machine.name == "toy":
            assert not runs
        elif machine.host != "nyc-1":  # where not all have their turn in a night
            assert [each.catches_up for each in runs] == [True] + [False] * (len(runs) - 1), machine.name
    assert [each.begins.day for each in of(month, "firewall")] == [*range(1, 18), *range(19, 32)]
    begins = sorted(each.begins for each in month.runs if UP <= each.begins < UP + 10 * MINUTE)
    assert begins[0] > UP
    assert len(set(begins)) == len(begins), "no two in the same moment"


def test_limits_and_windows_were_kept_and_were_needed(month: Simulation) -> None:
    assert month.most == LANES, "each host was as busy as it may be"
    for each in month.runs:
        if each.policies == ("new-york",):
            assert any(opens <= each.begins < closes for opens, closes in OPEN["new-york"])
    nights = Counter(each.begins.date() for each in month.runs if each.policies == ("new-york",))
    assert max(nights.values()) < 12, "not all of them had their turn in any night"
    counts = [len(of(month, f"desk-{number}")) for number in range(12)]
    assert max(counts) - min(counts) <= 2, "those that had none come first in the next"


def test_special_days(month: Simulation) -> None:
    assert len(of(month, "toy")) == 0
    both = [each for each in of(month, "db-0") if "databases" in each.policies]
    assert [(each.begins.day, each.policies) for each in both] == [
        (day, ("berlin", "databases")) for day in (1, 8, 15, 22, 29)
    ]  # fmt: skip
    assert month.limits["berlin", "databases"] == 50_000_000
    long = [each for each in of(month, "db-3") if 10 <= each.begins.day <= 12]
    assert long[1].begins - long[0].begins >= 30 * HOUR, "never two at once, and one after it"
    early = {each.begins.day: each.begins for each in of(month, "app-0") if each.policies == ("early",)}
    assert [early[day].hour for day in (28, 29, 30)] == [1, 1, 0], "02:30 in Berlin, and 03:00 on the 29th"
    assert early[29].minute < 30 <= min(early[28].minute, early[30].minute)
