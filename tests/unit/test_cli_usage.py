"""The command line's manners: every command explained, wrong usage told apart from failure, no traceback unasked."""

from __future__ import annotations

import fcntl
import os
import pty
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from appliance.cli import entry
from appliance.services.status import StatusService
from tests.unit.cli_runner import PROJECT, CommandLine

CONTRACT = """
init · host add · host list · host test · host remove · host forget-checkpoints · vm list · backup · point list ·
point show · point diff · point delete · point protect · restore · recovery start · recovery list · recovery migrate ·
recovery discard · recovery resume · export serve · mount · umount · repository info · repository verify ·
repository adopt · repository key list · repository key add · repository key remove · status · run list · run show ·
run cancel · run retry · policy add · policy edit · policy show · policy list · policy preview · policy pause ·
policy resume · policy remove · policy export · policy import · policy due ·
files list · files get
"""


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(tmp_path, capsys)


def commands(group: click.Group = entry.strongroom, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name)


def test_every_command_of_the_contract_is_there() -> None:
    wanted = {tuple(item.split()) for item in CONTRACT.split("·")}
    assert wanted <= set(commands())


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_command_is_explained_with_an_example(strongroom: CommandLine, command: tuple[str, ...]) -> None:
    done = strongroom(*command, "--help")
    assert done.code == 0
    assert f"strongroom {' '.join(command)}" in done.out.split("Options:")[0].split("Example", 1)[1]
    assert all(len(line) <= 100 for line in done.out.splitlines())
    assert strongroom(*command, "-h").out == done.out


@pytest.mark.parametrize("command", [c for c in commands() if c[-1] in ("list", "show", "info", "status", "diff")])
def test_every_list_has_json(strongroom: CommandLine, command: tuple[str, ...]) -> None:
    assert "--json" in strongroom(*command, "--help").out


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuch",),
        ("point", "nosuch"),
        ("point", "show"),
        ("backup",),
        ("backup", "vm", "--image", "x"),
        ("backup", "--image", "x"),
        ("backup", "--image", "x", "--format", "iso", "--name", "n"),
        ("backup", "--image", "x", "--format", "raw", "--name", ""),
        ("backup", "--image", "x", "--format", "raw", "--name", "  "),
        ("backup", "--image", "x", "--format", "raw", "--name", "\udcff"),
        ("backup", "vm", "--name", "n"),
        ("restore", "web", "--point", "latest"),
        ("restore", "web", "--point", "latest", "--to", "x", "--host", "h"),
        ("restore", "web", "--point", "latest", "--to", "x", "--as", "new"),
        ("restore", "web", "--point", "latest", "--host", "h", "--disk", "vda"),
        ("restore", "web", "--to", "x"),
        ("recovery", "start", "web"),
        ("recovery", "start", "web", "--point", "latest", "--memory", "much"),
        ("host", "add"),
        ("host", "add", "n", "qemu:///system", "--hostname", "h"),
        ("host", "add", "n", "--port", "22"),
        ("export", "serve", "web"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_shows_the_usage(strongroom: CommandLine, arguments: tuple[str, ...]) -> None:
    done = strongroom(*arguments)
    assert done.code == 2
    assert done.err.startswith("Usage: strongroom")
    assert "--help" in done.error()
    assert done.out == ""
    assert not strongroom.home.exists(), "nothing is made for a command that is not understood"


@pytest.mark.parametrize("group", [(), ("point",), ("repository", "key")], ids=" ".join)
def test_a_group_without_a_command_is_its_help_and_no_error(strongroom: CommandLine, group: tuple[str, ...]) -> None:
    done = strongroom(*group)
    assert done.code == 2
    assert done.err.startswith("Usage: strongroom")
    assert done.err.strip() == strongroom(*group, "--help").out.strip()


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (("host", "add", "x", "qemu+ext://h/system?command=/bin/sh"), "qemu+ext"),
        (("host", "add", "x", "qemu+ssh://h/system?command=/bin/sh"), "command"),
        (("host", "add", "x", "qemu+ssh://-oProxyCommand=sh/system"), "host"),
        (("host", "add", "x", "--hostname", "-oProxyCommand=sh"), "hostname"),
        (("host", "add", "x", "--hostname", "h", "--user", "$(id)"), "user"),
        (("host", "add", "../x", "qemu:///system"), "name"),
        (("host", "add", "x", "--hostname", "h", "--keyfile", "/a b"), "keyfile"),
    ],
)
def test_hosts_that_would_run_commands_are_refused(
    strongroom: CommandLine, arguments: tuple[str, ...], refused: str
) -> None:
    done = strongroom(*arguments)
    assert done.code == 2
    assert refused in done.error()
    assert strongroom("host", "list", "--json").json() == []


