"""A store that takes connections and never answers: nothing that a person asks for waits for it, and they are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from appliance import home
from appliance.acts import Act, Role
from appliance.bootstrap import Appliance
from appliance.models import RunRecord, RunState, new_id
from appliance.notices.records import Kind
from appliance.remote.client import Client
from appliance.remote.services import RemoteQueue
from appliance.services import repositories, status
from appliance.services.access import local_actor
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.tokens import TokenService
from appliance.services.notices.observing import Observer
from appliance.services.queue import hanging, service, workers
from appliance.services.queue.service import QueueService
from appliance.services.status import StatusService
from appliance.settings import load
from imaging.errors import ImagingError
from tests.unit.records import NOW
from tests.unit.test_web_access import Signed, _set_up, sign_in
from web.app import create_app


class _Handler(BaseHTTPRequestHandler):
    """Says nothing until it may; then that nothing is allowed, which nobody tries again."""

    def answer(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        server.asked.set()
        server.may_answer.wait()
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = answer  # noqa: N815

    def log_message(self, *_arguments: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked, self.may_answer = threading.Event(), threading.Event()


@dataclass
class Silent:
    appliance: Appliance
    server: _Server

    def run(self, state: RunState, **changes: object) -> RunRecord:
        run = RunRecord(
            new_id(), "web-1", "vm", "a-uuid", "here", state, NOW, asked_utc=NOW, appliance=self.appliance.catalog.me
        )
        run = replace(run, **changes)  # type: ignore[arg-type]
        self.appliance.catalog.runs.save(run)
        return run


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Silent]:
    with _Server() as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        environment = {
            "STRONGROOM_HOME": str(tmp_path / "home"),
            "STRONGROOM_S3_BUCKET": "bucket",
            "STRONGROOM_S3_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "STRONGROOM_S3_ACCESS_KEY": "key",
            "STRONGROOM_S3_SECRET_KEY": "secret",
            "STRONGROOM_S3_ALLOW_PLAIN": "true",
        }
        with Appliance(load(environment)) as appliance:
            home.write_machine_key(appliance.settings, home.new_machine_key())
            try:
                yield Silent(appliance, server)
            finally:
                server.may_answer.set()
                with pytest.raises(ImagingError):  # whoever still opens it is done before
                    _ = appliance.repository
                server.shutdown()
                serving.join()


def until(met: Callable[[], object]) -> None:
    """In a while, however slow the machine is; the test ends at its time-out."""
    while not met():
        time.sleep(0.02)


def test_a_run_is_cancelled_at_once_and_what_is_left_is_told(silent: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_PATIENCE_S", 0.3)
    told: list[str] = []
    waits = silent.run(RunState.QUEUED, error="it failed once", attempts=1)
    assert QueueService(silent.appliance).cancel(waits.id, told.append).state is RunState.CANCELLED
    dead = silent.run(RunState.RUNNING, attempts=1)
    found = QueueService(silent.appliance).cancel(dead.id, told.append)
    assert (found.state, found.cancel_requested_utc is not None) == (RunState.RUNNING, True)
    assert len(told) == 2
    assert "an earlier attempt" in told[0]
    assert "cleaned up by 'strongroom serve'" in told[1]
    silent.server.asked.wait()
    told.clear()
    again = silent.run(RunState.QUEUED, error="it failed once", attempts=1)
    assert RemoteQueue(in_process(silent.appliance)).cancel(again.id, told.append).state is RunState.CANCELLED
    assert len(told) == 1
    assert "an earlier attempt" in told[0], "also from elsewhere"


def in_process(appliance: Appliance) -> Client:
    """As `strongroom --url` asks, but for the network."""
    app = create_app(appliance)
    token = TokenService(appliance).add(
        local_actor({}), "elsewhere", Role.OPERATOR, acts=(Act.RUN_CANCEL,), good_for=timedelta(hours=1)
    ).secret  # fmt: skip

    class InProcess(Client):
        def _ask(
            self, method: str, path: str, query: Mapping[str, object] | None,
            document: Mapping[str, object] | None = None,
        ) -> Any:  # fmt: skip
            headers = {"Authorization": f"Bearer {token}"}
            answer = app.test_client().open(f"/api/v1{path}", method=method, headers=headers, json=document)
            return self._read_answer(method, path, answer.status_code, answer.content_type, answer.data)

    return InProcess("http://localhost", token)


def test_a_sweep_that_hangs_is_told_by_status_and_notices(silent: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_SWEEP_S", 0.1)
    monkeypatch.setattr(hanging, "AFTER_S", 0.0)
    monkeypatch.setattr(status, "_PATIENCE_S", 0.3)
    silent.run(RunState.RUNNING, attempts=1)  # its process is dead: the sweep asks for a point that it may have made
    stop, at_once = threading.Event(), threading.Event()
    working = threading.Thread(target=workers.Workers(silent.appliance, stop, at_once).run)
    working.start()
    try:
        silent.server.asked.wait()
        until(lambda: hanging.hanging(silent.appliance))
        problems = StatusService(silent.appliance).status().problems
        concerns = Observer(silent.appliance).look(()).lasting
    finally:
        stop.set()
        working.join()
    (sweep,) = (each for each in problems if "sweep of the queue" in each)
    assert "127.0.0.1" in sweep, "which repository"
    assert any("has not answered within" in each for each in problems)
    (concern,) = (each for each in concerns if "sweep of the queue" in each.detail)
    assert concern.kind is Kind.AWAY
    assert hanging.hanging(silent.appliance) is None, "no workers, no sweep"


def test_another_home_of_this_process_opens_its_own(silent: Silent, tmp_path: Path) -> None:
    environment = {"STRONGROOM_HOME": str(tmp_path / "other")}
    founded = repositories.init(load(environment), tmp_path / "repository", "a passphrase for tests", lambda _: None)

    def hangs() -> None:
        with pytest.raises(ImagingError):
            _ = silent.appliance.repository

    opening = threading.Thread(target=hangs)
    opening.start()
    silent.server.asked.wait()
    with Appliance(load(environment)) as other:
        assert other.repository.id.hex() == founded.repository_id
    assert opening.is_alive()
    silent.server.may_answer.set()
    opening.join()


def test_pages_that_ask_how_many_requests_are_open_hang_one_thread(silent: Silent) -> None:
    app = create_app(silent.appliance)
    first = _set_up(app, silent.appliance, SetUpService(silent.appliance).first_link(), "admin")
    second = Signed(app.test_client(), first.name, first.codes)
    sign_in(second)
    hangs = threading.Thread(target=lambda: first.send("GET", "/requests/count"))
    hangs.start()
    silent.server.asked.wait()
    assert second.send("GET", "/requests/count").status_code == 204
    assert hangs.is_alive()
    silent.server.may_answer.set()
    hangs.join()
