"""What a run says is kept in a file of its own, bounded, and hurts the run in no case."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.models import new_id
from appliance.progress import SILENT
from appliance.services import runlogs
from appliance.services.backup.watching import how_far, watched
from appliance.services.runlogs import LOG_BYTES_MAX, RunLogWriter, read_run_log, sweep
from appliance.settings import Settings, load
from appliance.throughput import Sample
from tests.unit.cli_runner import CommandLine

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = load({"STRONGROOM_HOME": str(tmp_path)})
    made.log_directory.mkdir()
    return made


def writer(settings: Settings, id: str) -> RunLogWriter:
    return RunLogWriter(settings, id, lambda: NOW)


def texts(settings: Settings, id: str) -> list[str]:
    return [line.text for line in read_run_log(settings, id).lines]


def test_lines_and_samples_come_back(settings: Settings) -> None:
    id, hostile = new_id(), 'x\n{"at": 1}\n\x1b[31m\x00 \ud800 "'
    first, second = writer(settings, id), writer(settings, id)
    first.say("it begins")
    first.say(hostile, "warning")
    first.samples([Sample(0.0, 0), Sample(1.0, 5)])
    second.say("again")
    second.samples([Sample(0.0, 0), Sample(2.5, 9)])
    found = read_run_log(settings, id)
    assert [(line.level, line.text) for line in found.lines] == [
        ("info", "it begins"), ("warning", hostile), ("info", "again"),
    ]  # fmt: skip
    assert {line.at_utc for line in found.lines} == {NOW}
    assert found.samples == (Sample(0.0, 0), Sample(2.5, 9)), "of the last attempt"
    (file,) = (settings.log_directory / "runs").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_is_no_line_is_left_out(settings: Settings) -> None:
    id = new_id()
    writer(settings, id).say("one")
    path = settings.log_directory / "runs" / f"{id}.log"
    for line in (
        b"\xff",
        b"[]",
        b"5",
        b'{"at": "yesterday", "level": "", "text": ""}',
        b'{"samples": [[1]]}',
        b"[" * 9000,
    ):
        with path.open("ab") as file:
            file.write(line + b"\n")
    writer(settings, id).say("two")
    assert texts(settings, id) == ["one", "two"]
    assert texts(settings, new_id()) == []
    for wrong in ("../../etc/passwd", "", "a" * 31, "A" * 32):
        with pytest.raises(ValueError, match="no id"):
            read_run_log(settings, wrong)


def test_a_run_that_says_too_much_is_cut_off_and_its_speed_is_kept(settings: Settings) -> None:
    id = new_id()
    log = writer(settings, id)
    for _ in range(2000):
        log.say("x" * 100_000)
    log.samples([Sample(0.0, 0), Sample(1.0, 5)])
    found = read_run_log(settings, id)
    assert found.lines[-1].text == "more was said than is kept"
    assert found.samples[-1] == Sample(1.0, 5)
    assert (settings.log_directory / "runs" / f"{id}.log").stat().st_size < LOG_BYTES_MAX + 20_000


def test_a_log_that_cannot_be_written_ends_no_run(settings: Settings) -> None:
    (settings.log_directory / "runs").write_text("in the way")
    id = new_id()
    log = writer(settings, id)
    log.say("unheard")
    log.samples([])
    assert read_run_log(settings, id).lines == ()
    assert sweep(settings) == 0


def test_the_oldest_go_when_there_are_too_many(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlogs, "_FILES_MOST", 10)
    monkeypatch.setattr(runlogs, "_FILES_LEFT", 6)
    ids = [new_id() for _ in range(11)]
    for number, id in enumerate(ids):
        writer(settings, id).say("x")
        os.utime(settings.log_directory / "runs" / f"{id}.log", (number, number))
        assert sweep(settings) == (0 if number < 10 else 5)
    assert [bool(texts(settings, id)) for id in ids] == [False] * 5 + [True] * 6


def test_a_watched_run_says_how_it_went(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Its warnings too, where this process has a log: pytest has one."""
    id = new_id()
    with Appliance(settings) as appliance:
        with watched(appliance, id, lambda: None, SILENT) as progress:
            progress.start("vda", 3 << 20)
            progress.advance(1 << 20)
            progress.note("a note")
            logging.getLogger("imaging.storage").warning("put %s: tried again", "packs/x")
            logging.getLogger("imaging.storage").info("nothing that matters")
            progress.write()  # type: ignore[attr-defined]
            far = how_far(settings, id)
            assert far is not None
            assert (far.label, far.done_bytes, far.total_bytes) == ("vda", 1 << 20, 3 << 20)
            assert far.samples[-1].done_bytes == 1 << 20
            assert far.bytes_s is not None
            assert far.bytes_s > 0
        logging.getLogger("imaging.storage").warning("after it")
        assert texts(settings, id) == ["it begins", "vda: 3.0 MiB", "a note", "put packs/x: tried again", "it is done"]
        assert read_run_log(settings, id).samples[-1].done_bytes == 1 << 20
        assert how_far(settings, id) is None
        failing = new_id()
        with pytest.raises(LookupError), watched(appliance, failing, lambda: None, SILENT):
            raise LookupError("nowhere")
        assert texts(settings, failing) == ["it begins", "nowhere"]
        assert read_run_log(settings, failing).lines[-1].level == "error"


def test_a_backup_tells_it_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strongroom = CommandLine(tmp_path, capsys)
    strongroom.init()
    strongroom.backup(os.urandom(300_000), "web")
    (run,) = strongroom("run", "list", "--json").json()
    shown = strongroom("run", "show", run["id"][:8], "--log")
    assert shown.code == 0
    assert "it begins" in shown.out
    assert "it is done" in shown.out
    assert "/s, at most" in shown.out
    told = strongroom("run", "show", run["id"], "--log", "--json").json()
    assert told["samples"][-1]["done_bytes"] >= 300_000
    assert told["lines"][0]["text"] == "it begins"
    assert json.dumps(told)
    image = tmp_path / "image.raw"
    words = ("--image", str(image), "--format", "raw", "--name", "web", "--queue", "--json")
    queued = strongroom("backup", *words).json()
    nothing = strongroom("run", "show", queued["id"], "--log")
    assert (nothing.code, nothing.out) == (0, "")
    assert "said nothing here" in nothing.err
