"""A worker that is late, dies, lies or eats memory is one clear error, and it has nothing to do harm with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imaging.errors import Damaged
from imaging.filesystems import budgets, frames, sandbox
from imaging.filesystems import session as sessions
from imaging.filesystems.errors import FilesError, PathRefused, ReaderEnded
from imaging.filesystems.frames import Frame
from imaging.filesystems.session import Hole, Session
from tests.lab.filesystems import ImageDisk, blank, make_ext, make_tree

pytestmark = pytest.mark.faults


@pytest.fixture
def session(tmp_path: Path) -> Session:
    (tmp_path / "tree").mkdir()
    return Session([("vda", ImageDisk(make_ext(tmp_path / "image", make_tree(tmp_path / "tree"))))])


def test_one_that_is_late_or_dies(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    assert session.volumes()
    with pytest.raises(PathRefused):
        session.listing("vda", ("docs", ".."))
    monkeypatch.setattr(budgets, "REQUEST_S", 0.2)
    os.kill(session._process.pid, signal.SIGSTOP)
    with pytest.raises(ReaderEnded, match="not done in"):
        session.listing("vda", ())
    assert not session.alive
    with pytest.raises(ReaderEnded, match="signal 9"):
        session.listing("vda", ())
    session.close()


def test_a_disk_that_cannot_be_read_is_its_own_error(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    (disk,) = session._disks

    def damaged(offset: int, length: int) -> bytes:
        raise Damaged("chunk 1", "its bytes are others")

    monkeypatch.setattr(disk, "pread", damaged)
    with pytest.raises(Damaged, match="chunk 1"):
        session.volumes()
    assert not session.alive
    session.close()


LIES = {
    "an entry that leads up": 'f.send_json(s, F.ITEM, entry | {"name": "../x"}); done()',
    "more entries than asked for": "[f.send_json(s, F.ITEM, entry) for _ in range(501)]; done()",
    "a size below zero": 'f.send_json(s, F.ITEM, entry | {"size_bytes": -1}); done()',
    "no counts": "f.send_json(s, F.DONE, {})",
    "a frame of 4 GiB": 's.sendall(bytes([4]) + b"\\xff" * 4)',
    "no frame": "s.sendall(bytes(99))",
    "deep JSON": 'f.send(s, F.ITEM, b"[" * 60000)',
    "bytes behind the disk": "f.send(s, F.READ, f.READ_REQUEST.pack(0, 1 << 60, 1))",
    "another disk": "f.send(s, F.READ, f.READ_REQUEST.pack(9, 0, 1))",
    "content of a listing": 'f.send(s, F.DATA, b"x")',
    "reading without end": "[(f.send(s, F.READ, f.READ_REQUEST.pack(0, 0, 1 << 20)), f.receive(s)) for _ in range(99)]",
}
_LIAR = """
import os, socket, time
os.dup2({descriptor}, 3)
from imaging.filesystems import frames as f
from imaging.filesystems.frames import Frame as F
s = socket.socket(fileno=3)
f.receive(s); f.send_json(s, F.DONE, {{}}); f.receive(s)
entry = dict(name="a", kind="file", size_bytes=1, number="1")
done = lambda: f.send_json(s, F.DONE, dict(total=1, refused=0))
try:
    {lie}
    f.receive(s)
except (OSError, f.Garbled):
    pass
"""


def liar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str) -> Session:
    """Whose worker does this at the first request."""
    monkeypatch.setattr(
        sessions, "_command", lambda _, descriptor: [sys.executable, "-c", _LIAR.format(descriptor=descriptor, lie=lie)]
    )
    return Session([("vda", ImageDisk(blank(tmp_path / "disk", 1 << 20)))])


@pytest.mark.parametrize("lie", LIES)
def test_one_that_lies(lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "_READ_BYTES_MAX", 8 << 20)
    session = liar(tmp_path, monkeypatch, LIES[lie])
    with pytest.raises(FilesError) as failed:
        session.listing("vda", ())
    assert isinstance(failed.value, ReaderEnded), failed.value
    assert not session.alive
    session.close()


_VOLUME = 'dict(name="v", disk="vda", kind="ext4", label="", size_bytes=1, journal="clean")'
ENDLESS: dict[str, tuple[str, Callable[[Session], object]]] = {
    "volumes": (f"[f.send_json(s, F.ITEM, {_VOLUME}) for _ in range(5000)]; done()", Session.volumes),
    "long volumes": (
        f'[f.send_json(s, F.ITEM, {_VOLUME} | {{"label": "x" * 65000}}) for _ in range(999)]; done()', Session.volumes
    ),
    "entries": ("[f.send_json(s, F.ITEM, entry) for _ in range(5000)]; done()", lambda one: one.stat("vda", ("a",))),
    "wishes": (
        "[(f.send(s, F.READ, f.READ_REQUEST.pack(0, 0, 1)), f.receive(s)) for _ in range(5000)]; done()",
        lambda one: one.listing("vda", ()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ENDLESS)
def test_one_that_goes_on_and_on_is_ended_before_it_costs_much(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "_READ_BYTES_MAX", 64 << 20)
    received: list[int] = []

    def receive(*arguments: Any) -> tuple[Frame, bytes]:
        frame, payload = genuine(*arguments)
        received.append(len(payload))
        return frame, payload

    lie, ask = ENDLESS[what]
    session = liar(tmp_path, monkeypatch, lie)
    genuine = frames.receive
    monkeypatch.setattr(frames, "receive", receive)
    with pytest.raises(ReaderEnded, match=r"says what it must not|without end"):
        ask(session)
    assert (len(received) <= 1025, sum(received) <= 17 << 20) == (True, True)
    assert not session.alive
    session.close()


SLOW = {
    "a trickle": 's.sendall(bytes([4, 0, 0, 39, 15])); [(time.sleep(0.05), s.sendall(b"x")) for _ in range(9999)]',
    "many entries": "[(time.sleep(0.05), f.send_json(s, F.ITEM, entry)) for _ in range(999)]; done()",
    "wishes without an end": "[f.send(s, F.READ, f.READ_REQUEST.pack(0, 0, 1 << 20)) for _ in '123']; time.sleep(300)",
}


@pytest.mark.parametrize("how", SLOW)
def test_a_request_has_one_end_however_its_answer_comes(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = liar(tmp_path, monkeypatch, SLOW[how])
    monkeypatch.setattr(budgets, "REQUEST_S", 0.5)
    with pytest.raises(ReaderEnded, match="not done in"):
        session.listing("vda", ())
    assert not session.alive
    session.close()


def test_zeros_that_had_to_be_read_are_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long file of them is not reading without end."""
    monkeypatch.setattr(budgets, "_READ_BYTES_MAX", 2 << 20)
    honest = (
        "[(f.send(s, F.READ, f.READ_REQUEST.pack(0, 0, 1 << 20)), f.receive(s),"
        " f.send(s, F.HOLE, f.HOLE_LENGTH.pack(1 << 20))) for _ in range(9)]; done()"
    )
    session = liar(tmp_path, monkeypatch, honest)
    assert sum(piece.length for piece in session.read("vda", ("a",), 9 << 20) if isinstance(piece, Hole)) == 9 << 20
    session.close()


