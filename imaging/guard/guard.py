"""The guard: the one place that lets a point, a key slot or a protection go (docs/format.md section 14).

Rules: without a guard everything is let go; with one, what is past the guarantee goes freely, and anything else only
by a request that two persons have signed, when the delay is over, and nothing but what it says. What cannot be read
counts as a guard that says no. It protects from whoever works through Strongroom, and not from who holds the store and
the keys: that is for the store to do (Object Lock).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from imaging.clock import Clock
from imaging.errors import ImagingError, ObjectMissing
from imaging.guard.acts import Act, ChangeGuard, DeletePoints, Doomed, LiftProtection, Permit, RemoveKey, issue
from imaging.guard.asks import Ask, Asked, Confirmation
from imaging.guard.errors import (
    Guarded,
    NotCovered,
    NothingToAsk,
    PersonUnknown,
    RequestNotFound,
    RequestNotReady,
    SamePerson,
)
from imaging.guard.patience import Patience
from imaging.guard.persons import Persons
from imaging.guard.requests import REFUSED, RELEASED, DamagedRequest, Decision, Request, Requests, Standing
from imaging.guard.rules import Person, Rules, may_go
from imaging.guard.states import GuardState, GuardStates
from imaging.lineage import origins
from imaging.objects import SealedObjects
from imaging.points import Point, Points
from imaging.slots import Argon2Cost

GOOD_FOR: Final = timedelta(days=14)
"""How long a request may be confirmed and carried out, beside the delay."""


@dataclass(frozen=True, slots=True)
class Asking:
    """Every request, oldest first, and those that cannot be read."""

    state: GuardState
    requests: tuple[Request, ...]
    damaged: tuple[DamagedRequest, ...]


class Guard:
    """Borrows everything; notes in `folder`, which need not exist."""

    def __init__(self, objects: SealedObjects, points: Points, clock: Clock, appliance: str, folder: Path) -> None:
        self._keys = objects.keys
        self._points = points
        self._clock = clock
        self._states = GuardStates(objects, clock, folder / "guard")
        self._requests = Requests(objects, clock, Patience(folder / "waiting", clock), appliance)
        self.persons = Persons(objects, clock)

    def state(self) -> GuardState:
        """GuardRolledBack, GuardForged; Damaged, StoreError."""
        return self._states.current()

    # Letting go

    def permit(self, act: Act, request: str | None = None) -> Permit:
        """Leave to do this, now. `request` is the id of one.

        Guarded where it has to be asked for; RequestNotFound, RequestNotReady, NotCovered of the request; and as
        state(): what cannot be told is not let go.
        """
        state = self._states.current(mend=True)
        if not state.rules.on:
            return issue(act, None)
        if request is None:
            held = self.holding(act, state)
            if held is not None:
                raise held
            return issue(act, None)
        found = self._read(request, state)
        if not found.ask.act.covers(act):
            raise NotCovered(found.id, act.describe())
        if found.standing is Standing.DUE:
            self._requests.decide(found.id, RELEASED, confirmed_by=found.waited_for)
            found = self._read(request, state)  # another may have been faster, to refuse or to release it
        if found.standing not in (Standing.RELEASED, Standing.DUE):
            raise not_ready(found)
        return issue(act, found.id)

    def holding(self, act: Act, state: GuardState) -> Guarded | None:
        """Why this has to be asked for; None: it goes freely."""
        if not state.rules.on:
            return None
        match act:
            case DeletePoints():
                why = self._why_points_stay(act.points, state.rules)
            case RemoveKey():
                why = "who has none but that key would be locked out"
            case LiftProtection():
                why = "somebody wanted it kept"
            case ChangeGuard():
                why = "it is what keeps everything else"
        return Guarded(act.describe(), why, append_only=state.rules.append_only) if why else None

    def _why_points_stay(self, points: Sequence[Doomed], rules: Rules) -> str | None:
        if any(each.hash is None for each in points):
            return "of a damaged point nobody can tell how old it is"
        kept = self.kept({each.manifest for each in points}, rules)
        if not kept:
            return None
        if rules.keep_days is None:
            return "no restore point goes without asking"
        many = f"{len(kept)} of them are" if len(points) > 1 else "it is"
        return f"{many} not followed by {rules.keep_points} points and points of {rules.keep_days} other days yet"

    def kept(self, names: set[str], rules: Rules) -> set[str]:
        """Of these manifests, those that the guard does not let go freely. What is no point that counts is kept: it
        is not known."""
        wanted = {name.split("/")[1] for name in names}
        surveyed = self._points.survey(wanted.pop() if len(wanted) == 1 else None).points
        series: dict[str, list[Point]] = {}
        for point in surveyed:
            series.setdefault(point.series, []).append(point)
        going = {
            point.name
            for point in surveyed
            if point.name in names and may_go(point, _that_count_for(point, series[point.series]), rules)
        }
        return names - going

    # Asking, confirming, refusing

    def ask(self, act: Act, person: str, passphrase: str, reason: str) -> Request:
        """A new request, signed by this person of the guard (a name or id). NothingToAsk, PersonUnknown,
        PassphraseWrong; Guarded where nobody can ask."""
        state = self._states.current(mend=True)
        held = self.holding(act, state)
        if held is None:
            raise NothingToAsk("it goes freely" if state.rules.on else "the repository has no guard")
        if held.append_only:
            raise held
        signer = self.persons.signer(_person(person, state.rules), passphrase)
        now = self._clock.now_utc().replace(microsecond=0)
        expires = now + timedelta(seconds=state.rules.delay_s) + GOOD_FOR
        ask = Ask.make(secrets.token_hex(16), self._keys.repository_id, signer.person.id, act, reason, now, expires)
        self._requests.ask(Asked.by(signer, ask))
        return self._requests.read(ask.id, state)

    def confirm(self, request: str, person: str, passphrase: str) -> Request:
        """SamePerson, PersonUnknown, PassphraseWrong, RequestNotReady, RequestNotFound."""
        state = self._states.current(mend=True)
        found = self._read(request, state)
        if found.standing not in (Standing.ASKED, Standing.WAITING, Standing.DUE):
            raise not_ready(found)
        who = _person(person, state.rules)
        if who.id == found.ask.person:
            raise SamePerson(who.name)
        self._requests.confirm(found.ask, Confirmation.by(self.persons.signer(who, passphrase), found.ask))
        return self._read(found.id, state)

    def refuse(self, request: str, reason: str) -> Decision:
        """For ever; anybody may. RequestNotReady once it was released."""
        found = self._read(request, self.state())
        if not found.standing.is_open:
            raise not_ready(found)
        decision = self._requests.decide(found.id, REFUSED, reason)
        if decision.decision != REFUSED:
            raise RequestNotReady(found.id, "is being carried out already: it is too late to refuse it")
        return decision

    def asking(self, *, mend: bool = False) -> Asking:
        """As state(). `mend`: also puts right what a process that died has left half done."""
        state = self._states.current(mend=mend)
        requests, damaged = self._requests.all(state)
        for each in requests:
            if mend and each.standing is Standing.DONE and not each.noted:
                self._requests.done(each)
        return Asking(state, requests, damaged)

    def request(self, wanted: str) -> Request:
        """By its id, or a unique beginning of it. RequestNotFound, RequestAmbiguous, Damaged."""
        return self._read(self._requests.find(wanted), self.state())

    def _read(self, request: str, state: GuardState) -> Request:
        try:
            return self._requests.read(request, state)
        except ObjectMissing as error:
            raise RequestNotFound(request) from error

    def finish(self, request: Request) -> None:
        """All that it says is done."""
        self._requests.done(request)

    # The guard itself

    def next_state(self, rules: Rules) -> ChangeGuard:
        """The change that would put these rules in force. RulesRefused."""
        rules.check()
        return ChangeGuard(self.state().number + 1, rules)

    def change(self, change: ChangeGuard, request: str | None = None) -> GuardState:
        """Puts the rules in force. As permit(); GuardChanged."""
        permit = self.permit(change, request)
        authority = None if permit.request is None else self._read(permit.request, self.state()).authority
        return self._states.append(change, authority, permit)

    def enrol(self, name: str, passphrase: str, cost: Argon2Cost | None = None) -> Person:
        """A key of somebody who can then be made a person of the guard. RulesRefused, PersonExists."""
        return self.persons.enrol(name, passphrase, cost)


def _that_count_for(point: Point, series: Sequence[Point]) -> list[Point]:
    """Copies keep the times of their originals, which whoever made those could choose: they count for copies out of the
    same repository, and for nothing else."""
    origin = _origin(point)
    return [each for each in series if _origin(each) in (None, origin)]


def _origin(point: Point) -> str | None:
    return next((repository for repository, _ in reversed(origins(point))), None)


def _person(wanted: str, rules: Rules) -> Person:
    found = rules.person(wanted)
    if found is None:
        raise PersonUnknown(wanted, [each.name for each in rules.persons], enrolled=True)
    return found


def not_ready(found: Request) -> ImagingError:
    """Why a request cannot be carried out, or confirmed, now."""
    hint = ""
    match found.standing:
        case Standing.ASKED:
            why, hint = "waits for another person's confirmation", "'strongroom request confirm ID' gives it"
        case Standing.WAITING:
            why = f"has waited for too short a time: {_hours(found.remaining_s or 0.0)} are left"
            hint = "what counts is how long this machine has been up since it first saw the confirmation, not its clock"
        case Standing.REFUSED:
            why = f"was refused: {found.decision.reason if found.decision else ''}"
        case Standing.EXPIRED:
            why, hint = "is too old", "ask anew; if it was just made, look at this machine's clock"
        case Standing.VOID:
            why, hint = f"counts no more: {found.flaw}", "ask anew"
        case Standing.DONE:
            why = "is carried out already"
        case Standing.RELEASED:
            why = "is being carried out"
        case Standing.DUE:
            why = "can be carried out"
    return RequestNotReady(found.id, why, hint)


def _hours(seconds: float) -> str:
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = -(-whole // 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
