"""Files of restore points on the console: on a real image in a real repository, by HTTP."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from html import unescape
from pathlib import Path

import pytest

from appliance.acts import Role
from appliance.bootstrap import Appliance
from appliance.policy.selectors import Clause, Selector
from appliance.services.access import SYSTEM
from appliance.services.access.audits import AuditService
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.users import UserService
from appliance.settings import load
from tests.lab.disks import run_tool
from tests.lab.filesystems import MIB, blank, make_ext, make_tree
from tests.unit.cli_runner import CommandLine
from tests.unit.test_web_access import BASE, Signed, _set_up
from web import downloads
from web.app import create_app
from web.current import parts_of
from web.views import files

EVIL = "<script>alert(1)<\\script>\u202e\"';{{7*7}}.txt"


def image_of(folder: Path) -> bytes:
    """With names that mean something elsewhere, many files, and a journal that was not replayed."""
    tree = make_tree(folder / "tree")
    (tree / "docs" / EVIL).write_text("harmless")
    (tree / "many").mkdir()
    for number in range(7):
        (tree / "many" / f"{number}").touch()
    image = make_ext(folder / "fs", tree)
    run_tool("/usr/sbin/debugfs", "-w", "-R", "feature needs_recovery", image)
    return image.read_bytes()


def person(app: object, appliance: Appliance, role: Role, name: str, *images: str) -> Signed:
    grants = tuple(Selector((Clause(image=each),)) for each in images)
    return _set_up(app, appliance, UserService(appliance).add(SYSTEM, name, role, grants).link, name)  # type: ignore[arg-type]


def link_to(page: str, text: str) -> str:
    """The address behind what is shown so, as a browser follows it."""
    found = re.search(rf'<a [^>]*href="([^"]+)"[^>]*>{re.escape(text)}', page)
    assert found is not None, f"{text} is on no link of {page}"
    return unescape(found[1])


def test_files_are_found_by_links_and_downloaded_by_who_may(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    strongroom = CommandLine.new(tmp_path / "strongroom", capsys)
    (tmp_path / "tree").mkdir()
    point = strongroom.backup(image_of(tmp_path), "web")["id"]
    locked = blank(tmp_path / "locked", MIB).read_bytes()
    other = strongroom.backup(b"LUKS\xba\xbe" + locked[6:], "locked")["id"]
    monkeypatch.setattr(files, "_LIMIT", 4)
    with Appliance(load(strongroom.environment)) as appliance:
        app = create_app(appliance)
        try:
            admin = _set_up(app, appliance, SetUpService(appliance).first_link(), "admin")
            restorer = person(app, appliance, Role.RESTORER, "restorer", "web")
            viewer = person(app, appliance, Role.VIEWER, "viewer")

            machine = restorer.send("GET", "/vms/image:web").text
            volumes = restorer.send("GET", link_to(machine, "Browse files"))
            assert volumes.text.count("Its journal holds changes") == 1
            (volume,) = re.findall(r">(\w+)</a></td>", volumes.text)
            root = restorer.send("GET", link_to(volumes.text, volume))
            folders = ["docs", "lost+found", "many", "unix"]
            assert re.findall(r">(\S+)/</a>", root.text) == folders
            assert root.text.count("Its journal holds changes") == 1
            rest = restorer.send("GET", link_to(root.text, "Next page")).text
            assert ("empty" in rest, "sparse" in rest, "Next page" in rest) == (True, True, False)

            docs = restorer.send("GET", link_to(root.text, "docs/")).text
            assert "<script>alert" not in docs
            assert "&lt;script&gt;alert(1)&lt;\\script&gt;\\u202e&#34;&#39;;{{7*7}}.txt" in docs
            crumbs = docs[docs.index('class="crumbs"') :]
            assert re.findall(r">(\S+)/</a>", restorer.send("GET", link_to(crumbs, volume)).text) == folders
            evil = restorer.send("GET", link_to(docs, 'Download<span class="only-heard"> &lt;script'))
            assert (evil.status_code, evil.text) == (200, "harmless")
            disposition = evil.headers["Content-Disposition"]
            assert disposition.startswith('attachment; filename="_script_alert_1___script__u202e')
            assert re.fullmatch(r"attachment; filename=\"[\w. -]+\"; filename\*=UTF-8''[\w.%~-]+", disposition)
            unix = restorer.send("GET", link_to(root.text, "unix/")).text
            assert "leads to ../../etc/shadow" in unix
            bytes_named = restorer.send("GET", f"/points/{point}/file?place={volume}:/unix/no%20%FF%20utf-8")
            assert (bytes_named.status_code, bytes_named.data) == (200, b"n")

            for name in ("docs/data.bin", "sparse", "empty"):
                took = restorer.send("GET", f"/points/{point}/file?place={volume}:/{name}")
                wanted = (tmp_path / "tree" / name).read_bytes()
                assert hashlib.sha256(took.data).digest() == hashlib.sha256(wanted).digest()
                assert took.headers["Content-Length"] == str(len(wanted))
                assert took.headers["Content-Type"] == "application/octet-stream"
                assert took.headers["X-Content-Type-Options"] == "nosniff"
            entry = AuditService(appliance).newest(limit=1)[0]
            assert (entry.act, entry.result, entry.actor_name, entry.subject_kind, entry.subject_id, entry.details) == (
                "file.read", "ok", "restorer", "point", point, {"volume": volume, "path": "/empty"}
            )  # fmt: skip
            tar = restorer.send("GET", link_to(docs, "Download this folder"))
            with tarfile.open(fileobj=io.BytesIO(tar.data)) as members:
                data = members.extractfile("docs/data.bin")
                assert data is not None
                assert data.read() == (tmp_path / "tree" / "docs" / "data.bin").read_bytes()

            for place, status in {
                "../..": 400, f"{volume}:/docs/../../etc": 400, f"{volume}:/docs%00": 400, "/etc/passwd": 404,
                f"{volume}:/etc/passwd": 404, "nowhere:/": 404, f"{volume}:/unix/link": 400,
                f"{volume}:/unix/pipe": 400,
            }.items():  # fmt: skip
                assert restorer.send("GET", f"/points/{point}/file?place={place}").status_code == status, place
                assert 400 <= restorer.send("GET", f"/points/{point}/files?place={place}").status_code < 500, place
            for what in ("files", "file"):
                assert restorer.send("GET", f"/points/{other}/{what}?place=/").status_code == 404
                assert viewer.send("GET", f"/points/{point}/{what}?place=/").status_code == 403
                assert admin.send("GET", f"/points/{point[:12]}/{what}?place=/").status_code == 404
            assert "Browse files" not in viewer.send("GET", "/vms/image:web").text
            assert "encrypted (LUKS)" in admin.send("GET", f"/points/{other}/files").text

            gone = restorer.client.get(f"/points/{point}/file?place={volume}:/sparse", base_url=BASE, buffered=False)
            assert len(next(gone.iter_encoded())) > 0
            gone.close()
            entry = AuditService(appliance).newest(limit=1)[0]
            assert (entry.result, entry.error) == ("failed", "it was ended from outside")
            assert restorer.send("GET", f"/points/{point}/file?place={volume}:/docs/data.bin").status_code == 200
        finally:
            parts_of(app).close()


def test_a_name_is_plain_in_ascii_and_exact_besides() -> None:
    assert downloads.names_of("Grüße.txt") == ("Gr__e.txt", "Gr%C3%BC%C3%9Fe.txt")
    assert downloads.names_of('a"\r\n; x=.') == ("a__r_n_ x_", "a%22%5Cr%5Cn%3B%20x%3D.")
    assert downloads.names_of("日本") == ("__", "%E6%97%A5%E6%9C%AC")
    assert downloads.names_of("..")[0] == "file"
