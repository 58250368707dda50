"""The queue with a real daemon: runs are drained, cancelled, tried again, and outlive the death of everything."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.catalog.errors import RunEnded
from appliance.hypervisor.protocol import HostConfig, Transport
from appliance.models import HostRecord, RunState
from appliance.services import repositories
from appliance.services.cleaning import CleaningService
from appliance.services.queue.service import QueueService
from appliance.settings import load
from tests.integration.queueing import TIMEOUT_S, Queueing, queueing

pytestmark = [pytest.mark.integration, pytest.mark.faults]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queueing]:
    folder = tmp_path_factory.mktemp("queue")
    environment = {"STRONGROOM_HOME": str(folder / "home"), "STRONGROOM_QUEUE_RETRY_S": "0.2"}
    repositories.init(load(environment), folder / "repository", "a passphrase for tests", lambda _: None)
    with queueing(folder, environment) as made:
        yield made


def test_two_workers_drain_what_waits_and_one_that_is_asked_twice_runs_once(site: Queueing) -> None:
    names = [f"image-{number}" for number in range(4)]
    ids = []
    words = ["backup", *site.image(names[0]), "--queue", "--limit", "50MB", "--json"]
    first, second = (json.loads(site.command(*words).stdout) for _ in range(2))
    assert (first["new"], second["new"], first["id"]) == (True, False, second["id"])
    ids.append(first["id"])
    ids += [site.put(name) for name in names[1:]]
    waiting = site.command("status", expect=3)
    assert "4 queued, 0 running" in waiting.stdout
    assert "no worker lives: 4" in waiting.stderr
    with site.serving():
        runs = [site.assert_made(id) for id in ids]
        status = site.command("status")
        assert "0 queued, 0 running" in status.stdout
    assert [run.attempts for run in runs] == [1] * 4
    assert runs[0].limit_bytes_s == 50_000_000
    begun = sorted((run.started_utc, run.ended_utc) for run in runs if run.ended_utc is not None)
    for _, third in zip(begun, begun[2:], strict=False):
        at_once = [1 for started, ended in begun if started <= third[0] < ended]
        assert len(at_once) <= 2
    site.assert_nothing_left()
    listed = json.loads(site.command("run", "list", "--state", "succeeded", "--json").stdout)
    assert {run["id"] for run in listed} >= set(ids)


def test_runs_are_cancelled_and_killed_ones_are_tried_again(site: Queueing) -> None:
    service = QueueService(site.appliance)
    with site.serving():
        unwanted, killed = site.put("unwanted", held=True), site.put("killed", held=True)
        waits = site.put("waits", held=True)
        for id in (unwanted, killed):
            site.wait_held(id)
        # one that waits, one that a worker has, and one of a person in front of a terminal
        assert service.cancel(waits).state is RunState.CANCELLED
        at_terminal = site.start("backup", *site.image("at-terminal", held_by="qemu-nbd"))
        site.until(lambda: any(run.name == "at-terminal" for run in site.appliance.catalog.runs.own_running()),
                   lambda: "the command runs")  # fmt: skip
        (direct,) = (run.id for run in site.appliance.catalog.runs.own_running() if run.name == "at-terminal")
        assert service.cancel(direct).state is RunState.RUNNING  # first, as it is held for a minute only
        assert "is asked to end" in site.command("run", "cancel", unwanted[:12]).stdout
        for id in (unwanted, direct):
            ended = site.wait(id, RunState.CANCELLED)
            assert (ended.point, ended.error) == (None, None)
            with pytest.raises(RunEnded, match="cancelled"):
                service.cancel(id)
        _, said = at_terminal.communicate(timeout=TIMEOUT_S)
        assert at_terminal.returncode == 143, said

        os.kill(site.executor(killed), signal.SIGKILL)
        site.until(lambda: site.run(killed).attempts == 2, lambda: "it is tried again")
        assert site.run(killed).error == "its process ended before the run did"
        site.release("killed")
        assert site.assert_made(killed).attempts == 2

        site.release("unwanted")
        again = json.loads(site.command("run", "retry", unwanted, "--json").stdout)
        assert again["id"] != unwanted
        assert site.assert_made(again["id"]).attempts == 1
        site.release("at-terminal", "qemu-nbd")
        assert site.assert_made(service.again(direct).run.id).attempts == 1
    site.assert_nothing_left()
    assert not [point for point in site.appliance.repository.points() if point.manifest.run in (unwanted, direct)]


@pytest.mark.parametrize("queued", [True, False], ids=["of the queue", "begun at once"])
@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "SIGTERM"])
def test_a_run_that_is_ended_once_its_point_counts_has_succeeded(site: Queueing, queued: bool, cancelled: bool) -> None:
    name = f"counts-{queued}-{cancelled}"
    words = ["run", "execute", site.put(name)] if queued else ["backup", *site.image(name)]
    with site.suspended("imaging.running:Run._counts", *words) as process:
        (run,) = [run for run in site.appliance.catalog.runs.own_running() if run.name == name]
        if cancelled:
            assert QueueService(site.appliance).cancel(run.id).state is RunState.RUNNING
        process.send_signal(signal.SIGTERM)  # which is how the run ends itself, too
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 143, said
    made = site.run(run.id)
    assert (made.state, made.error, made.attempts) == (RunState.SUCCEEDED, None, 1 if queued else 0)
    assert (made.cancel_requested_utc is not None) is cancelled
    site.assert_made(run.id)
    assert made.point in {point.id for point in site.appliance.catalog.points.list()}
    site.assert_nothing_left()


def test_nobody_says_how_a_run_ended_as_long_as_the_repository_cannot_be_asked(site: Queueing) -> None:
    id = site.put("unsaid")
    repository = site.folder / "repository"
    with site.suspended("imaging.running:Run._counts", "run", "execute", id) as process:
        repository.rename(site.folder / "away")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 143, said
    assert (site.run(id).state, site.run(id).error) == (RunState.RUNNING, None)
    assert any("unsaid" in problem for problem in CleaningService(site.appliance).tidy())
    assert site.run(id).state is RunState.RUNNING
    (site.folder / "away").rename(repository)
    with Appliance(site.appliance.settings) as again:
        assert CleaningService(again).tidy() == ()
    site.assert_made(id)


def test_what_an_earlier_attempt_has_made_is_not_made_again_nor_cancelled(site: Queueing) -> None:
    """As a run that was queued again was left by what had not asked the repository."""
    for name in ("tried-again", "then-cancelled"):
        id = site.put(name)
        site.command("run", "execute", id)
        made = site.assert_made(id)
        site.appliance.catalog.points.remove(made.point or "")
        waits = replace(made, state=RunState.QUEUED, point=None, ended_utc=None, error="it was ended by SIGTERM")
        site.appliance.catalog.runs.save(waits)
        if name == "tried-again":
            assert "an earlier attempt has made its restore point" in site.command("run", "execute", id).stderr
        else:
            with pytest.raises(RunEnded, match="succeeded"):
                QueueService(site.appliance).cancel(id)
        assert site.assert_made(id).point == made.point
        assert made.point in {point.id for point in site.appliance.catalog.points.list()}
    site.assert_nothing_left()


def test_what_fails_is_tried_again_only_if_that_may_help(site: Queueing) -> None:
    lost, busy = site.put("lost"), site.put("busy")
    (site.folder / "lost.raw").unlink()
    repository = site.appliance.repository
    with site.serving():
        with repository.begin_run(repository.series_of("image", "busy")):  # as another appliance would
            assert "no such file" in (site.wait(lost, RunState.FAILED).error or "")
            site.until(
                lambda: "busy is being backed up already, by" in (site.run(busy).error or ""),
                lambda: "it was found busy",
            )
            assert site.run(busy).attempts in (0, 1)  # at this moment it may be tried once more
            assert not site.run(busy).state.ended
        assert site.assert_made(busy).attempts == 1
    assert site.run(lost).attempts == 1


def test_a_killed_daemon_costs_no_run_and_one_that_ends_gives_them_back(site: Queueing) -> None:
    with site.serving(workers="1") as first:
        goes_on, waits = site.put("goes-on", held=True), site.put("waits-on")
        site.wait_held(goes_on)
        first.kill()
        first.wait()
    pid = site.executor(goes_on)
    with site.serving(workers="1", end_s="600") as second:
        site.assert_made(waits)
        assert site.executor(goes_on) == pid
        assert (site.run(goes_on).state, site.run(goes_on).attempts) == (RunState.RUNNING, 1)
        site.release("goes-on")
        assert site.assert_made(goes_on).attempts == 1

        made_way, behind = site.put("made-way", held=True), site.put("behind")
        site.wait_held(made_way)
        second.send_signal(signal.SIGTERM)
        site.until(lambda: "are given 600 s" in site.log(), lambda: "it waits for the run")
        second.send_signal(signal.SIGTERM)
        assert second.wait(TIMEOUT_S) == 0
    for id, error in ((made_way, "it was ended by SIGTERM"), (behind, None)):
        assert (site.run(id).state, site.run(id).attempts, site.run(id).error) == (RunState.QUEUED, 0, error)
    site.assert_nothing_left()
    site.release("made-way")
    site.appliance.settings.queue_file.unlink()  # messages are nothing that cannot be lost
    with site.serving(workers="1"):
        for id in (made_way, behind):
            assert site.assert_made(id).attempts == 1


def test_the_daemon_looks_at_the_hosts(site: Queueing) -> None:
    """libvirt's own test driver has one machine. That a host was added is all that the daemon knows of it."""
    inventory, hosts = site.appliance.catalog.inventory, site.appliance.catalog.hosts
    hosts.add(HostRecord(HostConfig("mock", Transport.TEST), site.appliance.clock.now_utc()))
    try:
        with site.serving():
            site.until(inventory.machines, lambda: "its machines are known")
        (found,) = inventory.machines()
        assert (found.seen.name, found.seen.host, found.protected) == ("test", "mock", False)
    finally:
        hosts.remove("mock")
    assert inventory.machines() == ()


