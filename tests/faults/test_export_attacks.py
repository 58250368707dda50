"""Clients that mean harm, and a repository that is damaged: an error or a closed connection, never zeros."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from appliance.services.exports import ExportService, Served
from imaging.export import CLIENTS_MAX
from tests.integration.protected import NAME, Protected, nbd_copy, protected_image
from tests.integration.recovering import wait_until

pytestmark = pytest.mark.faults

READ, WRITE, TRIM, ZEROES = 0, 1, 4, 6
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Protected]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRONGROOM_PASSPHRASE", "for these tests")
        with protected_image(tmp_path_factory.mktemp("home") / "h") as made:
            yield made


@pytest.fixture
def served(protected: Protected) -> Iterator[Served]:
    with ExportService(protected.appliance).serve(NAME, "latest", None) as serving:
        yield serving


def connect(served: Served) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(served.record.sockets[0])
    return connection


def exactly(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        part = connection.recv(count - len(received))
        if not part:
            raise ConnectionResetError("the server closed the connection")
        received += part
    return received


def negotiated(served: Served) -> socket.socket:
    """A connection in transmission, by the plainest handshake there is."""
    connection = connect(served)
    assert exactly(connection, 18).startswith(b"NBDMAGICIHAVEOPT")
    connection.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))
    exactly(connection, 10)
    return connection


def ask(connection: socket.socket, kind: int, offset: int, length: int, payload: bytes = b"") -> int:
    """The error that the server answers with; that of a closed connection when it hangs up."""
    try:
        connection.sendall(_REQUEST.pack(0x25609513, 0, kind, 7, offset, length) + payload)
        magic, error, cookie = _REPLY.unpack(exactly(connection, _REPLY.size))
    except (ConnectionError, BrokenPipeError):
        return errno.ECONNRESET
    assert magic == 0x67446698
    assert cookie == 7
    return int(error)


def assert_still_serves(served: Served, protected: Protected, tmp_path: Path) -> None:
    assert served.export.alive()
    assert nbd_copy(served.uri, tmp_path / "copy") == protected.content


def test_a_plain_client_reads_what_is_there(served: Served, protected: Protected) -> None:
    with negotiated(served) as connection:
        assert ask(connection, READ, 5 << 20, 4096) == 0
        assert exactly(connection, 4096) == protected.content[5 << 20 : (5 << 20) + 4096]


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x80000000, (64 << 20) + 1, (32 << 20) + 1])
def test_lengths_that_nobody_needs(served: Served, protected: Protected, tmp_path: Path, length: int) -> None:
    with negotiated(served) as connection:
        assert ask(connection, READ, 0, length) != 0
    assert_still_serves(served, protected, tmp_path)


@pytest.mark.parametrize("beyond", [0, 1, 4095, 1 << 40, (1 << 63) - 4096, (1 << 64) - 4096])
def test_reads_out_of_range(served: Served, protected: Protected, tmp_path: Path, beyond: int) -> None:
    offset = min(len(protected.content) - (4095 if beyond < 4096 else 0) + beyond, (1 << 64) - 1)
    with negotiated(served) as connection:
        assert ask(connection, READ, offset, 4096 + (beyond == 0)) != 0
    assert_still_serves(served, protected, tmp_path)


@pytest.mark.parametrize("kind", [WRITE, TRIM, ZEROES, 77])
def test_nothing_can_be_written(served: Served, protected: Protected, tmp_path: Path, kind: int) -> None:
    with negotiated(served) as connection:
        assert ask(connection, kind, 0, 512, b"\xff" * 512 if kind == WRITE else b"") != 0
    assert_still_serves(served, protected, tmp_path)


def test_noise_instead_of_a_handshake(served: Served, protected: Protected, tmp_path: Path) -> None:
    rng = random.Random(20)
    for attempt in range(60):
        with connect(served) as connection:
            connection.settimeout(60)
            exactly(connection, 18)
            noise = bytearray(rng.randbytes(rng.randrange(1, 200)))
            if attempt % 3:  # well begun, so that it gets further
                noise[:0] = struct.pack(">I8sII", 3, b"IHAVEOPT", rng.randrange(0, 20), rng.choice((0, 4, 0xFFFFFFFF)))
            with contextlib.suppress(OSError):
                connection.sendall(bytes(noise))
                if attempt % 2:
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(4096):
                        pass
    assert_still_serves(served, protected, tmp_path)


def test_noise_instead_of_requests(served: Served, protected: Protected, tmp_path: Path) -> None:
    rng = random.Random(21)
    for _ in range(30):
        with negotiated(served) as connection, contextlib.suppress(OSError):
            connection.sendall(rng.randbytes(280))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert_still_serves(served, protected, tmp_path)


def test_clients_are_bounded(served: Served, protected: Protected, tmp_path: Path) -> None:
    refused = 0
    with contextlib.ExitStack() as clients:
        for _ in range(2 * CLIENTS_MAX):
            try:
                clients.enter_context(negotiated(served))
            except OSError:
                refused += 1
        assert refused == CLIENTS_MAX
    until_let_in(served)
    assert_still_serves(served, protected, tmp_path)


def until_let_in(served: Served) -> None:
    """Those who left make room, which a busy machine takes a moment for."""

    def let_in() -> bool:
        try:
            with negotiated(served) as again:
                return ask(again, READ, 0, 512) == 0
        except OSError:
            return False

    wait_until(let_in, "there is room")


def test_many_clients_who_say_nothing_do_not_end_those_who_are_served(
    served: Served, protected: Protected, tmp_path: Path
) -> None:
    with negotiated(served) as first, contextlib.ExitStack() as idle:
        for _ in range(1000):
            connection = idle.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(5)
            try:
                connection.connect(served.record.sockets[0])
            except OSError:
                break  # the queue of those who wait is full: refused
        assert ask(first, READ, 0, 4096) == 0
        assert exactly(first, 4096) == protected.content[:4096]
    until_let_in(served)
    assert_still_serves(served, protected, tmp_path)


def test_a_damaged_chunk_is_an_error_there_and_nowhere_else(strongroom_home: Path) -> None:
    with protected_image(strongroom_home) as made:
        packs = sorted(made.appliance.settings.repository.path.glob("packs/*/*"), key=lambda path: path.stat().st_size)
        largest = packs[-1]
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 0x40
        largest.chmod(0o600)
        largest.write_bytes(data)
        with ExportService(made.appliance).serve(NAME, "latest", None) as serving:
            handle = nbd.NBD()
            handle.connect_unix(serving.record.sockets[0])
            failed: list[int] = []
            codes: set[int] = set()
            right = 0
            for offset in range(0, len(made.content) // 4096 * 4096, 4096):
                try:
                    found = handle.pread(4096, offset)
                except nbd.Error as err:
                    failed.append(offset)
                    codes.add(err.errnum)
                else:
                    assert bytes(found) == made.content[offset : offset + 4096]
                    right += 1
            handle.shutdown()
            assert codes == {errno.EIO}
            assert 1 <= len(failed) <= 64, "one chunk, and no other"
            assert failed[-1] - failed[0] == (len(failed) - 1) * 4096
            assert right > 5000
            words = serving.export.last_words()
            assert "blob" in words
            assert str(failed[-1]) in words
