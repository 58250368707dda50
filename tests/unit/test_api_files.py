"""Files out of restore points by the API: on a real image in a real repository, and over a real connection."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import urllib3
from sqlalchemy import update
from urllib3.exceptions import ProtocolError

from appliance.acts import Act, Role
from appliance.audit import AuditEntry
from appliance.catalog import tables
from appliance.policy.selectors import Clause, Selector
from appliance.services.access.audits import AuditService
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.signing_in import token_hash
from tests.lab.disks import run_tool
from tests.lab.filesystems import MIB, make_ext, make_tree
from tests.unit.api_site import Site, serving, site
from tests.unit.cli_runner import PROJECT
from tests.unit.test_web_access import BASE, _set_up
from web import downloads

BIG_BYTES = 6 * MIB


@dataclass
class Scene:
    api: Site
    folder: Path
    tree: Path
    point: str

    def newest(self) -> AuditEntry:
        return AuditService(self.api.appliance).newest(limit=1)[0]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("files")
    (folder / "tree").mkdir()
    tree = make_tree(folder / "tree")
    (tree / "big.bin").write_bytes(os.urandom(BIG_BYTES))
    image = make_ext(folder / "image", tree)
    run_tool("/usr/sbin/debugfs", "-w", "-R", "feature needs_recovery", image)
    (folder / "site").mkdir()
    with site(folder / "site") as api:
        words = ["backup", "--image", str(image), "--format", "raw", "--name", "web"]
        subprocess.run([sys.executable, "-m", "appliance.cli", *words], cwd=PROJECT, env=api.environment, check=True)
        (point,) = (each.id for each in api.appliance.catalog.points.list() if each.name == "web")
        yield Scene(api, folder, tree, point)


def test_volumes_folders_and_files(scene: Scene) -> None:
    api, at = scene.api, f"/points/{scene.point[:8]}"
    (volume,) = api.get(f"{at}/volumes")["items"]
    assert (volume["kind"], volume["label"], volume["place"]) == ("ext4", "system", "disk:/")
    assert "journal" in volume["caution"]

    found: list[tuple[str, str]] = []
    offset: int | None = 0
    while offset is not None:
        page = api.get(f"{at}/files?place={volume['place']}&limit=4&offset={offset}")
        found += [(each["name"], each["kind"]) for each in page["items"]]
        offset = page["next"]
    assert found[:2] == [("docs", "folder"), ("lost+found", "folder")]
    assert len(found) == page["total"] == len(set(found))

    unix = {each["name"]: each for each in api.get(f"{at}/files?place=/unix")["items"]}
    assert (unix["link"]["kind"], unix["link"]["link"]) == ("link", "../../etc/shadow")
    odd = unix[r"no \xff utf-8"]
    assert odd["place"] == "disk:/unix/no%20%FF%20utf-8"
    assert api.ask("GET", f"{at}/file?place={odd['place']}").data == b"n"

    took = api.ask("GET", f"{at}/file?place=/docs/data.bin")
    wanted = (scene.tree / "docs" / "data.bin").read_bytes()
    assert hashlib.sha256(took.data).digest() == hashlib.sha256(wanted).digest()
    assert took.headers["Content-Length"] == str(len(wanted))
    assert took.headers["Content-Disposition"].startswith('attachment; filename="data.bin"')
    assert (scene.newest().via, scene.newest().details) == ("api", {"volume": "disk", "path": "/docs/data.bin"})
    head = api.ask("HEAD", f"{at}/file?place=/docs/data.bin")
    assert head.data == b""
    for name in ("Content-Length", "Content-Disposition", "Last-Modified", "Content-Type", downloads.CAUTION):
        assert head.headers[name] == took.headers[name]
    entry = scene.newest()
    assert (entry.act, entry.result) == ("file.read", "ok")
    assert entry.details == {"volume": "disk", "path": "/docs/data.bin", "method": "HEAD"}, "nothing of it was taken"
    tar = api.ask("GET", f"{at}/file?place=/docs")
    with tarfile.open(fileobj=io.BytesIO(tar.data)) as members:
        assert "docs/deep/Grüße.txt" in members.getnames()

    for query, status in {
        "files": 422, "files?place=/../x": 422, "files?place=/docs%00": 422, "files?place=/docs/data.bin": 422,
        "files?place=/none": 404, "file?place=nowhere:/": 404, "file?place=/unix/link": 422,
        "file?place=/unix/pipe": 422, "files?place=/docs&limit=501": 422,
    }.items():  # fmt: skip
        assert api.ask("GET", f"{at}/{query}").status_code == status, query


def test_the_point_that_is_meant_is_told_to_who_sees_its_machine(scene: Scene) -> None:
    api = scene.api
    theirs = api.token_of(Role.RESTORER, grants=(Selector((Clause(image="web"),)),))
    assert api.get("/points/meant?machine=image:web", token=theirs)["id"] == scene.point
    assert api.get(f"/points/meant?machine=web&point={scene.point[:8]}", token=theirs)["id"] == scene.point
    for query in ("machine=shop", "machine=nowhere", "machine=web&point=1999-01-01"):
        refused = api.ask("GET", f"/points/meant?{query}", token=theirs)
        assert (refused.status_code, "office" in refused.text) == (404, False), refused.text
    assert "office" in api.ask("GET", "/points/meant?machine=nowhere").text
    some = api.token_of(Role.ADMIN, list(Act), (Selector((Clause(image="web"),)),))
    wanted = {"machine": "nowhere", "host": "tested"}
    for path, more in (
        ("/recoveries", {}), ("/restores", {"new_name": "copy"}), ("/restores/in-place", {}),
    ):  # fmt: skip
        refused = api.post(path, wanted | more, token=some)
        assert (refused.status_code, "office" in refused.text) == (404, False), refused.text
        old = api.post(path, wanted | more | {"machine": "office", "point": "1999-01-01"}, token=some)
        assert (old.status_code, "oldest" in old.text) == (404, False), old.text


def test_a_download_ends_soon_after_the_right_to_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a token that is revoked, one that expires, and by session; while it is good, all of it comes."""
    api, catalog = scene.api, scene.api.appliance.catalog
    monkeypatch.setattr(downloads, "_ASK_S", 0.0)
    revoked, expiring = (
        api.token_of(Role.RESTORER, [Act.FILE_READ], (Selector((Clause(image="web"),)),)) for _ in range(2)
    )
    admin = _set_up(api.app, api.appliance, SetUpService(api.appliance).first_link(), "first")

    def by_token(token: str) -> Iterator[bytes]:
        answer = api.ask("GET", f"/points/{scene.point}/file?place=/big.bin", token=token, buffered=False)
        return iter(answer.iter_encoded())

    def by_session() -> Iterator[bytes]:
        path = f"/points/{scene.point}/file?place=/big.bin"
        return iter(admin.client.get(path, base_url=BASE, buffered=False).iter_encoded())

    def revoke() -> None:
        found = catalog.tokens.find(token_hash(revoked))
        assert found is not None
        catalog.tokens.revoke(found[0].id, api.appliance.clock.now_utc())

    def expire() -> None:
        over = api.appliance.clock.now_utc() - timedelta(seconds=1)
        with catalog.database.write() as connection:
            of_it = update(tables.tokens).where(tables.tokens.c.hash == token_hash(expiring))
            assert connection.execute(of_it.values(expires_utc=over)).rowcount == 1

    ways: tuple[tuple[Callable[[], Iterator[bytes]], Callable[[], None]], ...] = (
        (partial(by_token, revoked), revoke),
        (partial(by_token, expiring), expire),
        (by_session, lambda: catalog.sessions.end([each.id for each in catalog.sessions.list()])),
    )
    for ask, end in ways:
        assert sum(len(piece) for piece in ask()) == BIG_BYTES
        assert scene.newest().result == "ok"
        pieces = ask()
        came = len(next(pieces))
        end()
        with pytest.raises(ConnectionResetError):
            next(pieces)
        assert 0 < came < BIG_BYTES
        assert (scene.newest().act, scene.newest().result) == ("file.read", "failed")
        assert "may not any more" in scene.newest().error