_TRIES = """
import ctypes, os, signal, socket, sys
from imaging.filesystems import sandbox
victim, right, how = int(sys.argv[2]), sys.argv[3], sys.argv[4]
libc = ctypes.CDLL(None, use_errno=True)
if how == "as another":
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
if how == "without a filter":
    sandbox._library = lambda: None
if how != "free":
    sandbox.enter(3, sys.argv[1])

def traced():
    if libc.ptrace(16, victim, 0, 0):
        raise OSError(ctypes.get_errno(), "ptrace")

def shared():
    made = libc.shmget(0, 4096, 0o1600)
    if made < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    libc.shmctl(made, 0, None)

def forked():
    if os.fork() == 0:
        os._exit(0)

try:
    {
        "open a file": lambda: open("/etc/passwd"), "open a process": lambda: open("/proc/self/status"),
        "open a socket": lambda: socket.socket(), "make a pipe": lambda: os.pipe(), "fork": forked,
        "trace": traced, "kill": lambda: os.kill(victim, signal.SIGSTOP), "share memory": shared,
        "take memory": lambda: bytearray(2 << 30), "become root": lambda: os.setuid(0),
    }[right]()
except (OSError, MemoryError):
    sys.stdout.write("refused")
else:
    sys.stdout.write("done")
"""
RIGHTS = (
    "open a file", "open a process", "open a socket", "make a pipe", "fork", "trace", "kill", "share memory",
    "take memory", "become root",
)  # fmt: skip


def tried(folder: Path, victim: int, right: str, how: str) -> str:
    words = [sys.executable, "-c", _TRIES, str(folder), str(victim), right, how]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("right", RIGHTS)
def test_the_sandbox_has_no_right(right: str, tmp_path: Path) -> None:
    """What is refused in it is done outside of it. The victim is a process of the user `nobody`: who is that too is
    kept from it by the filter of calls alone, and without that by being a user of its own."""
    with subprocess.Popen(["sleep", "600"], user=65534, group=65534, extra_groups=[]) as victim:
        try:
            assert tried(tmp_path, victim.pid, right, "free") == "done"
            assert tried(tmp_path, victim.pid, right, "sandboxed") == "refused"
            assert tried(tmp_path, victim.pid, right, "as another") == "refused"
            if right != "share memory":
                assert tried(tmp_path, victim.pid, right, "without a filter") == "refused"
        finally:
            victim.kill()


_OLD_KERNEL = """
import ctypes, errno, os, sys
from imaging.filesystems import sandbox
library = sandbox._library()
context = library.seccomp_init(sandbox._ALLOW)
of_filters = sandbox._Argument(0, sandbox._EQUAL, 22, 0)  # PR_SET_SECCOMP
for name, error, only in ("seccomp", errno.ENOSYS, (0, None)), ("prctl", errno.EINVAL, (1, ctypes.byref(of_filters))):
    number = library.seccomp_syscall_resolve_name(name.encode())
    assert library.seccomp_rule_add_array(context, 0x00050000 | error, number, *only) == 0
assert library.seccomp_load(context) == 0
assert ctypes.CDLL(None).prctl(22, 2, 0, 0, 0) == -1, "it has filters after all"
program = "import sys; from imaging.filesystems import sandbox; sandbox.enter(3, sys.argv[1]); print('entered')"
os.execv(sys.executable, [sys.executable, "-c", program, sys.argv[1]])
"""


def test_a_kernel_without_filters_of_calls_has_the_rest_of_the_sandbox(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _OLD_KERNEL, str(tmp_path)], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("entered\n", 0), done.stderr


_LOOP = "import sys; from imaging.filesystems import sandbox; sandbox.CPU_S = 1; sandbox.enter(3, sys.argv[1])\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_loop_in_the_sandbox_has_an_end(tmp_path: Path) -> None:
    tell = "import os; sys.stdout.write(f'{os.getuid() - os.getpid()}'); sys.stdout.flush()\n"
    words = [sys.executable, "-c", f"{_LOOP}{tell}while True: pass", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == (str(sandbox._FIRST_ID), -signal.SIGXCPU), done.stderr
