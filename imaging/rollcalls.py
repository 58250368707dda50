"""Roll calls: which restore points a collection found, written before it removes anything (docs/locking.md).

Rule: a point of the newest roll call that is not listed now, and that nobody deleted, means that a listing lies or that
a point is lost: nothing may be removed then. The number of the last one seen is remembered outside the repository, so
that one that was set back is noticed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imaging import canonical
from imaging.clock import Clock
from imaging.envelope import ObjectType
from imaging.errors import Damaged, ImagingError, ObjectMissing
from imaging.objects import SealedObjects

_log = logging.getLogger(__name__)
_NAME: Final = re.compile(r"rollcalls/(\d{10})")
_ITEMS_MAX: Final = 10_000_000


class RolledBack(ImagingError):
    """The repository is older than what this appliance has seen of it, or does not show all that is there."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"the repository does not hold what it held before: {detail}",
            hint="see whether its storage was set back, replaced or shows only a part; nothing is removed meanwhile",
        )
        self.detail = detail


@dataclass(frozen=True, slots=True)
class RollCall:
    """`unlisted` are packs that no index object listed, `leases` those that had not ended."""

    number: int
    points: frozenset[str]
    unlisted: frozenset[bytes]
    leases: frozenset[str]


FIRST: Final = RollCall(0, frozenset(), frozenset(), frozenset())


class RollCalls:
    """Borrows everything; remembers in `folder`."""

    def __init__(self, objects: SealedObjects, clock: Clock, folder: Path) -> None:
        self._objects = objects
        self._clock = clock
        self._remembered = folder / "rollcall"

    def newest(self) -> RollCall:
        """RolledBack when it is older than the last one seen here; Damaged."""
        while True:
            names = [each.name for each in self._objects.store.list("rollcalls/") if _NAME.fullmatch(each.name)]
            seen = self._seen()
            if not names:
                if seen:
                    raise RolledBack(f"roll call {seen} was seen, and there is none now")
                return FIRST
            name = max(names)
            number = int(name.removeprefix("rollcalls/"))
            if number < seen:
                raise RolledBack(f"roll call {seen} was seen, and the newest now is {number}")
            try:
                fields = self._objects.read_json(ObjectType.ROLL_CALL, name)
            except ObjectMissing:
                continue  # a newer one was written, and this one removed, since it was listed
            self._remember(number)
            try:
                unlisted = frozenset(bytes.fromhex(text) for text in fields.texts("unlisted", _ITEMS_MAX))
            except ValueError as error:
                raise Damaged(name, "it lists something that is no hash") from error
            return RollCall(
                number,
                frozenset(fields.texts("points", _ITEMS_MAX)),
                unlisted,
                frozenset(fields.texts("leases", _ITEMS_MAX)),
            )

    def write(
        self, after: RollCall, points: Iterable[str], unlisted: Collection[bytes], leases: Iterable[str]
    ) -> RollCall:
        """The next one; older ones go. ObjectExists when another collection was faster."""
        made = RollCall(after.number + 1, frozenset(points), frozenset(unlisted), frozenset(leases))
        name = f"rollcalls/{made.number:010}"
        self._objects.create_json(
            ObjectType.ROLL_CALL,
            name,
            {
                "created_utc": canonical.utc_text(self._clock.now_utc()),
                "leases": sorted(made.leases),
                "points": sorted(made.points),
                "unlisted": sorted(pack.hex() for pack in made.unlisted),
            },
        )
        self._remember(made.number)
        for listed in list(self._objects.store.list("rollcalls/")):
            if _NAME.fullmatch(listed.name) and listed.name < name:
                try:
                    self._objects.store.delete(listed.name)
                except ObjectMissing:
                    continue
        return made

    def _seen(self) -> int:
        try:
            return int(self._remembered.read_text("utf-8"))
        except (OSError, ValueError):
            return 0  # nothing is remembered: what is there now is taken for the newest

    def _remember(self, number: int) -> None:
        try:
            self._remembered.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = self._remembered.with_suffix(".new")
            temporary.write_text(str(number), "utf-8")
            temporary.replace(self._remembered)
        except OSError as error:
            _log.warning("the roll call cannot be remembered in %s: %s", self._remembered.parent, error)
