"""Work of the queue that is no backup: restores, verifications, collections and copies, by a real daemon."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.home import NoHome
from appliance.models import RunArguments, RunKind, RunState
from appliance.services import repositories
from appliance.services.choosing import DiskNotOnPoint
from appliance.services.queue.service import NotRepeatable, QueueService
from appliance.services.restore.errors import NotAMachine, NotPossible
from appliance.settings import load
from tests.integration.queueing import Queueing, queueing

pytestmark = [pytest.mark.integration, pytest.mark.faults]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queueing]:
    folder = tmp_path_factory.mktemp("kinds")
    environment = {"STRONGROOM_HOME": str(folder / "home"), "STRONGROOM_QUEUE_RETRY_S": "0.2"}
    repositories.init(load(environment), folder / "repository", "a passphrase for tests", lambda _: None)
    with queueing(folder, environment) as made:
        made.command("backup", *made.image("web"))
        yield made


def asked(site: Queueing, *words: str) -> str:
    told = json.loads(site.command(*words, "--queue", "--json").stdout)
    assert told["state"] == "queued"
    return str(told["id"])


def test_a_restore_waits_for_no_worker(site: Queueing) -> None:
    target = site.folder / "web-again.raw"
    words = ["restore", "web", "--point", "latest", "--to", str(target), "--format", "raw", "--limit", "50MB"]
    with site.serving(workers="1"):
        busy = site.put("busy", held=True)
        site.wait_held(busy)
        run = site.wait(asked(site, *words), RunState.SUCCEEDED)
        assert site.run(busy).state is RunState.RUNNING
        site.release("busy")
        site.assert_made(busy)
    assert target.read_bytes()[:300_000] == site.content["web"]
    assert run.result is not None
    assert run.result.startswith(f"disk is restored to {target}: ")
    shown = site.command("run", "show", run.id).stdout
    assert "restore" in shown
    assert str(target) in shown
    assert run.result in shown
    site.assert_nothing_left()


def test_more_restores_than_the_machine_can_bear_wait_for_a_worker(site: Queueing) -> None:
    words = ["restore", "web", "--point", "latest", "--to", str(site.folder / "in-turn.raw"), "--format", "raw"]
    with site.serving(workers="1", restores="0"):
        busy = site.put("busier", held=True)
        site.wait_held(busy)
        verify = asked(site, "repository", "verify")
        id = asked(site, *words)
        site.until(lambda: site.run(id).state is RunState.QUEUED, lambda: "there is no room for it")
        assert not (site.folder / "in-turn.raw").exists()
        site.release("busier")
        site.assert_made(busy)
        restored, verified = site.wait(id, RunState.SUCCEEDED), site.wait(verify, RunState.SUCCEEDED)
    assert restored.ended_utc is not None
    assert restored.started_utc >= site.run(busy).started_utc
    assert verified.started_utc >= restored.ended_utc, "a person waits for the one, and nobody for the other"


def test_a_restore_to_a_place_on_a_machine_that_is_gone_is_not_repeated(site: Queueing) -> None:
    target = site.folder / "there.raw"
    service = QueueService(site.appliance)
    run = service.ask_restore_disk("web", "latest", None, target, "raw", force=True).run
    service.cancel(run.id)
    gone = replace(site.run(run.id), appliance="b" * 32)
    site.appliance.catalog.runs.save(gone)
    with pytest.raises(NotRepeatable, match="of an appliance that is gone"):
        service.again(run.id)
    site.appliance.catalog.runs.save(replace(gone, appliance=site.appliance.catalog.me))
    service.cancel(service.again(run.id).run.id)


def test_a_restore_that_fails_is_not_tried_again_by_itself(site: Queueing) -> None:
    target = site.folder / "there-already"
    id = asked(site, "restore", "web", "--point", "latest", "--to", str(target))
    target.write_text("precious")  # the place was free when it was asked for
    with site.serving():
        run = site.wait(id, RunState.FAILED)
        assert "there-already" in (run.error or "")
        assert run.attempts == 1
        assert target.read_text() == "precious"
        with pytest.raises(NotPossible, match="there-already"):  # at once, as when it was asked for
            QueueService(site.appliance).again(run.id)
        target.unlink()
        again = json.loads(site.command("run", "retry", run.id, "--json").stdout)
        assert again["arguments"]["target"] == str(target)
        site.wait(again["id"], RunState.SUCCEEDED)
    assert target.exists()
    assert site.command("status").stderr == ""  # the newest restore is what counts


def test_the_repository_is_verified_collected_and_copied(site: Queueing) -> None:
    other = site.folder / "second"
    repositories.init(load({"STRONGROOM_HOME": str(other)}), site.folder / "copies", "another", lambda _: None)
    ids = [
        asked(site, "repository", "verify", "--read-data"),
        asked(site, "repository", "collect"),
        asked(site, "repository", "copy", str(other), "web"),
    ]
    with site.serving():
        runs = [site.wait(id, RunState.SUCCEEDED) for id in ids]
        again = site.wait(asked(site, "repository", "copy", str(other)), RunState.SUCCEEDED)
    verified, collected, copied = (run.result or "" for run in runs)
    assert verified.startswith("nothing is damaged: ")
    assert "of data read" in verified
    assert collected == "0 B are freed"
    assert copied.startswith("1 restore points are copied: ")
    assert again.result is not None
    begun = sorted((run.started_utc, run.ended_utc) for run in runs if run.ended_utc is not None)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(begun)), "one at a time"
    listed = json.loads(site.command("run", "list", "--json").stdout)
    assert {run["kind"] for run in listed if run["id"] in ids} == {"verify", "collect", "copy"}


def test_damage_that_a_verification_finds_is_a_failed_run(site: Queueing) -> None:
    (pack, *_) = [path for path in (site.folder / "repository" / "packs").rglob("*") if path.is_file()]
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)
    id = asked(site, "repository", "verify", "--read-data")
    with site.serving():
        run = site.wait(id, RunState.FAILED)
    assert "damaged or missing" in (run.error or "")
    assert run.attempts == 1
    assert "the last verify of repository failed: " in site.command("status", expect=3).stderr


def test_what_cannot_be_is_refused_when_it_is_asked_for(site: Queueing) -> None:
    service = QueueService(site.appliance)
    with pytest.raises(NotAMachine):
        service.ask_restore("web", "latest", "here", new_name="copy")
    with pytest.raises(DiskNotOnPoint):
        service.ask_restore_disk("web", "latest", "vdb", site.folder / "x", "raw")
    with pytest.raises(NotPossible, match="'vdi' is not a format"):
        service.ask_restore_disk("web", "latest", None, site.folder / "x", "vdi")
    with pytest.raises(NoHome):
        service.ask_copy(site.folder / "absent")
    assert (
        "do not go with --queue"
        in site.command("repository", "copy", str(site.folder), "--last", "1", "--queue", expect=2).stderr
    )


def test_the_point_that_is_meant_is_decided_when_it_is_asked_for(site: Queueing) -> None:
    before = site.appliance.repository.points()[0].id
    run = QueueService(site.appliance).ask_restore_disk("web", "latest", None, Path("relative.raw"), "raw").run
    assert run.kind is RunKind.RESTORE
    assert run.arguments == RunArguments(
        before, disk="disk", target=os.path.abspath("relative.raw"), image_format="raw"
    )
    QueueService(site.appliance).cancel(run.id)
