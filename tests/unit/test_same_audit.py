"""The same thing done by the console, the command line and the API is the same entry of the audit, but for who did it,
by what way and from where."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from appliance.acts import Role
from appliance.services.access import local_actor
from appliance.services.accounts.users import UserService
from tests.lab.filesystems import make_ext, make_tree
from tests.unit.api_site import Site, site
from tests.unit.cli_runner import PROJECT
from tests.unit.test_web_access import Signed, _set_up

RUN = "a run"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("same")) as made:
        yield made


@pytest.fixture(scope="module")
def admin(api: Site) -> Signed:
    invited = UserService(api.appliance).add(local_actor({}), "three", Role.ADMIN)
    return _set_up(api.app, api.appliance, invited.link, "three")


def told(api: Site, act: Callable[[], object]) -> dict[str, Any]:
    """What the audit has of an act; the ids of runs, which differ, by that word."""
    before = {entry.number for entry in api.appliance.catalog.audit.entries()}
    act()
    (entry,) = (entry for entry in api.appliance.catalog.audit.entries() if entry.number not in before)
    assert entry.via in ("console", "cli", "api")
    assert entry.actor_name
    details = {
        name: RUN if isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value) else value
        for name, value in entry.details.items()
    }
    return {
        "act": entry.act, "result": entry.result, "error": entry.error, "details": details, "machine": entry.machine,
        "subject": (entry.subject_kind, RUN if len(entry.subject_id) == 32 else entry.subject_id, entry.subject_name),
    }  # fmt: skip


def command(api: Site, *words: str) -> Callable[[], object]:
    def run() -> None:
        done = subprocess.run(
            [sys.executable, "-m", "appliance.cli", *words], cwd=PROJECT, env=api.environment, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    return run


def sent(admin: Signed, path: str, **data: str) -> Callable[[], object]:
    def send() -> None:
        answer = admin.send("POST", path, **data)
        assert answer.status_code == 302, answer.text

    return send


def asked(api: Site, path: str, document: object = None) -> Callable[[], object]:
    def ask() -> None:
        answer = api.post(path, document)
        assert answer.status_code in (200, 201), answer.text

    return ask


def shown(client: Callable[[str], TestResponse], path: str) -> Callable[[], object]:
    def show() -> None:
        answer = client(path)
        assert answer.status_code == 200, answer.text

    return show


def queued(api: Site) -> str:
    """A run that waits."""
    answer = api.post("/runs", {"image": {"path": str(api.image), "format": "raw", "name": "three ways"}})
    assert answer.json is not None
    return str(answer.json["id"])


def test_verifying(api: Site, admin: Signed) -> None:
    entries = [
        told(api, command(api, "repository", "verify", "--queue")),
        told(api, sent(admin, "/repository/verify")),
        told(api, asked(api, "/repository/verify", {})),
    ]
    assert entries[0]["details"]["run"] == RUN
    assert entries == [entries[0]] * 3


def test_collecting(api: Site, admin: Signed) -> None:
    entries = [
        told(api, command(api, "repository", "collect", "--queue")),
        told(api, sent(admin, "/repository/collect")),
        told(api, asked(api, "/repository/collect")),
    ]
    assert entries == [entries[0]] * 3


def test_cancelling_a_run(api: Site, admin: Signed) -> None:
    entries = [
        told(api, command(api, "run", "cancel", queued(api))),
        told(api, sent(admin, f"/runs/{queued(api)}/cancel")),
        told(api, asked(api, f"/runs/{queued(api)}/cancel")),
    ]
    assert entries[0]["act"] == "run.cancel"
    assert entries[0]["machine"] == "image:three ways"
    assert entries == [entries[0]] * 3


def test_pausing_and_resuming_a_policy(api: Site, admin: Signed) -> None:
    ways: list[tuple[Callable[[], object], Callable[[], object]]] = [
        (command(api, "policy", "pause", "nightly"), command(api, "policy", "resume", "nightly")),
        (sent(admin, "/policies/nightly/pause"), sent(admin, "/policies/nightly/resume")),
        (asked(api, "/policies/nightly/pause"), asked(api, "/policies/nightly/resume")),
    ]
    entries = [(told(api, pause), told(api, resume)) for pause, resume in ways]
    assert [entry["act"] for entry in entries[0]] == ["policy.pause", "policy.resume"]
    assert entries == [entries[0]] * 3


def test_looking_into_a_folder_and_taking_a_file(api: Site, admin: Signed, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    image = make_ext(tmp_path / "image", make_tree(tmp_path / "tree"))
    command(api, "backup", "--image", str(image), "--format", "raw", "--name", "web")()
    (point,) = (each.id for each in api.appliance.catalog.points.list() if each.name == "web")
    at, into = ("web", "--point", "latest"), ("--to", str(tmp_path))

    def page(path: str) -> TestResponse:
        return admin.send("GET", path)

    def resource(path: str) -> TestResponse:
        return api.ask("GET", path, buffered=True)

    for words, on_page, in_api in (
        (("files", "list", *at), "files", "volumes"),
        (("files", "list", *at, "/docs"), "files?place=/docs", "files?place=/docs"),
        (("files", "get", *at, "/docs/data.bin", *into), "file?place=/docs/data.bin", "file?place=/docs/data.bin"),
    ):
        entries = [
            told(api, command(api, *words)),
            told(api, shown(page, f"/points/{point}/{on_page}")),
            told(api, shown(resource, f"/points/{point}/{in_api}")),
        ]
        assert entries == [entries[0]] * 3
    assert (entries[0]["act"], entries[0]["details"]) == ("file.read", {"volume": "disk", "path": "/docs/data.bin"})
