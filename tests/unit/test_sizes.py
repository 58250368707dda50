"""How large the repository is, and what was verified, is kept when it is looked at."""

from __future__ import annotations

import logging
import os
import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.clock import SystemClock
from appliance.models import RunKind, RunState
from appliance.proofs import Reading
from appliance.services.browsing import BrowsingService
from appliance.services.sizes import SizeService
from appliance.settings import load
from tests.unit.cli_runner import CommandLine


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    line = CommandLine(tmp_path, capsys)
    line.init()
    line.backup(os.urandom(300_000), "web")
    return line


def real_bytes(folder: Path) -> int:
    """Without what is set aside, which is no object."""
    files = (path for path in folder.rglob("*") if path.is_file() and "tmp" not in path.relative_to(folder).parts)
    return sum(path.stat().st_size for path in files)


class Shifted(SystemClock):
    shift = timedelta(0)

    def now_utc(self) -> datetime:
        return super().now_utc() + self.shift


def test_the_size_is_taken_once_a_day_and_the_room_each_time(
    strongroom: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Shifted()
    clock.shift = timedelta(hours=12 - clock.now_utc().hour)  # no midnight comes meanwhile
    with Appliance(load(strongroom.environment), clock=clock) as appliance:
        service, first_bytes = SizeService(appliance), real_bytes(strongroom.repository)
        first = service.look()
        assert first is not None
        assert (first.used_bytes, first.day) == (first_bytes, clock.now_utc().date())
        assert first.free_bytes is not None
        assert abs(first.free_bytes - appliance.repository.store.free_bytes()) < 1 << 30  # type: ignore[operator]
        strongroom.backup(os.urandom(300_000), "db")
        again = service.look()
        assert again is not None
        assert again.used_bytes == first_bytes
        assert again.taken_utc > first.taken_utc
        clock.shift += timedelta(days=1)
        next_day = service.look()
        assert next_day is not None
        assert next_day.used_bytes == real_bytes(strongroom.repository) > first_bytes
        kept = appliance.catalog.proofs.sizes(first.repository, first.day)
        assert kept == (again, next_day)
        growth = BrowsingService(appliance).growth()
        assert (growth.used_bytes, growth.endless) == (next_day.used_bytes, False)


def test_without_a_repository_there_is_nothing_to_look_at_and_one_that_is_away_is_told_once(
    strongroom: CommandLine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path / "other")})) as empty:
        assert SizeService(empty).look() is None

    class Stop(threading.Event):
        rounds = 0

        def wait(self, timeout: float | None = None) -> bool:
            Stop.rounds += 1
            if Stop.rounds == 3:
                self.set()
            return self.is_set()

    strongroom.repository.rename(tmp_path / "away")
    with Appliance(load(strongroom.environment)) as appliance, caplog.at_level(logging.WARNING):
        SizeService(appliance).keep_looking(Stop())
    assert Stop.rounds == 3
    (record,) = caplog.records
    assert "size of the repository" in record.message


def test_verifications_are_kept_and_say_it_of_points(strongroom: CommandLine) -> None:
    for words in ((), ("--read-data",), ("--read-data", "--every", "2"), ("--read-data", "--hashes-only")):
        assert strongroom("repository", "verify", *words).code == 0
    with Appliance(load(strongroom.environment)) as appliance:
        kept = appliance.catalog.proofs.verifications()
        assert [(each.reading, each.every_days, each.problems) for each in kept] == [
            (Reading.HASHES, 1, 0), (Reading.DATA, 2, 0), (Reading.DATA, 1, 0), (Reading.TABLES, 1, 0),
        ]  # fmt: skip
        (point,) = BrowsingService(appliance).points().items
        assert (point.checked.verified_utc, point.checked.damaged) == (kept[0].ended_utc, False)
    away = strongroom.repository.rename(strongroom.folder / "away")
    assert strongroom("repository", "verify").code == 1
    away.rename(strongroom.repository)
    with Appliance(load(strongroom.environment)) as appliance:
        (failed,) = (run for run in appliance.catalog.runs.last() if run.kind is RunKind.VERIFY)
        assert (failed.state, "not there" in (failed.error or "")) == (RunState.FAILED, True), "so people are told"
    assert strongroom("repository", "verify").code == 0
    with Appliance(load(strongroom.environment)) as appliance:
        assert appliance.catalog.runs.get(failed.id).dismissed_utc is not None
    pack = max(strongroom.repository.glob("packs/**/*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    assert strongroom("repository", "verify", "--read-data").code == 1
    with Appliance(load(strongroom.environment)) as appliance:
        (point,) = BrowsingService(appliance).points().items
        assert point.checked.damaged
        assert appliance.catalog.proofs.verifications()[0].affected == (point.point.id,)
