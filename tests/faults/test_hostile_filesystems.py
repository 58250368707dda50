"""A worker that is late, dies, lies or eats memory is one clear error, and it has nothing to do harm with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imaging.errors import Damaged
from imaging.filesystems import session as sessions
from imaging.filesystems.errors import FilesError, PathRefused, ReaderEnded
from imaging.filesystems.session import Session
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
    monkeypatch.setattr(sessions, "REQUEST_S", 0.2)
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
import os, socket
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


@pytest.mark.parametrize("lie", LIES)
def test_one_that_lies(lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_READ_BYTES_MAX", 8 << 20)
    monkeypatch.setattr(
        sessions, "_command",
        lambda _, descriptor: [sys.executable, "-c", _LIAR.format(descriptor=descriptor, lie=LIES[lie])],
    )  # fmt: skip
    session = Session([("vda", ImageDisk(blank(tmp_path / "disk", 1 << 20)))])
    with pytest.raises(FilesError) as failed:
        session.listing("vda", ())
    assert isinstance(failed.value, ReaderEnded), failed.value
    assert not session.alive
    session.close()


_TRIES = """
import os, socket, sys
from imaging.filesystems import sandbox
sandbox.enter(3, sys.argv[1])
for attempt in (
    lambda: open("/etc/passwd"), lambda: open("/proc/self/status"), lambda: socket.socket(), os.fork,
    lambda: os.setuid(0), lambda: bytearray(2 << 30), lambda: os.pipe(),
):
    try:
        attempt()
    except (OSError, MemoryError):
        sys.stdout.write("refused\\n")
    else:
        sys.stdout.write("done\\n")
sys.stdout.write(f"{os.getuid()}\\n")
sys.stdout.flush()
while True:
    pass
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_sandbox_has_nothing_and_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = _TRIES.replace("sandbox.enter", "sandbox.CPU_S = 1; sandbox.enter")
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["refused"] * 7 + ["65534"], done.stderr
    assert done.returncode == -signal.SIGXCPU
