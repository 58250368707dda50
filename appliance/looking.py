"""What the daemon looks at again and again, whatever comes of it: one loop for all that do only this.

The rule: a problem ends nothing, and is logged once, as long as it lasts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from appliance.errors import StrongroomError


def keep_looking(
    look: Callable[[], object], what: str, every_s: float, stop: threading.Event, log: logging.Logger
) -> None:
    """Until `stop`. `what`: for the log. StrongroomError and ImagingError are problems; any other error goes on."""
    from imaging.errors import ImagingError

    told = ""
    while not stop.is_set():
        problem = ""
        try:
            look()
        except (StrongroomError, ImagingError) as err:
            problem = str(err)
        if problem and problem != told:
            log.warning("%s: %s", what, problem)
        told = problem
        stop.wait(every_s)
