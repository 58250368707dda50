"""NBD sources whose server errs, lags or falls silent, for real (nbdkit, a stopped process): an error, and no hang.

A connection on which a read failed may still have answers on their way: they must reach no buffer that is used again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import imaging.source
from imaging.errors import SourceError
from imaging.source import NbdSource
from tests.lab.listening import wait_listening

pytestmark = pytest.mark.faults

MIB = 1 << 20


@contextmanager
def nbdkit(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    listen = folder / "s"
    process = subprocess.Popen(["nbdkit", "--foreground", "--readonly", f"--unix={listen}", *arguments])
    try:
        wait_listening(listen, process)
        yield process, listen
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        listen.unlink(missing_ok=True)


def within(seconds: float, action: Callable[[], object]) -> BaseException | None:
    """Run it in a thread; what it raised. Fails if it is not over in time."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            action()
            raised.append(None)
        except BaseException as err:  # noqa: BLE001 - handed over
            raised.append(err)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert raised, f"not over after {seconds} s"
    return raised[0]


# The second 512 KiB fail at once; all else is 0x55 and comes half a second late.
_LATE = """
case "$1" in
  get_size) echo 8M ;;
  thread_model) echo parallel ;;
  can_multi_conn) exit 0 ;;
  pread) if [ "$4" = 524288 ]; then echo "EIO injected" >&2; exit 1; fi
         sleep 0.5; head -c "$3" /dev/zero | tr '\\0' 'U' ;;
  *) exit 2 ;;
esac
"""


def with_late(folder: Path, act: Callable[[Path], None]) -> None:
    """`act` gets such a server's socket. nbdkit 1.32 itself may die where a connection is cut while several of its
    threads answer on it (an assertion in raw_send_socket): then once more, with a new one."""
    script = folder / "late.sh"
    script.write_text("#!/bin/sh\n" + _LATE)
    script.chmod(0o755)
    for left in range(9, -1, -1):
        with nbdkit(folder, "sh", str(script)) as (process, listen):
            try:
                act(listen)
                return
            except SourceError:
                if not left or not aborted(process):
                    raise


def aborted(process: subprocess.Popen[bytes]) -> bool:
    try:
        return process.wait(10) == -signal.SIGABRT
    except subprocess.TimeoutExpired:
        return False


def test_late_answers_of_a_failed_read_reach_no_buffer_in_use(tmp_path: Path) -> None:
    with_late(tmp_path, fail_and_read_on)


def fail_and_read_on(late: Path) -> None:
    buffer = memoryview(bytearray(2 * MIB))
    other = memoryview(bytearray(4096))
    with NbdSource(late, connections=1) as source:
        with pytest.raises(SourceError, match="Input/output error"):
            source.read([(0, buffer)])
        buffer[:] = b"m" * len(buffer)  # the thread goes on with its buffer
        source.read([(4 * MIB, other)])  # longer on its way than what is left of the failed read
        assert other == b"U" * 4096, "the source can still be read"
        assert buffer == b"m" * len(buffer), "what is in use was overwritten by an answer that came late"


def test_a_source_goes_on_after_each_of_its_connections_failed(tmp_path: Path) -> None:
    with_late(tmp_path, fail_and_go_on)


def fail_and_go_on(late: Path) -> None:
    with NbdSource(late, connections=2) as source:
        for _ in range(5):
            with pytest.raises(SourceError):
                source.read([(MIB // 2, memoryview(bytearray(4096)))])
        view = memoryview(bytearray(10))
        if (failed := within(60, lambda: source.read([(0, view)]))) is not None:
            raise failed
        assert view == b"U" * 10


def silent(process: subprocess.Popen[bytes]) -> None:
    """Returns when every thread has stopped: one that runs on another core may answer a moment longer."""
    os.kill(process.pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{process.pid}/task")
    while not all(_state(task) == "T" for task in tasks.iterdir()):
        time.sleep(0.001)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def test_a_source_whose_server_fell_silent_can_be_closed(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "memory", "8M") as (process, listen):
        source = NbdSource(listen)
        silent(process)
        assert within(60, source.close) is None


@pytest.mark.parametrize("what", ["read", "status", "connect"])
def test_a_server_that_falls_silent_is_an_error_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    with nbdkit(tmp_path, "memory", "8M") as (process, listen):
        source = NbdSource(listen)
        monkeypatch.setattr(imaging.source, "_STALL_S", 1)
        silent(process)
        action: Callable[[], object] = {
            "read": lambda: source.read([(0, memoryview(bytearray(2 * MIB)))]),
            "status": lambda: source.status(0, 8 * MIB),
            "connect": lambda: NbdSource(listen),
        }[what]
        failure = within(60, action)
        assert isinstance(failure, SourceError)
        assert "has not answered" in str(failure)
        assert within(60, source.close) is None


def test_a_server_that_dies_is_an_error_for_reads_under_way_and_for_later_ones(tmp_path: Path) -> None:
    with (
        nbdkit(tmp_path, "--filter=delay", "memory", "8M", "rdelay=20") as (process, listen),
        NbdSource(listen) as source,
    ):
        threading.Timer(0.3, process.kill).start()
        for _ in range(3):
            failure = within(60, lambda: source.read([(0, memoryview(bytearray(MIB)))]))
            assert isinstance(failure, SourceError)
        assert isinstance(within(60, lambda: source.status(0, MIB)), SourceError)


def test_an_export_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no NBD export"):
        NbdSource(tmp_path / "nothing")
