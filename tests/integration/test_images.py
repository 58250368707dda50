"""Every image format through real qemu-nbd into a store and back; hostile images are refused; sources that fail."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from imaging import images
from imaging.errors import BitmapLied, ImageRefused, ImageUnreadable, SourceError
from imaging.images import FORMATS, check_alone, check_chain, serve
from imaging.ingest import Ingested, ParentDisk, ingest_disk
from imaging.reader import DiskReader
from imaging.source import NbdSource
from tests.integration.encrypted import make_encrypted
from tests.lab.holding import held_open
from tests.lab.listening import wait_listening
from tests.unit.memory import KEYS, DictIndex, MemoryStore, reader, writer

MIB = 1 << 20
SIZE = 40 * MIB


def qemu(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def image(folder: Path, image_format: str, content: bytes) -> Path:
    raw = folder / "plain.raw"
    raw.write_bytes(content)
    path = folder / f"disk.{image_format}"
    qemu("qemu-img", "convert", "-f", "raw", "-O", image_format, str(raw), str(path))
    return path


def content() -> bytes:
    rng = random.Random(5)
    data = bytearray(SIZE)
    for _ in range(30):
        start, length = rng.randrange(SIZE), rng.randrange(1, 600_000)
        data[start : start + length] = rng.randbytes(min(length, SIZE - start))
    return bytes(data)


def store_image(path: Path, image_format: str, store: MemoryStore, index: DictIndex, *, bitmap: str | None = None,
                parent: ParentDisk | None = None) -> Ingested:  # fmt: skip
    context = f"qemu:dirty-bitmap:{bitmap}" if bitmap else None
    with (
        serve(path, image_format, path.parent, bitmap=bitmap) as listen,
        NbdSource(listen, dirty_bitmap=context) as source,
        writer(store, index) as packs,
    ):
        result = ingest_disk(source, packs, KEYS, parent=parent, sample=4)
        packs.flush()
    return result


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_reads_back(tmp_path: Path, image_format: str) -> None:
    data = content()
    path = image(tmp_path, image_format, data)
    store, index = MemoryStore(), DictIndex()
    size = check_alone(path, image_format).size_bytes
    result = store_image(path, image_format, store, index)
    back = DiskReader(reader(store, index), result.root, size).pread(0, size)
    assert back[:SIZE] == data
    assert not any(back[SIZE:])


def test_a_bitmap_makes_a_true_incremental(tmp_path: Path) -> None:
    path = image(tmp_path, "qcow2", content())
    store, index = MemoryStore(), DictIndex()
    qemu("qemu-img", "bitmap", "--add", "-g", "65536", str(path), "one")
    full = store_image(path, "qcow2", store, index)
    qemu("qemu-io", "-f", "qcow2", "-c", "write -P 7 10M 4k", "-c", "write -P 8 30M 100k", str(path))
    parent = ParentDisk(full.root, SIZE, reader(store, index).node)
    incremental = store_image(path, "qcow2", store, index, bitmap="one", parent=parent)
    assert incremental.root == store_image(path, "qcow2", store, index).root != full.root
    assert incremental.read_bytes < 4 * MIB


def test_shrunk_and_grown_back(tmp_path: Path) -> None:
    """The bitmap says clean, the size is equal, the content is gone: only the allocation tells."""
    path = image(tmp_path, "qcow2", random.Random(1).randbytes(SIZE))
    store, index = MemoryStore(), DictIndex()
    full = store_image(path, "qcow2", store, index)
    qemu("qemu-img", "resize", "-f", "qcow2", "--shrink", str(path), "20M")
    qemu("qemu-img", "resize", "-f", "qcow2", str(path), "40M")
    qemu("qemu-img", "bitmap", "--add", "-g", "65536", str(path), "clean")
    with pytest.raises(BitmapLied):
        store_image(path, "qcow2", store, index, bitmap="clean",
                    parent=ParentDisk(full.root, SIZE, reader(store, index).node))  # fmt: skip


@pytest.mark.parametrize("kind", ["backing", "data_file", "json", "nbd"])
def test_images_that_lead_elsewhere_are_refused(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    path = tmp_path / "hostile.qcow2"
    if kind == "data_file":
        qemu("qemu-img", "create", "-f", "qcow2", "-o", f"data_file={secret},data_file_raw=on", str(path), "1M")
    else:
        target = {
            "backing": str(secret),
            "json": 'json:{"driver":"raw","file":{"driver":"file","filename":"' + str(secret) + '"}}',
            "nbd": "nbd:unix:/nowhere:exportname=x",
        }[kind]
        qemu("qemu-img", "create", "-f", "qcow2", "-u", "-F", "raw", "-b", target, str(path), "1M")
    with pytest.raises(ImageRefused, match=r"backing file|another file"):
        check_alone(path, "qcow2")
    if kind != "backing":
        with pytest.raises(ImageRefused):
            check_chain(path, "qcow2")


def test_a_chain_of_stated_formats_may_be_asked_for(tmp_path: Path) -> None:
    base = image(tmp_path, "qcow2", content())
    top = tmp_path / "top.qcow2"
    qemu("qemu-img", "create", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(top))
    assert check_chain(top, "qcow2").size_bytes == SIZE
    with pytest.raises(ImageRefused):
        check_alone(top, "qcow2")


def test_a_flat_vmdk_with_an_extent_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    qemu("qemu-img", "create", "-f", "vmdk", "-o", "subformat=monolithicFlat", str(path), "1M")
    check_alone(path, "vmdk")
    text = path.read_text(errors="surrogateescape").replace("disk-flat.vmdk", "/etc/passwd")
    path.write_text(text, errors="surrogateescape")
    with pytest.raises((ImageRefused, ImageUnreadable)):
        check_alone(path, "vmdk")


def test_a_raw_disk_that_begins_as_a_qcow2_is_taken_as_raw(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    path = tmp_path / "disk.raw"
    qemu("qemu-img", "create", "-f", "qcow2", "-u", "-F", "raw", "-b", str(secret), str(path), "1M")
    data = path.read_bytes()
    store, index = MemoryStore(), DictIndex()
    check_alone(path, "raw")
    result = store_image(path, "raw", store, index)
    size = -(-len(data) // 512) * 512
    assert DiskReader(reader(store, index), result.root, size).pread(0, len(data)) == data


def test_an_impossible_size_is_refused(tmp_path: Path) -> None:
    qcow2 = tmp_path / "huge.qcow2"
    qemu("qemu-img", "create", "-f", "qcow2", "-o", "cluster_size=2M", str(qcow2), "1P")
    with pytest.raises(ImageRefused, match="claims a size"):
        check_alone(qcow2, "qcow2")


@pytest.mark.parametrize("what", ["missing", "wrong", "unknown"])
def test_what_cannot_be_opened_is_said(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.qcow2"
    if what != "missing":
        path.write_bytes(b"no image at all" * 100)
    with pytest.raises(ImageUnreadable):
        check_alone(path, "qcow2" if what != "unknown" else "luks")


@pytest.mark.parametrize(
    ("kind", "said"),
    [("pipe", "named pipe"), ("null", "character device"), ("zero", "character device"), ("folder", "a folder"),
     ("socket", "a socket"), ("link", "character device")],
)  # fmt: skip
def test_what_is_neither_file_nor_block_device_reaches_no_tool(
    tmp_path: Path, kind: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be read as empty, or for ever."""
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as listening:
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "socket":
                listening.bind(str(path))
            case "link":
                path.symlink_to("/dev/zero")
            case _:
                path = Path("/dev") / kind
    monkeypatch.setenv("PATH", str(tmp_path))  # no tool is found there
    with pytest.raises(ImageUnreadable, match=said) as refused:
        check_alone(path, "raw")
    assert str(path) in str(refused.value)
    with pytest.raises(ImageUnreadable, match=said), serve(path, "raw", tmp_path):
        pass


