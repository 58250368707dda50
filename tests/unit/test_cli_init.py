"""Taking a repository into use: init, adopt, keys; and what is refused."""

from __future__ import annotations

import fcntl
import os
import pty
import stat
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from appliance import home
from appliance.cli.passphrases import KeySink
from tests.unit.cli_runner import PASSPHRASE, PROJECT, CommandLine


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(tmp_path, capsys)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_init_as_a_process(strongroom: CommandLine) -> None:
    done = strongroom.process(
        "init", "--repository", str(strongroom.repository), "--recovery-key-file", str(strongroom.key_file)
    )
    assert done.code == 0, done.err
    assert str(strongroom.repository) in done.out
    assert "SR1-" not in done.out + done.err
    assert stat.S_IMODE(strongroom.key_file.stat().st_mode) == 0o600
    key = strongroom.key_file.read_text("ascii").strip()
    assert key.startswith("SR1-")
    assert len(key) == 4 + 14 * 5 - 1
    cost = b'"lanes":4,"memory_kib":65536,"name":"argon2id","passes":3'
    slots = [each.read_bytes() for each in (strongroom.repository / "keys").rglob("*") if each.is_file()]
    assert len([each for each in slots if cost in each]) == 1, "it costs more than in the tests in this process"
    # From now on the machine key serves: no passphrase.
    del strongroom.environment["STRONGROOM_PASSPHRASE"]
    info = strongroom.process("repository", "info", "--json")
    assert info.code == 0, info.err
    assert info.json()["location"] == str(strongroom.repository)


def test_without_a_file_the_recovery_key_is_shown_once(strongroom: CommandLine) -> None:
    done = strongroom("init", "--repository", str(strongroom.repository))
    assert done.code == 0
    (line,) = [line for line in done.out.splitlines() if "SR1-" in line]
    key = line.strip()
    assert "only this once" in done.err
    again = CommandLine(strongroom.folder / "other", strongroom.capsys)
    again.folder.mkdir()
    (again.folder / "typed").write_text(f"# copied from paper\n{key.lower().replace('-', ' ')}\n")
    adopted = again(
        "repository", "adopt", str(strongroom.repository), "--recovery-key-file", str(again.folder / "typed")
    )
    assert adopted.code == 0, adopted.err


def test_nothing_is_written_outside_home_and_repository(strongroom: CommandLine) -> None:
    strongroom.init()
    strongroom.backup(os.urandom(100_000))
    assert {path.name for path in strongroom.folder.iterdir()} == {"home", "repository", "recovery.key", "image.raw"}


def test_a_second_init_is_refused_and_changes_nothing(strongroom: CommandLine) -> None:
    strongroom.init()
    before = {name: (strongroom.folder / name).read_bytes() for name in files_below(strongroom.folder)}
    for arguments in (
        (
            "init",
            "--repository",
            str(strongroom.folder / "second"),
            "--recovery-key-file",
            str(strongroom.folder / "k2"),
        ),
        ("init",),
        ("repository", "adopt", str(strongroom.repository)),
    ):
        done = strongroom(*arguments)
        assert done.code == 1
        assert "is in use" in done.error()
        assert "STRONGROOM_HOME" in done.error()
    assert {name: (strongroom.folder / name).read_bytes() for name in files_below(strongroom.folder)} == before


def test_init_where_a_repository_is_leaves_the_home_unused(strongroom: CommandLine) -> None:
    strongroom.init()
    other = CommandLine(strongroom.folder / "other", strongroom.capsys)
    other.folder.mkdir()
    done = other("init", "--repository", str(strongroom.repository), "--recovery-key-file", str(other.key_file))
    assert done.code == 1
    assert "a repository is there" in done.error()
    assert not other.key_file.exists(), "an empty key file would look like a key"
    assert not (other.home / "keys" / "machine.key").exists()
    adopted = other("repository", "adopt", str(strongroom.repository))
    assert adopted.code == 0, adopted.err


def test_an_existing_key_file_stops_init_before_anything_is_made(strongroom: CommandLine) -> None:
    strongroom.key_file.write_text("precious")
    done = strongroom(
        "init", "--repository", str(strongroom.repository), "--recovery-key-file", str(strongroom.key_file)
    )
    assert done.code == 1
    assert "overwrites nothing" in done.error()
    assert strongroom.key_file.read_text() == "precious"
    assert not strongroom.repository.exists()


