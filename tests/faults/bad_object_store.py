"""A loopback proxy in front of a real object store, which answers as a bad one does.

    with BadObjectStore(server.url) as bad:
        bad.fail("get", cut_short(), nth=2)
        store = S3Store(server.bucket("x/", url=bad.url), server.credentials)

What signs a request is passed on as it came, so the real server checks it. A fault that was queued and never fired
fails the test when the block ends.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self, TypeAlias
from urllib.parse import parse_qs, urlsplit

from appliance.readable import readable

OPERATIONS = ("put", "create", "get", "head", "list", "delete", "delete_many", "token")
_PATIENCE_S = 30.0
_SETTLING_S = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Exchange:
    """One request, and the ways to answer it. The connection is used again only after reply()."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: bytes, upstream: tuple[str, int]) -> None:
        self.headers: Final = handler.headers
        self.body = body
        self._handler = handler
        self._upstream = upstream

    def forward(self) -> Answer:
        """What the real server makes of it."""
        with contextlib.closing(http.client.HTTPConnection(*self._upstream, timeout=_PATIENCE_S)) as connection:
            connection.putrequest(self._handler.command, self._handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self._handler.headers.items():
                connection.putheader(name, value)
            connection.endheaders(self.body)
            answer = connection.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() != "transfer-encoding"}
            return Answer(answer.status, kept, answer.read())

    def reply(self, answer: Answer, *, length: int | None = None, byte_s: float = 0.0) -> None:
        """With `length`, that is announced and not the body's; with `byte_s`, each byte takes so long."""
        self._handler.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name.lower() != "content-length":
                self._handler.send_header(name, value)
        announced = len(answer.body) if length is None else length
        self._handler.send_header("Content-Length", str(announced))
        self._handler.end_headers()
        if byte_s:
            for at in range(len(answer.body)):
                self._handler.wfile.write(answer.body[at : at + 1])
                time.sleep(byte_s)
        else:
            self._handler.wfile.write(answer.body)
        if announced != len(answer.body):
            self.hang_up()

    def hang_up(self) -> None:
        self._handler.close_connection = True
        with contextlib.suppress(OSError):
            self._handler.connection.shutdown(socket.SHUT_RDWR)

    def stay_silent(self) -> None:
        """Until the other side has enough of it."""
        self._handler.close_connection = True
        readable(self._handler.connection, _PATIENCE_S)


Reaction: TypeAlias = Callable[[Exchange], None]


# Ways to be bad


