"""Notices as they are told: from what the catalog, the repository and the clock say to mails and posts that arrive."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.bootstrap import Appliance
from appliance.models import HostConfig, HostRecord, ReadKind, RepositoryRecord, RunKind, RunRecord, RunState, new_id
from appliance.notices.records import DeliveryState, Kind, Notice
from appliance.notices.targets import NoticeTarget
from appliance.policy.stored import StoredPolicy
from appliance.proofs import RepositorySize
from appliance.services import repositories
from appliance.services.notices import NoticeService, observing
from appliance.services.notices.telling import TellingService
from appliance.settings import Settings, load
from tests.integration.queueing import queueing
from tests.lab.receivers import Mailbox, Webhook, mail_server, web_server
from tests.unit.cli_runner import PROJECT, CommandLine
from tests.unit.records import NOW, machine_record, point_record

HOSTILE = "web\r\nBcc: thief@evil.example\r\n\r\n<script>alert(1)</script>"


@dataclass
class TestClock:
    """It goes when it is told to."""

    __test__ = False
    utc: datetime = NOW
    monotonic: float = 1000.0

    def now_utc(self) -> datetime:
        return self.utc

    def monotonic_s(self) -> float:
        return self.monotonic

    def sleep(self, seconds: float) -> None:
        self.go(seconds)

    def go(self, seconds: float) -> None:
        self.utc += timedelta(seconds=seconds)
        self.monotonic += seconds


@dataclass
class Site:
    """A home, whose daemon's part for notices is restarted as a test wants."""

    settings: Settings
    clock: TestClock = field(default_factory=TestClock)

    @contextmanager
    def telling(self, sender: Any = None) -> Iterator[tuple[TellingService, Appliance]]:
        with Appliance(self.settings, clock=self.clock) as appliance:
            yield TellingService(appliance, sender), appliance

    def look(self, seconds: float = 60, looks: int = 1) -> None:
        """By a daemon that has just been started, for so long."""
        with self.telling() as (telling, _):
            for _ in range(looks):
                self.clock.go(seconds / looks)
                telling.once()

    def told(self) -> list[Notice]:
        """Oldest first, without digests."""
        with Appliance(self.settings, clock=self.clock) as appliance:
            found = [each.notice for each in NoticeService(appliance).told(100)]
        return [each for each in found[::-1] if each.kind is not Kind.DIGEST]


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with mail_server() as made:
        yield made


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with web_server() as made:
        yield made


def settings_of(folder: Path, *targets: str, **notices: str) -> Settings:
    environment = {"STRONGROOM_HOME": str(folder / "home"), "STRONGROOM_NOTICES_TARGETS": " ".join(targets)}
    environment["STRONGROOM_NOTICES_FREE_PERCENT"] = environment["STRONGROOM_NOTICES_FULL_DAYS"] = "0"
    (folder / "repository").mkdir(exist_ok=True)
    environment["STRONGROOM_REPOSITORY_PATH"] = str(folder / "repository")
    return load(environment | {f"STRONGROOM_NOTICES_{key.upper()}": value for key, value in notices.items()})


@pytest.fixture
def site(tmp_path: Path, mailbox: Mailbox, hook: Webhook) -> Site:
    made = Site(settings_of(tmp_path, f"mail={mailbox.url}", f"hook={hook.url}", digest_at=""))
    made.look()
    return made


def failed(number: int, now: datetime, **changes: Any) -> RunRecord:
    run = RunRecord(
        new_id(), f"vm-{number}", "vm", f"uuid-{number}", "rack1", RunState.FAILED, now, now, error="rack1 is away"
    )
    return replace(run, **changes)


