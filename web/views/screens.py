"""The screen of a recovered machine, carried between the browser and QEMU.

The rule: who may open it is asked before the socket is a websocket, only a page of ours may ask, and both its opening
and its end are audited. Bytes are carried as they are: what they mean is the browser's business.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, NoReturn

from flask import Blueprint, Response, request
from simple_websocket import ConnectionClosed, Server
from werkzeug.exceptions import Forbidden, ServiceUnavailable

from appliance.models import RecoveryRecord
from appliance.readable import readable
from appliance.services.access import Act
from appliance.services.recovery import RecoveryService
from web.acts import act
from web.current import appliance, parts
from web.guarding import access, performing
from web.security import same_site
from web.server import TooManyStreams
from web.sessions import authenticate
from web.views.recoveries import found, subject_of

blueprint = Blueprint("screens", __name__)
_READ_BYTES: Final = 1 << 16
_LOOK_S: Final = 0.5
_PING_S: Final = 10
_ASK_S: Final = 10.0
_MESSAGE_BYTES_MAX: Final = 1 << 20


class _Carried(Response):
    """The answer after a websocket: none. The socket is closed, and StopIteration tells gunicorn so."""

    def __call__(self, environ: object, start_response: object) -> NoReturn:
        raise StopIteration


@blueprint.get("/recoveries/<id>/screen", websocket=True)
@act(Act.CONSOLE_OPEN)
def screen(id: str) -> Response:
    """A websocket with RFB in binary messages."""
    if not same_site() or request.headers.get("Origin") is None:
        raise Forbidden("Only a page of this console may open a screen.")
    record = found(id, Act.CONSOLE_OPEN)
    with contextlib.ExitStack() as ending:
        try:
            over = ending.enter_context(parts().streams.one())
        except TooManyStreams:
            raise ServiceUnavailable from None
        ending.enter_context(performing(Act.CONSOLE_OPEN, subject_of(record), {"recovery": record.id}))
        machine = ending.enter_context(RecoveryService(appliance()).open_screen(record.id))
        browser = Server(
            request.environ, receive_bytes=_READ_BYTES, ping_interval=_PING_S, max_message_size=_MESSAGE_BYTES_MAX,
            subprotocols=["binary"],
        )  # fmt: skip
        _carry(browser, machine, over, lambda: _may_still(record))
    return _Carried()


def _may_still(record: RecoveryRecord) -> bool:
    """A screen that is open ends with the session, and with the right to it."""
    who = authenticate()
    return who is not None and access().may(who, Act.CONSOLE_OPEN, subject_of(record))


def _carry(browser: Server, machine: socket.socket, over: threading.Event, may_still: Callable[[], bool]) -> None:
    """Until one of both has gone, or `over`, or whoever looks may not any more (asked every ten seconds)."""
    gone = threading.Event()

    def from_browser() -> None:
        try:
            while not gone.is_set():
                data = browser.receive(timeout=_LOOK_S)
                if data is not None:
                    machine.sendall(data.encode() if isinstance(data, str) else data)
        except (ConnectionClosed, OSError):
            pass  # either is gone, and the other is told below
        finally:
            gone.set()

    carrier = threading.Thread(target=from_browser, name="screen", daemon=True)
    carrier.start()
    asked_s = time.monotonic()
    try:
        while not gone.is_set() and not over.is_set():
            if time.monotonic() - asked_s >= _ASK_S:
                if not may_still():
                    break
                asked_s = time.monotonic()
            if readable(machine, _LOOK_S):
                data = machine.recv(_READ_BYTES)
                if not data:
                    break
                browser.send(data)
    except (ConnectionClosed, OSError):
        pass  # as above
    finally:
        gone.set()
        with contextlib.suppress(ConnectionClosed, OSError):
            browser.close()
        with contextlib.suppress(OSError):
            machine.shutdown(socket.SHUT_RDWR)  # QEMU may hang, and the carrier in what it sends
        carrier.join()