def test_a_key_file_that_cannot_be_made_stops_init(strongroom: CommandLine) -> None:
    missing = strongroom.folder / "no" / "such" / "folder" / "key"
    done = strongroom("init", "--repository", str(strongroom.repository), "--recovery-key-file", str(missing))
    assert done.code == 1
    assert str(missing) in done.error()
    assert not strongroom.repository.exists()


def test_a_key_that_cannot_be_written_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = KeySink(tmp_path / "key")
    full = os.open("/dev/full", os.O_WRONLY)
    assert sink._descriptor is not None
    os.dup2(full, sink._descriptor)
    os.close(full)
    sink.deliver("SR1-ABCD")
    out, err = capsys.readouterr()
    assert "SR1-ABCD" in out
    assert "cannot be written" in err


@pytest.mark.parametrize("given", ["", "short"])
def test_weak_passphrases_are_refused(strongroom: CommandLine, given: str) -> None:
    done = strongroom("init", "--repository", str(strongroom.repository), STRONGROOM_PASSPHRASE=given)
    assert done.code == 1
    assert "passphrase" in done.error().lower()
    assert not strongroom.repository.exists()


def test_without_passphrase_and_terminal_nothing_is_asked(strongroom: CommandLine) -> None:
    del strongroom.environment["STRONGROOM_PASSPHRASE"]
    done = strongroom.process("init", "--repository", str(strongroom.repository), stdin="typed blindly\n" * 2)
    assert done.code == 1
    assert "STRONGROOM_PASSPHRASE" in done.error()
    assert not strongroom.repository.exists()


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_terminal_is_asked_twice_and_shows_no_passphrase(strongroom: CommandLine) -> None:
    leader, follower = pty.openpty()
    environment = {name: value for name, value in strongroom.environment.items() if name != "STRONGROOM_PASSPHRASE"}
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance.cli", "init", "--repository", str(strongroom.repository)],
        cwd=PROJECT,
        env=environment | {"TERM": "xterm"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(follower)
    shown = ""

    def wait_for(text: str) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(leader, 4096).decode()

    for prompt, typed in (("New passphrase", PASSPHRASE), ("The same again", "something else"), ("do not match", None)):
        wait_for(prompt)
        if typed is not None:
            os.write(leader, f"{typed}\n".encode())
    for prompt in ("New passphrase", "The same again"):
        shown = shown[shown.rindex("do not match") :] if "do not match" in shown else shown
        wait_for(prompt)
        os.write(leader, f"{PASSPHRASE}\n".encode())
    wait_for("SR1-")
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk.decode()
    except OSError:  # EIO: the terminal's last process has gone
        pass
    assert process.wait(60) == 0, shown
    os.close(leader)
    assert PASSPHRASE not in shown


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"STRONGROOM_PASSPHRASE": "wrong wrong wrong"}, "passphrase"),
        ({"STRONGROOM_PASSPHRASE": ""}, "STRONGROOM_PASSPHRASE"),
    ],
)
def test_a_wrong_passphrase_adopts_nothing(strongroom: CommandLine, given: dict[str, str], says: str) -> None:
    strongroom.init()
    before = files_below(strongroom.repository)
    other = CommandLine(strongroom.folder / "other", strongroom.capsys)
    other.folder.mkdir()
    done = other.process("repository", "adopt", str(strongroom.repository), **given)
    assert done.code == 1
    assert says in done.error()
    assert not (other.home / "keys" / "machine.key").exists()
    assert files_below(strongroom.repository) == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "recovery key"),
        ("SR1-AAAA", "recovery key"),
        ("not a key at all", "SR1"),
        ("\xff\xfe", "recovery key"),
        ("SR1-" + "-".join(["AAAA"] * 14), "check digits"),
        ("A" * 5000, "recovery key"),
    ],
)
def test_recovery_keys_that_are_none(strongroom: CommandLine, content: str, says: str) -> None:
    strongroom.init()
    other = CommandLine(strongroom.folder / "other", strongroom.capsys)
    other.folder.mkdir()
    other.key_file.write_text(content, "latin-1")
    done = other("repository", "adopt", str(strongroom.repository), "--recovery-key-file", str(other.key_file))
    assert done.code == 1
    assert says in done.error()
    assert content[4:] not in done.err or not content[4:]