def test_500_failures_are_one_message_and_no_restart_tells_them_again(
    site: Site, mailbox: Mailbox, hook: Webhook
) -> None:
    with Appliance(site.settings, clock=site.clock) as appliance:
        for number in range(499):
            appliance.catalog.runs.save(failed(number, site.clock.utc))
        appliance.catalog.runs.save(failed(499, site.clock.utc, name=HOSTILE, error=f"no {HOSTILE}"))
        appliance.catalog.runs.save(failed(500, site.clock.utc, dismissed_utc=site.clock.utc))
        appliance.catalog.runs.save(failed(501, site.clock.utc, state=RunState.SUCCEEDED, error=None))
    site.look(1)
    assert (mailbox.mails, hook.posts) == ([], []), "the first waits for others"
    site.look(40, looks=3)
    (mail,), (post,) = mailbox.mails, hook.posts
    assert "500 backups failed" in mail["Subject"]
    assert post["title"] == mail["Subject"]
    assert post["type"] == "failure"
    assert "and 489 more: rack1 is away" in post["message"]
    site.look(2000, looks=4)
    assert (len(mailbox.mails), len(hook.posts)) == (1, 1)


def test_other_work_that_fails_is_told_apart(site: Site) -> None:
    with Appliance(site.settings, clock=site.clock) as appliance:
        now = site.clock.utc
        appliance.catalog.runs.save(failed(1, now, kind=RunKind.RESTORE, point="1" * 32))
        appliance.catalog.runs.save(failed(2, now, kind=RunKind.COPY, machine_kind="repository", name="all", host=None))
    site.look(70, looks=2)
    (told,) = site.told()
    assert told.title.endswith(": 2 runs failed")
    assert "the restore of vm-1 on rack1" in told.body
    assert "the copy of all" in told.body


def test_hostile_names_are_text_and_nothing_else(site: Site, mailbox: Mailbox, hook: Webhook) -> None:
    with Appliance(site.settings, clock=site.clock) as appliance:
        appliance.catalog.runs.save(failed(1, site.clock.utc, name=HOSTILE, error=f"no {HOSTILE}"))
    site.look(70, looks=2)
    (mail,), (post,) = mailbox.mails, hook.posts
    assert mailbox.recipients == ["admin@example.org"]
    assert mail["Bcc"] is None
    assert mail.get_content_type() == "text/plain"
    assert "Bcc: thief" in mail["Subject"]
    for text in (mail["Subject"], mail.get_content(), post["title"], post["message"]):
        assert "<" not in text
        assert "\r" not in text.replace("\r\n", "")
    assert mail.get_content().splitlines()[0].startswith("web Bcc: thief@evil.example ‹script›")


def test_a_target_that_is_away_gets_it_later_and_keeps_no_other_waiting(
    site: Site, mailbox: Mailbox, hook: Webhook
) -> None:
    mailbox.refusing = "451 try later"
    with Appliance(site.settings, clock=site.clock) as appliance:
        appliance.catalog.runs.save(failed(1, site.clock.utc))
    site.look(70, looks=2)
    assert (len(mailbox.mails), len(hook.posts)) == (0, 1)
    site.look(10)  # not yet
    mailbox.refusing = ""
    site.look(10)
    assert mailbox.mails == [], "it is put off"
    site.look(40)
    assert (len(mailbox.mails), len(hook.posts)) == (1, 1)
    with Appliance(site.settings, clock=site.clock) as appliance:
        ((told),) = NoticeService(appliance).told(10)
        states = {each.target: (each.state, each.attempts) for each in told.deliveries}
    assert states == {"mail": (DeliveryState.SENT, 2), "hook": (DeliveryState.SENT, 1)}
    site.look(4000, looks=3)
    assert (len(mailbox.mails), len(hook.posts)) == (1, 1)


def test_a_target_that_takes_its_time_is_told_once(site: Site, hook: Webhook) -> None:
    hook.needs_s = 5  # apprise itself would have it that nobody answered
    with Appliance(site.settings, clock=site.clock) as appliance:
        appliance.catalog.runs.save(failed(1, site.clock.utc))
    site.look(70, looks=2)
    site.look(4000, looks=3)
    assert len(hook.posts) == 1
    with Appliance(site.settings, clock=site.clock) as appliance:
        ((told),) = NoticeService(appliance).told(10)
    assert {(each.state, each.attempts) for each in told.deliveries} == {(DeliveryState.SENT, 1)}


