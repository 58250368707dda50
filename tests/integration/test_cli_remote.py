"""`strongroom --url`: the same commands against another appliance, over TLS, by a token."""

from __future__ import annotations

import os
import re
import socket
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.acts import Act, Role
from appliance.models import RecoveryRecord, RecoveryState, RunState, new_id
from appliance.policy.selectors import Clause, Selector
from appliance.remote.client import Client
from appliance.remote.errors import RemoteUnknown, RemoteUnreachable
from appliance.remote.services import RemoteRecoveries
from appliance.services.access import Via
from appliance.services.access.audits import AuditService
from tests.integration.backing_up import Progress
from tests.lab.filesystems import make_ext, make_tree
from tests.unit.api_site import Site, serving, site
from tests.unit.cli_runner import CommandLine, Ran


@dataclass
class Elsewhere:
    """A machine that has nothing but the program, a token and the other's certificate."""

    site: Site
    url: str
    folder: Path
    token: str
    line: CommandLine

    def __call__(
        self, *words: str, token: str | None = None, trust: bool = True, url: str | None = None, process: bool = False
    ) -> Ran:
        certificate = str(self.site.appliance.settings.home / "keys" / "web.crt")
        self.line.environment = {
            "PATH": os.environ["PATH"], "STRONGROOM_HOME": str(self.folder / "none"),
            "STRONGROOM_TOKEN": self.token if token is None else token,
        }  # fmt: skip
        options = ["--url", url or self.url, *(["--ca-file", certificate] if trust else [])]
        done = (self.line.process if process else self.line)(*options, *words)
        assert not (self.folder / "none").exists(), "it made a home"
        return done


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str, Path, str]]:
    folder = tmp_path_factory.mktemp("remote")
    with site(folder) as made, serving(made.environment) as url:
        yield made, url, folder, made.token_of(Role.ADMIN, tuple(Act))


@pytest.fixture
def remote(there: tuple[Site, str, Path, str], capsys: pytest.CaptureFixture[str]) -> Elsewhere:
    return Elsewhere(*there, CommandLine(there[2], capsys))


