"""The states of a guard: which rules are in force, and by whose authority (docs/format.md section 14).

Rules: states are numbered from 1, the highest counts, and each is created if absent, so that of two changes one wins.
From a state that is on, only an authority of two of its persons leads to the next: whoever reads goes through all of
them. Each is stored twice. If any cannot be read nothing is deleted, and neither when the last one that was seen here
is not there: a guard that got lost is not one that is off.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from imaging import canonical
from imaging.canonical import Fields
from imaging.clock import Clock
from imaging.envelope import ObjectType
from imaging.errors import Damaged, ImagingError, ObjectExists, ObjectMissing
from imaging.guard.acts import ChangeGuard, Permit
from imaging.guard.asks import Authority
from imaging.guard.errors import GuardChanged, GuardForged, GuardNoteUnreadable, GuardRolledBack
from imaging.guard.rules import OFF, Rules
from imaging.objects import SealedObjects
from imaging.storage.contract import Store
from imaging.storage.durable import PosixSystem, durable_write

_log = logging.getLogger(__name__)
FOLDERS: Final = ("guard", "guard.copy")
_NAME: Final = re.compile(r"(?:guard|guard\.copy)/(\d{10})")
_STATES_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class GuardState:
    """`number` 0: there never was a guard."""

    number: int
    rules: Rules
    created_utc: datetime | None = None
    authority: Authority | None = None


NEVER: Final = GuardState(0, OFF)


def decode_state(fields: Fields) -> GuardState:
    """Damaged."""
    found = fields.values.get("authority")
    return GuardState(
        fields.integer("number", 1),
        Rules.of(fields.record("rules")),
        fields.utc("created_utc"),
        None if found is None else Authority.of(fields.record("authority")),
    )


class GuardStates:
    """Borrows everything; remembers in the file `remembered`."""

    def __init__(self, objects: SealedObjects, clock: Clock, remembered: Path) -> None:
        self._objects = objects
        self._clock = clock
        self._remembered = remembered

    def current(self, *, mend: bool = False) -> GuardState:
        """GuardRolledBack, GuardNoteUnreadable, GuardForged; Damaged, StoreError: then nothing may be deleted. `mend`:
        also puts back what is there only once."""
        seen = self._seen()
        newest = self._newest()
        if newest < seen:
            raise GuardRolledBack(seen, newest)
        state = NEVER
        for number in range(1, newest + 1):
            following = self._read(number, mend)
            self._check_step(state, following)
            state = following
        if state.number > seen:
            self._remember(state.number)
        return state

    def append(self, change: ChangeGuard, authority: Authority | None, permit: Permit) -> GuardState:
        """Puts the rules in force. GuardChanged when another change was faster."""
        permit.check(change)
        before = self.current(mend=True)
        if change.number != before.number + 1:
            raise GuardChanged(before.number)
        made = GuardState(change.number, change.rules, self._clock.now_utc().replace(microsecond=0), authority)
        self._check_step(before, made)
        body = canonical.encode(
            {
                "authority": authority.as_json() if authority else None,
                "created_utc": canonical.utc_text(self._clock.now_utc()),
                "number": made.number,
                "rules": made.rules.as_json(),
            }
        )
        try:
            self._objects.create(ObjectType.GUARD, _name(FOLDERS[0], made.number), body)
        except ObjectExists as error:
            raise GuardChanged(self.current().number) from error
        self._read(made.number, mend=True)
        self._remember(made.number)
        return made

    def _newest(self) -> int:
        """As it is listed, and beyond that as long as one can be asked for by name: a listing may not show all."""
        names = state_objects(self._objects.store)
        newest = int(names[-1].rpartition("/")[2]) if names else 0
        if newest > _STATES_MAX:
            raise Damaged(names[-1], "no guard was changed that often")
        while any(self._objects.store.exists(_name(folder, newest + 1)) for folder in FOLDERS):
            newest += 1
        return newest

    def _check_step(self, before: GuardState, after: GuardState) -> None:
        """GuardForged unless this state may follow that one."""
        if after.number != before.number + 1:
            raise GuardForged(before.number + 1, f"its object says to be state {after.number}")
        if not before.rules.on:
            return
        if after.authority is None:
            raise GuardForged(after.number, "nobody signed")
        flaw = after.authority.flaw(before.rules, self._objects.keys.repository_id)
        if flaw is None and after.authority.asked.ask.act != ChangeGuard(after.number, after.rules):
            flaw = "they signed something else"
        if flaw is not None:
            raise GuardForged(after.number, flaw)

    def _read(self, number: int, mend: bool) -> GuardState:
        """From either copy. Damaged, ObjectMissing, StoreError when neither can be read."""
        good: tuple[GuardState, bytes] | None = None
        losses: dict[str, ImagingError] = {}
        for folder in FOLDERS:
            name = _name(folder, number)
            try:
                data = self._objects.store.get(name)
                body = self._objects.open(ObjectType.GUARD, name, data, bound_name(name)).body
                good = good or (decode_state(Fields.parse(body, name)), data)
            except (Damaged, ObjectMissing) as error:
                losses[name] = error
        if good is None:
            raise min(losses.values(), key=lambda loss: isinstance(loss, ObjectMissing))  # rather what is damaged
        if mend:
            for name, loss in losses.items():
                self._put_back(name, good[1], loss)
        return good[0]

    def _put_back(self, name: str, data: bytes, loss: ImagingError) -> None:
        try:
            if isinstance(loss, ObjectMissing):
                self._objects.store.create(name, [data])
            else:
                self._objects.store.put(name, [data])
        except ImagingError as error:
            _log.warning("%s, and cannot be put back: %s", loss, error)

    # What was seen

    def _seen(self) -> int:
        try:
            found = json.loads(self._remembered.read_text("utf-8"))
            return int(found["number"]) if found["repository"] == self._objects.keys.repository_id.hex() else 0
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise GuardNoteUnreadable(self._remembered, str(error) or type(error).__name__) from error

    def _remember(self, number: int) -> None:
        text = json.dumps({"number": number, "repository": self._objects.keys.repository_id.hex()})
        folder = self._remembered.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable_write(PosixSystem(), self._remembered, [text.encode()], folder)
        except OSError as error:
            _log.warning("the guard's state cannot be remembered in %s: %s", self._remembered.parent, error)


def bound_name(name: str) -> str:
    """The name that an object of a state is sealed under: both copies have the first one's."""
    return f"{FOLDERS[0]}/{name.rpartition('/')[2]}"


def state_objects(store: Store) -> list[str]:
    """The names of both copies of every state that is there once or twice."""
    found = (_NAME.fullmatch(listed.name) for folder in FOLDERS for listed in store.list(folder + "/"))
    numbers = sorted({int(each[1]) for each in found if each})
    return [_name(folder, number) for number in numbers for folder in FOLDERS]


def _name(folder: str, number: int) -> str:
    return f"{folder}/{number:010}"
