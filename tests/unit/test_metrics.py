"""Metrics: true, bounded, cheap, and all that the example dashboard and the alert rules ask for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from appliance.bootstrap import Appliance
from appliance.models import HostConfig, HostRecord, RepositoryRecord, RunRecord, RunState, new_id
from appliance.notices.records import Kind, Notice, Urgency
from appliance.proofs import Reading, RepositorySize, Verification
from appliance.services import metrics
from appliance.services.metrics import MetricsService
from appliance.settings import load
from tests.unit.cli_runner import PROJECT, CommandLine
from tests.unit.records import NOW, machine_record, point_record

MONITORING = PROJECT / "docs" / "monitoring"
PROMTOOL = PROJECT / ".cache" / "promtool"  # Debian's, as .ci/setup --test unpacks it
NAME = re.compile(r"\bstrongroom_[a-z_]+")
HOSTILE = 'evil"\n# TYPE x counter\nx{a="\\'


class Still:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.utc, self.monotonic = NOW + timedelta(hours=1), 100.0

    def now_utc(self) -> Any:
        return self.utc

    def monotonic_s(self) -> float:
        return self.monotonic

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody sleeps")


@pytest.fixture
def clock() -> Still:
    return Still()


@pytest.fixture
def appliance(tmp_path: Path, clock: Still) -> Iterator[Appliance]:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path)}), clock=clock) as made:
        yield made


def full(appliance: Appliance) -> None:
    """One of everything that can be told."""
    catalog, now = appliance.catalog, appliance.clock.now_utc()
    catalog.attach_repository(RepositoryRecord("7" * 32, "here", now))
    for day in range(9):
        at = now - timedelta(days=8 - day)
        catalog.proofs.took(RepositorySize("7" * 32, at.date(), at, 1000 + 10 * day, 500))
    catalog.points.add(machine_record(), point_record())
    hostile = replace(machine_record("6" * 32), name=HOSTILE, uuid="b-uuid", last_point_utc=NOW)
    catalog.points.add(hostile, point_record("6" * 32, name=HOSTILE, uuid="b-uuid"))
    catalog.hosts.add(HostRecord(HostConfig("here"), NOW))
    catalog.inventory.failed("here", "no route", "", now)
    catalog.runs.save(
        RunRecord(new_id(), "web-1", "vm", "a-uuid", "here", RunState.FAILED, now, now, error="no space")
    )  # fmt: skip
    catalog.thaws.owe("a-uuid", "here", "web-1", NOW)
    catalog.proofs.verified(Verification(new_id(), NOW, NOW, Reading.DATA, 1, 5, 3, ()))
    catalog.proofs.verified(Verification(new_id(), NOW, now, Reading.DATA, 1, 5, 0, ()))
    catalog.notices.tell(Notice(new_id(), Kind.FAILED, Urgency.FAILURE, now, "t", "b"), ["ops"])


def samples(text: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_metrics_tell_what_is_so(appliance: Appliance) -> None:
    full(appliance)
    found = samples(MetricsService(appliance).text())
    assert found["strongroom_collected_timestamp_seconds", ()] == (NOW + timedelta(hours=1)).timestamp()
    assert (
        found["strongroom_machine_last_point_timestamp_seconds", ("here", "a-uuid", "vm", "web-1")] == NOW.timestamp()
    )
    for name, labels, value in (
        ("machines_last_run_failed", (), 1), ("machines_provable", (), 2), ("machines_proven", (), 0),
        ("runs_last_day", ("failed",), 1), ("runs_last_day", ("succeeded",), 0), ("restore_points", (), 2),
        ("repository_used_bytes", (), 1080), ("repository_free_bytes", (), 500), ("owed_thaws", (), 1),
        ("repository_growth_bytes_per_day", (), 10), ("repository_full_in_days", (), 50), ("hosts", (), 1),
        ("hosts_away", (), 1), ("host_up", ("here",), 0), ("verification_problems", ("data",), 0),
        ("notices_waiting", (), 1), ("notices_given_up_last_day", (), 0), ("workers_alive", (), 0),
    ):  # fmt: skip
        assert found[f"strongroom_{name}", labels] == value, name


def test_a_hostile_name_is_a_label_and_nothing_else(appliance: Appliance) -> None:
    full(appliance)
    text = MetricsService(appliance).text()
    assert "x" not in {family.name for family in text_string_to_metric_families(text.decode())}
    (labels,) = (labels for name, labels in samples(text) if "b-uuid" in labels)
    assert "\n" not in labels[3]
    assert labels[3].startswith('evil" # TYPE x counter')


def test_what_is_not_known_is_left_out(appliance: Appliance) -> None:
    found = samples(MetricsService(appliance).text())
    names = {name for name, _ in found}
    for name in ("repository_used_bytes", "repository_full_in_days", "verification_problems", "host_up"):
        assert f"strongroom_{name}" not in names
    assert found["strongroom_restore_points", ()] == 0


def test_who_asks_often_is_told_the_same_for_some_seconds(appliance: Appliance, clock: Still) -> None:
    service = MetricsService(appliance)
    before = service.text()
    full(appliance)
    clock.monotonic += 9
    assert service.text() is before
    clock.monotonic += 2
    assert samples(service.text())["strongroom_restore_points", ()] == 2


def test_there_are_only_so_many_machines_and_the_oldest_points_are_among_them(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MACHINES_MAX", 3)
    for number in range(10):
        series, at = f"{number:032x}", NOW - timedelta(hours=number)
        machine = replace(
            machine_record(series), name=f"vm-{number}", uuid=f"u-{number}", last_point_utc=at
        )  # fmt: skip
        appliance.catalog.points.add(machine, point_record(series, uuid=f"u-{number}", created_utc=at))
    told = [labels[3] for name, labels in samples(MetricsService(appliance).text()) if "last_point" in name]
    assert sorted(told) == ["vm-7", "vm-8", "vm-9"]


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_there_are(appliance: Appliance) -> None:
    full(appliance)
    there = {name for name, _ in samples(MetricsService(appliance).text())}
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    asked = {name for expression in expressions for name in NAME.findall(expression)}
    assert len(asked) > 20
    assert asked <= there
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert {"alert", "expr", "labels", "annotations"} <= rule.keys() <= {
                "alert", "expr", "for", "labels", "annotations"
            }  # fmt: skip
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            assert rule["annotations"]["summary"]
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)


def test_prometheus_takes_the_alerts_and_what_the_dashboard_asks(tmp_path: Path) -> None:
    def complaint(rules: object) -> str:
        file = tmp_path / "rules.yml"
        file.write_text(yaml.safe_dump(rules))
        done = subprocess.run([PROMTOOL, "check", "rules", file], capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stderr

    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    as_rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(asked)]
    assert complaint(yaml.safe_load((MONITORING / "alerts.yml").read_text())) == ""
    assert complaint({"groups": [{"name": "dashboard", "rules": as_rules}]}) == ""
    as_rules[0]["expr"] += " > > 1"
    assert "could not parse expression" in complaint({"groups": [{"name": "dashboard", "rules": as_rules}]})


def test_the_command_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = CommandLine.new(tmp_path / "site", capsys)
    line.backup(b"x" * 10_000)
    done = line("metrics")
    assert done.code == 0
    assert samples(done.out.encode())["strongroom_machines", ("protected",)] == 1
    assert "# HELP strongroom_machines Machines and images, by how they stand." in done.out


def test_other_commands_do_not_load_the_client() -> None:
    code = (
        "import sys\nfrom appliance.cli import main\nmain(['status', '--help'])\n"
        "sys.exit('prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, check=False).returncode == 0