def test_hosts_of_the_mock_driver(strongroom: CommandLine) -> None:
    added = strongroom("host", "add", "mock", "test:///default", "--json")
    assert added.code == 0, added.err
    assert added.json()["answered"]["machines"] == 1
    (host,) = strongroom("host", "list", "--json").json()
    assert (host["name"], host["transport"], host["hostname"]) == ("mock", "test", None)
    assert strongroom("host", "test", "mock", "--json").json()["hypervisor"] == "TEST"
    machines = strongroom("vm", "list", "--host", "mock", "--json")
    assert machines.code == 0
    (machine,) = machines.json()
    assert {"name", "uuid", "host", "state", "disks", "last_point"} <= set(machine)
    again = strongroom("host", "add", "mock", "test:///default")
    assert again.code == 1
    assert "already" in again.error()
    assert strongroom("host", "remove", "mock").code == 2
    assert strongroom("host", "remove", "mock", "--yes").code == 0
    for arguments in (("host", "remove", "mock", "--yes"), ("host", "test", "mock"), ("vm", "list", "--host", "mock")):
        done = strongroom(*arguments)
        assert done.code == 1
        assert "no host mock" in done.error()


def test_one_host_that_does_not_answer_hides_no_other(strongroom: CommandLine) -> None:
    assert strongroom("host", "add", "mock", "test:///default").code == 0
    dead = str(strongroom.folder / "no-libvirtd.sock")
    unreachable = strongroom("host", "add", "dead", "--socket", dead, "--timeout", "2")
    assert unreachable.code == 1
    assert "host dead does not answer" in unreachable.error()
    assert strongroom("host", "add", "dead", "--socket", dead, "--timeout", "2", "--no-test").code == 0
    machines = strongroom("vm", "list", "--json")
    assert machines.code == 3
    assert [machine["host"] for machine in machines.json()] == ["mock"]
    assert "dead does not answer" in machines.err
    assert strongroom("vm", "list", "--host", "dead").code == 1


def test_machines_that_are_not_there(strongroom: CommandLine) -> None:
    none = strongroom("vm", "list")
    assert none.code == 1
    assert "host add" in none.error()
    listed = strongroom("vm", "list", "--json")
    assert (listed.code, listed.json()) == (0, [])
    assert "host add" in listed.err
    strongroom.init()
    assert strongroom("host", "add", "mock", "test:///default").code == 0
    for arguments in (
        ("backup", "nosuch"),
        ("backup", "nosuch", "--host", "mock"),
        ("host", "forget-checkpoints", "nosuch", "--yes"),
    ):
        done = strongroom(*arguments)
        assert done.code == 1, arguments
        assert "no virtual machine 'nosuch'" in done.error()
        assert "vm list" in done.error()


def test_images_that_cannot_be_backed_up(strongroom: CommandLine) -> None:
    strongroom.init()
    missing = str(strongroom.folder / "missing.raw")
    done = strongroom("backup", "--image", missing, "--format", "raw", "--name", "x")
    assert done.code == 1
    assert missing in done.error()
    assert strongroom("point", "list", "--json").json() == []


def test_a_backup_beside_another_one_names_the_machine(strongroom: CommandLine) -> None:
    strongroom.init()
    strongroom.backup(b"x" * 4096, "web-1")
    (series,) = (strongroom.home / "cache" / "locks").iterdir()
    image = str(strongroom.folder / "image.raw")
    with series.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = strongroom("backup", "--image", image, "--format", "raw", "--name", "web-1")
    assert done.code == 1
    assert "web-1 is being backed up already, by this appliance" in done.error()
    assert "wait" in done.error()
    assert series.name not in done.error()


