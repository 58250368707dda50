"""The monthly report: reckoned right, told as it is, and a page that holds nothing but text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.audit import Draft, Result
from appliance.bootstrap import Appliance
from appliance.hypervisor.protocol import MachineState
from appliance.inventory import SeenMachine
from appliance.models import HostConfig, HostRecord, RepositoryRecord, RunKind, RunRecord, RunState, new_id
from appliance.policy.stored import StoredPolicy
from appliance.proofs import Proof, ProofKind, Reading, RepositorySize, Verification
from appliance.reports.compliance import Report
from appliance.reports.months import Exposure, Month, MonthNotUnderstood, exposure
from appliance.services.reports import ReportService
from appliance.services.reports.page import page
from appliance.settings import load
from tests.bench.fleet import SMALL, seed
from tests.unit.cli_runner import CommandLine
from tests.unit.records import machine_record, point_record

BEGIN = datetime(2026, 10, 1, tzinfo=UTC)
END = datetime(2026, 11, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
HOSTILE = "</style></td><script>alert(1)</script><img src=x onerror=alert(1)>\u202e{{ 7*7 }}"
OCTOBER = Month(2026, 10, "UTC")


class Clock:
    def now_utc(self) -> datetime:
        return END + timedelta(days=3)

    def monotonic_s(self) -> float:
        return 1.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody sleeps")


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path)}), clock=Clock()) as made:
        yield made


# Months


def test_a_month_begins_and_ends_where_its_zone_says() -> None:
    month = Month.parse("2026-10", "Europe/Berlin")  # in it the clocks are changed
    assert month.begin_utc == datetime(2026, 9, 30, 22, tzinfo=UTC)
    assert month.end_utc == datetime(2026, 10, 31, 23, tzinfo=UTC)
    assert Month.parse("2026-12", "UTC").end_utc == datetime(2027, 1, 1, tzinfo=UTC)
    assert str(Month.before(datetime(2026, 12, 31, 23, 30, tzinfo=UTC), "Europe/Berlin")) == "2026-12"
    assert str(Month.before(datetime(2026, 1, 5, tzinfo=UTC), "UTC")) == "2025-12"


@pytest.mark.parametrize(
    "text", ["", "2026", "2026-13", "2026-1", "26-10", "2026-10-01", "0000-01", "9999-12", "x" * 99]
)
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(MonthNotUnderstood):
        Month.parse(text, "UTC")


def test_how_long_a_machine_was_without_a_backup() -> None:
    nightly = [BEGIN + timedelta(days=day, hours=-2) for day in range(32)]
    assert exposure(nightly, BEGIN, END, 26 * HOUR) == Exposure(24 * HOUR, timedelta(0))
    gap = [each for each in nightly if each.day not in (10, 11)]
    assert exposure(gap, BEGIN, END, 26 * HOUR) == Exposure(72 * HOUR, 46 * HOUR)
    assert exposure([], BEGIN, END, 26 * HOUR) == Exposure(END - BEGIN, END - BEGIN - 26 * HOUR)
    assert exposure([BEGIN - timedelta(days=9)], BEGIN, END, 26 * HOUR).missed == END - BEGIN
    assert exposure(nightly, BEGIN, END, None).missed == timedelta(0)


@given(st.lists(st.integers(-50, 150), max_size=12), st.integers(1, 60))
def test_time_missed_is_what_counting_hours_gives(hours: list[int], rpo: int) -> None:
    begin, end = BEGIN, BEGIN + 100 * HOUR
    backups = sorted(BEGIN + hour * HOUR for hour in hours)
    missed = 0
    for hour in range(100):
        before = [each for each in backups if each <= begin + hour * HOUR]
        newest = max([*before, *([] if any(each <= begin for each in backups) else [begin])])
        missed += (begin + hour * HOUR - newest) >= rpo * HOUR
    assert exposure(backups, begin, end, rpo * HOUR).missed == missed * HOUR


# The report


def october(appliance: Appliance) -> Report:
    """Three machines: one as it should be but for three nights, a hostile one that fails, one that nothing protects."""
    catalog = appliance.catalog
    catalog.attach_repository(RepositoryRecord("7" * 32, "here", BEGIN))
    catalog.proofs.took(RepositorySize("7" * 32, END.date() - timedelta(days=1), END - HOUR, 5 << 30, None))
    catalog.hosts.add(HostRecord(HostConfig("rack1"), BEGIN))
    names = {"u-1": "web-1", "u-2": HOSTILE, "u-3": "lonely"}
    early = BEGIN - timedelta(days=100)
    running = [
        SeenMachine("rack1", uuid, name, MachineState.RUNNING, "", 1, 1, True, 1, (), (), early)
        for uuid, name in names.items()
    ]
    catalog.inventory.answered("rack1", running, END, END)
    document = {
        "version": 1, "name": "nightly", "rpo_minutes": 26 * 60, "retention": {"daily": 14, "within_hours": 48},
        "select": {"include": [{"all": True}], "exclude": [{"name": "lonely"}]},
        "schedule": {"cron": "0 22 * * *", "zone": "UTC"},
    }  # fmt: skip
    catalog.policies.add(StoredPolicy("nightly", document, 1, early, early))
    series, generation = "5" * 32, 0
    for day in range(-1, 33):
        at = BEGIN + timedelta(days=day, hours=22)
        state = RunState.FAILED if day in (9, 10, 11) else RunState.SUCCEEDED
        run = RunRecord(new_id(), "web-1", "vm", "u-1", "rack1", state, at, at + HOUR)
        if state is RunState.SUCCEEDED:
            point = point_record(
                series,
                generation,
                name="web-1",
                uuid="u-1",
                host="rack1",
                created_utc=at,
                read_bytes=10,
                stored_bytes=5,
            )
            generation += 1
            run = replace(run, point=point.id)
            machine = replace(machine_record(series), uuid="u-1", host="rack1", last_point=point.id, last_point_utc=at)
            catalog.points.add(machine, point)
        catalog.runs.save(replace(run, error="no space" if run.point is None else None))
    at = BEGIN + timedelta(days=4)
    catalog.runs.save(
        RunRecord(new_id(), HOSTILE, "vm", "u-2", "rack1", RunState.INTERRUPTED, at, at, error=f"at {HOSTILE}")
    )
    catalog.runs.save(
        RunRecord(new_id(), "all", "repository", None, None, RunState.FAILED, at, at, error="full", kind=RunKind.COPY)
    )
    catalog.proofs.verified(Verification(new_id(), at, at + HOUR, Reading.DATA, 30, 1 << 30, 2, ("1" * 32,)))
    catalog.proofs.verified(Verification(new_id(), BEGIN - HOUR, BEGIN - HOUR, Reading.DATA, 1, 1, 0))
    catalog.proofs.proven(Proof(new_id(), series, "2" * 32, ProofKind.RECOVERY, at, 3400))
    catalog.proofs.proven(Proof(new_id(), series, "2" * 32, ProofKind.RECOVERY, END + HOUR, 3400))
    drafts = [
        draft("point.delete", at, HOSTILE), draft("policy.save", BEGIN, "root"), draft("run.start", at, "root"),
        draft("policy.see", at, "root"), draft("user.save", END, "root"),
    ]  # fmt: skip
    catalog.audit.append(drafts)
    return ReportService(appliance).month(OCTOBER)


def draft(act: str, at: datetime, actor: str) -> Draft:
    return Draft(
        new_id(), at, at, "", act, Result.OK, "", "user", "1", actor, "admin", "console", "192.0.2.1", "policy", "x",
        "nightly", None, {},
    )  # fmt: skip


def test_the_report_tells_the_month(appliance: Appliance) -> None:
    report = october(appliance)
    assert (report.over, report.runs, report.failed_count) == (
        True, {"succeeded": 28, "failed": 4, "interrupted": 1}, 5,
    )  # fmt: skip
    lines = {line.name: line for line in report.machines}
    web = lines["web-1"]
    assert (web.standing, web.policies, web.rpo_s) == ("protected", ("nightly",), 26 * 3600)
    assert web.runs == {"succeeded": 28, "failed": 3}
    assert (web.made, web.kept) == (28, 29)
    assert web.newest_utc == datetime(2026, 10, 31, 22, tzinfo=UTC)
    assert (web.longest_s, web.missed_s) == (96 * 3600, 70 * 3600)
    assert web.proven_utc == BEGIN + timedelta(days=4)
    assert lines["lonely"].standing == "unprotected"
    assert [line.name for line in report.unprotected] == [HOSTILE, "lonely"]
    assert [line.name for line in report.missed] == [HOSTILE, "web-1"]
    assert lines[HOSTILE].missed_s == 31 * 86_400 - 26 * 3600
    assert [(each.reading, each.problems, each.affected) for each in report.verifications] == [("data", 2, 1)]
    assert [(each.name, each.took_ms) for each in report.proofs] == [("web-1", 3400)]
    assert [(each.act, each.actor) for each in report.changes] == [("point.delete", HOSTILE), ("policy.save", "root")]
    assert report.audit is not None
    assert (report.audit.entries, report.audit.flaws) == (5, ())
    (policy,) = report.policies
    assert (policy.retention, policy.machines) == ({"daily": 14, "within_hours": 48}, 2)
    assert (report.read_bytes, report.stored_bytes, report.used_bytes) == (280, 140, 5 << 30)


def test_who_may_see_some_machines_has_a_report_of_those(appliance: Appliance) -> None:
    october(appliance)
    theirs = replace(draft("point.protect", BEGIN + HOUR, "root"), machine="vm:u-1")
    appliance.catalog.audit.append([theirs])
    report = ReportService(appliance).month(OCTOBER, may_see=lambda machine: machine.id == "u-1")
    assert [line.name for line in report.machines] == ["web-1"]
    assert (report.machines[0].kept, report.machines[0].runs) == (29, {"succeeded": 28, "failed": 3})
    assert [(each.name, each.machines) for each in report.policies] == [("nightly", 1)]
    assert (report.runs, report.failed_count) == ({"succeeded": 28, "failed": 3}, 3)
    assert {run.name for run in report.failed} == {"web-1"}
    assert [each.name for each in report.proofs] == ["web-1"]
    assert [each.act for each in report.changes] == ["point.protect"]
    assert [(each.read_bytes, each.problems, each.affected) for each in report.verifications] == [(None, None, 0)]
    assert (report.repository, report.used_bytes, report.audit, report.stored_bytes) == (None, None, None, 140)
    html = page(report).html
    assert "tells nothing of others" in html
    assert "lonely" not in html
    nothing = ReportService(appliance).month(OCTOBER, may_see=lambda machine: False)
    assert (nothing.machines, nothing.policies, nothing.proofs, nothing.changes, nothing.runs) == ((), (), (), (), {})


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text: list[str] = []
        self.style = ""
        self._in = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self._in = tag

    def handle_data(self, data: str) -> None:
        if self._in == "style" and not self.style:
            self.style = data
        self.text.append(data)


def test_the_page_stands_alone_and_hostile_names_are_text(appliance: Appliance) -> None:
    made = page(october(appliance))
    seen = Seen()
    seen.feed(made.html)
    assert seen.tags <= {
        "html", "head", "meta", "title", "style", "body", "header", "footer", "h1", "h2", "p", "dl", "div", "dt", "dd",
        "table", "caption", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert seen.attributes <= {
        "lang", "charset", "name", "content", "class", "scope", "colspan", "role", "aria-label", "tabindex",
    }  # fmt: skip
    assert "url(" not in seen.style
    assert "@import" not in seen.style
    text = "".join(seen.text)
    assert "<script>alert(1)</script>" in text  # as text
    assert "{{ 7*7 }}" in text
    assert "\u202e" not in made.html
    assert r"\u202e" in text
    digest = base64.b64encode(hashlib.sha256(seen.style.encode()).digest()).decode()
    assert made.style_hash == f"sha256-{digest}"


def test_a_report_of_nothing_is_a_page_too(appliance: Appliance) -> None:
    report = ReportService(appliance).month(Month(2026, 11, "UTC"))
    assert not report.over
    html = page(report).html
    assert "The month is not over" in html
    assert "There is no audit yet." in html
    assert "None." in html


def test_what_lists_leave_out_is_counted(appliance: Appliance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.services.reports.gathering._LISTED", 2)
    report = october(appliance)
    assert (len(report.failed), report.failed_count) == (2, 5)
    assert (len(report.changes), report.changes_count) == (2, 2)
    assert "the first 2 of 5" in page(report).html


def test_a_broken_audit_is_an_exception(appliance: Appliance) -> None:
    october(appliance)
    with appliance.catalog.database.write() as connection:
        connection.exec_driver_sql("UPDATE audit SET actor_name = 'somebody' WHERE number = 2")
    report = ReportService(appliance).month(OCTOBER)
    assert report.audit is not None
    assert report.audit.flaws
    assert "The audit is not whole" in page(report).html


def test_what_was_looked_at_of_the_audit_is_told_and_what_is_new_is_looked_at(appliance: Appliance) -> None:
    october(appliance)
    service = ReportService(appliance)
    first, again = service.month(OCTOBER).audit, service.month(OCTOBER).audit
    assert first is not None
    assert again is not None
    assert (first.looked_utc, again.looked, again.flaws) == (None, first.entries, ())
    assert again.looked_utc is not None
    appliance.catalog.audit.append([draft("policy.save", END, "root")])
    assert first.entries is not None
    with appliance.catalog.database.write() as connection:
        connection.exec_driver_sql(f"UPDATE audit SET act = 'other' WHERE number = {first.entries + 1}")
    broken = service.month(OCTOBER).audit
    assert broken is not None
    assert [flaw.split(":")[0] for flaw in broken.flaws] == [f"entry {first.entries + 1}"]
    with appliance.catalog.database.write() as connection:  # what was looked at before, too, from then on
        connection.exec_driver_sql("UPDATE audit SET actor_name = 'somebody' WHERE number = 2")
    broken = service.month(OCTOBER).audit
    assert broken is not None
    assert broken.flaws[0].startswith("entry 2:")
    assert broken.looked_utc is None


def test_a_report_of_a_fleet_adds_up(appliance: Appliance) -> None:
    seed(appliance.catalog, SMALL, now_utc=END)
    report = ReportService(appliance).month(OCTOBER)
    assert len(report.machines) == SMALL.machines
    points = appliance.catalog.points.list()
    assert sum(line.kept for line in report.machines) == sum(point.created_utc < END for point in points)
    assert sum(line.made for line in report.machines) == sum(BEGIN <= point.created_utc < END for point in points)
    runs = [run for run in appliance.catalog.runs.list() if run.ended_utc and BEGIN <= run.ended_utc < END]
    assert sum(report.runs.values()) == len(runs)
    assert sum(sum(line.runs.values()) for line in report.machines) == len(runs)
    assert report.failed_count == sum(run.state in (RunState.FAILED, RunState.INTERRUPTED) for run in runs)
    assert len(page(report).html) < 1 << 20


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = CommandLine.new(tmp_path / "site", capsys)
    line.backup(b"x" * 10_000)
    file = tmp_path / "report.html"
    month = f"{datetime.now(UTC):%Y-%m}"
    done = line("report", "--month", month, "--html", str(file), "--json")
    assert done.code == 0, done.err
    told: dict[str, Any] = done.json()
    assert [machine["name"] for machine in told["machines"]] == ["disk-1"]
    assert told["over"] is False
    assert file.read_text("utf-8").startswith("<!doctype html>")
    assert "disk-1" in file.read_text("utf-8")
    assert "disk-1" in line("report", "--month", month).out
    assert line("report", "--month", "2026-13").code == 2
    assert line("report", "--zone", "Nowhere/Land").code == 2
    assert line("report").code == 0
