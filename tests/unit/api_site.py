"""An appliance with something of everything, and its API as programs see it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from appliance.acts import Act, Role
from appliance.bootstrap import Appliance
from appliance.models import RecoveryDisk, RecoveryRecord, RecoveryState, new_id
from appliance.policy.selectors import Selector
from appliance.readable import readable
from appliance.services.access import local_actor
from appliance.services.accounts.tokens import TokenService
from appliance.settings import load
from tests.lab.ports import free_port
from tests.unit.cli_runner import PASSPHRASE, PROJECT
from tests.unit.records import NOW
from web.app import create_app
from web.current import parts_of


@dataclass
class Site:
    """`token`: of an admin, for every act."""

    environment: dict[str, str]
    appliance: Appliance
    app: Flask
    image: Path
    token: str = ""

    def token_of(self, role: Role, acts: Sequence[Act] | None = None, grants: Sequence[Selector] = ()) -> str:
        service = TokenService(self.appliance)
        made = service.add(local_actor({}), new_id(), role, acts=acts, grants=grants, good_for=timedelta(days=1))
        return made.secret

    def ask(self, method: str, path: str, *, token: str | None = None, **options: Any) -> TestResponse:
        """Below /api/v1, as the admin unless another token is given; "": without one."""
        headers = dict(options.pop("headers", {}))
        token = self.token if token is None else token
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return self.app.test_client().open(f"/api/v1{path}", method=method, headers=headers, **options)

    def get(self, path: str, **options: Any) -> Any:
        answer = self.ask("GET", path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json

    def post(self, path: str, document: object = None, **options: Any) -> TestResponse:
        body: dict[str, Any] = {} if document is None else {"json": document}
        return self.ask("POST", path, **options, **body)


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """Two images with a point each, a host of libvirt's test driver, a policy, a recovery that was discarded."""
    environment = {
        "STRONGROOM_HOME": str(folder / "home"),
        "STRONGROOM_PASSPHRASE": PASSPHRASE,
        "STRONGROOM_RESTORE_FOLDERS": str(folder / "images"),
        "PATH": os.environ["PATH"],
    }
    image = folder / "image.raw"

    def strongroom(*arguments: str) -> None:
        words = [sys.executable, "-m", "appliance.cli", *arguments]
        done = subprocess.run(
            words, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr

    strongroom("init", "--repository", str(folder / "repository"), "--recovery-key-file", str(folder / "key"))
    strongroom("host", "add", "tested", "test:///default")
    for name in ("office", "shop"):
        image.write_bytes(os.urandom(8192))
        strongroom("backup", "--image", str(image), "--format", "raw", "--name", name)
    strongroom("policy", "add", "nightly", "--image", "*", "--at", "0 22 * * *", "--keep-daily", "7")
    with Appliance(load(environment)) as appliance:
        _recovery(appliance)
        made = Site(environment, appliance, create_app(appliance), image)
        made.token = made.token_of(Role.ADMIN, tuple(Act))
        try:
            yield made
        finally:
            parts_of(made.app).close()


def _recovery(appliance: Appliance) -> None:
    recoveries = appliance.catalog.recoveries
    (point,) = (each for each in appliance.catalog.points.list() if each.name == "office")
    disk = RecoveryDisk("vda", 8192, "/run/0", "/run/0", "/overlays/0.qcow2")
    record = RecoveryRecord(
        new_id(), RecoveryState.SERVING, point.id, point.manifest_name, "office", "tested", "office-recovered", "u",
        "none", NOW, NOW, disks=(disk,), definition_xml="<secret/>",
    )  # fmt: skip
    record = recoveries.add(record)
    for state in (RecoveryState.DISCARDING, RecoveryState.DISCARDED):
        record = recoveries.update(record, now_utc=NOW, state=state)


@contextmanager
def serving(home: Mapping[str, str]) -> Iterator[str]:
    """The console's own server of this home, over TLS; yields its address. Its certificate is `keys/web.crt`."""
    port = free_port()
    environment = dict(home) | {"STRONGROOM_WEB_PORT": str(port)}
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "web", "--ready", str(writing)], cwd=PROJECT, env=environment, pass_fds=(writing,),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writing)
    try:
        assert readable(reading, 120), "the server does not come up"
        if os.read(reading, 1) != b"1":
            raise AssertionError(process.communicate()[1])
        yield f"https://127.0.0.1:{port}"
    finally:
        os.close(reading)
        process.terminate()
        process.communicate(timeout=120)
