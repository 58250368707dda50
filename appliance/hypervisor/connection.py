"""A connection to libvirtd that fails in time and comes back by itself.

The rule: no call waits for ever for a host that is silent. Opening has a time-out of its own; after that keep-alives,
driven by one event loop thread per process, break a connection whose other end stopped answering. A connection that
broke (libvirtd restarted) is opened again by the next call; what was under way is never repeated silently, except by
`patiently`, which is for calls that may safely be made twice.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import libvirt

from appliance.hypervisor.calls import Domain, Handle, translate, words_of
from appliance.hypervisor.errors import HostUnreachable, MachineNotFound

T = TypeVar("T")

_UUID = re.compile(r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")
_RETRY_PAUSE_S = 0.2
_KEEPALIVES = 5
_END_PATIENCE_S = 5.0

# libvirt is one library per process: its event loop and its error handler can be set up only once.
_library_lock = threading.Lock()
_library_ready = False
_library_over = threading.Event()


def _prepare_library() -> None:
    global _library_ready
    with _library_lock:
        if _library_ready:
            return
        # Without a handler libvirt prints every error to stderr, beside the exception that carries it.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        # A timer that never does anything keeps the loop's poll from being the only thing that could end it.
        timer = libvirt.virEventAddTimeout(1000, lambda _timer, _opaque: None, None)
        events = threading.Thread(target=_run_events, name="libvirt-events", daemon=True)
        events.start()
        atexit.register(_end_events, events, timer)
        _library_ready = True


def _end_events(events: threading.Thread, timer: int) -> None:
    """Before the interpreter goes: a callback into it later would crash a command that has done all its work."""
    _library_over.set()
    libvirt.virEventUpdateTimeout(timer, 0)
    events.join(_END_PATIENCE_S)


def _run_events() -> None:
    while not _library_over.is_set():
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            time.sleep(_RETRY_PAUSE_S)  # a poll that failed is tried again; connections report their own errors


def is_uuid(text: str) -> bool:
    return _UUID.fullmatch(text) is not None


class Connection:
    """One libvirt connection to one host. Owns it; thread-safe, as libvirt itself is.

    `address` gives the URI anew for each opening (a carried socket may have moved).
    """

    def __init__(
        self,
        host: str,
        address: Callable[[], str],
        timeout_s: float,
        *,
        keepalive: bool = True,
        handle: type[Handle] = Handle,
    ) -> None:
        self.host = host
        self.timeout_s = timeout_s
        self._address = address
        self._keepalive = keepalive
        self._handle = handle
        self._lock = threading.Lock()
        self._raw: Any = None
        self._closed = False

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._drop()

    def _drop(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            with contextlib.suppress(libvirt.libvirtError):  # broken already: nothing is left to close
                raw.close()

    def handle(self) -> Handle:
        """The connection, opened if it is not, or no longer, open."""
        with self._lock:
            if self._closed:
                raise HostUnreachable(self.host, "the connection was closed here")
            if self._raw is not None and not self._is_alive():
                self._drop()
            if self._raw is None:
                self._raw = self._open()
            return self._handle(self._raw, self.host, self.host)

    def _is_alive(self) -> bool:
        try:
            return bool(self._raw.isAlive())
        except libvirt.libvirtError:
            return False

    def _open(self) -> Any:
        """libvirt's own open has no time-out: it is done in a thread that is left behind when it takes too long."""
        _prepare_library()
        address = self._address()
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        given_up = threading.Event()

        def work() -> None:
            try:
                raw = libvirt.open(address)
                if self._keepalive:
                    raw.setKeepAlive(max(1, round(self.timeout_s / (_KEEPALIVES + 1))), _KEEPALIVES)
            except libvirt.libvirtError as error:
                answer.put(error)
                return
            if given_up.is_set():
                raw.close()
            else:
                answer.put(raw)

        threading.Thread(target=work, name=f"libvirt-open-{self.host}", daemon=True).start()
        try:
            result = answer.get(timeout=self.timeout_s)
        except queue.Empty:
            given_up.set()
            raise HostUnreachable(self.host, f"no answer from libvirtd within {self.timeout_s:g} s") from None
        if isinstance(result, libvirt.libvirtError):
            raise HostUnreachable(self.host, words_of(result)) from result
        return result

    def domain(self, machine: str) -> Domain:
        """By UUID, else by name."""
        connection = self.handle()
        raw = None
        if is_uuid(machine):
            raw = self._lookup(connection, "lookupByUUIDString", machine)
        if raw is None:
            raw = self._lookup(connection, "lookupByName", machine)
        if raw is None:
            raise MachineNotFound(self.host, machine)
        return Domain(self._handle(raw, self.host, machine))

    def _lookup(self, connection: Handle, call: str, machine: str) -> Any:
        try:
            return getattr(connection.raw, call)(machine)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise translate(error, self.host, machine, call, self._is_alive()) from error

    def domains(self) -> list[Domain]:
        connection = self.handle()
        found = connection.call("listAllDomains", 0)
        return [Domain(self._handle(raw, self.host, raw.name())) for raw in found]

    def patiently(self, attempt: Callable[[], T]) -> T:
        """Do it, and again while the host is away, up to the time-out: for what may safely be done twice. Not once this
        connection was closed: no host will come back to it."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                return attempt()
            except HostUnreachable:
                if self._closed or time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_PAUSE_S)
