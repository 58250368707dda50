"""`strongroom serve` and `strongroom supervise`: what goes on without a person."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

import click

from appliance.cli.output import tell, warn
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, pass_session

_END_S = 1.5


@click.command()
@pass_session
def serve(session: Session) -> None:
    """Look after recovered machines, owed thaws and what dead runs left behind, until interrupted.

    Recoveries that were under way are taken up again first: exports, machines that went off with the host, migrations,
    discards. To be run by a service manager; without it, a process that every command starts if need be looks after
    recoveries, until a reboot ends it.

    \b
    Example:
      strongroom serve
    """
    _supervise(session, for_ever=True)


@click.command(hidden=True)
@click.option("--once", is_flag=True, help="Until no guest is hurt by a debt; after ten minutes a supervisor goes on.")
@pass_session
def supervise(session: Session, once: bool) -> None:
    """Look after recovered machines until none is left, nor a debt that hurts a guest; with --once, settle what dead
    runs left behind.

    \b
    Example:
      strongroom supervise --once
    """
    from appliance.services.upkeep import UpkeepService

    if not once:
        _supervise(session, for_ever=False)
        return
    left = UpkeepService(session.appliance).until_paid(threading.Event(), warn)
    exit_with(EXIT_PARTLY if left else 0)


def _supervise(session: Session, *, for_ever: bool) -> None:
    from appliance.services.recovery import Supervisor

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
            signal.signal(number, end)
    supervisor = Supervisor(session.appliance, for_ever=for_ever)
    if for_ever:  # only now, as whoever reads it may send a signal at once
        tell(f"serving {session.appliance.settings.home}; end with Ctrl-C or SIGTERM")
    failure: list[Exception] = []

    def work() -> None:
        try:
            supervisor.run(stop)
        except Exception as err:  # noqa: BLE001  (the main thread raises it)
            failure.append(err)
        finally:
            stop.set()

    worker = threading.Thread(target=work, name="supervisor", daemon=True)
    worker.start()
    stop.wait()
    # A host that does not answer is not waited for: whatever is under way may be cut off anywhere.
    worker.join(_END_S)
    if failure:
        raise failure[0]