@pytest.fixture
def here(remote: Elsewhere, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The same commands on the appliance itself."""
    line = CommandLine(remote.folder, capsys)
    line.environment = remote.site.environment
    return line


@pytest.mark.parametrize(
    "words",
    [
        ("run", "list"),
        ("point", "list"),
        ("point", "list", "office"),
        ("vm", "list", "--known"),
        ("recovery", "list"),
        ("policy", "list"),
        ("policy", "show", "nightly"),
        ("policy", "preview", "nightly"),
        ("plan", "--keep-daily", "3", "--exact", "--window", "8"),
        ("plan", "--machines", "20", "--size", "10GiB", "--keep-daily", "14"),
        ("report", "--month", "2026-10"),
    ],
    ids=" ".join,
)
def test_what_is_shown_is_what_is_shown_there(remote: Elsewhere, here: CommandLine, words: tuple[str, ...]) -> None:
    for form in ((), ("--json",)):
        there, found = here(*words, *form), remote(*words, *form)
        assert (found.code, found.err) == (there.code, there.err)
        assert _steady(found.out) == _steady(there.out)
        assert found.out


def _steady(text: str) -> str:
    """Without the microseconds of when a plan or a report was made, which is not one moment; and without how much of
    the audit an appliance that goes on running had looked at before."""
    text = re.sub(r'"(made|end)_utc": "[^"]*"', r'"\1_utc"', text)
    return re.sub(r'"(looked|looked_utc)": (null|\d+|"[^"]*")', r'"\1"', text)


def test_runs_are_asked_for_shown_cancelled_and_asked_for_again(remote: Elsewhere, here: CommandLine) -> None:
    asked = remote("backup", "test", "--queue", "--json", process=True)
    assert asked.code == 0, asked.err
    id = asked.json()["id"]
    assert remote.site.appliance.catalog.runs.get(id).state is RunState.QUEUED
    assert "no worker lives" in asked.err
    assert remote("run", "show", id[:8]).out == here("run", "show", id).out
    assert remote("run", "cancel", id, "--json").json()["state"] == "cancelled"
    again = remote("run", "retry", id)
    assert again.code == 0
    assert "is queued" in again.out
    assert "there is no run ffff" in remote("run", "show", "ffff").error()
    done = remote("run", "list", "--state", "succeeded", "--json").json()[0]["id"]
    assert remote("run", "show", done, "--log").out == here("run", "show", done, "--log").out != ""


def test_files_are_listed_and_taken_here_of_points_there(remote: Elsewhere, here: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    tree = make_tree(tmp_path / "tree")
    image = make_ext(tmp_path / "fs", tree)
    made = here("backup", "--image", str(image), "--format", "raw", "--name", "files")
    assert made.code == 0, made.err
    at = ("files", "--point", "latest")
    for words in ((), ("--disk", "disk"), ("/docs",), ("disk:/unix",)):
        for form in ((), ("--json",)):
            there, found = here("files", "list", *at, *words, *form), remote("files", "list", *at, *words, *form)
            assert (found.code, found.out, found.err) == (there.code, there.out, there.err)
    out = tmp_path / "out"
    out.mkdir()
    got = remote("files", "get", *at, "/sparse", "disk:/docs/data.bin", "/unix/no \udcff utf-8", "--to", str(out))
    assert got.code == 0, got.err
    for path in (tree / "sparse", tree / "docs" / "data.bin"):
        assert (out / path.name).read_bytes() == path.read_bytes()
        assert (out / path.name).stat().st_mtime == int(path.stat().st_mtime)
    assert (out / "sparse").stat().st_blocks * 512 < 2 << 20
    assert (out / r"no \xff utf-8").read_text() == "n"
    tar = remote("files", "get", *at, "/docs", "--to", str(out))
    assert tar.code == 0, tar.err
    with tarfile.open(out / "docs.tar") as members:
        assert "docs/deep/Grüße.txt" in members.getnames()
    assert "exists already" in remote("files", "get", *at, "/docs", "--to", str(out)).error()
    for name, lacking in (("unix", True), ("", True), ("docs", False)):
        get = ("files", "get", *at, f"/{name}", "--force", "--to")
        took, same = remote(*get, str(tmp_path / "there.tar")), here(*get, str(tmp_path / "here.tar"))
        left_out = [[line for line in each.err.splitlines() if "left out" in line] for each in (took, same)]
        assert (took.code, left_out[0]) == (same.code, left_out[1])
        assert (took.code, "/unix/pipe: it is a device" in took.err) == ((3, True) if lacking else (0, False))
        assert (tmp_path / "there.tar").read_bytes() == (tmp_path / "here.tar").read_bytes()
    for place in ("/none", "/unix/link", "/docs/../x"):
        get = ("files", "get", *at, place, "--to", str(out))
        refused = remote(*get)
        assert (refused.code, refused.error()) == (1, here(*get).error())
    assert len(list(out.iterdir())) == 4
    entry = AuditService(remote.site.appliance).newest(limit=1)[0]
    assert "nowhere" in remote("files", "list", "nowhere", "--point", "latest").error()
    assert entry.act == "file.read"
    theirs = remote.site.token_of(Role.RESTORER, grants=(Selector((Clause(image="office"),)),))
    assert "nothing that was granted" in remote("files", "list", "shop", "--point", "latest", token=theirs).error()


def test_a_policy_is_added_changed_and_removed_with_what_would_go_told_first(
    remote: Elsewhere, here: CommandLine
) -> None:
    given = ("--image", "off*", "--at", "0 4 * * *")
    assert "Policy gold is added." in remote("policy", "add", "gold", *given).out
    changed = remote("policy", "edit", "gold", "--keep-daily", "30", "--json").json()
    assert (changed["kept"]["version"], changed["losing"]) == (2, [])
    assert here("policy", "show", "gold", "--json").json()["policy"]["retention"]["daily"] == 30
    assert "version 2" in remote("policy", "edit", "gold", "--keep-daily", "9", "--if-version", "1").error()
    assert remote("policy", "remove", "gold", "--yes").out == "Policy gold is removed.\n"
    assert "there is no policy gold" in remote("policy", "show", "gold").error()


def test_a_point_is_kept_from_being_deleted_and_a_disk_is_restored_by_a_run(remote: Elsewhere, tmp_path: Path) -> None:
    id = remote("point", "list", "shop", "--json").json()[0]["id"]
    assert remote("point", "protect", id[:8]).out == f"Restore point {id} is protected.\n"
    assert "protected" in remote("point", "delete", id, "--yes").error()
    assert remote("point", "protect", id, "--off").code == 0
    target = tmp_path / "shop.raw"
    words = ("restore", "shop", "--point", "latest", "--to", str(target), "--format", "raw")
    asked = remote(*words, "--queue", "--json").json()
    assert asked["kind"] == "restore"
    assert remote(*words, "--queue", "--force").code == 2
    assert "Add --queue" in remote(*words).error()
    assert "Add --queue" in remote("backup", "test").error()
    assert remote("run", "cancel", asked["id"]).code == 0
    assert remote("point", "delete", id, "--yes").out == f"Restore point {id} is deleted.\n"
    assert remote("point", "list", "shop", "--json").json() == []


def test_what_is_done_from_elsewhere_is_in_the_audit_once_as_the_token_s(remote: Elsewhere) -> None:
    audit = AuditService(remote.site.appliance)
    before = audit.newest(limit=1)[0].number
    assert remote("policy", "pause", "nightly").code == remote("policy", "resume", "nightly").code == 0
    told = [entry for entry in audit.newest(limit=5) if entry.number > before]
    assert [(entry.act, entry.via, entry.subject_name) for entry in told] == [
        (Act.POLICY_RESUME, Via.API, "nightly"), (Act.POLICY_PAUSE, Via.API, "nightly"),
    ]  # fmt: skip


def test_a_policy_and_a_machine_are_paused_and_go_on(remote: Elsewhere, here: CommandLine) -> None:
    assert remote("policy", "pause", "nightly").out == "Policy nightly is paused.\n"
    assert here("policy", "show", "nightly", "--json").json()["paused_utc"]
    assert remote("policy", "resume", "nightly").code == 0
    assert remote("policy", "pause", "--vm", "image:office").code == 0
    assert [each["name"] for each in here("policy", "list", "--json").json()["paused_machines"]] == ["office"]
    assert remote("policy", "resume", "--vm", "image:office").out == "image:office is active.\n"
    again = remote("policy", "resume", "--vm", "office")
    assert (again.code, again.out) == (here("policy", "resume", "--vm", "office").code, "office was not paused.\n")
    assert "there is no machine or image office on tested" in (
        remote("policy", "resume", "--vm", "office", "--host", "tested").error()
    )


def test_status_tells_what_needs_eyes(remote: Elsewhere) -> None:
    found = remote("status")
    assert found.code == 3
    assert "1 machine is not protected" in found.err
    assert remote.url in found.out
    assert remote("status", "--json").json()["concerns"]
    assert "status --dismiss' works on the appliance's own machine" in remote("status", "--dismiss", "shop").error()
    theirs = remote.site.token_of(Role.VIEWER, grants=(Selector((Clause(image="office"),)),))
    some = remote("status", token=theirs)
    assert "used" in found.out
    assert "used" not in some.out
    assert "stored by them" in remote("plan", token=theirs).out
    assert "1 protected" in some.out


def test_a_migration_is_watched_on_when_the_appliance_was_away(remote: Elsewhere) -> None:
    """As while it is updated."""
    settings, catalog = remote.site.appliance.settings, remote.site.appliance.catalog
    now = remote.site.appliance.clock.now_utc()
    record = catalog.recoveries.add(
        RecoveryRecord(
            new_id(), RecoveryState.MIGRATING, new_id(), "shop.1", "shop", "rack01", "again", new_id(), "none", now,
            now, appliance=catalog.me,
        )
    )  # fmt: skip
    with (
        closing(Client(remote.url, remote.token, settings.home / "keys" / "web.crt")) as client,
        socket.socket() as mute,
    ):
        mute.bind(("127.0.0.1", 0))  # and listens to nobody
        looks: list[str] = []

        def sleep(_: float) -> None:
            looks.append(client.url)
            client.url = f"https://127.0.0.1:{mute.getsockname()[1]}" if len(looks) < 3 else remote.url
            if len(looks) == 4:
                catalog.recoveries.update(record, now_utc=now, state=RecoveryState.MIGRATED)

        progress = Progress()
        assert RemoteRecoveries(client, sleep).watched(record, progress).state is RecoveryState.MIGRATED
        assert len(looks) == 4
        (note,) = progress.notes
        assert "does not answer: Connection refused; the disks move on" in note
        client.url = f"https://127.0.0.1:{mute.getsockname()[1]}"
        pauses: list[float] = []
        with pytest.raises(RemoteUnreachable):
            RemoteRecoveries(client, pauses.append).watched(record, Progress())
        assert sum(pauses) > 600


def test_a_refusal_is_told_in_the_words_of_who_refuses(remote: Elsewhere) -> None:
    viewer = remote.site.token_of(Role.VIEWER)
    refused = remote("backup", "test", "--queue", token=viewer)
    assert "run.start" in refused.error()
    image = remote("recovery", "start", "image:office", "--point", "latest")
    assert "is a disk image" in image.error()
    revoked = remote("run", "list", token=_revoked(remote)).error()
    assert "revoked" in revoked
    assert "--token-file" in revoked


def _revoked(remote: Elsewhere) -> str:
    made = remote.site.post("/tokens", {"name": "gone", "role": "viewer"}).json
    assert made is not None
    assert remote.site.ask("DELETE", f"/tokens/{made['id']}").status_code == 204
    secret: str = made["secret"]
    return secret


@pytest.mark.parametrize(
    "words",
    [
        ("init", "--repository", "/nowhere", "--recovery-key-file", "/nowhere"),
        ("point", "delete", "ffff", "--ask", "alice"),
        ("repository", "info"),
        ("policy", "export"),
        ("host", "list"),
        ("serve",),
    ],
    ids=" ".join,
)
def test_what_works_on_the_appliance_alone_says_so(remote: Elsewhere, words: tuple[str, ...]) -> None:
    refused = remote(*words)
    assert refused.code == 2
    assert "works on the appliance's own machine only" in refused.error()


def test_a_token_is_shown_to_nobody_but_the_appliance(remote: Elsewhere, tmp_path: Path) -> None:
    unknown = remote("run", "list", trust=False)
    assert unknown.code == 1
    assert "certificate" in unknown.error()
    assert "--ca-file" in unknown.error()
    other = remote("run", "list", url=remote.url.replace("127.0.0.1", "127.1"))
    assert "[web] names" in other.error(), "a certificate of other names"
    assert "in the clear" in remote("run", "list", url="http://backup.example.org").error()
    for url in ("ftp://x", "https://a@b", "https://h/path", "https://h:x"):
        assert remote("run", "list", url=url).code == 2
    assert "STRONGROOM_TOKEN" in remote("run", "list", token="").error()
    file = tmp_path / "token"
    file.write_text(remote.token)
    file.chmod(0o644)
    assert "others may read" in remote("--token-file", str(file), "run", "list", token="").error()
    file.chmod(0o600)
    assert remote("--token-file", str(file), "run", "list", token="").code == 0
    away = remote("run", "list", url="https://127.0.0.1:1").error()
    assert "does not answer: Connection refused" in away
    assert "[web] listen" in away
    for named in (tmp_path / "none", file):
        assert remote("--ca-file", str(named), "run", "list", trust=False).code == 2


def test_what_is_no_such_appliance_is_told(remote: Elsewhere) -> None:
    """An older one without the route, one whose answers lack something, and what speaks no TLS."""
    client = Client(remote.url, remote.token, remote.site.appliance.settings.home / "keys" / "web.crt")
    with closing(client):
        with pytest.raises(RemoteUnknown, match="does not know what is asked for"):
            client.get("/not/yet")
        with pytest.raises(RemoteUnknown, match="has no 'new'"):
            client.get("/runs")["new"]
    with _answering("400 Bad Request") as port:
        assert "does it speak TLS?" in remote("run", "list", url=f"https://127.0.0.1:{port}").error()


def test_a_token_follows_no_redirect(remote: Elsewhere) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        to = f"Location: http://127.0.0.1:{elsewhere.getsockname()[1]}/"
        with _answering("302 Found", to) as port:
            assert "status 302" in remote("run", "list", url=f"http://127.0.0.1:{port}").error()
        elsewhere.setblocking(False)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


@contextmanager
def _answering(*head: str) -> Iterator[int]:
    """What takes one connection at this port, without TLS, and says just that."""

    def answer(listening: socket.socket) -> None:
        with listening.accept()[0] as taken:
            taken.recv(4096)
            taken.sendall("\r\n".join([f"HTTP/1.1 {head[0]}", *head[1:], "Content-Length: 0", "", ""]).encode())

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,), daemon=True)
        thread.start()
        yield int(listening.getsockname()[1])
        thread.join()


def test_it_does_not_go_together_with_a_home(here: CommandLine) -> None:
    assert here("--url", "https://h", "--home", "/h", "run", "list").code == 2
    assert here("--ca-file", "x", "run", "list").code == 2
