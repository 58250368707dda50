"""The server under the console: gunicorn with threads, over TLS, in a process of its own.

The rule: a page takes a thread for milliseconds, a stream of events or a screen for as long as somebody looks at it; so
both are counted (`Streams`), and end at once when the server is told to end.
"""

from __future__ import annotations

import gc
import os
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.workers.gthread import ThreadWorker

from appliance.setting_sections import WebSettings
from web.current import parts_of
from web.tls import Certificate

THREADS = 40
STREAMS_MAX = 24
_IDLE_S = 30  # a client that sends nothing, or takes nothing, for so long is left
_END_S = 5


class TooManyStreams(Exception):
    """As many look at something live as may."""


class Streams:
    """Answers that last. Thread-safe."""

    def __init__(self, most: int = STREAMS_MAX) -> None:
        self.ending = threading.Event()
        self._places = threading.BoundedSemaphore(most)

    @contextmanager
    def one(self) -> Iterator[threading.Event]:
        """A place for one of them; yields what is set when it has to end. TooManyStreams."""
        if not self._places.acquire(blocking=False):
            raise TooManyStreams
        try:
            yield self.ending
        finally:
            self._places.release()


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """As gunicorn's own, but nobody holds a thread by sending nothing, and what lasts ends with the server."""

    def init_process(self) -> None:
        for listener in self.sockets:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # connections inherit both
                listener.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _IDLE_S, 0))
        super().init_process()

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.app.streams.ending.set()
        super().handle_exit(sig, frame)


class Server(BaseApplication):  # type: ignore[misc]
    """Runs until SIGTERM. `make` is called in the process that answers, which is a fork; `ready` once it listens."""

    def __init__(
        self,
        settings: WebSettings,
        certificate: Certificate | None,
        make: Callable[[Streams], Flask],
        ready: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._certificate = certificate
        self._make = make
        self._ready = ready
        self._context: ssl.SSLContext | None = None
        self._app: Flask | None = None
        self.streams = Streams()
        super().__init__()

    def load_config(self) -> None:
        web = self._settings
        host = f"[{web.listen}]" if ":" in web.listen else web.listen
        options: dict[str, object] = {
            "bind": f"{host}:{web.port}",
            "workers": 1,
            "worker_class": "web.server.Worker",
            "threads": THREADS,
            "worker_connections": 400,
            "keepalive": 15,
            "graceful_timeout": _END_S,
            "timeout": 120,  # of the loop that accepts, not of an answer
            "worker_tmp_dir": "/dev/shm" if os.access("/dev/shm", os.W_OK) else None,  # noqa: S108
            "control_socket_disable": True,
            "forwarded_allow_ips": "",
            "umask": 0o077,
            "loglevel": "warning",
            "proc_name": "strongroom-web",
            "post_worker_init": lambda _worker: self._ready(),
            "worker_exit": lambda _server, _worker: self._close(),
            "limit_request_line": 4096,
            "limit_request_fields": 60,
        }
        if self._certificate is not None:
            options |= {
                "certfile": str(self._certificate.file),
                "keyfile": str(self._certificate.key_file),
                "ssl_context": lambda _config, default: self._tls(default),
            }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        app = self._app = self._make(self.streams)
        gc.collect()
        gc.freeze()  # modules stay: else looking through them holds up a page for 60 ms now and then
        return app

    def _close(self) -> None:
        if self._app is not None:
            parts_of(self._app).close()

    def _tls(self, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        """One for all connections: gunicorn would read the files again for each."""
        if self._context is None:
            self._context = default()
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        return self._context


def say(text: str) -> None:
    """To whoever reads what `strongroom serve` says."""
    print(text, file=sys.stderr, flush=True)
