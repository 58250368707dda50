"""Processes of our own that outlive whoever starts them.

The rule: such a process keeps nothing of its starter: its modules come from where strongroom is installed, not from the
folder that somebody happens to be in, and it is handed neither that folder nor a terminal nor a secret. What it says
goes to a log of the home.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from appliance.settings import Settings

SUPERVISOR = "supervisor"  # who looks after the recoveries of the home
WORKERS = "workers"  # who takes runs from the queue: a part of the daemon
SCHEDULER = "scheduler"  # who asks for runs of policies: a part of the daemon
DAEMON = "daemon"  # `strongroom serve`: it takes that over from a spawned supervisor
_PAY = ("supervise", "--once")
_SECRETS = (
    "STRONGROOM_PASSPHRASE",
    "STRONGROOM_NEW_PASSPHRASE",
    "STRONGROOM_PERSON_PASSPHRASE",
    "STRONGROOM_RECOVERY_KEY_FILE",
    "STRONGROOM_NOTICES_TARGETS",
)
_LOG_BYTES_MAX = 1 << 20
_UNLESS_DONE = 'read -r answer; [ "$answer" = done ] || exec "$@"'


def ensure_supervisor(appliance: Appliance) -> None:
    """Start one, unless one lives. To be called after what it shall look after is in the catalog.

    It ends by itself when no recovery is left, and no debt that hurts a guest.
    """
    if not looked_after(appliance):
        _start(appliance.settings, "supervisor", command(appliance.settings, "supervise"))


def looked_after(appliance: Appliance) -> bool:
    """Whether a supervisor lives."""
    return appliance.alive(SUPERVISOR) or appliance.alive(DAEMON)


def pay_debts(settings: Settings) -> None:
    """Have what hurts guests settled by a process of its own, which asks again and again."""
    _start(settings, "debts", command(settings, *_PAY))


@contextmanager
def watchdog(settings: Settings) -> Iterator[None]:
    """If this process dies in the body, however that is, debts are settled at once. Costs a shell, no interpreter."""
    shell = ["/bin/sh", "-c", _UNLESS_DONE, "strongroom-watchdog", *command(settings, *_PAY)]
    process = _popen(settings, "debts", shell, subprocess.PIPE)
    try:
        yield
    finally:
        process.communicate(b"done\n")


def start_run(settings: Settings, id: str, limit_bytes_s: int | None) -> subprocess.Popen[bytes]:
    """A process that executes a run of the queue. The caller waits for it; it outlives who does not."""
    limit = [] if limit_bytes_s is None else ["--limit", str(limit_bytes_s)]
    words = command(settings, "run", "execute", id, *limit)
    return _popen(settings, "runs", words, subprocess.DEVNULL)


def command(settings: Settings, *arguments: str) -> list[str]:
    # -P: not from the current folder.
    return [sys.executable, "-P", "-m", "appliance.cli", "--home", str(settings.home), *arguments]


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _SECRETS}


def _start(settings: Settings, log: str, words: Sequence[str]) -> None:
    process = _popen(settings, log, words, subprocess.DEVNULL)
    threading.Thread(target=process.wait, name=f"strongroom-{log}", daemon=True).start()  # so that it is reaped


def _popen(settings: Settings, log: str, words: Sequence[str], stdin: int) -> subprocess.Popen[bytes]:
    environment = without_secrets(os.environ)
    with _log(settings, log) as said:
        return subprocess.Popen(
            words, stdin=stdin, stdout=said, stderr=said, cwd=Path("/"), env=environment, start_new_session=True
        )


def _log(settings: Settings, name: str) -> IO[bytes]:
    """Without a log it runs all the same: a guest may be frozen because the home is full."""
    path = settings.log_directory / f"{name}.log"
    try:
        if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
        return path.open("ab")
    except OSError:
        return open(os.devnull, "ab")
