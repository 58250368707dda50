"""What reaches a terminal: readable, and harmless whatever names machines, disks and files have."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.cli import output
from appliance.cli.progress import PlainProgress

HOSTILE = "web\x1b]0;pwned\x07\x1b[2J\r\n\x9b31m\u202egpj.exe\u2066\u200b\ud800"


def test_hostile_names_lose_their_power() -> None:
    shown = output.safe(HOSTILE)
    assert shown.isprintable()
    assert "\\x1b]0;pwned\\x07" in shown
    assert "\\u202e" in shown
    shown.encode("utf-8")


@given(st.text())
def test_whatever_is_shown_is_one_printable_line(text: str) -> None:
    shown = output.safe(text)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)
    assert len(shown.splitlines()) <= 1


@pytest.mark.parametrize("text", ["web-1", "Größe", "数据库", "a b", "e\u0301"])
def test_ordinary_names_stay_as_they_are(text: str) -> None:
    assert output.safe(text) == text


def test_tables_and_facts_are_safe(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["name", "size"], [(HOSTILE, "1 B"), ("b", None)], right=["size"])
    output.facts([(" name", HOSTILE), ("empty", "")])
    output.say(HOSTILE)
    output.warn(HOSTILE)
    shown = "".join(capsys.readouterr())
    assert not set(shown) & set("\x1b\x07\r\x9b\u202e\u2066\ud800")


def test_json_is_pure_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit_json({"name": HOSTILE, "at": datetime(2026, 11, 23, 14, 0, tzinfo=UTC)})
    text = capsys.readouterr().out
    assert text.isascii()
    assert "\x1b" not in text
    assert json.loads(text) == {"name": HOSTILE, "at": "2026-11-23T14:00:00Z"}


def test_tables_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["name", "size"], [("a", "10 B"), ("longer", "9 B")], right=["size"])
    assert capsys.readouterr().out == "NAME    SIZE\na       10 B\nlonger   9 B\n"


def test_an_empty_table_says_what_to_do_on_the_other_stream(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["name"], [], empty="Nothing yet.")
    assert capsys.readouterr() == ("", "Nothing yet.\n")


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**3 - 1, "1.0 GiB"),
        (5 << 40, "5.0 TiB"),
        (1 << 60, "1.0 EiB"),
        (1 << 74, "16384.0 EiB"),
    ],
)
def test_sizes(count: int | None, shown: str) -> None:
    assert output.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (7290, "2 h 1 min")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert output.duration(seconds) == shown


def test_plain_progress_says_what_began_and_what_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    progress.start(f"vda {HOSTILE}", 4096)
    progress.advance(1024)
    progress.note("look here")
    progress.finish()
    progress.start("vdb", None)
    progress.finish()
    progress.finish()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("vda web\\x1b")
    assert lines[0].endswith("(4.0 KiB)")
    assert lines[1] == "look here"
    assert ": 1.0 KiB in " in lines[2]
    assert lines[3:4] == ["vdb"]
    assert "\x1b" not in err


def test_a_stage_that_an_error_ended_is_not_told_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    progress.start("vda", 4096)
    progress.advance(1024)
    progress.close()
    progress.close()
    assert capsys.readouterr().err.splitlines()[1:] == ["vda: stopped after 1.0 KiB"]


def test_a_stage_that_another_one_cut_short_is_not_told_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    progress.start("vda (changes)", 4096)
    progress.start("vda (full)", 4096)
    assert capsys.readouterr().err.splitlines()[1] == "vda (changes): stopped after 0 B"


def test_plain_progress_tells_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = PlainProgress()
    progress.start("vda", 100 << 20)
    now[0] += 10
    progress.advance(20 << 20)
    assert capsys.readouterr().err.splitlines()[-1] == "vda: 20.0 MiB of 100.0 MiB (20 %), 2.0 MiB/s, 40 s left"
