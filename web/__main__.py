"""`python -m web`: the console's process, started by `strongroom serve`."""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import sys

from flask import Flask

from appliance.bootstrap import Appliance
from appliance.clock import SystemClock
from appliance.errors import StrongroomError
from appliance.settings import Settings, SettingsError, load
from web.app import create_app
from web.server import Server, Streams, say
from web.tls import certificate

_PR_SET_PDEATHSIG = 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m web", description=__doc__)
    parser.add_argument("--ready", type=int, metavar="FD", help="a pipe that gets a byte once the console answers")
    parser.add_argument("--parent", type=int, metavar="PID", help="whom not to outlive")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        if given.parent is not None:
            _end_with(given.parent)
        return _serve(load(os.environ), given.ready)
    except StrongroomError as err:
        say(f"strongroom: the console cannot start: {err}\n{err.hint}")
        return err.exit_code


def _serve(settings: Settings, pipe: int | None) -> int:
    web = settings.web
    if not web.tls and not web.loopback:
        raise SettingsError(
            str(settings.file), f"web.listen is {web.listen}, and web.tls is off: passwords would travel in the clear",
            hint="Turn web.tls on, or listen on 127.0.0.1 and let a proxy on this machine speak TLS.",
        )  # fmt: skip
    found = certificate(settings, SystemClock()) if web.tls else None

    def make(streams: Streams) -> Flask:
        return create_app(Appliance(settings), streams=streams)

    def ready() -> None:
        by = "" if found is None else f", certificate SHA-256 {found.fingerprint}"
        say(f"the console answers at {web.url}{by}")
        if pipe is not None:
            os.write(pipe, b"1")

    Server(web, found, make, ready).run()
    return 0


def _end_with(parent: int) -> None:
    """SIGTERM when the parent dies, so that the port is free for the next."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
