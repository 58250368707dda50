"""The screen of a recovered machine, carried between the browser and QEMU.

The rule: who may open it is asked before the socket is a websocket, only a page of ours may ask, and both its opening
and its end are audited. Bytes are carried as they are: what they mean is the browser's business.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import Final

from flask import Blueprint, Response, request
from simple_websocket import ConnectionClosed, Server
from werkzeug.exceptions import Forbidden, ServiceUnavailable

from appliance.services.access import Act
from appliance.services.recovery import RecoveryService
from web.acts import act
from web.current import appliance, parts
from web.guarding import performing
from web.security import same_site
from web.server import TooManyStreams
from web.views.recoveries import found, subject_of

blueprint = Blueprint("screens", __name__)
_READ_BYTES: Final = 1 << 16
_LOOK_S: Final = 0.5
_PING_S: Final = 10
_MESSAGE_BYTES_MAX: Final = 1 << 20


@blueprint.get("/recoveries/<id>/screen")
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
            request.environ, ping_interval=_PING_S, max_message_size=_MESSAGE_BYTES_MAX, subprotocols=["binary"]
        )
        _carry(browser, machine, over)
    return Response()


def _carry(browser: Server, machine: socket.socket, over: threading.Event) -> None:
    """Until one of both has gone, or `over`."""
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
    try:
        while not gone.is_set() and not over.is_set():
            if select.select([machine], [], [], _LOOK_S)[0]:
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
        carrier.join()
