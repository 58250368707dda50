"""Accounts in every engine of the catalog: set-up, signing in, sessions, tokens, and those who try to get in."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.acts import Act, Role
from appliance.bootstrap import Appliance
from appliance.catalog.errors import RecordExists, RecordMissing
from appliance.catalog.users import LastAdmin
from appliance.policy.selectors import Clause, Kind, Machine, Selector
from appliance.services.access import ActorKind, NotAllowed, ReauthenticationNeeded, Subject, Via, local_actor
from appliance.services.accounts.errors import (
    CodeWrong,
    GrantsMissing,
    LinkUnusable,
    NameUnfit,
    PasswordUnfit,
    SessionOver,
    SignInRefused,
    SignInThrottled,
    TokenRefused,
    TokenUnfit,
    UsersExist,
)
from appliance.services.accounts.setting_up import LINK_GOOD_FOR
from appliance.services.accounts.signing_in import Origin, SignInService
from appliance.services.accounts.tokens import LONGEST
from appliance.settings import Settings, load
from tests.lab.postgres_server import running
from tests.unit.accounts import CHEAP, ORIGIN, PASSWORD, WEB_ONLY, Accounts, Clock
from tests.unit.records import NOW

ELSEWHERE = Origin("198.51.100.9", "curl")
A_DAY = timedelta(days=1)


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    environment = {"STRONGROOM_HOME": str(tmp_path / "home")}
    if request.param == "postgresql":
        environment["STRONGROOM_CATALOG_URL"] = running().fresh_catalog()
    return load(environment)


@pytest.fixture
def accounts(settings: Settings) -> Iterator[Accounts]:
    clock = Clock()
    with Appliance(settings, clock=clock) as appliance:
        yield Accounts(appliance, clock)


def told(accounts: Accounts) -> list[tuple[str, str, str, str]]:
    """What the audit has: act, result, by whom, on whom."""
    return [
        (entry.act, entry.result.value, entry.actor_name, entry.subject_name)
        for entry in accounts.appliance.catalog.audit.entries()
    ]


# Set-up


def test_the_first_link_makes_an_admin_and_is_used_up(accounts: Accounts) -> None:
    link = accounts.setting_up.first_link()
    assert link.secret not in repr(link)
    assert link.path == f"/set-up/{link.secret}"
    offer = accounts.setting_up.offer(link.secret, "backup-1")
    assert offer.name is None
    assert offer.uri.startswith("otpauth://totp/Strongroom:admin%40backup-1?secret=")
    assert accounts.setting_up.offer(link.secret).secret == offer.secret, "a reloaded page shows the same code"
    accounts.use(link.secret, "alice")
    user = accounts.appliance.catalog.users.get("alice")
    assert (user.role, user.ready, user.enabled) == (Role.ADMIN, True, True)
    assert PASSWORD not in repr(user)
    assert len(set(accounts.recovery["alice"])) == 10
    with pytest.raises(LinkUnusable):
        accounts.setting_up.offer(link.secret)
    with pytest.raises(UsersExist):
        accounts.setting_up.first_link()
    assert accounts.signing_in.sign_in("Alice ", PASSWORD, accounts.next_code("alice"), ORIGIN).actor.name == "alice"
    assert told(accounts)[:2] == [
        ("user.reset", "ok", "system", "the first admin"), ("account.set-up", "ok", "alice", "alice"),
    ]  # fmt: skip


def test_a_link_is_replaced_by_a_newer_one_and_grows_old(accounts: Accounts) -> None:
    first = accounts.setting_up.first_link()
    second = accounts.setting_up.first_link()
    with pytest.raises(LinkUnusable):
        accounts.setting_up.offer(first.secret)
    accounts.clock.now += LINK_GOOD_FOR - timedelta(seconds=1)
    accounts.setting_up.offer(second.secret)
    accounts.clock.now += timedelta(seconds=1)
    with pytest.raises(LinkUnusable):
        accounts.setting_up.offer(second.secret)
    for guess in ("", "x", "\udcff", "é" * 50):
        with pytest.raises(LinkUnusable):
            accounts.setting_up.offer(guess)


def test_a_set_up_that_is_refused_leaves_the_link(accounts: Accounts) -> None:
    link = accounts.setting_up.first_link()
    accounts.secrets["alice"] = accounts.setting_up.offer(link.secret).secret
    good = accounts.code("alice")

    def attempt(name: str = "alice", password: str = PASSWORD, code: str = good) -> None:
        accounts.setting_up.complete(link.secret, name, password, code, ORIGIN)

    for name in ("", "../x", "a b", "ALICE<script>", "é", "x" * 65, "-a", "a\0", "\udcff"):
        with pytest.raises(NameUnfit):
            attempt(name=name)
    for password in ("short", "x" * 12, "alicealice" * 2, "y" * 300, "aaaa\udcffbbbbcccc"):
        with pytest.raises(PasswordUnfit):
            attempt(password=password)
    for code in (
        "",
        "000000" if good != "000000" else "111111",
        "abcdef",
        "١٢٣٤٥٦",
        good + "0",
        accounts.code("alice", steps=5),
    ):
        with pytest.raises(CodeWrong):
            attempt(code=code)
    assert not accounts.appliance.catalog.users.exist()
    attempt()


def test_a_code_that_set_up_used_is_not_good_for_signing_in(accounts: Accounts) -> None:
    accounts.add("alice")
    with pytest.raises(SignInRefused):
        accounts.signing_in.sign_in("alice", PASSWORD, accounts.code("alice"), ORIGIN)
    accounts.sign_in("alice")


def test_a_reset_sets_everything_up_anew(accounts: Accounts) -> None:
    accounts.add("alice")
    signed_in = accounts.sign_in("alice")
    before, codes = accounts.secrets["alice"], accounts.recovery["alice"]
    link = accounts.users.reset(accounts.local, "alice").link
    accounts.signing_in.actor_of(signed_in.secret, ORIGIN)
    accounts.sign_in("alice")
    assert accounts.setting_up.offer(link.secret).name == "alice"
    accounts.use(link.secret, "alice", "another long password")
    assert accounts.secrets["alice"] != before
    with pytest.raises(SessionOver):
        accounts.signing_in.actor_of(signed_in.secret, ORIGIN)
    for password, code in ((PASSWORD, accounts.next_code("alice")), ("another long password", codes[0])):
        with pytest.raises(SignInRefused):
            accounts.signing_in.sign_in("alice", password, code, ORIGIN)
    accounts.sign_in("alice", "another long password")


# Signing in


def test_what_is_wrong_is_not_told(accounts: Accounts) -> None:
    accounts.add("alice")
    accounts.add("bob")
    waiting = accounts.users.add(accounts.local, "carol", Role.VIEWER)
    assert not waiting.user.ready
    accounts.users.disable(accounts.local, "bob")
    code = accounts.next_code("alice")
    said = set()
    for number, (name, password, given) in enumerate(
        [
            ("nobody", PASSWORD, code), ("alice", "wrong", code), ("alice", PASSWORD, "000000"), ("alice", "", ""),
            ("bob", PASSWORD, accounts.code("bob")), ("carol", PASSWORD, code), ("alice", PASSWORD * 100, code),
            ("\0\udcff" * 500, "\0", "\0" * 10_000), ("alice", PASSWORD, "AAAA-BBBB-CCCC-DDDD"),
        ]
    ):  # fmt: skip
        with pytest.raises(SignInRefused) as caught:
            accounts.signing_in.sign_in(name, password, given, Origin(f"192.0.2.{number}"))
        said.add((str(caught.value), caught.value.hint))
    assert len(said) == 1
    entries = [entry for entry in accounts.appliance.catalog.audit.entries() if entry.act == "session.start"]
    assert {entry.result for entry in entries} == {"refused"}
    assert {entry.subject_name for entry in entries} == {"unknown", "alice", "bob", "carol"}
    assert PASSWORD not in str(entries)


def test_nobody_costs_as_much_as_a_wrong_password(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    """By counting, not by a watch: the password is hashed once, and a code checked once, in every case."""
    accounts.add("alice")
    hashed: list[str] = []
    verify = CHEAP._hasher.verify

    def counted(hash: str, password: bytes) -> bool:
        hashed.append(hash.split("$")[3])
        return bool(verify(hash, password))

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return counted if name == "verify" else getattr(hasher, name)

    hasher = CHEAP._hasher
    monkeypatch.setattr(CHEAP, "_hasher", Counting())
    for name in ("nobody", "alice"):
        with pytest.raises(SignInRefused):
            accounts.signing_in.sign_in(name, "wrong", "123456", ORIGIN)
    assert hashed == ["m=8,t=1,p=1"] * 2


def test_a_code_is_good_once(accounts: Accounts) -> None:
    accounts.add("alice")
    code = accounts.next_code("alice")
    accounts.signing_in.sign_in("alice", PASSWORD, f" {code[:3]} {code[3:]} ", ORIGIN)
    with pytest.raises(SignInRefused):
        accounts.signing_in.sign_in("alice", PASSWORD, code, ORIGIN)
    later = accounts.code("alice", steps=1)
    accounts.signing_in.sign_in("alice", PASSWORD, later, ORIGIN)
    with pytest.raises(SignInRefused):
        accounts.signing_in.sign_in("alice", PASSWORD, code, ORIGIN)
    with pytest.raises(SignInRefused):
        accounts.signing_in.sign_in("alice", PASSWORD, accounts.code("alice", steps=2), ORIGIN)


def _sign_in(settings: Settings, code: str, now: Any, number: int, done: Any) -> None:
    clock = Clock()
    clock.now = now
    with Appliance(settings, clock=clock) as appliance:
        service = SignInService(appliance, passwords=CHEAP)
        try:
            service.sign_in("alice", PASSWORD, code, Origin(f"192.0.2.{100 + number}"))
            done.put("in")
        except SignInRefused:
            done.put("refused")


@pytest.mark.parametrize("kind", ["second factor", "recovery"])
def test_of_several_processes_that_have_a_code_one_gets_in(settings: Settings, accounts: Accounts, kind: str) -> None:
    accounts.add("alice")
    code = accounts.next_code("alice") if kind == "second factor" else accounts.recovery["alice"][0]
    spawn = multiprocessing.get_context("spawn")
    done = spawn.Queue()
    processes = [
        spawn.Process(target=_sign_in, args=(settings, code, accounts.clock.now, number, done)) for number in range(3)
    ]
    for process in processes:
        process.start()
    results = sorted(done.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(120)
    assert results == ["in", "refused", "refused"]


def test_a_recovery_code_is_good_once_and_counted(accounts: Accounts) -> None:
    accounts.add("alice")
    first, second = accounts.recovery["alice"][:2]
    with pytest.raises(SignInRefused):
        accounts.signing_in.sign_in("alice", "wrong", first, ORIGIN)
    signed_in = accounts.signing_in.sign_in("alice", PASSWORD, first.lower().replace("-", " "), ORIGIN)
    assert signed_in.codes_left == 9
    with pytest.raises(SignInRefused):
        accounts.signing_in.sign_in("alice", PASSWORD, first, ORIGIN)
    assert accounts.signing_in.sign_in("alice", PASSWORD, second, ORIGIN).codes_left == 8
    fresh = accounts.own.new_recovery_codes(signed_in.actor)
    assert len(fresh) == 10
    with pytest.raises(SignInRefused):
        accounts.signing_in.sign_in("alice", PASSWORD, accounts.recovery["alice"][2], ORIGIN)
    accounts.signing_in.sign_in("alice", PASSWORD, fresh[0], ORIGIN)


def test_a_clock_that_was_a_year_ahead_keeps_nobody_out(accounts: Accounts) -> None:
    accounts.add("alice")
    accounts.clock.now += timedelta(days=365)
    session = accounts.sign_in("alice")
    accounts.clock.now -= timedelta(days=365)
    accounts.sign_in("alice")
    with pytest.raises(SignInRefused):
        accounts.signing_in.sign_in("alice", PASSWORD, accounts.code("alice"), ORIGIN)
    with pytest.raises(SessionOver):
        accounts.signing_in.actor_of(session.secret, ORIGIN)


def test_hashes_of_old_parameters_are_made_anew(accounts: Accounts) -> None:
    accounts.add("alice")
    before = accounts.appliance.catalog.users.get("alice").password_hash
    strong = SignInService(accounts.appliance)
    strong.sign_in("alice", PASSWORD, accounts.next_code("alice"), ORIGIN)
    after = accounts.appliance.catalog.users.get("alice").password_hash
    assert (before or "").startswith("$argon2id$v=19$m=8,")
    assert (after or "").startswith("$argon2id$v=19$m=65536,t=3,")
    strong.sign_in("alice", PASSWORD, accounts.next_code("alice"), ORIGIN)


def test_an_account_signs_as_one_person_for_as_long_as_both_are_there(accounts: Accounts) -> None:
    accounts.add("root")
    accounts.add("alice")
    users, persons = accounts.appliance.catalog.users, accounts.appliance.catalog.persons
    alice, root = users.get("alice").id, users.get("root").id
    one, two = "1" * 32, "2" * 32

    def tie(person: str, user: str, *counting: str) -> tuple[str, str] | None:
        return persons.tie(person, user, NOW, counting=counting or (one, two))

    assert tie(one, alice) is None
    assert tie(one, alice) is None, "it is that already"
    assert tie(two, alice) == (one, alice), "what the account is"
    assert tie(one, root) == (one, alice), "whose the person is"
    assert tie(two, alice, two) is None, "the person has left the guard"
    assert persons.all() == {two: alice}
    users.remove(alice)
    assert persons.all() == {}
    assert tie(two, root) is None


# Those who guess


def guess(accounts: Accounts, name: str, origin: Origin) -> float:
    """One wrong password: 0.0, or how long it has to wait."""
    try:
        accounts.signing_in.sign_in(name, "wrong", "000000", origin)
    except SignInThrottled as err:
        return err.retry_after_s
    except SignInRefused:
        return 0.0
    raise AssertionError("it got in")


def test_who_guesses_waits_longer_each_time_and_never_for_good(accounts: Accounts) -> None:
    accounts.add("alice")
    waits = []
    for _ in range(14):
        while (wait_s := guess(accounts, "alice", ELSEWHERE)) == 0.0:
            pass
        waits.append(wait_s)
        accounts.clock.pass_s(wait_s)
    assert waits[:6] == [1, 2, 4, 8, 16, 32]
    assert set(waits[6:]) == {60}
    accounts.signing_in.sign_in("alice", PASSWORD, accounts.code("alice"), ELSEWHERE)
    others = [guess(accounts, "alice", Origin("203.0.113.1")) for _ in range(6)]
    assert others == [0.0] * 5 + [1], "a success forgets what was before"


def test_waiting_is_for_the_right_password_too(accounts: Accounts) -> None:
    accounts.add("alice")
    while guess(accounts, "alice", ELSEWHERE) == 0.0:
        pass
    with pytest.raises(SignInThrottled):
        accounts.signing_in.sign_in("alice", PASSWORD, accounts.code("alice", steps=1), ELSEWHERE)


def test_guessing_from_everywhere_does_not_hold_up_who_is_known(accounts: Accounts) -> None:
    accounts.add("alice")
    accounts.sign_in("alice")
    for number in range(100):
        guess(accounts, "alice", Origin(f"198.51.100.{number}"))
    assert guess(accounts, "alice", Origin("203.0.113.1")) > 0
    accounts.sign_in("alice")
    assert guess(accounts, "alice", Origin("203.0.113.1")) == 0.0, "half a minute has passed"
    assert guess(accounts, "alice", Origin("203.0.113.1")) == 2, "a success from a known address excuses nobody"
    accounts.clock.now += timedelta(days=91)
    assert guess(accounts, "alice", Origin("203.0.113.1")) == 0.0, "a day without failures is forgotten"


def test_one_address_that_tries_many_names_waits(accounts: Accounts) -> None:
    accounts.add("alice")
    tried = 0
    while guess(accounts, f"name{tried}", ELSEWHERE) == 0.0:
        tried += 1
    assert tried == 20
    assert guess(accounts, "alice", Origin("203.0.113.1")) == 0.0


def test_an_ipv6_network_is_one_address(accounts: Accounts) -> None:
    accounts.add("alice")
    for number in range(5):
        assert guess(accounts, "alice", Origin(f"2001:db8::{number:x}")) == 0.0
    assert guess(accounts, "alice", Origin("2001:db8::ffff:1")) > 0
    assert Origin("::ffff:192.0.2.7").place == "192.0.2.7"


def test_a_clock_that_goes_back_makes_nobody_wait_longer(accounts: Accounts) -> None:
    accounts.add("alice")
    accounts.clock.now += timedelta(days=3650)
    while guess(accounts, "alice", ELSEWHERE) == 0.0:
        pass
    accounts.clock.now -= timedelta(days=3650)
    assert guess(accounts, "alice", ELSEWHERE) <= 60


@pytest.mark.parametrize("ahead", [timedelta(days=365), timedelta(minutes=10), timedelta(seconds=90)], ids=str)
def test_failures_from_a_clock_that_was_ahead_end_like_others(accounts: Accounts, ahead: timedelta) -> None:
    accounts.add("alice")
    accounts.clock.now += ahead
    for _ in range(100):
        accounts.clock.pass_s(guess(accounts, "alice", ELSEWHERE))
    accounts.clock.now -= ahead
    accounts.clock.pass_s(guess(accounts, "alice", ELSEWHERE))
    waited_s = 0.0
    while (wait_s := guess(accounts, "alice", ELSEWHERE)) > 0:
        accounts.clock.pass_s(wait_s)
        waited_s += wait_s
        assert waited_s < 1000, "for good"


def test_a_new_link_waits_for_nothing(accounts: Accounts) -> None:
    """Whatever others do to a name, an admin of the machine gets in."""
    accounts.add("alice")
    while guess(accounts, "alice", ORIGIN) == 0.0:
        pass
    accounts.use(accounts.users.reset(accounts.local, "alice").link.secret, "alice")
    while guess(accounts, "alice", ELSEWHERE) == 0.0:
        pass
    accounts.clock.pass_s(30)
    while guess(accounts, "alice", ELSEWHERE) == 0.0:
        pass
    accounts.signing_in.sign_in("alice", PASSWORD, accounts.code("alice"), ORIGIN)


def test_a_new_link_waits_for_nothing_where_all_come_from_one_address(accounts: Accounts) -> None:
    """As behind a proxy, or from one network."""
    accounts.add("alice")
    accounts.clock.now += timedelta(days=2)
    tried = 0
    while guess(accounts, f"name{tried}", ORIGIN) == 0.0:
        tried += 1
    accounts.use(accounts.users.reset(accounts.local, "alice").link.secret, "alice")
    accounts.clock.pass_s(0.5)
    accounts.signing_in.sign_in("alice", PASSWORD, accounts.code("alice", steps=1), ORIGIN)


# Sessions


def test_a_session_ends_when_it_is_idle_old_or_ended(accounts: Accounts) -> None:
    accounts.add("alice")
    limits = accounts.appliance.settings.accounts
    idle, old, ended = (accounts.sign_in("alice") for _ in range(3))

    def is_in(secret: str) -> bool:
        try:
            return accounts.signing_in.actor_of(secret, ORIGIN).name == "alice"
        except SessionOver:
            return False

    accounts.signing_in.sign_out(ended.secret, ORIGIN)
    accounts.signing_in.sign_out(ended.secret, ORIGIN)
    assert [is_in(each.secret) for each in (idle, old, ended)] == [True, True, False]
    for _ in range(int(limits.session_s / limits.session_idle_s)):
        accounts.clock.pass_s(limits.session_idle_s - 60)
        assert is_in(old.secret)
    assert not is_in(idle.secret)
    while is_in(old.secret):
        accounts.clock.pass_s(limits.session_idle_s - 1)
    began = accounts.sign_in("alice")
    assert accounts.appliance.catalog.sessions.list() == accounts.own.sessions(began.actor)
    assert len(accounts.own.sessions(began.actor)) == 1, "those that are over are gone"


def test_tokens_of_sessions_are_kept_as_hashes_and_listed_without(accounts: Accounts) -> None:
    accounts.add("alice")
    signed_in = accounts.signing_in.sign_in(
        "alice", PASSWORD, accounts.next_code("alice"), Origin("2001:db8:0:1::5", "Fire\x1b[31mfox\udcff" + "x" * 1000)
    )
    assert signed_in.secret not in repr(signed_in)
    (session,) = accounts.own.sessions(signed_in.actor)
    assert signed_in.secret not in (session.hash, session.id)
    assert (session.address, session.agent[:14]) == ("2001:db8:0:1::/64", "Fire?[31mfox?x")
    assert len(session.agent) == 300
    assert session.hash not in repr(session)


def test_every_sign_in_and_every_proof_is_another_token(accounts: Accounts) -> None:
    accounts.add("alice")
    first, second = accounts.sign_in("alice"), accounts.sign_in("alice")
    assert first.secret != second.secret
    accounts.clock.pass_s(600)
    with pytest.raises(ReauthenticationNeeded):
        accounts.access.check(accounts.signing_in.actor_of(first.secret, ORIGIN), Act.USER_SAVE)
    proven = accounts.signing_in.reauthenticate(first.secret, PASSWORD, accounts.next_code("alice"), ORIGIN)
    with pytest.raises(SessionOver):
        accounts.signing_in.actor_of(first.secret, ORIGIN)
    actor = accounts.signing_in.actor_of(proven.secret, ORIGIN)
    assert actor.session == first.actor.session
    accounts.access.check(actor, Act.USER_SAVE)


def test_a_wrong_proof_counts_as_a_failed_sign_in(accounts: Accounts) -> None:
    """Who stole a session guesses no more passwords by it than without."""
    accounts.add("alice")
    signed_in = accounts.sign_in("alice")
    used = accounts.code("alice")
    with pytest.raises(SignInRefused):
        accounts.signing_in.reauthenticate(signed_in.secret, PASSWORD, used, ORIGIN)
    for _ in range(4):
        with pytest.raises(SignInRefused):
            accounts.signing_in.reauthenticate(signed_in.secret, "wrong", "000000", ORIGIN)
    with pytest.raises(SignInThrottled):
        accounts.signing_in.reauthenticate(signed_in.secret, "wrong", "000000", ORIGIN)
    accounts.signing_in.actor_of(signed_in.secret, ORIGIN)
    assert ("account.reauthenticate", "refused", "", "alice") in told(accounts)


def test_what_changes_an_account_counts_at_once(accounts: Accounts) -> None:
    accounts.add("alice")
    accounts.add("bob", Role.OPERATOR)
    session = accounts.sign_in("bob")
    accounts.users.edit(accounts.local, "bob", role=Role.VIEWER, grants=WEB_ONLY)
    actor = accounts.signing_in.actor_of(session.secret, ORIGIN)
    assert (actor.role, actor.grants, actor.kind, actor.via) == (Role.VIEWER, WEB_ONLY, ActorKind.USER, Via.CONSOLE)
    accounts.users.disable(accounts.local, "bob")
    for attempt in (lambda: accounts.signing_in.actor_of(session.secret, ORIGIN), lambda: accounts.sign_in("bob")):
        with pytest.raises((SessionOver, SignInRefused)):
            attempt()
    accounts.users.enable(accounts.local, "bob")
    with pytest.raises(SessionOver):
        accounts.signing_in.actor_of(session.secret, ORIGIN)
    accounts.sign_in("bob")


def test_a_changed_password_ends_other_sessions(accounts: Accounts) -> None:
    accounts.add("alice")
    other, own = accounts.sign_in("alice"), accounts.sign_in("alice")
    with pytest.raises(PasswordUnfit):
        accounts.own.change_password(own.actor, "short")
    accounts.own.change_password(own.actor, "another long password")
    accounts.signing_in.actor_of(own.secret, ORIGIN)
    with pytest.raises(SessionOver):
        accounts.signing_in.actor_of(other.secret, ORIGIN)
    with pytest.raises(SignInRefused):
        accounts.sign_in("alice")
    accounts.sign_in("alice", "another long password")
    accounts.clock.pass_s(600)
    with pytest.raises(ReauthenticationNeeded):
        accounts.own.change_password(own.actor, "a third long password")


def test_sessions_are_ended_by_who_may(accounts: Accounts) -> None:
    accounts.add("alice")
    accounts.add("bob", Role.VIEWER)
    alice, bob = accounts.sign_in("alice"), accounts.sign_in("bob")
    assert alice.actor.session is not None
    assert bob.actor.session is not None
    with pytest.raises(NotAllowed):
        accounts.users.end_session(bob.actor, alice.actor.session)
    assert {session.user for session in accounts.users.sessions(alice.actor)} == {alice.actor.id, bob.actor.id}
    with pytest.raises(NotAllowed):
        accounts.users.sessions(bob.actor)
    assert [session.id for session in accounts.own.sessions(bob.actor)] == [bob.actor.session]
    accounts.users.end_session(alice.actor, bob.actor.session)
    with pytest.raises(SessionOver):
        accounts.signing_in.actor_of(bob.secret, ORIGIN)
    accounts.users.end_session(alice.actor, alice.actor.session)
    with pytest.raises(RecordMissing):
        accounts.users.end_session(alice.actor, alice.actor.session)


# Users


def test_the_last_admin_stays(accounts: Accounts) -> None:
    accounts.add("alice")
    accounts.users.add(accounts.local, "bob", Role.ADMIN)  # who has not set up anything yet
    users, local = accounts.users, accounts.local
    attempts: list[Callable[[], object]] = [
        lambda: users.disable(local, "alice"),
        lambda: users.remove(local, "alice"),
        lambda: users.edit(local, "alice", role=Role.OPERATOR),
    ]
    for attempt in attempts:
        with pytest.raises(LastAdmin):
            attempt()
    accounts.use(accounts.users.reset(accounts.local, "bob").link.secret, "bob")
    accounts.users.edit(accounts.local, "alice", role=Role.OPERATOR)
    accounts.users.remove(accounts.local, "alice")
    assert [user.name for user in accounts.users.list(accounts.local)] == ["bob"]


def test_users_are_made_by_admins_alone(accounts: Accounts) -> None:
    accounts.add("alice")
    for role in (Role.OPERATOR, Role.VIEWER, Role.AUDITOR):
        accounts.add(role.value, role)
        actor = accounts.actor(role.value)
        for attempt in (
            lambda actor=actor: accounts.users.add(actor, "mallory", Role.ADMIN),
            lambda actor=actor: accounts.users.edit(actor, actor.name, role=Role.ADMIN),
            lambda actor=actor: accounts.users.reset(actor, "alice"),
            lambda actor=actor: accounts.users.remove(actor, "alice"),
            lambda actor=actor: accounts.users.disable(actor, "alice"),
            lambda actor=actor: accounts.tokens.add(actor, "x", Role.ADMIN, good_for=A_DAY),
        ):
            with pytest.raises(NotAllowed):
                attempt()
    assert accounts.appliance.catalog.users.find("mallory") is None


def test_names_are_one_each_and_a_restorer_is_granted_something(accounts: Accounts) -> None:
    accounts.add("alice")
    with pytest.raises(RecordExists):
        accounts.users.add(accounts.local, " ALICE ", Role.VIEWER)
    with pytest.raises(GrantsMissing):
        accounts.users.add(accounts.local, "rita", Role.RESTORER)
    made = accounts.users.add(accounts.local, "rita", Role.RESTORER, WEB_ONLY)
    assert made.user.selectors == WEB_ONLY
    with pytest.raises(GrantsMissing):
        accounts.users.edit(accounts.local, "rita", grants=())
    with pytest.raises(RecordMissing):
        accounts.users.get(accounts.local, "nobody")


def test_an_admin_with_some_machines_gives_nobody_more(accounts: Accounts) -> None:
    accounts.add("alice")
    accounts.add("bob", Role.ADMIN, WEB_ONLY)
    bob = accounts.actor("bob")
    with pytest.raises(NotAllowed):
        accounts.users.edit(bob, "bob", grants=())
    with pytest.raises(NotAllowed):
        accounts.tokens.add(bob, "x", Role.ADMIN, good_for=A_DAY)


# Tokens


def test_a_token_is_shown_once_and_expires(accounts: Accounts) -> None:
    accounts.add("alice")
    made = accounts.tokens.add(accounts.actor("alice"), "ci", Role.OPERATOR, good_for=A_DAY)
    assert made.secret.startswith("strongroom_")
    assert made.secret not in repr(made)
    actor = accounts.tokens.actor_of(made.secret, replace(ELSEWHERE, via=Via.API))
    assert (actor.kind, actor.name, actor.role, actor.acts, actor.via) == (
        ActorKind.TOKEN, "ci", Role.OPERATOR, None, Via.API,
    )  # fmt: skip
    (view,) = accounts.tokens.list(accounts.local)
    assert (view.owner, view.record.used_from, view.record.used_utc) == ("alice", ELSEWHERE.address, accounts.clock.now)
    for wrong in ("", "strongroom_", made.secret[:-1], made.secret.removeprefix("strongroom_"), "\udcff"):
        with pytest.raises(TokenRefused):
            accounts.tokens.actor_of(wrong, ELSEWHERE)
    accounts.clock.now += A_DAY
    with pytest.raises(TokenRefused, match="expired"):
        accounts.tokens.actor_of(made.secret, ELSEWHERE)


def test_a_token_is_worth_no_more_than_its_owner(accounts: Accounts) -> None:
    accounts.add("alice")
    accounts.add("bob")
    made = accounts.tokens.add(accounts.actor("bob"), "ci", Role.OPERATOR, good_for=A_DAY)
    accounts.users.edit(accounts.local, "bob", grants=WEB_ONLY)
    assert accounts.tokens.actor_of(made.secret, ORIGIN).grants == WEB_ONLY
    accounts.users.edit(accounts.local, "bob", role=Role.VIEWER)
    with pytest.raises(TokenRefused, match="viewer"):
        accounts.tokens.actor_of(made.secret, ORIGIN)
    accounts.users.edit(accounts.local, "bob", role=Role.OPERATOR)
    accounts.users.disable(accounts.local, "bob")
    with pytest.raises(TokenRefused, match="disabled"):
        accounts.tokens.actor_of(made.secret, ORIGIN)
    accounts.users.remove(accounts.local, "bob")
    with pytest.raises(TokenRefused, match="not known"):
        accounts.tokens.actor_of(made.secret, ORIGIN)


def test_a_token_has_machines_that_both_it_and_its_owner_have(accounts: Accounts) -> None:
    accounts.add("alice")
    accounts.add("bob")
    only = Selector((Clause(name="*-1"),))
    made = accounts.tokens.add(accounts.actor("bob"), "ci", Role.OPERATOR, grants=(only,), good_for=A_DAY)
    accounts.users.edit(accounts.local, "bob", grants=WEB_ONLY)
    actor = accounts.tokens.actor_of(made.secret, ORIGIN)
    granted = {name for name in ("web-1", "web-2", "mail-1") if actor.granted(Machine(Kind.VM, "u", name, "here"))}
    assert granted == {"web-1"}
    assert actor.limited
    accounts.users.edit(accounts.local, "bob", grants=())
    assert accounts.tokens.actor_of(made.secret, ORIGIN).granted(Machine(Kind.VM, "u", "mail-1", "here"))


def test_a_token_that_makes_tokens_makes_none_that_outlives_its_owner_or_does_more(accounts: Accounts) -> None:
    accounts.add("alice")
    accounts.add("bob")
    maker = accounts.tokens.add(accounts.actor("bob"), "ci", Role.ADMIN, acts=[Act.TOKEN_ADD], good_for=A_DAY)
    program = accounts.tokens.actor_of(maker.secret, ORIGIN)
    with pytest.raises(TokenUnfit, match=r"point\.delete"):
        accounts.tokens.add(program, "more", Role.ADMIN, acts=[Act.POINT_DELETE], good_for=A_DAY)
    made = accounts.tokens.add(program, "jobs", Role.OPERATOR, good_for=A_DAY)
    assert made.record.owner == maker.record.owner
    accounts.users.disable(accounts.local, "bob")
    with pytest.raises(TokenRefused, match="disabled"):
        accounts.tokens.actor_of(made.secret, ORIGIN)


def test_no_token_makes_an_admin_or_gets_into_an_admins_account(accounts: Accounts) -> None:
    accounts.add("alice")
    acts = [Act.USER_SAVE, Act.USER_RESET, Act.USER_ENABLE, Act.USER_DISABLE]
    made = accounts.tokens.add(accounts.actor("alice"), "people", Role.ADMIN, acts=acts, good_for=A_DAY)
    program = accounts.tokens.actor_of(made.secret, ORIGIN)
    accounts.users.add(program, "bob", Role.VIEWER)
    accounts.users.edit(program, "bob", role=Role.OPERATOR)
    accounts.users.reset(program, "bob")
    for attempt in (
        lambda: accounts.users.add(program, "mallory", Role.ADMIN),
        lambda: accounts.users.edit(program, "bob", role=Role.ADMIN),
        lambda: accounts.users.edit(program, "alice", role=Role.VIEWER),
        lambda: accounts.users.reset(program, "alice"),
        lambda: accounts.users.enable(program, "alice"),
    ):
        with pytest.raises(NotAllowed, match="an admin's account"):
            attempt()
    assert [user.name for user in accounts.appliance.catalog.users.list()] == ["alice", "bob"]
    refused = [entry[0] for entry in told(accounts) if entry[1] == "refused"]
    assert refused == ["user.save"] * 3 + ["user.reset", "user.enable"]


def test_tokens_that_nobody_should_have_are_not_made(accounts: Accounts) -> None:
    accounts.add("alice")
    accounts.add("bob", Role.OPERATOR)
    local = accounts.local
    for arguments in (
        {"role": Role.ADMIN, "owner": "bob"},
        {"role": Role.OPERATOR, "acts": [Act.POINT_DELETE]},
        {"role": Role.RESTORER},
        {"role": Role.VIEWER, "good_for": LONGEST + A_DAY},
        {"role": Role.VIEWER, "good_for": -A_DAY},
    ):
        with pytest.raises(TokenUnfit):
            accounts.tokens.add(local, "x", **{"good_for": A_DAY} | arguments)
    for name in ("", " ", "x" * 65, "a\nb"):
        with pytest.raises(TokenUnfit):
            accounts.tokens.add(local, name, Role.VIEWER, good_for=A_DAY)
    assert accounts.tokens.list(local) == ()


def test_a_revoked_token_is_listed_and_counts_no_more(accounts: Accounts) -> None:
    made = accounts.tokens.add(accounts.local, "ci", Role.ADMIN, acts=[Act.POINT_DELETE], good_for=A_DAY)
    actor = accounts.tokens.actor_of(made.secret, ORIGIN)
    assert actor.acts == frozenset({Act.POINT_DELETE})
    accounts.access.check(actor, Act.POINT_DELETE, Subject("point", "p"))
    with pytest.raises(NotAllowed):
        accounts.access.check(actor, Act.TOKEN_ADD)
    with pytest.raises(RecordMissing):
        accounts.tokens.revoke(accounts.local, "xyz")
    accounts.tokens.revoke(accounts.local, made.record.id[:6])
    with pytest.raises(TokenRefused, match="revoked"):
        accounts.tokens.actor_of(made.secret, ORIGIN)
    (view,) = accounts.tokens.list(accounts.local)
    assert (view.owner, view.record.revoked_utc) == (None, accounts.clock.now)
    assert [entry[:2] for entry in told(accounts)] == [
        ("token.add", "ok"), ("token.add", "refused"), ("token.revoke", "ok"),
    ]  # fmt: skip


def test_no_secret_is_in_the_audit(accounts: Accounts) -> None:
    link = accounts.setting_up.first_link()
    accounts.use(link.secret, "alice")
    signed_in = accounts.sign_in("alice")
    token = accounts.tokens.add(signed_in.actor, "ci", Role.VIEWER, good_for=A_DAY)
    codes = accounts.own.new_recovery_codes(signed_in.actor)
    reset = accounts.own.new_second_factor(signed_in.actor)
    written = repr(list(accounts.appliance.catalog.audit.entries()))
    for secret in (
        link.secret, accounts.secrets["alice"], PASSWORD, signed_in.secret, token.secret, codes[0], reset.secret,
        accounts.recovery["alice"][0], token.record.hash,
    ):  # fmt: skip
        assert secret not in written


def test_an_account_is_one_person_of_the_guard(accounts: Accounts) -> None:
    persons, now = accounts.appliance.catalog.persons, accounts.clock.now
    ann, ben = (accounts.users.add(local_actor({}), name, Role.ADMIN).user.id for name in ("ann", "ben"))
    alice, bob = "a" * 32, "b" * 32
    both = (alice, bob)
    assert persons.tie(alice, ann, now, counting=both) is None
    assert persons.tie(alice, ann, now, counting=both) is None
    assert persons.tie(bob, ann, now, counting=both) == (alice, ann)
    assert persons.tie(alice, ben, now, counting=both) == (alice, ann)
    assert persons.all() == {alice: ann}
    assert persons.tie(bob, ann, now, counting=(bob,)) is None, "alice is of the guard no more"
    accounts.users.remove(local_actor({}), "ann")
    assert persons.all() == {}
