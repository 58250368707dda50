"""`strongroom serve` and `strongroom supervise`: what goes on without a person."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

import click

from appliance.cli.output import moment, tell, warn
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, pass_session

_END_S = 1.5


@click.command()
@click.option("--no-web", is_flag=True, help="Without the console, as with web.port = 0.")
@pass_session
def serve(session: Session, no_web: bool) -> None:
    """Look after recovered machines, owed thaws and what dead runs left behind, take runs from the queue, and show the
    console, until interrupted.

    The console answers at https://127.0.0.1:8443/ (web.listen, web.port), to browsers on this machine only unless
    web.listen says otherwise; the fingerprint of its certificate is printed. While nobody has an account, so is a link
    by which the first admin sets theirs up.

    Every minute (inventory.refresh_s) the hosts are asked which machines they have: 'vm list --known' shows it.

    What policies want is asked of the queue when it is due ('policy due' shows how that stands), unless queue.workers
    is 0.

    In a guarded repository, requests that two persons have signed are carried out when their delay is over.

    Runs of the queue go two at a time (queue.workers). When it is told to end, no more are begun; those under way are
    given half a minute (queue.end_s), then they are ended in order, and go back to the queue. A second signal ends them
    at once.

    Recoveries that were under way are taken up again first: exports, machines that went off with the host, migrations,
    discards. To be run by a service manager; without it, a process that every command starts if need be looks after
    recoveries, until a reboot ends it.

    \b
    Example:
      strongroom serve
    """
    _supervise(session, for_ever=True, web=not no_web)


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
        _supervise(session, for_ever=False, web=False)
        return
    left = UpkeepService(session.appliance).until_paid(threading.Event(), warn)
    exit_with(EXIT_PARTLY if left else 0)


def _supervise(session: Session, *, for_ever: bool, web: bool) -> None:
    from appliance.readiness import LOOK_S, Readiness
    from appliance.services.console import ConsoleService
    from appliance.services.recovery import Supervisor

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("alembic", "huey"):
        logging.getLogger(name).setLevel(logging.WARNING)
    stop, at_once = threading.Event(), threading.Event()

    _end_by_signal(stop, at_once)
    readiness = Readiness()
    supervisor = Supervisor(session.appliance, for_ever=for_ever)
    console = ConsoleService(session.appliance)
    if for_ever:  # only now, as whoever reads it may send a signal at once
        tell(f"serving {session.appliance.settings.home}; end with Ctrl-C or SIGTERM")
    failure: list[Exception] = []
    over = threading.Event()  # of the supervisor: it looks after machines while runs come to their ends

    def begin(name: str, work: Callable[[], None]) -> threading.Thread:
        def working() -> None:
            try:
                work()
            except Exception as err:  # noqa: BLE001  (the main thread raises it)
                failure.append(err)
            finally:
                stop.set()

        thread = threading.Thread(target=working, name=name, daemon=True)
        thread.start()
        return thread

    beside = [begin("supervisor", lambda: supervisor.run(over))]
    if for_ever:
        beside += _begin_beside(session, begin, stop, over)
    taking = begin("workers", lambda: _take_runs(session, stop, at_once)) if for_ever and _workers(session) else None
    showing = begin("console", lambda: console.keep(stop, warn)) if web and console.wanted else None
    if showing is not None:
        console.wait_until_tried(stop)
        _invite(session, stop)
    readiness.keep_telling(f"serving {session.appliance.settings.home}", stop)
    for thread in filter(None, (taking, showing)):
        while thread.is_alive():
            thread.join(LOOK_S)
    over.set()
    left = _left(beside)
    if failure:
        raise failure[0]
    if left:
        # Python ends a thread that comes back from a library while the interpreter ends, wherever it stands: with the
        # library's locks, on which others may then wait for ever. So it ends as if it were killed, which hurts nothing.
        sys.stderr.flush()
        os._exit(0)


def _end_by_signal(stop: threading.Event, at_once: threading.Event) -> None:
    """The first one ends it in order, the second at once."""

    def end(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            at_once.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
            signal.signal(number, end)


def _left(threads: Sequence[threading.Thread]) -> bool:
    """Whether one of them is still at work after a moment. A host that does not answer is not waited for: whatever is
    under way may be cut off anywhere."""
    end_s = time.monotonic() + _END_S
    for thread in threads:
        thread.join(max(0.0, end_s - time.monotonic()))
    return any(thread.is_alive() for thread in threads)


def _invite(session: Session, stop: threading.Event) -> None:
    """Print the link by which the first admin gets an account, while nobody has one."""
    from appliance.catalog.errors import CatalogError
    from appliance.services.accounts.errors import UsersExist
    from appliance.services.accounts.setting_up import SetUpService

    if stop.is_set():
        return
    try:
        link = SetUpService(session.appliance).first_link()
    except UsersExist:
        return
    except CatalogError as err:
        warn(str(err))
        return
    url = session.appliance.settings.web.url.rstrip("/") + link.path
    tell(f"nobody has an account yet: the first admin sets theirs up at {url} (once, until {moment(link.expires_utc)})")


def _workers(session: Session) -> int:
    return session.appliance.settings.queue.workers


def _begin_beside(
    session: Session,
    begin: Callable[[str, Callable[[], None]], threading.Thread],
    stop: threading.Event,
    over: threading.Event,
) -> list[threading.Thread]:
    """What goes on until the end, whatever comes of runs; nobody asks for more of those once it has begun to end."""
    begun = [
        begin("inventory", lambda: _look(session, over)),
        begin("sizes", lambda: _measure(session, over)),
        begin("catalog key", lambda: _share_key(session, over)),
        begin("requests", lambda: _carry_out(session, over)),
    ]
    if session.appliance.settings.notices.targets:
        begun.append(begin("notices", lambda: _tell_people(session, over)))
    if _workers(session):
        begun.append(begin("scheduler", lambda: _schedule(session, stop)))
    return begun


def _schedule(session: Session, stop: threading.Event) -> None:
    from appliance.services.scheduling import Scheduler

    Scheduler(session.appliance).run(stop)


def _look(session: Session, stop: threading.Event) -> None:
    from appliance.services.sightings import SightingService

    SightingService(session.appliance).keep_looking(stop)


def _measure(session: Session, stop: threading.Event) -> None:
    from appliance.services.sizes import SizeService

    SizeService(session.appliance).keep_looking(stop)


def _share_key(session: Session, stop: threading.Event) -> None:
    from appliance.catalog_keys import keep_sharing

    keep_sharing(session.appliance, stop)


def _carry_out(session: Session, stop: threading.Event) -> None:
    from appliance.services.due_requests import DueRequests

    DueRequests(session.appliance).keep_looking(stop)


def _tell_people(session: Session, stop: threading.Event) -> None:
    from appliance.services.notices.telling import TellingService

    TellingService(session.appliance).keep_telling(stop)


def _take_runs(session: Session, stop: threading.Event, at_once: threading.Event) -> None:
    from appliance.services.queue.workers import Workers

    Workers(session.appliance, stop, at_once).run()