def test_a_look_at_the_hosts_that_hangs_keeps_no_daemon_from_ending(site: Queueing) -> None:
    hanging = "appliance.services.sightings:SightingService.refresh"
    with site.serving(hanging) as daemon:
        site.until(lambda: f"{hanging} hangs" in site.said_by_serve(), lambda: "it hangs")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(TIMEOUT_S) == 0


def test_a_sweep_that_hangs_keeps_no_daemon_from_ending(site: Queueing) -> None:
    hanging = "appliance.services.queue.workers:Workers._sweep"
    with site.serving(hanging, workers="1", end_s="600") as daemon:
        site.until(lambda: f"{hanging} hangs" in site.said_by_serve(), lambda: "it hangs")
        under_way = site.put("under-way-then", held=True)
        site.wait_held(under_way)
        behind = site.put("behind-it")
        said = len(site.said_by_serve())
        daemon.send_signal(signal.SIGTERM)
        site.until(lambda: "are given 600 s" in site.said_by_serve()[said:], lambda: "it sees that it is to end")
        site.release("under-way-then")
        assert daemon.wait(TIMEOUT_S) == 0
    site.assert_made(under_way)
    assert (site.run(behind).state, site.run(behind).error) == (RunState.QUEUED, None), "no run is begun any more"
    site.command("run", "cancel", behind)


