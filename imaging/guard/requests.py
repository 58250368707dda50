"""Requests: what was asked, who confirmed it, how it was decided (docs/format.md section 14).

Rules: of refusing and releasing, whoever creates the decision first wins, and the other reads it. A confirmation counts
if its signature fits the very request under the rules of now. A release holds for as long as a confirmation that it was
given on counts: who confirms later has waited for nothing. One request that cannot be read hides no other, and is never
carried out.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from blake3 import blake3

from imaging import canonical
from imaging.clock import Clock
from imaging.envelope import ObjectType
from imaging.errors import Damaged, ImagingError, ObjectExists, ObjectMissing, WrongVersion
from imaging.guard.acts import ChangeGuard
from imaging.guard.asks import REASON_CHARACTERS_MAX, Ask, Asked, Authority, Confirmation
from imaging.guard.errors import RequestAmbiguous, RequestNotFound
from imaging.guard.patience import Patience
from imaging.guard.rules import PERSONS_MAX
from imaging.guard.states import GuardState
from imaging.objects import SealedObjects

_NAME: Final = re.compile(r"requests/([0-9a-f]{32})/(asked|decision|done|confirmed/([0-9a-f]{32}))")
_PREFIX: Final = re.compile(r"[0-9a-f]{1,32}")
REFUSED: Final = "refused"
RELEASED: Final = "released"


class Standing(StrEnum):
    ASKED = "asked"
    """Nobody has confirmed it."""
    WAITING = "waiting"
    """Confirmed, and the delay is not over."""
    DUE = "due"
    RELEASED = "released"
    """It is being carried out, or was when something came in between: it is gone on with."""
    DONE = "done"
    REFUSED = "refused"
    EXPIRED = "expired"
    VOID = "void"
    """The guard has changed since, so that it counts no more."""

    @property
    def is_open(self) -> bool:
        return self in (Standing.ASKED, Standing.WAITING, Standing.DUE, Standing.RELEASED)


@dataclass(frozen=True, slots=True)
class Decision:
    """`confirmed_by`: of a release, the persons whose confirmations had waited long enough. None: it does not say, as
    older programs did not, and each confirmation has to have waited here."""

    decision: str
    by: str
    reason: str
    created_utc: datetime
    confirmed_by: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """`confirmed_by` are ids of persons: whose confirmation counts, or of a request that is over, is there.
    `remaining_s`: of the delay, as this appliance has counted it; None while nobody has confirmed. `waited_for`: of
    those who confirmed, for whom the delay is over. `flaw`: why it is void. `noted`: that it is done was written
    down."""

    asked: Asked
    standing: Standing
    confirmed_by: tuple[str, ...]
    remaining_s: float | None
    waited_for: tuple[str, ...]
    decision: Decision | None
    authority: Authority | None
    flaw: str | None
    noted: bool

    @property
    def id(self) -> str:
        return self.asked.ask.id

    @property
    def ask(self) -> Ask:
        return self.asked.ask


@dataclass(frozen=True, slots=True)
class DamagedRequest:
    id: str
    error: ImagingError


class Requests:
    """Borrows everything."""

    def __init__(self, objects: SealedObjects, clock: Clock, patience: Patience, appliance: str) -> None:
        self._objects = objects
        self._store = objects.store
        self._clock = clock
        self._patience = patience
        self._appliance = appliance

    # Reading

    def all(self, state: GuardState) -> tuple[tuple[Request, ...], tuple[DamagedRequest, ...]]:
        """Oldest first, and those that cannot be read."""
        found: list[Request] = []
        damaged: list[DamagedRequest] = []
        for id in self._ids():
            try:
                found.append(self.read(id, state))
            except ObjectMissing:
                continue  # of one that was never asked to the end
            except (Damaged, WrongVersion) as error:
                damaged.append(DamagedRequest(id, error))
        return tuple(sorted(found, key=lambda each: (each.ask.created_utc, each.id))), tuple(damaged)

    def find(self, wanted: str) -> str:
        """The id that begins so. RequestNotFound, RequestAmbiguous."""
        prefix = wanted.strip().lower()
        found = [id for id in self._ids() if _PREFIX.fullmatch(prefix) and id.startswith(prefix)]
        if len(found) > 1:
            raise RequestAmbiguous(wanted, len(found))
        if not found:
            raise RequestNotFound(wanted)
        return found[0]

    def _ids(self) -> list[str]:
        matches = (_NAME.fullmatch(listed.name) for listed in self._store.list("requests/"))
        return sorted({found[1] for found in matches if found})

    def read(self, id: str, state: GuardState) -> Request:
        """How the request stands under the rules of now. ObjectMissing, Damaged."""
        name = _part(id, "asked")
        asked = Asked.of(self._objects.read_json(ObjectType.REQUEST, name))
        if asked.ask.id != id:
            raise Damaged(name, "another request is stored under this name")
        decision = self._decision(id)
        noted = self._store.exists(_part(id, "done"))
        done = noted or _is_in_force(asked.ask, state)
        flaw = self._flaw(asked, state)
        stated = self._confirmations(asked.ask)
        over = done or flaw is not None or (decision is not None and decision.decision == REFUSED)
        counting = [each for each in stated if not over and each.flaw(asked.ask, state.rules) is None]
        if not over and not _holds(decision, counting):
            flaw, counting = "the confirmation that it was released on counts no more", []
        counted = {each.person: self._patience.counted_s(_patience_key(asked.ask, each)) for each in counting}
        longest_s = max(counted.values(), default=None)
        remaining_s = None if longest_s is None else max(0.0, state.rules.delay_s - longest_s)
        return Request(
            asked=asked,
            standing=self._standing(asked.ask, decision, done, flaw, remaining_s, longest_s),
            confirmed_by=tuple(each.person for each in (stated if over else counting)),
            remaining_s=remaining_s,
            decision=decision,
            waited_for=tuple(person for person, waited_s in counted.items() if waited_s >= state.rules.delay_s),
            authority=Authority(asked, counting[0]) if counting else None,
            flaw=flaw,
            noted=noted,
        )

    def _flaw(self, asked: Asked, state: GuardState) -> str | None:
        if not state.rules.on:
            return "the guard is off"
        act = asked.ask.act
        if isinstance(act, ChangeGuard) and act.number != state.number + 1:
            return "the guard was changed since"
        return asked.flaw(state.rules, self._objects.keys.repository_id)

    def _standing(
        self,
        ask: Ask,
        decision: Decision | None,
        done: bool,
        flaw: str | None,
        remaining_s: float | None,
        counted_s: float | None,
    ) -> Standing:
        if done:
            return Standing.DONE
        if decision is not None and decision.decision == REFUSED:
            return Standing.REFUSED
        if flaw is not None:
            return Standing.VOID
        good_for_s = (ask.expires_utc - ask.created_utc).total_seconds()
        if self._clock.now_utc() >= ask.expires_utc or (counted_s is not None and counted_s > good_for_s):
            return Standing.EXPIRED
        if remaining_s is None:
            return Standing.ASKED
        if decision is not None and decision.confirmed_by is not None:
            return Standing.RELEASED
        return Standing.WAITING if remaining_s > 0 else Standing.DUE

    def _confirmations(self, ask: Ask) -> list[Confirmation]:
        """Whatever can be read; whether it counts is another question."""
        found = []
        for listed in self._store.list(f"requests/{ask.id}/confirmed/"):
            if _NAME.fullmatch(listed.name) is None:
                continue
            try:
                confirmation = Confirmation.of(self._objects.read_json(ObjectType.REQUEST, listed.name))
            except (Damaged, ObjectMissing, WrongVersion):
                continue  # it counts for nothing; verify names it
            if listed.name == _confirmed(ask.id, confirmation.person):
                found.append(confirmation)
        return found

    def _decision(self, id: str) -> Decision | None:
        """One that cannot be read is a refusal: what was released would be asked for anew, what was refused not."""
        name = _part(id, "decision")
        try:
            fields = self._objects.read_json(ObjectType.REQUEST, name)
            told = fields.values.get("confirmed_by") is not None
            return Decision(
                fields.one_of("decision", (REFUSED, RELEASED)),
                fields.text("by"),
                fields.text("reason", REASON_CHARACTERS_MAX),
                fields.utc("created_utc"),
                fields.texts("confirmed_by", PERSONS_MAX) if told else None,
            )
        except ObjectMissing:
            return None
        except Damaged as error:
            return Decision(REFUSED, "", f"the decision cannot be read: {error}", self._clock.now_utc())

    # Writing

    def ask(self, asked: Asked) -> None:
        self._objects.create_json(ObjectType.REQUEST, _part(asked.ask.id, "asked"), asked.as_json())

    def confirm(self, ask: Ask, confirmation: Confirmation) -> None:
        """Again: fine. From now on, or from when another appliance first looks, its delay counts."""
        values = confirmation.as_json() | {"created_utc": canonical.utc_text(self._clock.now_utc())}
        try:
            self._objects.create_json(ObjectType.REQUEST, _confirmed(ask.id, confirmation.person), values)
        except ObjectExists:
            return
        self._patience.counted_s(_patience_key(ask, confirmation))

    def decide(self, id: str, decision: str, reason: str = "", confirmed_by: Sequence[str] = ()) -> Decision:
        """The decision that counts, whoever was first."""
        values: dict[str, object] = {
            "by": self._appliance,
            "confirmed_by": list(confirmed_by),
            "created_utc": canonical.utc_text(self._clock.now_utc()),
            "decision": decision,
            "reason": reason[:REASON_CHARACTERS_MAX],
        }
        name = _part(id, "decision")
        with contextlib.suppress(ObjectExists):  # by somebody else, or by us before something came in between
            self._objects.create_json(ObjectType.REQUEST, name, values)
        found = self._decision(id)
        if found is None:
            raise ObjectMissing(name)
        return found

    def done(self, request: Request) -> None:
        values: dict[str, object] = {"by": self._appliance, "created_utc": canonical.utc_text(self._clock.now_utc())}
        with contextlib.suppress(ObjectExists):  # two have carried it out at once
            self._objects.create_json(ObjectType.REQUEST, _part(request.id, "done"), values)
        for each in self._confirmations(request.ask):
            self._patience.forget(_patience_key(request.ask, each))


def _holds(decision: Decision | None, counting: Sequence[Confirmation]) -> bool:
    """Whether a release, where there is one, stands on a confirmation that still counts."""
    if decision is None or decision.confirmed_by is None:
        return True
    return any(each.person in decision.confirmed_by for each in counting)


def _is_in_force(ask: Ask, state: GuardState) -> bool:
    """Whether the guard is what this asked for, though whoever changed it did not come to note that."""
    return state.authority is not None and state.authority.asked.ask == ask


def _part(id: str, part: str) -> str:
    return f"requests/{id}/{part}"


def _confirmed(id: str, person: str) -> str:
    return f"requests/{id}/confirmed/{person}"


def _patience_key(ask: Ask, confirmation: Confirmation) -> str:
    return blake3(ask.to_confirm() + confirmation.person.encode()).hexdigest()
