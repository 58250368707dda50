"""Holds on restore points: what keeps each, and letting go of what nobody uses any more.

The rule: a hold that this home knows a use of ends with that use. Any other may be of another appliance, or of a
catalog that was lost: only an admin can tell, and is told what speaks for each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance.doing import Subject, about
from appliance.errors import StrongroomError
from appliance.models import CleanupAction, CleanupRecord, new_id
from appliance.ownership import is_owned
from appliance.services.fleet import FleetService
from appliance.services.upkeep import UpkeepService
from imaging.errors import HoldNotFound
from imaging.points import PROTECTED, DamagedHold

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.points import Hold, Point


FILES: Final = "files"
"""What the owner of a hold begins with while files are read out of its point: that is a restore, for a repository."""


@contextlib.contextmanager
def held_meanwhile(appliance: Appliance, point: Point, owner: str) -> Iterator[None]:
    """The point is kept while it is read; should this process die, the recorded clean-up lets go of it. It may end in
    another thread than it began in. PointNotFound."""
    holder = _holder(owner)
    try:
        with appliance.own(holder, f"restore {owner}"):
            hold = appliance.repository.hold(point, "restore", owner)
            now = appliance.clock.now_utc()
            record = CleanupRecord(new_id(), holder, CleanupAction.RELEASE_HOLD, now, subject=hold.id)
            appliance.catalog.cleanups.add(record)
            try:
                yield
            finally:
                with contextlib.suppress(HoldNotFound):
                    appliance.repository.release(hold.id)
                appliance.catalog.cleanups.drop(record.id)
    finally:
        (appliance.settings.run_directory / f"{holder}.lock").unlink(missing_ok=True)


def _holder(owner: str) -> str:
    """Who has to be alive for such a hold to be of use."""
    return f"{owner}-hold"


class HoldInUse(StrongroomError):
    def __init__(self, held: HeldPoint) -> None:
        super().__init__(f"hold {held.hold.id[:12]} is in use: {held.use}", hint=held.way_out, hold=held.hold.id)


class HoldAmbiguous(StrongroomError):
    def __init__(self, wanted: str, count: int) -> None:
        super().__init__(f"{count} holds begin with {wanted}", hint="Give more digits of the id.", wanted=wanted)


@dataclass(frozen=True, slots=True)
class HeldPoint:
    """A hold, the name of what the point is of (None: the point is not known), and what uses it, as a sentence.

    `way_out` ends that use; "": the use is not known to this home, and only an admin can say that there is none.
    """

    hold: Hold
    name: str | None
    use: str
    way_out: str


class HoldService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def list(self) -> tuple[tuple[HeldPoint, ...], tuple[DamagedHold, ...]]:
        """Oldest first, and those that cannot be read; what commands that were killed held is let go of first."""
        UpkeepService(self._appliance).here()
        names = {point.id: point.name for point in self._appliance.catalog.points.list()}
        found, damaged = self._appliance.repository.survey_holds()
        return tuple(self._told(hold, names.get(hold.point)) for hold in found), tuple(damaged)

    def find(self, wanted: str) -> HeldPoint | DamagedHold:
        """By its id or a unique beginning of it. HoldNotFound, HoldAmbiguous."""
        held, damaged = self.list()
        known: dict[str, HeldPoint | DamagedHold] = {each.hold.id: each for each in held}
        known |= {each.id: each for each in damaged}
        found = [each for id, each in known.items() if wanted and id.startswith(wanted.lower())]
        if not found:
            raise HoldNotFound(wanted)
        if len(found) > 1:
            raise HoldAmbiguous(wanted, len(found))
        return found[0]

    def release(self, held: HeldPoint | DamagedHold) -> None:
        """Let go of one that has no use known to this home. HoldInUse, HoldNotFound; Guarded for one that cannot be
        read and may be a protection."""
        about(Subject("hold", held.id if isinstance(held, DamagedHold) else held.hold.id))
        if isinstance(held, DamagedHold):
            self._appliance.repository.release(held.id)
            return
        if held.way_out:
            raise HoldInUse(held)
        self._appliance.repository.release(held.hold.id)

    def _told(self, hold: Hold, name: str | None) -> HeldPoint:
        use, way_out = self._use(hold)
        return HeldPoint(hold, name, use, way_out)

    def _use(self, hold: Hold) -> tuple[str, str]:
        catalog, (kind, _, id) = self._appliance.catalog, hold.owner.partition("-")
        if hold.purpose == PROTECTED:
            return "protected by an admin", f"strongroom point protect {hold.point} --off"
        if kind == "recovery":
            for recovery in catalog.recoveries.list(ended=False, everyones=True):
                if recovery.id == id:
                    words = f"{recovery.machine_name} on {recovery.host} runs out of it ({recovery.state})"
                    way_out = f"strongroom recovery migrate {id[:12]}, or recovery discard {id[:12]}"
                    return self._there(recovery.appliance, words, way_out)
        if kind == "export":
            for served in catalog.exports.list(everyones=True):
                if served.id == id:
                    way_out = f"End that {served.kind} (or: strongroom umount DIR)."
                    return self._there(served.appliance, f"{served.kind} {served.address}", way_out)
        if kind == FILES and self._appliance.alive(_holder(hold.owner)):
            return "files are taken out of it", "Wait half a minute after the last look at it."
        if self._appliance.alive(hold.owner):
            return "a command of this home is at work", "Wait until it has ended."
        for debt in catalog.cleanups.list(everyones=True):
            if debt.action is CleanupAction.RELEASE_HOLD and debt.subject == hold.id:
                ended = "It is let go of by itself; see 'strongroom status'."
                if debt.appliance == catalog.me:
                    return "a command that is just ending", ended
                return self._there(debt.appliance, "a command is at work, or was killed", f"When it has ended: {ended}")
        if self._is_served(id):
            return "not known to this home, but its export still runs on this machine: something may read it", ""
        return "not known to this home: of another appliance, or of a catalog that was lost", ""

    def _there(self, appliance: str, words: str, way_out: str) -> tuple[str, str]:
        """The same, with the appliance that does it, where that is another one."""
        if appliance == self._appliance.catalog.me:
            return words, way_out
        name = FleetService(self._appliance).name(appliance)
        return f"{words}, by appliance {name}", f"There: {way_out}"

    def _is_served(self, id: str) -> bool:
        """Whether an export with the name of that recovery, export or mount lives, as after a lost catalog."""
        locks = self._appliance.settings.run_directory.glob(f"[rx]{id[:12]}.*.lock") if id.isalnum() else ()
        with contextlib.suppress(OSError):
            return any(is_owned(lock) for lock in locks)
        return False