def test_adopting_what_is_no_repository(strongroom: CommandLine) -> None:
    (strongroom.folder / "empty").mkdir()
    for path in ("empty", "missing"):
        done = strongroom("repository", "adopt", str(strongroom.folder / path))
        assert done.code == 1
        assert path in done.error()
    assert not (strongroom.home / "keys" / "machine.key").exists()


def test_adopt_brings_every_point_back_without_home_and_catalog(strongroom: CommandLine) -> None:
    strongroom.init()
    points = [strongroom.backup(os.urandom(300_000), name) for name in ("a", "b", "a")]
    listed = strongroom("point", "list", "--json").json()
    new = CommandLine(strongroom.folder / "new", strongroom.capsys)
    new.folder.mkdir()
    adopted = new(
        "repository", "adopt", str(strongroom.repository), "--recovery-key-file", str(strongroom.key_file), "--json"
    )
    assert adopted.code == 0, adopted.err
    assert adopted.json()["points"] == len(points)
    assert new("point", "list", "--json").json() == listed
    # Both homes go on with the repository.
    assert new.backup(b"x" * 4096, "c")["kind"] == "full"
    assert len(strongroom("point", "list", "--json").json()) == len(points) + 1


def test_a_lost_catalog_comes_back_by_itself(strongroom: CommandLine) -> None:
    strongroom.init()
    strongroom.backup(os.urandom(100_000))
    listed = strongroom("point", "list", "--json").json()
    for path in strongroom.home.glob("catalog.sqlite*"):
        path.unlink()
    assert strongroom("point", "list", "--json").json() == listed


def test_commands_before_init_say_what_to_do(strongroom: CommandLine) -> None:
    for arguments in (("point", "list"), ("status",), ("repository", "info"), ("repository", "verify")):
        done = strongroom(*arguments)
        assert done.code == 1
        assert "strongroom init" in done.error()


def test_key_slots(strongroom: CommandLine) -> None:
    strongroom.init()
    second = "another passphrase entirely"
    added = strongroom("repository", "key", "add", "--label", "night shift", STRONGROOM_NEW_PASSPHRASE=second)
    assert added.code == 0, added.err
    key2 = strongroom.folder / "second.key"
    assert strongroom("repository", "key", "add", "--recovery-key-file", str(key2)).code == 0
    slots = strongroom("repository", "key", "list", "--json").json()
    assert sorted(slot["kind"] for slot in slots) == ["machine", "passphrase", "passphrase", "recovery", "recovery"]
    assert all(slot["created_utc"].endswith("Z") for slot in slots)

    first = next(slot for slot in slots if slot["kind"] == "passphrase" and slot["label"] != "night shift")
    unasked = strongroom("repository", "key", "remove", first["id"])
    assert unasked.code == 2
    assert "--yes" in unasked.err
    removed = strongroom("repository", "key", "remove", first["id"][:10], "--yes")
    assert removed.code == 0, removed.err
    assert "older copy" in removed.err, "that removing revokes nothing has to be said"

    for index, (environment, extra, code) in enumerate(
        [
            ({"STRONGROOM_PASSPHRASE": PASSPHRASE}, (), 1),
            ({"STRONGROOM_PASSPHRASE": second}, (), 0),
            ({}, ("--recovery-key-file", str(key2)), 0),
        ]
    ):
        other = CommandLine(strongroom.folder / f"other{index}", strongroom.capsys)
        other.folder.mkdir()
        assert other("repository", "adopt", str(strongroom.repository), *extra, **environment).code == code


def test_removing_a_recovery_key_says_that_it_still_opens(strongroom: CommandLine) -> None:
    strongroom.init()
    (slot,) = [s for s in strongroom("repository", "key", "list", "--json").json() if s["kind"] == "recovery"]
    removed = strongroom("repository", "key", "remove", slot["id"], "--yes")
    assert removed.code == 0, removed.err
    assert "still opens this repository, as it is now" in removed.err
    assert "older copy" not in removed.err, "none is needed"
    (slot,) = [s for s in strongroom("repository", "key", "list", "--json").json() if s["kind"] == "passphrase"]
    last = strongroom("repository", "key", "remove", slot["id"], "--yes")
    assert last.code == 1
    assert "last one that is not an appliance's machine key" in last.error()
    assert "key add" in last.error()