def test_what_a_target_refuses_for_days_is_given_up_and_the_digest_tells_it(
    tmp_path: Path, mailbox: Mailbox, hook: Webhook
) -> None:
    targets = (f"mail={mailbox.url}", f"hook={hook.url}")
    site = Site(settings_of(tmp_path, *targets, alerts_to="hook", digest_to="mail", digest_at="07:00", zone="UTC"))
    site.look()
    hook.status = 503
    with Appliance(site.settings, clock=site.clock) as appliance:
        appliance.catalog.runs.save(failed(1, site.clock.utc))
    site.look(4 * 86_400, looks=4 * 24)
    assert hook.posts == []
    digests = [mail.get_content() for mail in mailbox.mails]
    assert len(digests) == 4
    assert "Runs: 1 failed." in digests[0]
    assert "Failed: vm-1." in digests[0]
    assert ["Notices did not reach: hook." in text for text in digests] == [False, False, False, True]


def test_a_target_that_is_no_longer_there_is_given_up(site: Site, tmp_path: Path, hook: Webhook) -> None:
    hook.status = 503
    with Appliance(site.settings, clock=site.clock) as appliance:
        appliance.catalog.runs.save(failed(1, site.clock.utc))
    site.look(70, looks=2)
    hook.status = 200
    site.settings = settings_of(tmp_path, f"other={hook.url}", digest_at="")
    site.look(60)
    assert hook.posts == []
    with Appliance(site.settings, clock=site.clock) as appliance:
        states = {each.target: each.state for each in NoticeService(appliance).told(10)[0].deliveries}
    assert states == {"mail": DeliveryState.SENT, "hook": DeliveryState.GIVEN_UP}


def test_runs_of_long_ago_are_no_news(tmp_path: Path, hook: Webhook) -> None:
    site = Site(settings_of(tmp_path, f"hook={hook.url}", digest_at=""))
    with Appliance(site.settings, clock=site.clock) as appliance:
        appliance.catalog.runs.save(failed(1, site.clock.utc - timedelta(days=3)))
        appliance.catalog.runs.save(failed(2, site.clock.utc))
    site.look(70, looks=2)
    assert [post["title"].rpartition(": ")[2] for post in hook.posts] == ["the backup of vm-2 on rack1 failed"]


class Failing:
    """Ends the look in the middle of a delivery, once."""

    def __init__(self) -> None:
        self.fired = 0
        self.sent: list[Notice] = []

    def send(self, target: NoticeTarget, notice: Notice) -> str | None:
        if not self.fired:
            self.fired += 1
            raise RuntimeError(f"no such thing at {target.name}")
        self.sent.append(notice)
        return None


