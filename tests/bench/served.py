"""`strongroom serve` as it is run for real, and somebody who is signed in and asks its console for pages.

The rule: over TLS and one connection that is kept, as a browser has it; the time of an answer is from the request's
last byte to the answer's last, so it is the server's with the loopback's, and a tenth of a millisecond of the client's.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import pyotp

from appliance.bootstrap import Appliance
from appliance.clock import SystemClock
from appliance.models import new_id
from appliance.services.access import SYSTEM, Role
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.signing_in import Origin
from appliance.services.accounts.users import UserService
from tests.bench.measure import BenchError

_PASSWORD: Final = "three blind mice and a cat"
_PATIENCE_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`bytes`: of the body, as it came over the line."""

    status: int
    ms: float
    bytes: int
    text: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Account:
    """`code`: a recovery code, which counts once."""

    name: str
    code: str
    password: str = _PASSWORD


def account(appliance: Appliance) -> Account:
    """A new admin, who has set it up."""
    made = UserService(appliance).add(SYSTEM, f"bench-{new_id()[:8]}", Role.ADMIN)
    service = SetUpService(appliance)
    code = pyotp.TOTP(service.offer(made.link.secret).secret).at(SystemClock().now_utc())
    done = service.complete(made.link.secret, made.user.name, _PASSWORD, code, Origin("127.0.0.1"))
    return Account(made.user.name, done.recovery_codes[0])


class Visitor:
    """One connection, and the cookies that came over it. To be closed."""

    def __init__(self, port: int) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # made by the server for itself
        self._connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=_PATIENCE_S, context=context)
        self._origin = f"https://127.0.0.1:{port}"
        self._cookies: dict[str, str] = {}

    def close(self) -> None:
        self._connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self._ask("GET", path, None, headers or {})

    def post(self, path: str, form: Mapping[str, str]) -> Answer:
        return self._ask("POST", path, urlencode(form), {})

    def sign_in(self, who: Account) -> None:
        """BenchError."""
        form = {
            "csrf_token": form_token(self.get("/sign-in").text),
            "name": who.name,
            "password": who.password,
            "code": who.code,
        }
        answer = self.post("/sign-in", form)
        if answer.status != http.client.FOUND:
            raise BenchError(f"nobody is signed in: {answer.status} {answer.text[:300]}")

    def _ask(self, method: str, path: str, body: str | None, more: Mapping[str, str]) -> Answer:
        headers = {**more, "Cookie": "; ".join(f"{name}={value}" for name, value in self._cookies.items())}
        if body is not None:
            headers |= {
                "Content-Type": "application/x-www-form-urlencoded", "Origin": self._origin,
                "Referer": f"{self._origin}/",
            }  # fmt: skip
        began = time.perf_counter()
        try:
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self._connection.close()  # it was idle for too long: as a browser, on a new one
            began = time.perf_counter()
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
        data = answer.read()
        took_ms = (time.perf_counter() - began) * 1e3
        for cookie in answer.headers.get_all("Set-Cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            self._cookies[name] = value
        return Answer(answer.status, took_ms, len(data), data.decode("utf-8", "replace"), dict(answer.headers))


@contextmanager
def serving(environment: Mapping[str, str], log: Path) -> Iterator[int]:
    """The port at which it answers. BenchError, if it does not."""
    port = _free_port()
    words = [sys.executable, "-m", "appliance.cli", "serve"]
    with log.open("wb") as said:
        process = subprocess.Popen(
            words, env={**os.environ, **environment, "STRONGROOM_WEB_PORT": str(port)}, stdin=subprocess.DEVNULL,
            stdout=said, stderr=said,
        )  # fmt: skip
    try:
        _wait(process, port, log)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_PATIENCE_S)
        finally:
            process.kill()
            process.wait()


@contextmanager
def signed_in(port: int, who: Account) -> Iterator[Visitor]:
    with closing(Visitor(port)) as visitor:
        visitor.sign_in(who)
        yield visitor


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), closing(Visitor(port)) as visitor:
            if visitor.get("/alive").status == http.client.OK:
                return
        time.sleep(0.1)
    raise BenchError(f"the console does not answer: {log.read_text(errors='replace')[-1000:]}")


def form_token(page: str) -> str:
    """What a form of this page carries."""
    found = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert found is not None, page[:300]
    return found[1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