def test_a_home_whose_machine_key_was_removed_is_told_what_to_do_and_that_works(strongroom: CommandLine) -> None:
    strongroom.init()
    point = strongroom.backup(os.urandom(100_000))
    other = CommandLine(strongroom.folder / "other home", strongroom.capsys)
    other.folder.mkdir()
    assert other("repository", "adopt", str(strongroom.repository)).code == 0
    slots = strongroom("repository", "key", "list", "--json").json()
    theirs = max((slot for slot in slots if slot["kind"] == "machine"), key=lambda slot: slot["created_utc"])
    removed = [slot["id"] for slot in slots if slot["kind"] == "machine"]
    for id in removed:  # one of them is the own one, which stays
        strongroom("repository", "key", "remove", id, "--yes")
    assert theirs["id"] in removed
    done = other("point", "list")
    assert done.code == 1
    key_file = other.home / "keys" / "machine.key"
    assert f"Move {key_file} away" in done.error()
    assert f"strongroom repository adopt {strongroom.repository}" in done.error()
    key_file.rename(other.folder / "old.key")
    assert other("repository", "adopt", str(strongroom.repository)).code == 0
    assert [each["id"] for each in other("point", "list", "--json").json()] == [point["id"]]


def test_the_own_machine_key_is_not_removed(strongroom: CommandLine) -> None:
    strongroom.init()
    (slot,) = [s for s in strongroom("repository", "key", "list", "--json").json() if s["kind"] == "machine"]
    done = strongroom("repository", "key", "remove", slot["id"], "--yes")
    assert done.code == 1
    assert "this appliance" in done.error()
    assert strongroom("repository", "info").code == 0


@pytest.mark.parametrize("wanted", ["ffffffffffff", "", "*"])
def test_key_slots_that_are_not_there(strongroom: CommandLine, wanted: str) -> None:
    strongroom.init()
    done = strongroom("repository", "key", "remove", wanted, "--yes")
    assert done.code == 1
    assert "no key slot" in done.error()


def test_an_unreachable_repository_is_told_with_the_way_out(strongroom: CommandLine) -> None:
    strongroom.init()
    strongroom.backup(b"x" * 5000)
    strongroom.repository.rename(strongroom.folder / "moved")
    done = strongroom("point", "list")
    assert done.code == 1
    assert str(strongroom.repository) in done.error()
    shown = strongroom("status", "--json")
    assert shown.code == 3
    assert shown.json()["repository"]["reachable"] is False
    assert [machine["name"] for machine in shown.json()["machines"]] == ["disk-1"], "the catalog's copy is shown"
    moved = strongroom("point", "list", "--json", STRONGROOM_REPOSITORY_PATH=str(strongroom.folder / "moved"))
    assert moved.code == 0
    assert len(moved.json()) == 1


def test_settings_that_name_another_repository_win_and_are_told(strongroom: CommandLine) -> None:
    strongroom.home.mkdir()
    (strongroom.home / "strongroom.toml").write_text("[repository]\npath = '/srv/elsewhere'\n")
    done = strongroom("init", "--repository", str(strongroom.repository))
    assert done.code == 2
    assert "/srv/elsewhere" in done.error()
    assert not strongroom.repository.exists()


def test_a_home_that_cannot_be_made(strongroom: CommandLine) -> None:
    (strongroom.folder / "home").write_text("a file")
    done = strongroom("init", "--repository", str(strongroom.repository))
    assert done.code == 1
    assert str(strongroom.home) in done.error()


def test_two_inits_at_once_make_one_home(strongroom: CommandLine) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "appliance.cli", "init", "--repository", str(strongroom.folder / f"r{number}")],
            cwd=PROJECT,
            env=strongroom.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for number in range(3)
    ]
    codes = [(process.communicate(timeout=120), process.returncode)[1] for process in started]
    assert sorted(codes) == [0, 1, 1]
    assert (strongroom.home / "keys" / "machine.key").stat().st_size == home.MACHINE_KEY_BYTES
    assert strongroom("repository", "verify").code == 0