def test_a_mistake_ends_nothing_shows_no_secret_and_loses_nothing(
    tmp_path: Path, hook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(settings_of(tmp_path, f"hook={hook.url}", digest_at="", wait_s="0", look_s="1"))
    sender, stop = Failing(), threading.Event()
    with Appliance(site.settings, clock=site.clock) as appliance:
        appliance.catalog.runs.save(failed(1, site.clock.utc))
    with site.telling(sender) as (telling, _), caplog.at_level(logging.INFO):
        thread = threading.Thread(target=telling.keep_telling, args=(stop,))
        thread.start()
        assert_soon(lambda: bool(sender.sent))
        stop.set()
        thread.join()
    assert sender.fired == 1
    assert [each.kind for each in sender.sent] == [Kind.FAILED]
    assert "a mistake in strongroom itself: RuntimeError" in caplog.text


def test_a_mistake_of_apprise_is_a_failed_attempt_and_shows_no_secret(
    site: Site, hook: Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError(hook.url)

    with Appliance(site.settings, clock=site.clock) as appliance:
        appliance.catalog.runs.save(failed(1, site.clock.utc))
    with monkeypatch.context() as patch, caplog.at_level(logging.DEBUG):
        patch.setattr("apprise.Apprise.notify", broken)
        site.look(70, looks=2)
    with Appliance(site.settings, clock=site.clock) as appliance:
        (told,) = NoticeService(appliance).told(10)
    assert {(each.state, each.error) for each in told.deliveries} == {
        (DeliveryState.WAITING, "apprise failed: KeyError")
    }
    assert "hushhush" not in caplog.text
    site.look(40)
    assert len(hook.posts) == 1


def assert_soon(holds: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


# What is observed


def test_an_owed_thaw_that_stays_is_told_once_and_so_is_its_end(site: Site) -> None:
    with Appliance(site.settings, clock=site.clock) as appliance:
        appliance.catalog.thaws.owe("uuid-1", "rack1", "db-1", site.clock.utc)
        appliance.catalog.thaws.failed("uuid-1", "rack1", "the agent does not answer")
    site.look(290, looks=5)
    assert site.told() == []
    site.look(100, looks=5)
    (told,) = site.told()
    assert told.title.endswith("db-1 on rack1 may be frozen")
    assert "the agent does not answer" in told.body
    site.look(4000, looks=5)
    assert len(site.told()) == 1
    with Appliance(site.settings, clock=site.clock) as appliance:
        appliance.catalog.thaws.paid("uuid-1", "rack1")
    site.look(100, looks=5)
    assert [each.kind for each in site.told()] == [Kind.THAW, Kind.OVER]


def test_a_repository_that_is_away_and_comes_back(site: Site, tmp_path: Path) -> None:
    (tmp_path / "repository").rename(tmp_path / "elsewhere")
    site.look(100, looks=3)
    (tmp_path / "elsewhere").rename(tmp_path / "repository")
    site.look(100, looks=3)
    assert [(each.kind, each.title.rpartition(": ")[2]) for each in site.told()] == [
        (Kind.AWAY, "the repository needs attention"), (Kind.OVER, "the repository"),
    ]  # fmt: skip


def test_a_repository_that_fills_is_told_by_its_free_space_and_by_its_growth(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    gib, free = 1 << 30, [500]
    monkeypatch.setattr(observing, "_fullest", lambda _: (free[0] * gib, 1000 * gib))
    site.settings = replace(site.settings, notices=replace(site.settings.notices, free_percent=10, full_days=14))
    with Appliance(site.settings, clock=site.clock) as appliance:
        appliance.catalog.attach_repository(RepositoryRecord("7" * 32, "here", site.clock.utc))
    for day in range(9):  # it grows by 40 GiB a day
        free[0] -= 40
        with Appliance(site.settings, clock=site.clock) as appliance:
            today, used = site.clock.utc.date(), (1000 - free[0]) * gib
            size = RepositorySize("7" * 32, today, site.clock.utc, used, free[0] * gib)
            appliance.catalog.proofs.took(size)
        site.look(86_400, looks=2)
        assert len(site.told()) == (day >= 7), day
    (first,) = site.told()
    assert "180.0 GiB of 1000.0 GiB are free (18 %); as it fills now, it is full in 4 days" in first.body
    free[0] = 99
    site.look(100, looks=3)
    free[0] = 101  # not calm yet
    site.look(400, looks=3)
    assert [each.kind for each in site.told()] == [Kind.FILLING, Kind.FILLING]
    free[0] = 900
    site.look(400, looks=3)
    assert {each.kind for each in site.told()[2:]} == {Kind.OVER}


def test_the_space_of_a_folder_is_that_of_its_file_system(tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir()
    free, total = observing._fullest(tmp_path)
    status = os.statvfs(tmp_path)
    assert 0 < free <= total == status.f_blocks * status.f_frsize


def test_a_host_that_does_not_answer_is_told(site: Site) -> None:
    with Appliance(site.settings, clock=site.clock) as appliance:
        appliance.catalog.hosts.add(HostRecord(HostConfig("rack1"), site.clock.utc))
        appliance.catalog.inventory.failed("rack1", "no route to rack1", "", site.clock.utc)
    site.look(800, looks=3)
    assert site.told() == []
    site.look(200, looks=3)
    (told,) = site.told()
    assert "host rack1 needs attention" in told.title
    assert "no route to rack1" in told.body


def test_many_deletions_and_a_large_backup_are_unusual(site: Site) -> None:
    gib = 1 << 30
    points = [point_record(generation=number, kind=ReadKind.INCREMENTAL, stored_bytes=gib) for number in range(40)]
    large = point_record(generation=40, kind=ReadKind.INCREMENTAL, stored_bytes=30 * gib)
    with Appliance(site.settings, clock=site.clock) as appliance:
        for point in points:
            appliance.catalog.points.add(machine_record(), point)
    site.look()
    with Appliance(site.settings, clock=site.clock) as appliance:
        made = failed(1, site.clock.utc, state=RunState.SUCCEEDED, error=None, point=large.id)
        appliance.catalog.runs.save(made)
        appliance.catalog.points.add(machine_record(), large)
        for point in points[:20]:
            appliance.catalog.points.remove(point.id)
    site.look(400, looks=4)
    (told,) = site.told()
    assert "2 unusual things" in told.title
    assert "a large backup of web-1: it stored 30.0 GiB, and 1.0 GiB as a rule" in told.body
    assert "within a day 20 of 41 restore points were deleted" in told.body


def test_a_clock_that_is_set_is_unusual_while_it_looks_and_over_a_restart(site: Site) -> None:
    with site.telling() as (telling, _):
        telling.once()
        site.clock.utc += timedelta(hours=2)
        telling.once()
        site.clock.go(40)
        telling.once()
    (told,) = site.told()
    assert "forward, or the machine was suspended, by 2 h 0 min" in told.body
    site.clock.utc -= timedelta(hours=5)
    site.look(400, looks=4)
    assert any("back by 4 h 57 min" in each.body for each in site.told())


def test_what_missed_its_rpo_is_told(site: Site) -> None:
    with Appliance(site.settings, clock=site.clock) as appliance:
        document = {
            "version": 1, "name": "nightly", "select": {"include": [{"all": True}]}, "rpo_minutes": 26 * 60,
            "schedule": {"cron": "0 22 * * *", "zone": "UTC"},
        }  # fmt: skip
        appliance.catalog.policies.add(StoredPolicy("nightly", document, 1, site.clock.utc, site.clock.utc))
        appliance.catalog.points.add(machine_record(), point_record(created_utc=site.clock.utc))
        machine = replace(machine_record(), last_point_utc=site.clock.utc)
        appliance.catalog.points.add(machine, point_record(generation=1, created_utc=site.clock.utc))
    site.look(25 * 3600, looks=5)
    assert site.told() == []
    site.look(2 * 3600, looks=5)
    (told,) = site.told()
    assert told.title.endswith("web-1 on here missed its RPO")
    assert "policy nightly wants a point within 26 h 0 min, and its newest point is of 2026-11-23" in told.body


# As an admin has it


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str], hook: Webhook) -> CommandLine:
    line = CommandLine.new(tmp_path / "site", capsys)
    line.environment["STRONGROOM_NOTICES_TARGETS"] = f"ops={hook.url}"
    line.environment["STRONGROOM_NOTICES_FREE_PERCENT"] = "0"  # the disk that the tests run on may be nearly full
    return line


def test_a_verification_that_finds_damage_is_told(strongroom: CommandLine, hook: Webhook, tmp_path: Path) -> None:
    point = strongroom.backup(os.urandom(300_000))
    assert strongroom("repository", "verify").code == 0
    for pack in (path for path in (strongroom.repository / "packs").rglob("*") if path.is_file()):
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(content)
    assert strongroom("repository", "verify", "--read-data").code == 1
    settings = load(strongroom.environment | {"STRONGROOM_NOTICES_WAIT_S": "0"})
    with Appliance(settings) as appliance:
        TellingService(appliance).once()
        TellingService(appliance).once()
        newest, first = appliance.catalog.proofs.verifications()
    assert (first.problems, newest.problems > 0) == (0, True)
    assert newest.affected == (point["id"],)
    (post,) = hook.posts
    assert "the verification of the repository failed" in post["title"]
    assert "1 restore points are touched" in post["message"]


def test_targets_are_tested_and_shown_without_their_secrets(strongroom: CommandLine, hook: Webhook) -> None:
    done = strongroom("notice", "test")
    assert (done.code, done.out) == (0, "ops: sent.\n")
    assert "a test" in hook.posts[0]["title"]
    hook.status = 500
    strongroom.environment["STRONGROOM_NOTICES_TARGETS"] += " away=json://robot:hushhush@127.0.0.1:9/T0kenOfThisHook"
    failing = strongroom("notice", "test", "--json")
    assert failing.code == 1
    assert [(each["target"], each["ok"]) for each in failing.json()] == [("ops", False), ("away", False)]
    hook.status = 200
    partly = strongroom("notice", "test")
    assert partly.code == 3
    unknown = strongroom("notice", "test", "nosuch")
    assert unknown.code == 2
    assert "There are: ops, away." in unknown.error()
    shown = strongroom("notice", "targets")
    assert shown.code == 0
    assert "alerts and digest" in shown.out
    listed = strongroom("notice", "targets", "--json").json()
    assert [(each["name"], each["kind"], each["last"]) for each in listed] == [
        ("ops", "json", None), ("away", "json", None),
    ]  # fmt: skip
    for said in (done, failing, partly, unknown, shown, strongroom("--debug", "notice", "test", "away")):
        for secret in ("hushhush", "T0kenOfThisHook", rf"\b{hook.port}\b"):  # digits alone may be in any address
            assert not re.search(secret, said.out + said.err)


def test_without_targets_nobody_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = CommandLine.new(tmp_path / "site", capsys)
    assert "no target" in line("notice", "test").error()
    assert line("notice", "targets").code == 0
    assert line("notice", "list", "--json").json() == []


def test_a_url_that_apprise_does_not_know_is_said_without_it(strongroom: CommandLine) -> None:
    strongroom.environment["STRONGROOM_NOTICES_TARGETS"] = "ops=nosuchkind://hushhush/secret"
    done = strongroom("notice", "test")
    assert done.code == 1
    assert "does not understand the URL of ops" in done.error()
    assert "hush" not in done.err


def test_ordinary_commands_do_not_load_apprise(strongroom: CommandLine) -> None:
    for words in (["status"], ["notice", "list"], ["notice", "targets"], ["run", "list"]):
        code = (
            f"import sys\nfrom appliance.cli import main\nmain({words})\n"
            "sys.exit('apprise' in sys.modules or 'requests' in sys.modules)"
        )
        environment = strongroom.environment
        assert run_python(code, environment) == 0


def run_python(code: str, environment: dict[str, str]) -> int:
    return subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment, check=False).returncode


def test_serve_tells_once_and_shows_no_secret(tmp_path: Path, hook: Webhook) -> None:
    environment = {
        "STRONGROOM_HOME": str(tmp_path / "home"), "STRONGROOM_NOTICES_TARGETS": f"ops={hook.url}",
        "STRONGROOM_NOTICES_WAIT_S": "0", "STRONGROOM_NOTICES_LOOK_S": "1", "STRONGROOM_NOTICES_INTERVAL_S": "0",
        "STRONGROOM_NOTICES_FREE_PERCENT": "0",
    }  # fmt: skip
    repositories.init(load(environment), tmp_path / "repository", "a passphrase for tests", lambda _: None)
    with queueing(tmp_path, environment) as home:
        with home.serving():
            first = home.put("first")
            home.assert_made(first)
            broken = home.put("broken")
            hook.status = 503
            (tmp_path / "broken.raw").unlink()
            home.wait(broken, RunState.FAILED)
            with hook.arrived:
                assert hook.arrived.wait_for(lambda: hook.paths, 120), home.said_by_serve()
        hook.status = 200
        with Appliance(load(environment)) as appliance:
            notices = appliance.catalog.notices
            ((_, delivery),) = notices.waiting()
            notices.settle(replace(delivery, next_utc=delivery.next_utc - timedelta(minutes=1)))  # that it would wait
            with home.serving():
                (post,) = hook.wait(1)
                assert_soon(lambda: not notices.waiting())
                second = home.put("second")
                home.assert_made(second)
                home.until(lambda: not notices.unnoticed_runs(9), lambda: "the run was looked at")
        assert "the backup of broken failed" in post["title"]
        assert len(hook.posts) == 1
        told = home.said_by_serve() + home.log() + post["message"]
        assert "hushhush" not in told
        assert "T0kenOfThisHook" not in told
