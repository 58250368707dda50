"""What is found by a few characters, of every kind.

The rule: whatever is typed, the work is bounded: names are looked through in memory, ids by their beginning in an
index, and of each kind only the first are told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from appliance.catalog.machines import HostRow
from appliance.models import PointRecord, RunRecord
from appliance.services.browsing.fleet import MachineFilter, MachineRow

SHOWN: Final = 10
_CHARACTERS_MAX: Final = 200
_ID: Final = re.compile(r"[0-9a-f]{4,32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Found:
    """The first of each kind; `more`: there are others."""

    machines: tuple[MachineRow, ...] = ()
    hosts: tuple[HostRow, ...] = ()
    policies: tuple[str, ...] = ()
    points: tuple[PointRecord, ...] = ()
    runs: tuple[RunRecord, ...] = ()
    more: bool = False

    def __bool__(self) -> bool:
        return bool(self.machines or self.hosts or self.policies or self.points or self.runs)


def wanted(text: str) -> str:
    """What is looked for: "" for nothing."""
    return text.strip()[:_CHARACTERS_MAX].casefold()


def as_id(text: str) -> str | None:
    """The beginning of an id, if it may be one."""
    return text if _ID.fullmatch(text) else None


def machines(rows: Iterable[MachineRow], text: str) -> Sequence[MachineRow]:
    """Those whose names begin with it first."""
    fits = MachineFilter(text=text).fits
    return sorted(filter(fits, rows), key=lambda row: not row.machine.name.casefold().startswith(text))


def named(names: Iterable[str], text: str) -> Sequence[str]:
    return sorted((name for name in names if text in name.casefold()), key=lambda name: not name.startswith(text))
