"""The newest entry of the audit's chain that this home knows of: so that a chain that was cut off, or made anew, shows.

The rule: the file is written after the entry, so it never tells of one that is not there; and only ever of a newer one,
unless an admin says that the chain is another one now.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from appliance import home
from appliance.audit import Head
from appliance.ownership import own

_HASH = re.compile(r"[0-9a-f]{64}")


class HeadFile:
    def __init__(self, path: Path, lock: Path) -> None:
        self._path = path
        self._lock = lock

    def read(self) -> Head | None:
        """None: this home has written nothing down yet. HomeUnusable."""
        try:
            document = json.loads(self._path.read_bytes())
            number, hash = document["number"], document["hash"]
            if not isinstance(number, int) or number < 1 or not _HASH.fullmatch(hash):
                raise ValueError
        except FileNotFoundError:
            return None
        except OSError as err:
            raise home.HomeUnusable(self._path, f"it cannot be read: {err.strerror}") from err
        except (ValueError, KeyError, TypeError) as err:
            raise home.HomeUnusable(
                self._path, "it does not say what the newest entry of the audit was",
                hint="'strongroom audit accept' writes it anew, from the chain as it is.",
            ) from err  # fmt: skip
        return Head(number, hash)

    def advance(self, head: Head) -> None:
        """HomeUnusable."""
        with own(self._lock, "the audit", wait=True):
            known = self.read()
            if known is None or known.number < head.number:
                self._write(head)

    def replace(self, head: Head) -> None:
        """Whatever it said. HomeUnusable."""
        with own(self._lock, "the audit", wait=True):
            self._write(head)

    def _write(self, head: Head) -> None:
        data = json.dumps({"number": head.number, "hash": head.hash}).encode("ascii") + b"\n"
        home.write_private(self._path, data, replace=True)