def test_an_encrypted_image_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = make_encrypted(tmp_path / "luks.qcow2", MIB)
    top = tmp_path / "top.qcow2"
    qemu("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(path), str(top), "1M")
    for check, image_path in ((check_alone, path), (check_chain, path), (check_chain, top)):
        with pytest.raises(ImageRefused, match=f"{path} is refused: it is encrypted") as refused:
            check(image_path, "qcow2")
        assert "decrypt" in refused.value.hint


def test_tools_see_no_secret_in_their_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRONGROOM_PASSPHRASE", "for nobody else")
    seen = tmp_path / "seen"
    wrapper = tmp_path / "bin" / "qemu-img"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nenv >{seen}\nexec /usr/bin/qemu-img "$@"\n')
    wrapper.chmod(0o755)
    path = image(tmp_path, "qcow2", content())
    with serve(path, "qcow2", tmp_path) as listen:
        found = subprocess.run(["pgrep", "-f", f"socket={listen}"], capture_output=True, text=True, check=True)
        server = Path(f"/proc/{found.stdout.split()[0]}/environ").read_text()
    assert "PATH=" in server
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    check_alone(path, "qcow2")
    for environment in (server, seen.read_text()):
        assert "for nobody else" not in environment


@pytest.mark.faults
def test_a_server_in_a_loop_is_ended_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile image may keep it busy for ever: what it may use grows with the disk, and ends."""
    monkeypatch.setattr(images, "_CPU_S", 1)
    monkeypatch.setattr(images, "_CPU_S_PER_GIB", 0)
    path = image(tmp_path, "qcow2", content())
    view = memoryview(bytearray(8 * MIB))
    with (  # noqa: PT012
        pytest.raises(ImageUnreadable, match="processor time") as ended,
        serve(path, "qcow2", tmp_path) as listen,
        NbdSource(listen) as source,
    ):
        for _ in range(100_000):
            source.read([(0, view)])
    assert str(path) in str(ended.value)
    assert isinstance(ended.value.__cause__, SourceError)


def test_what_a_tool_may_use_grows_with_the_disk() -> None:
    limits = [images.cpu_limit_s(size) for size in (0, MIB, 10 << 30, 10 << 40)]
    assert limits == sorted(limits)
    assert limits[0] >= 60
    assert limits[2] >= 10 * 60


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["error", "dies"])
def test_a_source_that_fails_mid_read_fails_the_run(tmp_path: Path, fault: str) -> None:
    """No zeros, no result."""
    listen = tmp_path / "s"
    trigger = tmp_path / "trigger"
    data = random.Random(3).randbytes(SIZE)
    raw = tmp_path / "d.raw"
    raw.write_bytes(data)
    command = ["nbdkit", "-f", "-U", str(listen), "--filter=error", "--filter=delay", "file", str(raw), "rdelay=2ms",
               "error-pread-rate=100%", f"error-file={trigger}"]  # fmt: skip
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_listening(listen, server)
        store, index = MemoryStore(), DictIndex()
        reads = 0

        class Source(NbdSource):
            """By whoever reads: those who are told how far it is may be told once all was read."""

            def read(self, requests: Sequence[tuple[int, memoryview]]) -> None:
                nonlocal reads
                reads += 1
                if reads == 2:
                    server.kill() if fault == "dies" else trigger.touch()
                super().read(requests)

        with Source(listen) as source, writer(store, index) as packs, pytest.raises(SourceError):
            ingest_disk(source, packs, KEYS, workers=1)
        assert reads >= 2
    finally:
        server.kill()
        server.wait()


def test_reading_keeps_no_hold_on_the_buffer(tmp_path: Path) -> None:
    """libnbd's module never lets go of buffers that it reads into: those of a region would pile up with every disk."""
    path = image(tmp_path, "qcow2", content())
    buffer = bytearray(8 * MIB)
    with serve(path, "qcow2", tmp_path) as listen, NbdSource(listen) as source:
        before = sys.getrefcount(buffer)
        source.read([(0, memoryview(buffer)[: 3 * MIB + 4096]), (5 * MIB, memoryview(buffer)[5 * MIB :])])
        assert sys.getrefcount(buffer) == before
    assert buffer[: 3 * MIB] == content()[: 3 * MIB]
    assert buffer[5 * MIB :] == content()[5 * MIB : 8 * MIB]


@pytest.mark.parametrize("lingers_s", [0, 2], ids=["ends at once", "ends later"])
def test_a_server_that_lets_a_client_in_before_it_is_refused_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lingers_s: int
) -> None:
    """It listens first, and opens the image then: what it says of that is told, and not that it hung up. On a busy
    machine its process has an end long after its last word."""
    path = image(tmp_path, "qcow2", random.Random(1).randbytes(70_000))
    monkeypatch.setattr(images, "_wait_ready", lambda *_: None)
    lingering = tmp_path / "bin" / "qemu-nbd"
    lingering.parent.mkdir()
    lingering.write_text(f'#!/bin/sh\n/usr/bin/qemu-nbd "$@"\ncode=$?\nsleep {lingers_s}\nexit $code\n')
    lingering.chmod(0o755)
    with (
        held_open(path, "qcow2", tmp_path / "s"),
        monkeypatch.context() as patched,
    ):
        patched.setenv("PATH", f"{lingering.parent}:{os.environ['PATH']}")
        with pytest.raises(ImageUnreadable, match="another process"), serve(path, "qcow2", tmp_path, writable=True):
            pass