def test_a_mistake_of_ours_is_a_sentence_and_a_traceback_only_with_debug(
    strongroom: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: StatusService) -> None:
        raise RuntimeError("the moon is full\x1b[31m")

    monkeypatch.setattr(StatusService, "status", fail)
    quiet = strongroom("status")
    assert quiet.code == 1
    assert "mistake in strongroom itself" in quiet.err
    assert "Traceback" not in quiet.err
    (hint,) = [line for line in quiet.err.splitlines() if line.startswith("hint: ")]
    assert "strongroom --debug COMMAND" in hint, "after the command's name the option is refused"
    for loud in (strongroom("--debug", "status"), strongroom("status", STRONGROOM_DEBUG="1")):
        assert loud.code == 1
        assert "Traceback" in loud.err
        assert "\x1b" not in loud.err


def test_a_bad_setting_is_named(strongroom: CommandLine) -> None:
    done = strongroom("status", STRONGROOM_LIMITS_WORKERS="many")
    assert done.code == 1
    assert "STRONGROOM_LIMITS_WORKERS" in done.error()


def test_home_can_be_given_as_an_option(strongroom: CommandLine) -> None:
    del strongroom.environment["STRONGROOM_HOME"]
    elsewhere = strongroom.folder / "elsewhere"
    done = strongroom("--home", str(elsewhere), "init")
    assert done.code == 0, done.err
    assert (elsewhere / "repository" / "config").exists(), "by default the repository lies in the home"


def test_the_version_is_told(strongroom: CommandLine) -> None:
    assert strongroom("--version").out.startswith("strongroom ")


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    heavy = ["sqlalchemy", "alembic", "libvirt", "numpy", "lmdb", "cryptography", "rich", "imaging.repository"]
    code = (
        "import sys\nfrom appliance.cli import main\nmain(['--help'])\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_help_takes_little_cpu() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "appliance.cli", "--help"], cwd=PROJECT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.6


def test_a_reader_that_goes_away_is_no_traceback(strongroom: CommandLine) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance.cli", "--help"],
        cwd=PROJECT,
        env=strongroom.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_crash(strongroom: CommandLine, closed: str) -> None:
    strongroom.init()
    strongroom.backup(os.urandom(4096), "Größe")
    command = f"{sys.executable} -m appliance.cli point list {closed}"
    done = subprocess.run(
        command, shell=True, cwd=PROJECT, env=strongroom.environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    asked = f"{sys.executable} -m appliance.cli point delete latest {closed}"
    done = subprocess.run(asked, shell=True, cwd=PROJECT, env=strongroom.environment, capture_output=True, check=False)
    assert done.returncode == 1


def test_names_that_the_locale_cannot_write(strongroom: CommandLine) -> None:
    strongroom.init()
    strongroom.backup(os.urandom(4096), "数")
    done = strongroom.process("point", "list", PYTHONIOENCODING="iso-8859-1")
    assert done.code == 0, done.err
    assert "\\u6570" in done.out


def test_a_full_file_system_is_told(strongroom: CommandLine) -> None:
    """The home on a file system without room: a sentence, and the home stays unused."""
    small = strongroom.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    try:
        done = strongroom.process(
            "init", "--repository", str(strongroom.repository), STRONGROOM_HOME=str(small / "home")
        )
        assert done.code == 1
        assert str(small) in done.error()
        assert not (small / "home" / "keys" / "machine.key").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_terminal_gets_a_table_with_escaped_names(strongroom: CommandLine) -> None:
    strongroom.init()
    strongroom.backup(os.urandom(4096), "web\x1b]0;owned\x07")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance.cli", "point", "list"],
        cwd=PROJECT,
        env=strongroom.environment | {"TERM": "xterm-256color", "COLUMNS": "200"},
        stdout=follower,
        stderr=follower,
        stdin=follower,
    )
    os.close(follower)
    shown = b""
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline and (chunk := os.read(leader, 65536)):
            shown += chunk
    except OSError:  # EIO: the terminal's last process has gone
        pass
    os.close(leader)
    assert process.wait(60) == 0
    assert b"\\x1b]0;owned\\x07" in shown
    assert b"\x1b]0;" not in shown
