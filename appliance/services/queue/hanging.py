"""A sweep of the queue that does not come to its end: since when, for whoever asks how everything stands.

The rule: what hangs cannot tell it, so who watches it writes a file in `run`; it counts only while workers live.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance import home
from appliance.clock import format_utc, parse_utc
from appliance.services.spawning import WORKERS

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_log = logging.getLogger(__name__)
AFTER_S: Final = 60.0


def note(appliance: Appliance, since_utc: datetime) -> None:
    """That a sweep, begun then, hangs. That it cannot be written is logged."""
    try:
        _file(appliance).write_text(format_utc(since_utc), "ascii")
    except OSError as err:
        _log.warning("%s cannot be written: %s", _file(appliance), err.strerror)


def over(appliance: Appliance) -> None:
    with suppress(OSError):  # one that stays is put right by the next sweep, and counts only while workers live
        _file(appliance).unlink(missing_ok=True)


def hanging(appliance: Appliance) -> tuple[datetime, str] | None:
    """Since when the sweep of this home hangs, and that in words; None: it does not."""
    try:
        since = parse_utc(_file(appliance).read_text("ascii"))
    except (OSError, ValueError):
        return None
    if not appliance.alive(WORKERS):
        return None
    return since, (
        f"the sweep of the queue has waited since {since:%Y-%m-%d %H:%M} UTC for the repository in"
        f" {home.location_of(appliance.settings)}: until it answers, runs that died are not taken up again, and what is"
        " due may wait"
    )


def _file(appliance: Appliance) -> Path:
    return appliance.settings.run_directory / "sweep.hangs"
