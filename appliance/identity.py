"""Who this appliance is: an id that its home keeps, whatever becomes of the catalog.

The rule: written once, before anything is begun under it, and never changed by the program. A copy of the home has the
same id and would take what the other one does for its own; a shared catalog tells the two apart by their places.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from appliance import home
from appliance.settings import Settings

_ID = re.compile(rb"[0-9a-f]{32}\n?")
_MACHINE_ID = Path("/etc/machine-id")


class _Taken(Exception):
    pass


def read_id(settings: Settings) -> str | None:
    """None: it has none yet. HomeUnusable."""
    path = settings.identity_file
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise home.HomeUnusable(path, f"it cannot be read: {err.strerror}") from err
    if _ID.fullmatch(data) is None:
        raise home.HomeUnusable(
            path, "it is not the id of an appliance (32 hexadecimal digits)",
            hint="Move it away: this home then is a new appliance, and what it had under way is of another.",
        )  # fmt: skip
    return data.decode("ascii").strip()


def keep_id(settings: Settings, id: str) -> str:
    """From now on the id, unless another process was quicker; returns the one that holds. HomeUnusable."""
    try:
        home.write_private(settings.identity_file, f"{id}\n".encode("ascii"), replace=False, taken=_Taken())
    except _Taken:
        return read_id(settings) or keep_id(settings, id)
    return id


def place(settings: Settings) -> str:
    """Tells this home from a copy of it, on another machine or in another folder."""
    try:
        machine = _MACHINE_ID.read_bytes().strip()
    except OSError:
        machine = b""
    return hashlib.blake2b(machine + b"\0" + bytes(settings.home.resolve()), digest_size=32).hexdigest()