def test_damage_within_a_download_is_a_broken_transfer(scene: Scene) -> None:
    """Of a file and of a tar, over a connection; the flipped byte is in the midst of the big file, and stays."""
    pack = max((scene.folder / "site" / "repository" / "packs").rglob("*"), key=lambda path: path.stat().st_size)
    with pack.open("r+b") as file:
        file.seek(pack.stat().st_size * 6 // 10)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    certificate = Path(scene.api.environment["STRONGROOM_HOME"]) / "keys" / "web.crt"
    headers = {"Authorization": f"Bearer {scene.api.token}"}
    with serving(scene.api.environment) as address, urllib3.PoolManager(ca_certs=str(certificate)) as pool:
        for place in ("/big.bin", "/"):
            answer = pool.request(
                "GET", f"{address}/api/v1/points/{scene.point}/file?place={place}", headers=headers,
                preload_content=False, retries=False,
            )  # fmt: skip
            assert answer.status == 200
            came: list[int] = []
            with pytest.raises(ProtocolError):
                came.extend(len(piece) for piece in answer.stream(1 << 16))
            assert 0 < sum(came) < BIG_BYTES
            answer.close()
        whole = pool.request("GET", f"{address}/api/v1/points/{scene.point}/file?place=/docs/data.bin", headers=headers)
        assert whole.data == (scene.tree / "docs" / "data.bin").read_bytes()
    cut = [each for each in AuditService(scene.api.appliance).newest(limit=3) if each.result == "failed"]
    assert len(cut) == 2
    assert all("damaged" in each.error for each in cut), [each.error for each in cut]
