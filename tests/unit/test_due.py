"""What the scheduler asks for at one moment, and what it does not, however the clock moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.policy.due import LONGEST_LOOK, Cause, Look, Why, look
from appliance.policy.policies import Policy, assign
from appliance.policy.schedules import Schedule
from appliance.policy.selectors import Clause, Kind, Machine, Selector
from appliance.policy.states import AHEAD, Busy, MachineState, PolicyState
from appliance.policy.windows import Span, Window

START = datetime(2026, 6, 1, tzinfo=UTC)  # a Monday
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
EVERY = Selector((Clause(),))


def at(day: int, clock: str) -> datetime:
    return datetime.fromisoformat(f"2026-06-{day:02} {clock}").replace(tzinfo=UTC)


def policy(name: str = "nightly", cron: str = "0 22 * * *", *, paused: bool = False, **other: object) -> PolicyState:
    values: dict[str, object] = {"select": EVERY, "spread_s": 0, "per_host": 100} | other
    return PolicyState(Policy(name, schedule=Schedule(cron), **values), START, paused)  # type: ignore[arg-type]


def machine(name: str = "web", host: str = "kvm1", **state: object) -> MachineState:
    return MachineState(Machine(Kind.VM, name, name, host), START, **state)  # type: ignore[arg-type]


def see(
    policies: Sequence[PolicyState], machines: Sequence[MachineState], now: datetime, *, since: datetime = START
) -> Look:
    assigned = assign([each.policy for each in policies], [each.machine for each in machines])
    return look(policies, machines, assigned, now, looking_since_utc=since)


def begun(found: Look) -> list[str]:
    return [each.machine.name for each in found.requests]


def night(begins: int = 22, ends: int = 6) -> Window:
    clock = datetime.min.time()
    return Window((Span(frozenset(range(7)), clock.replace(hour=begins), clock.replace(hour=ends)),))


# --- due or not ------------------------------------------------------------------------------------------------------


def test_a_machine_is_due_at_its_time_and_until_a_run_began() -> None:
    assert begun(see([policy()], [machine()], at(1, "21:59:59"))) == []
    found = see([policy()], [machine()], at(1, "22:00"))
    assert found.requests[0].reason == "schedule of nightly, due 2026-06-01 22:00Z"
    assert begun(see([policy()], [machine(answers=(at(1, "21:59"),))], at(1, "22:00"))) == ["web"]
    assert begun(see([policy()], [machine(answers=(at(1, "22:00"),))], at(1, "23:00"))) == []


@pytest.mark.parametrize(("busy", "why"), [(Busy.QUEUED, Why.QUEUED), (Busy.RUNNING, Why.RUNNING)])
def test_never_two_runs_of_a_machine(busy: Busy, why: Why) -> None:
    found = see([policy()], [machine(busy=busy)], at(1, "22:00"))
    assert not found.requests
    assert [each.why for each in found.waiting] == [why]


def test_after_downtime_there_is_one_run() -> None:
    found = see([policy()], [machine(answers=(at(1, "22:00"),))], at(20, "12:00"))
    assert [(each.due[0].cause, each.due[0].due_utc) for each in found.requests] == [(Cause.CATCH_UP, at(19, "22:00"))]
    assert begun(see([policy()], [machine(answers=(at(20, "12:00"),))], at(20, "12:01"))) == []


def test_what_was_due_before_the_policy_or_the_machine_is_nobodys() -> None:
    late = replace(policy(), since_utc=at(5, "23:00"))
    assert begun(see([late], [machine()], at(6, "12:00"))) == []
    assert begun(see([late], [machine()], at(6, "22:00"))) == ["web"]
    assert begun(see([policy()], [replace(machine(), known_utc=at(5, "23:00"))], at(6, "12:00"))) == []


def test_a_machine_of_two_policies_runs_once_and_obeys_the_strictest() -> None:
    policies = [policy("b", limit_bytes_s=9000, quiesce=False), policy("a", "0 22 * * MON", limit_bytes_s=5000),
                policy("c", "0 23 * * *", limit_bytes_s=1024)]  # fmt: skip
    (request,) = see(policies, [machine()], at(1, "22:00")).requests
    assert [each.policy for each in request.due] == ["a", "b"]
    assert (request.limit_bytes_s, request.quiesce) == (5000, True)
    assert begun(see(policies, [machine(answers=(at(1, "22:00"),))], at(1, "22:30"))) == []


def test_what_is_paused_waits_and_holds_nobody_up() -> None:
    found = see([policy(paused=True)], [machine()], at(1, "22:00"))
    assert [each.why for each in found.waiting] == [Why.PAUSED]
    assert [each.why for each in see([policy()], [machine(paused=True)], at(1, "22:00")).waiting] == [Why.PAUSED]
    both = [policy("a", paused=True, per_host=1), policy("b")]
    found = see(both, [machine("x"), machine("y")], at(1, "22:00"))
    assert [[each.policy for each in request.due] for request in found.requests] == [["b"], ["b"]]


# --- windows and spread ----------------------------------------------------------------------------------------------


def test_outside_of_its_window_a_machine_waits_until_it_opens() -> None:
    policies = [policy(cron="0 12 * * *", window=night())]
    found = see(policies, [machine()], at(1, "12:00"))
    assert [(each.why, each.until_utc) for each in found.waiting] == [(Why.WINDOW, at(1, "22:00"))]
    assert begun(see(policies, [machine()], at(1, "21:59"))) == []
    assert begun(see(policies, [machine()], at(1, "22:00"))) == ["web"]
    assert begun(see(policies, [machine()], at(2, "06:00"))) == [], "it ends before its end"


def test_machines_begin_one_after_another_always_in_the_same_way() -> None:
    policies, machines = [policy(spread_s=600)], [machine(f"m{n}", f"kvm{n % 4}") for n in range(40)]
    times: dict[str, datetime] = {}
    now = at(1, "22:00")
    while now < at(1, "22:30"):
        found = see(policies, [each for each in machines if each.machine.name not in times], now)
        times |= dict.fromkeys(begun(found), now)
        now = found.next_utc
    assert len(times) == 40
    assert len(set(times.values())) == 40, "no two in the same moment"
    assert at(1, "22:00") <= min(times.values())
    assert at(1, "22:05") < max(times.values()) <= at(1, "22:10")
    other_day = see(policies, [machine("m7", answers=(at(4, "22:30"),))], at(5, "22:00"))
    assert other_day.next_utc - at(5, "22:00") == times["m7"] - at(1, "22:00")


@pytest.mark.parametrize(
    ("now", "since", "other", "from_", "within"),
    [
        (at(5, "12:00"), at(5, "12:00"), {}, at(5, "12:00"), 10 * MINUTE),  # after downtime
        (at(5, "22:00"), START, {"cron": "0 12 * * *", "window": night()}, at(5, "22:00"), 10 * MINUTE),
        (at(5, "22:00"), START, {"cron": "0 22 * * *", "window": night(22, 23), "spread_s": 86400},
         at(5, "22:00"), 30 * MINUTE),  # half of what is left of the window
        (at(5, "22:00"), START, {"cron": "*/4 * * * *"}, at(5, "22:00"), 2 * MINUTE),  # half of the time to the next
    ],
)  # fmt: skip
def test_the_spread_counts_from_what_came_last_and_stays_in_bounds(
    now: datetime, since: datetime, other: dict[str, object], from_: datetime, within: timedelta
) -> None:
    policies = [policy(**({"spread_s": 600} | other))]  # type: ignore[arg-type]
    times = []
    for number in range(60):
        state = machine(f"m{number}", answers=(now - MINUTE,) if other.get("cron") == "*/4 * * * *" else ())
        found = see(policies, [state], now, since=since)
        assert not found.requests
        times.append(found.waiting[0].until_utc or now)
    assert from_ < min(times) < max(times) < from_ + within
    assert max(times) - min(times) > within / 2


def test_who_missed_a_due_time_while_its_host_was_full_does_not_wait_for_its_turn_again() -> None:
    policies = [policy(cron="*/10 * * * *", spread_s=600)]
    waited, fresh = machine("waited", answers=(at(1, "21:45"),)), machine("fresh", answers=(at(1, "21:55"),))
    found = see(policies, [waited, fresh], at(1, "22:00"))
    assert begun(found) == ["waited"]
    assert [each.why for each in found.waiting] == [Why.SPREAD]


# --- hosts -----------------------------------------------------------------------------------------------------------


def test_a_host_gets_no_more_than_the_strictest_policy_on_it_allows() -> None:
    policies = [policy("wide", per_host=5), policy("narrow", per_host=2, select=Selector((Clause(host="kvm1"),)))]
    machines = [machine(f"a{n}", "kvm1") for n in range(4)] + [machine(f"b{n}", "kvm2") for n in range(4)]
    found = see(policies, machines, at(1, "22:00"))
    assert sorted(begun(found)) == ["a0", "a1", "b0", "b1", "b2", "b3"]
    assert {each.why for each in found.waiting} == {Why.HOST}
    busy = machine("by hand", "kvm1", busy=Busy.QUEUED, answers=(at(1, "22:00"),))
    assert [name for name in begun(see(policies, [*machines, busy], at(1, "22:00"))) if name[0] == "a"] == ["a0"]


def test_hosts_take_turns_and_who_waited_longest_comes_first() -> None:
    machines = [machine(f"a{n}", "kvm1", answers=(at(1, f"2{n}:00"),)) for n in (3, 2)]
    machines += [machine(f"b{n}", "kvm2", answers=(at(1, f"2{n}:00"),)) for n in (2, 3)]
    machines.append(machine("c", "kvm3"))
    assert begun(see([policy(cron="0 5 * * *")], machines, at(2, "05:00"))) == ["c", "a2", "b2", "a3", "b3"]


@pytest.mark.parametrize(("spread_s", "kept"), [(600, True), (86400, False)])
def test_a_place_is_kept_for_who_waited_longest_but_not_for_long(spread_s: int, kept: bool) -> None:
    policies = [policy(spread_s=spread_s, per_host=1, window=night())]
    turns: dict[str, datetime] = {}
    for name in "stuvwxyz":
        until = see(policies, [machine(name)], at(5, "22:00")).waiting[0].until_utc
        assert until is not None
        turns[name] = until
    first, *_, last = sorted(turns, key=lambda name: turns[name])
    now = turns[first]
    machines = [machine(first, answers=(at(4, "22:05"),)), machine(last, answers=(at(3, "22:05"),))]
    found = see(policies, machines, now)
    assert begun(found) == ([] if kept else [first])
    assert {each.machine.name: each.why for each in found.waiting} == (
        {first: Why.HOST, last: Why.SPREAD} if kept else {last: Why.SPREAD}
    )
    assert begun(see(policies, machines, turns[last])) == [last]


def test_of_a_machine_that_is_told_twice_the_first_counts() -> None:
    found = see([policy()], [machine(host="kvm2"), machine(host="kvm1")], at(1, "22:00"))
    assert [each.machine.host for each in found.requests] == ["kvm2"]


def test_500_policies_due_at_the_same_minute_are_drained_within_the_limits() -> None:
    count, hosts, length = 500, 25, 10 * MINUTE
    policies = [policy(f"p{n}", per_host=2, select=Selector((Clause(name=f"m{n}"),))) for n in range(count)]
    states = {f"m{n}": machine(f"m{n}", f"kvm{n % hosts}") for n in range(count)}
    assigned = {f"vm:m{n}": (f"p{n}",) for n in range(count)}
    ends: dict[str, datetime] = {}
    ran: list[str] = []
    now = at(1, "22:00")
    while len(ran) < count:
        for name in [name for name, end in ends.items() if end <= now]:
            states[name] = replace(states[name], busy=None)
            del ends[name]
        found = look(policies, list(states.values()), assigned, now, looking_since_utc=START)
        ran += (names := begun(found))
        for name in names:
            states[name], ends[name] = replace(states[name], busy=Busy.RUNNING, answers=(now,)), now + length
        assert max(Counter(states[name].machine.host for name in ends).values()) <= 2
        now = min(found.next_utc, *ends.values())
    assert sorted(ran) == sorted(states)
    assert max(ends.values()) == at(1, "22:00") + 10 * length, "20 on each host, two at once"


# --- the RPO ---------------------------------------------------------------------------------------------------------


def test_who_misses_the_rpo() -> None:
    policies = [policy("a", rpo=2 * DAY), policy("b", rpo=26 * HOUR, paused=True), policy("c")]
    found = see(policies, [machine("old", point_utc=at(3, "10:00")), machine("never"),
                           machine("good", point_utc=at(3, "10:01"))], at(4, "12:00"))  # fmt: skip
    assert [(each.machine.name, each.policy, each.paused, each.has_point) for each in found.missed] == [
        ("never", "b", True, False), ("old", "b", True, True),
    ]  # fmt: skip
    assert found.next_utc == at(4, "12:01"), "when the next one misses it"
    assert not see([policy(rpo=DAY)], [machine()], START + HOUR).missed, "it is not protected for so long yet"


def test_a_point_from_the_future_proves_nothing() -> None:
    assert begun_missed(machine(point_utc=at(20, "00:00"))) == ["web"]
    assert begun_missed(machine(point_utc=at(2, "12:30"))) == []
    assert begun_missed(replace(machine(), known_utc=at(20, "00:00"))) == ["web"]


def begun_missed(state: MachineState) -> list[str]:
    return [each.machine.name for each in see([policy(rpo=30 * HOUR)], [state], at(2, "12:00")).missed]


# --- the clock -------------------------------------------------------------------------------------------------------


def drive(policies: Sequence[PolicyState], clocks: Sequence[datetime], count: int = 4) -> list[list[datetime]]:
    """Each clock in turn, a minute at a time for two days, with runs that take half an hour. What ran, by clock."""
    machines = [machine(f"m{n}") for n in range(count)]
    ran: list[list[datetime]] = []
    for begin in clocks:
        here: list[datetime] = []
        machines = [replace(each, busy=None) for each in machines]
        ends: dict[str, datetime] = {}
        for step in range(2 * 24 * 60):
            now = begin + step * MINUTE
            machines = [
                replace(each, busy=None, point_utc=now)
                if each.busy is not None and ends[each.machine.name] <= now else each for each in machines
            ]  # fmt: skip
            if step % 10:
                continue
            names = set(begun(see(policies, machines, now)))
            here += [now] * len(names)
            ends |= dict.fromkeys(names, now + 30 * MINUTE)
            machines = [
                replace(each, busy=Busy.RUNNING, answers=(*each.answers, now)) if each.machine.name in names else each
                for each in machines
            ]
        ran.append(here)
    return ran


def test_a_clock_that_jumps_ahead_and_back_starts_no_storm_and_stops_nothing() -> None:
    """Two days each: rightly, a year ahead, and right again. On each day every machine runs once, and once besides
    where the clock came to be ahead."""
    right, wrong, again = drive([policy()], [at(3, "12:00"), at(3, "12:00") + 366 * DAY, at(5, "12:00")])
    assert right == [at(3, "12:00")] * 4 + [at(3, "22:00")] * 4 + [at(4, "22:00")] * 4
    ahead = 366 * DAY
    assert wrong == [at(3, "12:00") + ahead] * 4 + [at(3, "22:00") + ahead] * 4 + [at(4, "22:00") + ahead] * 4
    assert again == [at(5, "22:00")] * 4 + [at(6, "22:00")] * 4, "nothing is due twice, and nothing waits for a year"


def test_a_clock_set_back_a_little_makes_nothing_run_twice() -> None:
    state = machine(answers=(at(1, "22:00:30"),))
    for now in ("21:59:59", "22:00", "22:00:15"):
        assert begun(see([policy()], [state], at(1, now))) == []
    assert begun(see([policy()], [state], at(1, "22:00") - AHEAD)) == []
    assert begun(see([policy()], [state], at(2, "22:00"))) == ["web"]


def test_where_nothing_can_be_believed_there_is_one_run() -> None:
    ahead = 400 * DAY
    lost = replace(machine(answers=(START + ahead,)), known_utc=START + ahead)
    policies = [replace(policy(), since_utc=START + ahead)]
    assert begun(see(policies, [lost], at(5, "12:00"))) == ["web"]
    ran = replace(lost, answers=(*lost.answers, at(5, "12:00")))
    assert begun(see(policies, [ran], at(5, "12:10"))) == []
    assert begun(see(policies, [ran], at(5, "22:00"))) == ["web"]


# --- properties ------------------------------------------------------------------------------------------------------

_MOMENT = st.integers(-500, 5000).map(lambda tens: START + 10 * tens * MINUTE)
_POLICIES = st.lists(
    st.builds(
        policy,
        st.sampled_from("abc"),
        st.sampled_from(["0 22 * * *", "*/15 * * * *", "0 3 * * SUN", "0 */6 * * *"]),
        paused=st.booleans(), spread_s=st.sampled_from([0, 300, 86400]), per_host=st.integers(1, 3),
        window=st.none() | st.builds(night, st.integers(0, 23), st.integers(0, 23)),
        rpo=st.none() | st.just(DAY), select=st.sampled_from([EVERY, Selector((Clause(host="kvm1"),))]),
    ),
    max_size=3, unique_by=lambda each: each.policy.name,
)  # fmt: skip
_MACHINES = st.lists(
    st.builds(
        machine, st.sampled_from("stuvwxyz"), st.sampled_from(["kvm1", "kvm2"]),
        answers=st.lists(_MOMENT, max_size=3).map(tuple), point_utc=st.none() | _MOMENT,
        busy=st.none() | st.sampled_from(Busy), paused=st.booleans(),
    ),
    max_size=8, unique_by=lambda each: each.machine.name,
)  # fmt: skip


@given(_POLICIES, _MACHINES, _MOMENT, _MOMENT)
def test_whatever_the_state(
    policies: list[PolicyState], machines: list[MachineState], now: datetime, since: datetime
) -> None:
    found = see(policies, machines, now, since=since)
    assert now < found.next_utc <= now + LONGEST_LOOK
    states = {each.machine: each for each in machines}
    asked, waiting = [each.machine for each in found.requests], [each.machine for each in found.waiting]
    assert len({*asked, *waiting}) == len(asked) + len(waiting)
    assert all(each.until_utc is None or each.until_utc > now for each in found.waiting)
    assert all(states[each].busy is None and not states[each].paused for each in asked)
    for host in ("kvm1", "kvm2"):
        mine = [each for each in asked if each.host == host]
        busy = sum(each.busy is not None and each.machine.host == host for each in machines)
        for one in mine:
            limits = [each.policy.per_host for each in policies
                      if each.policy.select.decide(one).selected and not each.paused]  # fmt: skip
            assert len(mine) + busy <= min(limits)
    assert found == see(policies[::-1], machines[::-1], now, since=since), "the order of what is told means nothing"
    # Once what was asked for has begun, the same moment asks for none of it again.
    after = [replace(each, answers=(*each.answers, now)) if each.machine in asked else each for each in machines]
    assert not {each.machine for each in see(policies, after, now, since=since).requests} & set(asked)
