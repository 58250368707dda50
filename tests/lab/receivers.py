"""Who gets notices in tests: a mail server and a web server on the loopback, real ones, keeping what they get."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session


@dataclass
class Mailbox:
    """A mail server; `url` is a target of it. `refusing`: the answer to each mail instead of taking it."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    refusing: str = ""

    @property
    def url(self) -> str:
        return f"mailto://127.0.0.1:{self.port}/?from=strongroom@example.org&to=admin@example.org"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.refusing:
            return self.refusing
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        self.recipients += envelope.rcpt_tos
        return "250 taken"


@contextmanager
def mail_server() -> Iterator[Mailbox]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        box = Mailbox(listening.getsockname()[1])
        server = _OnSocket(box, listening)
        server.start()
        try:
            yield box
        finally:
            server.stop()


class _OnSocket(Controller):
    """A port that is chosen free by whoever listens on it."""

    def __init__(self, box: Mailbox, listening: socket.socket) -> None:
        super().__init__(box, hostname="127.0.0.1", port=box.port, ready_timeout=120)
        self._listening = listening

    def _create_server(self) -> Coroutine[Any, Any, asyncio.AbstractServer]:
        return self.loop.create_server(self._factory_invoker, sock=self._listening)


@dataclass
class Webhook:
    """A web server that is posted JSON; `url` is a target of it, with a secret. `status` is what it answers, after
    `needs_s`."""

    port: int = 0
    posts: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    status: int = 200
    needs_s: float = 0
    arrived: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"json://robot:hushhush@127.0.0.1:{self.port}/hooks/T0kenOfThisHook"

    def wait(self, count: int, timeout_s: float = 120) -> list[dict[str, Any]]:
        """Until so many posts have come."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.posts) >= count, timeout_s), self.posts
        return self.posts


@contextmanager
def web_server() -> Iterator[Webhook]:
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = hook.status
            with hook.arrived:
                hook.paths.append(self.path)
                if status == 200:
                    hook.posts.append(json.loads(body))
                hook.arrived.notify_all()
            time.sleep(hook.needs_s)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hook.port = server.server_address[1]
    try:
        yield hook
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