def refused(status: int, code: str, message: str = "as the test wants it", **headers: str) -> Reaction:
    """Nothing is carried out."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return lambda exchange: exchange.reply(
        Answer(status, {"Content-Type": "application/xml", **headers}, body if code else b"")
    )


def silent() -> Reaction:
    return lambda exchange: exchange.stay_silent()


def silent_after_success() -> Reaction:
    return then(lambda exchange, answer: exchange.stay_silent())


def failed_after_success(status: int, code: str) -> Reaction:
    return then(lambda exchange, answer: refused(status, code)(exchange))


def broken() -> Reaction:
    return lambda exchange: exchange.hang_up()


def broken_after_success() -> Reaction:
    return then(lambda exchange, answer: exchange.hang_up())


def cut_short() -> Reaction:
    """Half of the bytes that were announced, and the end."""
    return then(
        lambda exchange, answer: exchange.reply(
            replace(answer, body=answer.body[: len(answer.body) // 2]), length=len(answer.body)
        )
    )


def slow(byte_s: float) -> Reaction:
    return then(lambda exchange, answer: exchange.reply(answer, byte_s=byte_s))


def late(wait_s: float) -> Reaction:
    def react(exchange: Exchange) -> None:
        time.sleep(wait_s)
        exchange.reply(exchange.forward())

    return react


def garbled(change: Callable[[bytes], bytes]) -> Reaction:
    """What is asked arrives as something else."""

    def react(exchange: Exchange) -> None:
        exchange.body = change(exchange.body)
        exchange.reply(exchange.forward())

    return react


def changed(change: Callable[[Answer], Answer]) -> Reaction:
    """Another answer, whose announced length fits it."""
    return then(lambda exchange, answer: exchange.reply(change(answer)))


def empty_listing() -> Reaction:
    """As if there were nothing, and well formed."""

    def emptied(answer: Answer) -> Answer:
        body = re.sub(rb"<(Contents|NextContinuationToken)>.*?</\1>", b"", answer.body, flags=re.DOTALL)
        body = re.sub(rb"<KeyCount>\d+<", b"<KeyCount>0<", body)
        return replace(answer, body=body.replace(b"<IsTruncated>true<", b"<IsTruncated>false<"))

    return changed(emptied)


def then(react: Callable[[Exchange, Answer], None]) -> Reaction:
    return lambda exchange: react(exchange, exchange.forward())


@dataclass(slots=True)
class Fault:
    operation: str
    nth: int
    reaction: Reaction
    within: str
    forever: bool
    every: bool
    seen: int = 0
    fired: int = 0

    def due(self) -> bool:
        if self.every:
            return self.seen % self.nth == 0
        return self.seen == self.nth or (self.forever and self.seen > self.nth)


class BadObjectStore:
    """Owns a server on loopback; borrows the one at `url`. Counts requests by operation in `calls`: which one a request
    is, `operation_of` tells from its method, path and headers. With `certificate` (a file that also has its key) it
    speaks TLS."""

    def __init__(
        self, url: str, certificate: Path | None = None, operation_of: Callable[[str, str, Message], str] | None = None
    ) -> None:
        host, port = urlsplit(url).hostname, urlsplit(url).port
        assert host is not None
        assert port is not None
        self._upstream = host, port
        self._operation_of = operation_of or _operation
        self._lock = threading.Lock()
        self._met = threading.Condition(self._lock)
        self._meeting = 0
        self.faults: list[Fault] = []
        self.calls = dict.fromkeys(OPERATIONS, 0)
        self.connections = 0
        self.most_connections = 0
        self.opened = 0
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self._scheme = "http"
        if certificate is not None:
            self._scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def fail(
        self,
        operation: str,
        reaction: Reaction,
        *,
        nth: int = 1,
        within: str = "",
        forever: bool = False,
        every: bool = False,
    ) -> None:
        """The nth request of that kind, whose path or query has `within`, is met so; with `forever` later ones too;
        with `every` each nth."""
        if operation not in OPERATIONS:
            raise ValueError(f"an object store has no operation {operation}")
        self.faults.append(Fault(operation, nth, reaction, within, forever, every))

    def begin(self) -> None:
        """Counts from nought."""
        self.calls = dict.fromkeys(OPERATIONS, 0)
        self.opened = 0

    def forgive(self) -> None:
        """From now on all is well; what was queued must have fired."""
        try:
            self.settle()
        finally:
            self.faults.clear()

    def quiet(self) -> None:
        """Until nobody is being answered: also those who were given up have been, then, or their clients are gone."""
        with self._met:
            assert self._met.wait_for(lambda: not self._meeting, _SETTLING_S), f"{self._meeting} are not answered"

    def settle(self) -> None:
        """Until every fault has fired and what was asked is carried out. On a busy machine a client may give a request
        up before it is met here: it is on its way all the same."""
        with self._met:
            settled = self._met.wait_for(lambda: not self._meeting and not self._idle(), _SETTLING_S)
            if self._idle():
                raise AssertionError(f"faults that never fired: {self._idle()}")
            assert settled, f"{self._meeting} requests are not answered"

    def _idle(self) -> list[Fault]:
        return [fault for fault in self.faults if not fault.fired]

    def meet(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        operation = self._operation_of(handler.command, handler.path, handler.headers)
        exchange = Exchange(handler, body, self._upstream)
        with self._lock:
            self._meeting += 1
            self.calls[operation] += 1
            concerned = [each for each in self.faults if each.operation == operation and each.within in handler.path]
            for fault in concerned:
                fault.seen += 1
            due = next((fault for fault in concerned if fault.due()), None)
            if due is not None:
                due.fired += 1
        try:
            if due is not None:
                due.reaction(exchange)
            else:
                exchange.reply(exchange.forward())
        finally:
            with self._met:
                self._meeting -= 1
                self._met.notify_all()

    def count(self, change: int) -> None:
        with self._lock:
            self.connections += change
            self.opened += change > 0
            self.most_connections = max(self.most_connections, self.connections)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.settle()
        finally:
            self._server.shutdown()
            self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    owner: ClassVar[BadObjectStore]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.owner.count(1)

    def finish(self) -> None:
        self.owner.count(-1)
        with contextlib.suppress(OSError):
            super().finish()

    def _meet(self) -> None:
        self.owner.meet(self, self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _meet  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


def _operation(method: str, path: str, headers: Message) -> str:
    query = parse_qs(urlsplit(path).query, keep_blank_values=True)
    if method == "PUT":
        return "create" if headers.get("If-None-Match") else "put"
    if method == "POST":
        return "delete_many"
    if method in ("DELETE", "HEAD"):
        return method.lower()
    return "list" if {"list-type", "comp"} & query.keys() else "get"
