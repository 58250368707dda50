"""Who may do what: roles, grants, tokens, proving oneself anew; and all that is done, refused or cut off is told."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.audit import AuditEntry, Result, check
from appliance.bootstrap import Appliance
from appliance.catalog.audit import Filter
from appliance.catalog.errors import CatalogUnreachable
from appliance.errors import StrongroomError
from appliance.policy.selectors import Clause, Kind, Machine, Selector
from appliance.services.access import (
    FILTERED,
    NOTHING,
    SYSTEM,
    TRAITS,
    Access,
    Act,
    Actor,
    ActorKind,
    NotAllowed,
    ReauthenticationNeeded,
    Role,
    Scope,
    Subject,
    Via,
    local_actor,
    nobody,
)
from appliance.services.access.decisions import PROVEN_FOR, refusal
from appliance.settings import load
from tests.unit.cli_runner import PROJECT
from tests.unit.records import NOW

WEB = Machine(Kind.VM, "u-web", "web-1", "here", frozenset({"team=web"}))
MAIL = Machine(Kind.VM, "u-mail", "mail-1", "here")
ONLY_WEB = (Selector((Clause(name="web-*"),)),)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def now_utc(self) -> datetime:
        return self.now

    def monotonic_s(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def appliance(tmp_path: Path, clock: Clock) -> Iterator[Appliance]:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path / "home")}), clock=clock) as appliance:
        yield appliance


@pytest.fixture
def access(appliance: Appliance) -> Access:
    return Access(appliance)


def user(role: Role = Role.ADMIN, **changes: Any) -> Actor:
    made = Actor(ActorKind.USER, "1" * 32, "alice", role, address="192.0.2.7", via=Via.CONSOLE, authenticated_utc=NOW)
    return replace(made, **changes)


def token(role: Role, *acts: Act) -> Actor:
    return Actor(ActorKind.TOKEN, "2" * 32, "ci", role, via=Via.API, acts=frozenset(acts) or None)


def entries(appliance: Appliance) -> list[AuditEntry]:
    return list(appliance.catalog.audit.entries())


# Decisions


def test_every_act_is_in_the_table_and_is_an_admins() -> None:
    assert set(TRAITS) == set(Act)
    assert all(Role.ADMIN in traits.roles for traits in TRAITS.values())


def test_what_loses_something_is_audited() -> None:
    assert all(traits.audited for traits in TRAITS.values() if traits.proven)
    assert {act for act, traits in TRAITS.items() if not traits.audited} == {act for act in Act if act.endswith(".see")}


READS = {act for act in Act if act.endswith(".see")}


@pytest.mark.parametrize(
    ("role", "beyond_looking"),
    [
        (Role.VIEWER, {Act.REQUEST_REFUSE}),
        (Role.AUDITOR, {Act.REQUEST_REFUSE, Act.AUDIT_EXPORT}),
        (Role.RESTORER, {Act.FILE_BROWSE, Act.FILE_READ}),
    ],
)
def test_roles_that_only_look_do_nothing_else(role: Role, beyond_looking: set[Act]) -> None:
    own = {act for act in Act if TRAITS[act].scope is Scope.SELF}
    assert {act for act in Act if role in TRAITS[act].roles} - READS - own == beyond_looking


def test_an_operator_deletes_nothing_and_changes_no_rule() -> None:
    lost = {
        Act.POINT_DELETE, Act.POINT_PRUNE, Act.POINT_UNPROTECT, Act.POLICY_SAVE, Act.POLICY_PAUSE, Act.KEY_REMOVE,
        Act.USER_SAVE, Act.TOKEN_ADD, Act.GUARD_OFF, Act.HOST_REMOVE, Act.SETTINGS_SAVE, Act.AUDIT_SEE,
    }  # fmt: skip
    assert not {act for act in lost if Role.OPERATOR in TRAITS[act].roles}


SUBJECTS = [None, NOTHING, FILTERED, Subject.of_machine(WEB), Subject.of_machine(MAIL)]
SELECTORS = st.sampled_from([(), ONLY_WEB, (Selector((Clause(tag="team=*"),), (Clause(name="web-2"),)),)])


@given(
    st.sampled_from(list(ActorKind)), st.sampled_from([None, *Role]), SELECTORS,
    st.sampled_from([None, frozenset[Act](), frozenset(Act)]), st.sampled_from(list(Act)), st.sampled_from(SUBJECTS),
    st.integers(-400, 400),
)  # fmt: skip
def test_nobody_does_more_than_their_role_their_grants_and_their_token_together(
    kind: ActorKind, role: Role | None, grants: tuple[Selector, ...], acts: frozenset[Act] | None, act: Act,
    subject: Subject | None, age_s: int,
) -> None:  # fmt: skip
    actor = Actor(kind, "1", "x", role, grants, acts=acts, authenticated_utc=NOW - timedelta(seconds=age_s))
    allowed = refusal(actor, act, subject, NOW) is None
    if kind in (ActorKind.LOCAL, ActorKind.SYSTEM):
        assert allowed
        return
    if allowed:
        assert kind is not ActorKind.NOBODY
        assert role in TRAITS[act].roles
        assert acts is None or act in acts
        if (grants or role is Role.RESTORER) and TRAITS[act].scope is not Scope.SELF:
            assert TRAITS[act].scope is Scope.MACHINE
            assert subject in (None, FILTERED) or subject == Subject.of_machine(WEB)
            assert not (role is Role.RESTORER and not grants and subject == Subject.of_machine(WEB))
        if kind is ActorKind.USER and TRAITS[act].proven and subject is not None:
            assert 0 <= age_s <= PROVEN_FOR.total_seconds()
    whole = Actor(kind, "1", "x", role, acts=acts, authenticated_utc=NOW)
    if refusal(whole, act, subject, NOW) is not None:
        assert not allowed, "grants and time take away only"


def test_a_list_of_everything_is_not_shown_to_who_has_some_machines(access: Access) -> None:
    limited = user(Role.OPERATOR, grants=ONLY_WEB)
    assert access.may(limited, Act.POINT_SEE)
    access.check(limited, Act.POINT_SEE, FILTERED)
    with pytest.raises(NotAllowed):
        access.check(limited, Act.POINT_SEE)
    assert [limited.granted(machine) for machine in (WEB, MAIL)] == [True, False]
    assert not access.may(limited, Act.HOST_SEE)
    access.check(user(Role.VIEWER), Act.POINT_SEE)


def test_who_proved_themselves_long_ago_is_asked_again(access: Access, clock: Clock) -> None:
    actor = user()
    access.check(actor, Act.POINT_DELETE, Subject.of_machine(WEB))
    clock.now += PROVEN_FOR + timedelta(seconds=1)
    assert access.may(actor, Act.POINT_DELETE, Subject.of_machine(WEB)), "the button is there"
    with pytest.raises(ReauthenticationNeeded):
        access.check(actor, Act.POINT_DELETE, Subject.of_machine(WEB))
    with pytest.raises(ReauthenticationNeeded):
        access.check(replace(actor, authenticated_utc=None), Act.POINT_DELETE, Subject.of_machine(WEB))
    access.check(actor, Act.RUN_START, Subject.of_machine(WEB))


def test_a_token_names_what_loses_something_and_is_no_person(access: Access) -> None:
    subject = Subject.of_machine(WEB)
    access.check(token(Role.ADMIN), Act.RUN_START, subject)
    for actor, act in (
        (token(Role.ADMIN), Act.POINT_DELETE),
        (token(Role.ADMIN, Act.RUN_START), Act.RUN_CANCEL),
        (token(Role.VIEWER, Act.RUN_START), Act.RUN_START),
        (token(Role.ADMIN, Act.REQUEST_CONFIRM), Act.REQUEST_CONFIRM),
        (token(Role.ADMIN, Act.ACCOUNT_CHANGE), Act.ACCOUNT_CHANGE),
    ):
        with pytest.raises(NotAllowed):
            access.check(actor, act, subject)
    access.check(token(Role.ADMIN, Act.POINT_DELETE), Act.POINT_DELETE, subject)


def test_who_called_sudo_is_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert local_actor({}).name == "root"
    assert local_actor({"SUDO_USER": "daemon"}).id == "unix:daemon"
    assert local_actor({"SUDO_USER": "no such user\n"}).name == "root"
    assert local_actor({"SSH_CONNECTION": "2001:db8::7%eth0 50 10.0.0.1 22"}).address == "2001:db8::7"
    assert local_actor({"SSH_CONNECTION": "$(id) 1"}).address == ""
    monkeypatch.setattr(os, "getuid", lambda: 1)
    assert local_actor({"SUDO_USER": "root"}).name == "daemon", "only sudo is believed"


# What is written down


def test_what_was_done_is_told_with_its_result(access: Access, appliance: Appliance, clock: Clock) -> None:
    with access.performing(user(), Act.RUN_START, Subject.of_machine(WEB), {"full": True}) as doing:
        clock.now += timedelta(seconds=3)
        doing.note(run="abc")
    with access.performing(SYSTEM, Act.RUN_START, Subject.of_machine(MAIL)) as doing:
        doing.partly("a disk was left out")
    done, partly = entries(appliance)
    assert (done.act, done.result, done.actor_name, done.actor_kind) == ("run.start", "ok", "alice", "user")
    assert (done.via, done.address, done.actor_role) == ("console", "192.0.2.7", "admin")
    assert (done.subject_kind, done.subject_name, done.machine) == ("machine", "web-1", "vm:u-web")
    assert (done.at_utc, done.ended_utc) == (NOW, NOW + timedelta(seconds=3))
    assert done.details == {"full": True, "run": "abc"}
    assert (partly.result, partly.error, partly.actor_kind) == ("partly", "a disk was left out", "system")
    assert appliance.settings.audit_head_file.stat().st_mode & 0o777 == 0o600
    assert access.heads.read() == appliance.catalog.audit.head()
    assert list(appliance.settings.audit_directory.iterdir()) == []


def test_what_failed_is_told_with_its_error(access: Access, appliance: Appliance) -> None:
    with (
        pytest.raises(StrongroomError, match="no room"),
        access.performing(user(), Act.RUN_START, Subject.of_machine(WEB)),
    ):
        raise StrongroomError("no room", hint="make some")
    with pytest.raises(ZeroDivisionError), access.performing(user(), Act.RUN_START, Subject.of_machine(WEB)):
        print(1 / 0)
    with pytest.raises(KeyboardInterrupt), access.performing(user(), Act.RUN_START, Subject.of_machine(WEB)):
        raise KeyboardInterrupt
    assert [(entry.result, entry.error) for entry in entries(appliance)] == [
        ("failed", "no room"),
        ("failed", "ZeroDivisionError: division by zero"),
        ("failed", "it was ended from outside"),
    ]


def test_what_is_refused_is_told_and_not_begun(access: Access, appliance: Appliance) -> None:
    for actor, act in ((user(Role.VIEWER), Act.POINT_DELETE), (nobody(Via.API, "::1"), Act.RUN_SEE)):
        with pytest.raises(NotAllowed), access.performing(actor, act, Subject.of_machine(WEB)):
            raise AssertionError("it was begun")
    first, second = entries(appliance)
    assert (first.result, first.act, first.actor_name) == ("refused", "point.delete", "alice")
    assert "viewer" in first.error
    assert (second.result, second.actor_kind, second.address) == ("refused", "nobody", "::1")


def test_looking_leaves_no_entry(access: Access, appliance: Appliance) -> None:
    with access.performing(user(Role.VIEWER), Act.POINT_SEE, FILTERED):
        pass
    assert entries(appliance) == []


def test_no_audit_is_lost_while_the_catalog_is_away(
    access: Access,
    appliance: Appliance,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def away(*_: object) -> None:
        raise CatalogUnreachable("db", "connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(appliance.catalog.audit, "append", away)
        with caplog.at_level(logging.WARNING), access.performing(SYSTEM, Act.RESTORE_START, NOTHING, {"to": "/x"}):
            pass
        clock.now += timedelta(seconds=1)
        with pytest.raises(NotAllowed):
            access.check(user(Role.VIEWER), Act.RUN_START, Subject.of_machine(WEB))
    assert "connection refused" in caplog.text
    assert entries(appliance) == []
    access.sweep()
    assert [(entry.act, entry.result) for entry in entries(appliance)] == [
        ("restore.start", "ok"),
        ("run.start", "refused"),
    ]
    access.sweep()
    assert len(entries(appliance)) == 2
    assert list(appliance.settings.audit_directory.iterdir()) == []


KILLED = """
import os, signal, sys
from appliance.bootstrap import Appliance
from appliance.services.access import SYSTEM, Access, Act, Subject
from appliance.services.access.access import Access as Class
from appliance.settings import load