def test_a_queue_file_that_is_damaged_or_removed_meanwhile_stops_nothing(site: Queueing) -> None:
    file = site.appliance.settings.queue_file
    with site.serving(workers="1"):
        for name, harm in (("damaged", lambda: file.write_bytes(b"no database" * 1000)), ("removed", file.unlink)):
            site.assert_made(site.put(f"before-{name}"))
            harm()
            site.assert_made(site.put(f"after-{name}"))


def test_a_run_under_way_is_given_its_time(site: Queueing, tmp_path: Path) -> None:
    with site.serving() as daemon:
        under_way = site.put("under-way", held=True)
        site.wait_held(under_way)
        behind = site.put("not-begun")
        site.until(lambda: site.run(behind).state is not RunState.QUEUED, lambda: "the second worker takes it")
        site.assert_made(behind)
        said = len(site.said_by_serve())
        daemon.send_signal(signal.SIGTERM)
        site.until(lambda: "told to end: runs under way" in site.said_by_serve()[said:], lambda: "it is to end")
        late = site.put("too-late")
        site.release("under-way")
        assert daemon.wait(TIMEOUT_S) == 0
    assert site.assert_made(under_way).attempts == 1
    assert site.run(late).state is RunState.QUEUED
    site.command("run", "cancel", late)
