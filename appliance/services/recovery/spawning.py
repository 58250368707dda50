"""The supervisor as a process of its own, where no `strongroom serve` runs.

The rule: it outlives whoever started it, keeps nothing of his (folder, terminal, passphrase), and ends by itself when
no recovery is left.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

SUPERVISOR = "supervisor"  # who looks after the recoveries of the home
DAEMON = "daemon"  # `strongroom serve`: it takes that over from a spawned supervisor
_SECRETS = ("STRONGROOM_PASSPHRASE", "STRONGROOM_RECOVERY_KEY_FILE")
_LOG_BYTES_MAX = 1 << 20


def ensure_supervisor(appliance: Appliance) -> None:
    """Start one, unless one lives. To be called after what it shall look after is in the catalog."""
    if appliance.alive(SUPERVISOR) or appliance.alive(DAEMON):
        return
    log = appliance.settings.log_directory / "supervisor.log"
    if log.exists() and log.stat().st_size > _LOG_BYTES_MAX:
        log.replace(log.with_suffix(".log.1"))
    environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    with log.open("ab") as words:
        # -P: modules come from where strongroom is installed, not from the folder that somebody happens to be in.
        subprocess.Popen(
            [sys.executable, "-P", "-m", "appliance.cli", "--home", str(appliance.settings.home), "supervise"],
            stdin=subprocess.DEVNULL, stdout=words, stderr=words, cwd=Path("/"), env=environment,
            start_new_session=True,
        )  # fmt: skip
