"""Asking and confirming by people who have accounts: who signs is a person of the guard, and an account is one of them.

The rule: what proves a person is their passphrase, each time, and the repository checks it; an account proves who works
with the console, and takes no passphrase's place. Beside that the accounts are told apart: with the first signature an
account becomes that person for good, so that nobody who asked confirms under another name, whatever passphrases they
know. Who guesses a passphrase here waits as who guesses a password does, and holds up nobody who has signed as that
person. Whoever works on the appliance's machine itself is bound by the passphrases alone, as the guard has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from appliance.catalog.errors import RecordMissing
from appliance.errors import StrongroomError
from appliance.services.access import Actor, ActorKind
from appliance.services.accounts import throttle
from appliance.services.accounts.errors import Throttled
from appliance.services.guard import GuardService, Told
from appliance.services.points import PointService
from appliance.services.repositories import RepositoryService
from imaging.errors import ImagingError, PointNotFound
from imaging.guard.errors import (
    NothingToAsk as NothingToAsk,
)
from imaging.guard.errors import (
    PassphraseWrong,
    PersonKeyLost,
    PersonUnknown,
    RequestNotReady,
    SamePerson,
)

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.guard.acts import Act
    from imaging.guard.rules import Person, Rules
    from imaging.points import DamagedPoint, Point


class NotSigned(StrongroomError):
    """Nothing was asked for, or confirmed: it was the wrong person, or passphrase."""


class SignsAsAnother(NotSigned):
    """The account is another person of the guard already, or the person has another account."""

    def __init__(self, user: str, person: str, wanted: str) -> None:
        mine = person != wanted
        what = f"{user} signs as {person}, and as nobody else" if mine else f"{wanted} signs by the account {user}"
        super().__init__(
            what,
            hint="An account is one person of the guard, and a person one account, so that nobody confirms what they"
            " asked for. It ends when the account is removed, or the person leaves the guard.",
            user=user,
            person=person,
        )


class SigningThrottled(Throttled):
    def __init__(self, person: str, wait_s: float) -> None:
        super().__init__(
            f"there were too many attempts to sign as {person}",
            wait_s,
            hint="On the appliance's machine, 'strongroom request confirm' and '--ask' wait for nothing.",
        )


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except (PersonUnknown, PassphraseWrong, PersonKeyLost, SamePerson, NothingToAsk, RequestNotReady) as err:
        raise NotSigned(str(err), hint=err.hint) from err


class What(StrEnum):
    """What is asked for, beside changes of the guard itself."""

    POINT = "point"  # to delete one
    PROTECTION = "protection"  # to lift that of a point
    KEY = "key"  # to remove a key slot
    UNKEPT = "unkept"  # to delete the points that no policy keeps any more, and the guard does


@dataclass(frozen=True, slots=True)
class Question:
    """`why` it has to be asked for; "": it goes freely. `final`: nobody can ask, as the repository is append-only."""

    acts: tuple[Act, ...]
    words: tuple[str, ...]
    subjects: tuple[str, ...]
    why: str
    final: bool


class SigningService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._guard = GuardService(appliance)

    def persons(self, actor: Actor) -> tuple[str, ...]:
        """Names of those of the guard as whom this actor may sign: one, once they have signed."""
        persons = self._guard.state().rules.persons
        tied = self._appliance.catalog.persons.all()
        user = self._user(actor)
        if user is None:
            return tuple(person.name for person in persons)
        own = tuple(person.name for person in persons if tied.get(person.id) == user)
        return own or tuple(person.name for person in persons if person.id not in tied)

    def question(self, what: What, id: str = "") -> Question:
        """`id`: of the point or key slot. NothingToAsk where there is no such thing; PointNotFound, SlotNotFound."""
        acts = self._acts(what, id)
        if not acts:
            raise NothingToAsk("it is not protected" if what is What.PROTECTION else "the guard keeps nothing of it")
        held = next(filter(None, map(self._guard.holding, acts)), None)
        return Question(
            acts, tuple(act.describe() for act in acts),
            tuple(words for act in acts for words in self._guard.words_of(act)),
            "" if held is None else str(held), held is not None and held.append_only,
        )  # fmt: skip

    def _acts(self, what: What, id: str) -> tuple[Act, ...]:
        match what:
            case What.POINT:
                return (self._guard.deleting([self._doomed(id)]),)
            case What.PROTECTION:
                return self._guard.lifting(id)
            case What.KEY:
                return (self._guard.removing(RepositoryService(self._appliance).find_key(id)),)
            case What.UNKEPT:
                from appliance.services.maintenance import MaintenanceService

                guarded = MaintenanceService(self._appliance).plan_policies().guarded
                return (self._guard.deleting(guarded),) if guarded else ()

    def _doomed(self, id: str) -> Point | DamagedPoint:
        """PointNotFound."""
        points = PointService(self._appliance)
        try:
            return points.resolve(id)
        except PointNotFound:
            broken = points.damaged(id)
            if broken is None:
                raise
            return broken

    def ask(self, actor: Actor, question: Question, person: str, passphrase: str, reason: str = "") -> tuple[Told, ...]:
        """A request for each act. NotSigned, SigningThrottled; Guarded where nobody can ask."""
        with _telling(), self._signing(actor, person, passphrase) as signer:
            return tuple(self._guard.ask(act, signer.name, passphrase, reason) for act in question.acts)

    def open(self) -> int | None:
        """How many requests are open; None: it cannot be told now. For what is shown beside something else."""
        try:
            return len(self._guard.requests()[0])
        except (StrongroomError, ImagingError):
            return None

    def confirm(self, actor: Actor, wanted: str, person: str, passphrase: str) -> Told:
        """NotSigned, also for who asked; SigningThrottled, RequestNotFound."""
        with _telling(), self._signing(actor, person, passphrase) as signer:
            return self._guard.confirm(wanted, signer.name, passphrase)

    @contextmanager
    def _signing(self, actor: Actor, wanted: str, passphrase: str) -> Iterator[Person]:
        """The body signs as this person, whose account this is from now on. An attempt is counted as one that failed,
        until the body has come to its end. PersonUnknown, SigningThrottled, SignsAsAnother; PassphraseWrong before
        anything is tied."""
        rules = self._guard.state().rules
        person = rules.person(wanted)
        if person is None:
            raise PersonUnknown(wanted, [each.name for each in rules.persons], enrolled=True)
        catalog, user, now = self._appliance.catalog, self._user(actor), self._appliance.clock.now_utc()
        tied = user is not None and catalog.persons.all().get(person.id) == user
        counted = throttle.keys(f"person {person.id}", user or actor.id, known=tied)
        wait_s = catalog.attempts.begin(counted.delays(), now)
        if wait_s > 0:
            raise SigningThrottled(person.name, wait_s)
        if user is not None and not tied:
            self._guard.check_passphrase(person.id, passphrase)
            self._tie(user, person, rules, now)
        yield person
        catalog.attempts.succeeded(forget=counted.forgotten, less=[counted.address])

    def _tie(self, user: str, person: Person, rules: Rules, now_utc: datetime) -> None:
        """SignsAsAnother."""
        catalog = self._appliance.catalog
        against = catalog.persons.tie(person.id, user, now_utc, counting=[each.id for each in rules.persons])
        if against is not None:
            other = rules.person(against[0])
            raise SignsAsAnother(catalog.users.get(against[1]).name, other.name if other else against[0], person.name)

    def _user(self, actor: Actor) -> str | None:
        """Whose account it is. None: nobody's: of the machine itself, or of a token that was made there."""
        if actor.kind is ActorKind.USER:
            return actor.id
        if actor.kind is not ActorKind.TOKEN:
            return None
        try:
            return self._appliance.catalog.tokens.get(actor.id).owner
        except RecordMissing:
            return None