with Appliance(load()) as appliance:
    if sys.argv[1] == "written":
        # Dies between the chain and the removal of the file.
        Class._write_unpatched = Class._write
        def write(self, draft):
            self._write_unpatched(draft)
            os.kill(os.getpid(), signal.SIGKILL)
        Class._write = write
    with Access(appliance).performing(SYSTEM, Act.POINT_DELETE, Subject("point", "p-1", "web-1")):
        if sys.argv[1] == "begun":
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.faults
@pytest.mark.parametrize(("when", "result"), [("begun", Result.INTERRUPTED), ("written", Result.OK)])
def test_a_process_that_is_killed_leaves_one_trace(
    access: Access, appliance: Appliance, when: str, result: Result
) -> None:
    environment = os.environ | {"STRONGROOM_HOME": str(appliance.settings.home)}
    killed = subprocess.run([sys.executable, "-c", KILLED, when], cwd=PROJECT, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    (file,) = appliance.settings.audit_directory.iterdir()
    assert json.loads(file.read_bytes())["act"] == "point.delete"
    access.record(SYSTEM, Act.NOTICE_TEST)
    assert [(entry.act, entry.result) for entry in entries(appliance)] == [
        ("point.delete", result), ("notice.test", Result.OK),
    ]  # fmt: skip
    assert list(appliance.settings.audit_directory.iterdir()) == []


def test_what_goes_on_in_another_process_is_left_to_it(access: Access, appliance: Appliance) -> None:
    with access.performing(SYSTEM, Act.RUN_START, Subject.of_machine(WEB)):
        access.sweep()
        access.record(SYSTEM, Act.NOTICE_TEST)
        assert [entry.act for entry in entries(appliance)] == ["notice.test"]
    assert [(entry.act, entry.result) for entry in entries(appliance)][1:] == [("run.start", "ok")]


def test_a_file_that_cannot_be_read_stays_and_hinders_nothing(
    access: Access, appliance: Appliance, caplog: pytest.LogCaptureFixture
) -> None:
    folder = appliance.settings.audit_directory
    folder.mkdir()
    for name, data in (("a.json", b"{"), ("b.json", b"[]"), ("c.json", b'{"at_utc": 5}')):
        (folder / name).write_bytes(data)
    (folder / "d.json").symlink_to("/etc/passwd")
    access.record(SYSTEM, Act.NOTICE_TEST)
    assert [entry.act for entry in entries(appliance)] == ["notice.test"]
    assert len(list(folder.iterdir())) == 4
    assert caplog.text.count("stays") == 3


def test_however_much_was_left_it_is_put_into_the_chain(
    access: Access, appliance: Appliance, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the files that a process may have open: a database was full, and somebody went on asking."""
    count = 300

    def away(*_: object) -> None:
        raise CatalogUnreachable("db", "no room")

    with monkeypatch.context() as patch:
        patch.setattr(appliance.catalog.audit, "append", away)
        for _ in range(count):
            clock.now += timedelta(seconds=1)
            access.record(SYSTEM, Act.NOTICE_TEST)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    has_open = len(os.listdir("/proc/self/fd"))  # many, in a worker that ran other tests before
    resource.setrlimit(resource.RLIMIT_NOFILE, (has_open + count // 2, before[1]))
    try:
        access.record(SYSTEM, Act.RUN_START)
        access.sweep()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    found = entries(appliance)
    assert len(found) == count + 1
    assert [entry.at_utc for entry in found if entry.act == "notice.test"] == sorted(
        entry.at_utc for entry in found if entry.act == "notice.test"
    )
    assert list(appliance.settings.audit_directory.iterdir()) == []


@pytest.mark.parametrize("catalog_away", [False, True])
def test_a_home_that_fills_up_meanwhile_changes_nothing_of_what_was_done(
    access: Access, appliance: Appliance, monkeypatch: pytest.MonkeyPatch, catalog_away: bool
) -> None:
    def full(*_: object) -> int:
        full.fired = True  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    def away(*_: object) -> None:
        raise CatalogUnreachable("db", "no room")

    access.record(SYSTEM, Act.NOTICE_TEST)  # the catalog is there
    with monkeypatch.context() as patch:
        with access.performing(SYSTEM, Act.POINT_DELETE, NOTHING) as doing:
            doing.note(what="x" * 5000)
            for name in ("write", "pwrite", "fsync"):
                patch.setattr(os, name, full)
            if catalog_away:
                patch.setattr(appliance.catalog.audit, "append", away)
        assert full.fired  # type: ignore[attr-defined]
    access.sweep()
    (_, entry) = entries(appliance)
    assert (entry.act, entry.result) == ("point.delete", "interrupted" if catalog_away else "ok")


def test_a_home_without_room_keeps_nobody_from_deleting(
    access: Access, appliance: Appliance, caplog: pytest.LogCaptureFixture
) -> None:
    appliance.settings.audit_directory.write_bytes(b"in the way")
    with access.performing(SYSTEM, Act.POINT_DELETE, NOTHING):
        pass
    assert "cannot be written" in caplog.text
    assert [entry.result for entry in entries(appliance)] == ["ok"]


def test_the_home_knows_when_the_chain_is_shorter_than_it_was(access: Access, appliance: Appliance) -> None:
    for _ in range(3):
        access.record(SYSTEM, Act.NOTICE_TEST)
    known = access.heads.read()
    assert known is not None
    appliance.close()
    appliance.settings.catalog_file.unlink()
    with Appliance(appliance.settings, clock=appliance.clock) as anew:
        Access(anew).record(SYSTEM, Act.NOTICE_TEST)
        assert Access(anew).heads.read() == known, "it does not forget that by itself"
        verdict = check(anew.catalog.audit.entries(), [known])
        assert [flaw.what for flaw in verdict.flaws] == ["entries 2 to 3 are missing"]
        assert len(anew.catalog.audit.newest(Filter())) == 1
