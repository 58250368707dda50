"""The repository's guard, for whoever works with it: persons, rules, requests, and carrying out what was agreed.

The rule: whether something goes is decided in the repository itself (imaging/guard), which every service passes; this
asks, confirms, refuses and carries out, for the command line as for the console. A person proves who they are by their
passphrase, each time they sign; who may use the appliance at all is another question. What a request is about is told
from the repository as it is now, and never by the words of who asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from appliance.clock import format_utc
from appliance.doing import Subject, about
from appliance.errors import StrongroomError
from appliance.services.holds import HeldPoint, HoldInUse
from appliance.services.points import PointService
from appliance.services.repositories import RepositoryService
from imaging.errors import HoldNotFound, ImagingError, PointNotFound, SlotNotFound
from imaging.guard.acts import Act, ChangeGuard, DeletePoints, Doomed, LiftProtection, RemoveKey, deletion_of
from imaging.guard.errors import NothingToAsk, PersonUnknown
from imaging.guard.guard import not_ready
from imaging.guard.requests import Standing
from imaging.guard.rules import OFF, Rules
from imaging.manifest import ManifestName
from imaging.points import PROTECTED, DamagedHold, doomed

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.guard.errors import Guarded
    from imaging.guard.guard import Guard
    from imaging.guard.requests import DamagedRequest, Request
    from imaging.guard.rules import Person
    from imaging.guard.states import GuardState
    from imaging.points import DamagedPoint, Point
    from imaging.slots import Slot


class GuardIsOn(StrongroomError):
    def __init__(self) -> None:
        super().__init__(
            "the repository has a guard already",
            hint="'strongroom repository guard change' asks for other rules or persons.",
        )


class GuardIsOff(StrongroomError):
    def __init__(self) -> None:
        super().__init__(
            "the repository has no guard, so there is nothing to change",
            hint="'strongroom repository guard on' sets one.",
        )


class NothingChanges(StrongroomError):
    exit_code = 2

    def __init__(self) -> None:
        super().__init__("the guard is like that already", hint="See 'strongroom repository guard show'.")


class PersonsMeant(StrongroomError):
    """Nobody was named, and it was not said that nobody is meant."""

    exit_code = 2

    def __init__(self) -> None:
        super().__init__(
            "no person is named, and a guard without persons can never be changed or turned off again",
            hint="Name at least two persons (better three), or give --append-only if that is what is wanted.",
        )


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A person with a key in the repository; `counts`: they are of the guard."""

    person: Person
    counts: bool


@dataclass(frozen=True, slots=True)
class Told:
    """A request, with names for its persons. `subjects`: what it is about, as the repository has it now."""

    request: Request
    asked_by: str
    confirmed_by: tuple[str, ...]
    subjects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """`problems`: what could not be done, and stays with the request for the next time."""

    told: Told
    problems: tuple[str, ...]


class GuardService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    @property
    def _guard(self) -> Guard:
        return self._appliance.repository.guard

    def state(self) -> GuardState:
        """The rules that are in force. GuardForged, GuardRolledBack; ImagingError."""
        return self._guard.state()

    # Persons

    def persons(self) -> tuple[Enrolled, ...]:
        rules = self.state().rules
        enrolled = {person.id: person for person in self._guard.persons.enrolled()}
        everybody = {person.id: person for person in rules.persons} | enrolled
        return tuple(
            Enrolled(person, rules.on and rules.person(person.id) is not None)
            for person in sorted(everybody.values(), key=lambda each: (each.name, each.id))
        )

    def enrol(self, name: str, passphrase: str) -> Person:
        """A key for somebody, who can then be made a person of the guard. RulesRefused, PersonExists."""
        about(Subject("person", name=name))
        return self._guard.enrol(name, passphrase)

    def change_passphrase(self, name: str, old: str, new: str) -> Person:
        """PersonUnknown, PassphraseWrong."""
        about(Subject("person", name=name))
        (person,) = self._enrolled([name])
        self._guard.persons.change_passphrase(person, old, new)
        return person

    def check_passphrase(self, name: str, passphrase: str) -> None:
        """PersonUnknown, PassphraseWrong."""
        (person,) = self._enrolled([name])
        self._guard.persons.signer(person, passphrase)

    def _enrolled(self, names: Sequence[str]) -> tuple[Person, ...]:
        """By name or id. A name that two have means the one who counts."""
        known = sorted(self.persons(), key=lambda each: not each.counts)
        found = []
        for name in names:
            person = next((each.person for each in known if name in (each.person.name, each.person.id)), None)
            if person is None:
                raise PersonUnknown(name, [each.person.name for each in known])
            found.append(person)
        return tuple(found)

    # The guard

    def plan_on(
        self, names: Sequence[str], *, delay_s: int, keep_days: int | None, keep_points: int, append_only: bool = False
    ) -> ChangeGuard:
        """A guard where there is none. GuardIsOn, PersonsMeant, PersonUnknown, RulesRefused."""
        if self.state().rules.on:
            raise GuardIsOn
        if bool(names) == append_only:
            raise PersonsMeant
        return self._guard.next_state(Rules(True, delay_s, keep_days, keep_points, self._enrolled(names)))

    def turn_on(self, change: ChangeGuard) -> GuardState:
        """GuardChanged."""
        about(Subject("guard"), persons=[person.name for person in change.rules.persons])
        return self._guard.change(change)

    def plan_change(self, edit: Callable[[Rules], Rules], *, add: Sequence[str] = (), remove: Sequence[str] = ()
                    ) -> ChangeGuard:  # fmt: skip
        """What to ask for. `edit` gives the rules but for persons. GuardIsOff, NothingChanges, PersonUnknown,
        RulesRefused."""
        rules = self.state().rules
        if not rules.on:
            raise GuardIsOff
        going = set()
        for name in remove:
            person = rules.person(name)
            if person is None:
                raise PersonUnknown(name, [each.name for each in rules.persons], enrolled=True)
            going.add(person.id)
        added = [person for person in self._enrolled(add) if rules.person(person.id) is None]
        persons = (*(each for each in rules.persons if each.id not in going), *added)
        changed = replace(edit(rules), persons=persons)
        if changed == rules:
            raise NothingChanges
        return self._guard.next_state(changed)

    def plan_off(self) -> ChangeGuard:
        """GuardIsOff."""
        if not self.state().rules.on:
            raise GuardIsOff
        return self._guard.next_state(OFF)

    # Acts to ask for

    def deleting(self, points: Sequence[Point | DamagedPoint]) -> DeletePoints:
        return deletion_of(doomed(point) for point in points)

    def removing(self, slot: Slot) -> RemoveKey:
        return RemoveKey(slot.id)

    def lifting(self, wanted: str) -> tuple[LiftProtection, ...]:
        """One for each protection that is on the point."""
        details = PointService(self._appliance).details(wanted)
        return tuple(LiftProtection(hold.id, hold.manifest) for hold in details.holds if hold.purpose == PROTECTED)

    def releasing(self, held: HeldPoint | DamagedHold) -> LiftProtection:
        """NothingToAsk, HoldInUse for one that can be read: a protection is lifted from its point."""
        if isinstance(held, DamagedHold):
            return LiftProtection(held.id, None)
        if held.way_out:
            raise HoldInUse(held)
        raise NothingToAsk("a hold that can be read, and is no protection, goes freely")

    def holding(self, act: Act) -> Guarded | None:
        """Why this has to be asked for; None: it goes freely."""
        return self._guard.holding(act, self.state())

    def words_of(self, act: Act) -> tuple[str, ...]:
        """What it is about, as the repository has it now."""
        return self._subjects(act)

    # Requests

    def ask(self, act: Act, person: str, passphrase: str, reason: str = "") -> Told:
        """NothingToAsk, PersonUnknown, PassphraseWrong; Guarded where nobody can ask."""
        told = self._told(self._guard.ask(act, person, passphrase, reason))
        about(Subject("request", told.request.id), to=act.describe(), person=told.asked_by, subjects=told.subjects)
        return told

    def requests(self, *, closed: bool = False) -> tuple[tuple[Told, ...], tuple[DamagedRequest, ...]]:
        """Those that are open, or all, oldest first, and those that cannot be read. To look is also what counts the
        delay on this appliance."""
        asking = self._guard.asking()
        names = self._names(asking.state)
        told = [self._named(each, names) for each in asking.requests if closed or each.standing.is_open]
        return tuple(told), asking.damaged

    def request(self, wanted: str) -> Told:
        """With its subjects. RequestNotFound, RequestAmbiguous, Damaged."""
        return self._told(self._guard.request(wanted))

    def confirm(self, wanted: str, person: str, passphrase: str) -> Told:
        """SamePerson, PersonUnknown, PassphraseWrong, RequestNotReady, RequestNotFound."""
        found = self._guard.request(wanted)
        about(Subject("request", found.id), to=found.ask.act.describe(), person=person)
        return self._told(self._guard.confirm(found.id, person, passphrase))

    def refuse(self, wanted: str, reason: str = "") -> Told:
        """By anybody, and for ever: also how who asked takes it back. RequestNotReady once it is being carried out."""
        found = self._guard.request(wanted)
        about(Subject("request", found.id), to=found.ask.act.describe(), reason=reason)
        self._guard.refuse(found.id, reason)
        return self._told(self._guard.request(found.id))

    def _told(self, request: Request) -> Told:
        told = self._named(request, self._names(self.state()))
        return replace(told, subjects=self._subjects(request.ask.act))

    def _names(self, state: GuardState) -> dict[str, str]:
        enrolled = {person.id: f"{person.name} (not of the guard)" for person in self._guard.persons.enrolled()}
        return enrolled | {person.id: person.name for person in state.rules.persons}

    def _named(self, request: Request, names: dict[str, str]) -> Told:
        def name(id: str) -> str:
            return names.get(id, f"person {id[:12]}")

        return Told(request, name(request.ask.person), tuple(name(each) for each in request.confirmed_by), ())

    def _subjects(self, act: Act) -> tuple[str, ...]:
        match act:
            case DeletePoints():
                found = {point.name: point for point in self._appliance.repository.points()}
                return tuple(_point_words(each, found.get(each.manifest)) for each in act.points)
            case RemoveKey():
                slots = [slot for slot in self._appliance.repository.slots() if slot.id == act.slot]
                told = [f"key slot {slot.id} ({slot.kind}, {slot.label})" for slot in slots]
                return tuple(told or [f"key slot {act.slot}, which is not there"])
            case LiftProtection():
                found = {point.name: point for point in self._appliance.repository.points()}
                point = found.get(act.manifest or "")
                about = (
                    _point_words(Doomed(act.manifest, None), point) if act.manifest else "a hold that cannot be read"
                )
                return (f"the protection of {about}",)
            case ChangeGuard():
                return differences(self.state().rules, act.rules)

    # Carrying out

    def apply(self, wanted: Sequence[str] = ()) -> tuple[Applied, ...]:
        """Carries out these requests, or all that are due. RequestNotReady, RequestNotFound for one that was named.

        What was begun and interrupted is gone on with; what cannot be done is told, and hinders nothing else.
        """
        everything = self._guard.asking(mend=True).requests
        found = [self._guard.request(each) for each in wanted] if wanted else list(everything)
        ready = [each for each in found if each.standing in (Standing.DUE, Standing.RELEASED)]
        for each in found:
            if wanted and each not in ready:
                raise not_ready(each)
        subject = Subject("request", ready[0].id if len(ready) == 1 else "")
        about(subject, requests=[{"id": each.id, "to": each.ask.act.describe()} for each in ready])
        done = tuple(self._apply(each) for each in ready)
        about(subject)  # each has said what it was about
        return done

    def _apply(self, request: Request) -> Applied:
        told = self._told(request)
        problems: list[str] = []
        try:
            problems += self._carry_out(request)
        except (ImagingError, StrongroomError) as err:
            problems.append(str(err))
        if not problems and not isinstance(request.ask.act, ChangeGuard):
            self._guard.finish(request)
        return Applied(told, tuple(problems))

    def _carry_out(self, request: Request) -> list[str]:
        """What is done already is done."""
        match request.ask.act:
            case DeletePoints(points=points):
                with PointService(self._appliance).deletions(request.id) as delete:
                    return [problem for each in points for problem in self._delete(each, request.id, delete)]
            case RemoveKey(slot=slot):
                service = RepositoryService(self._appliance)
                try:
                    service.remove_key(service.find_key(slot), request.id)
                except SlotNotFound:
                    return []
            case LiftProtection(hold=hold):
                try:
                    self._appliance.repository.release(hold, request.id)
                except HoldNotFound:
                    return []
            case ChangeGuard() as change:
                self._guard.change(change, request.id)
                self._guard.finish(request)
        return []

    def _delete(self, wanted: Doomed, request: str, delete: Callable[[str], Point]) -> list[str]:
        service = PointService(self._appliance)
        parsed = ManifestName.parse(wanted.manifest)
        id = parsed.id if parsed else wanted.manifest
        try:
            if wanted.hash is not None:
                delete(id)
            elif (broken := service.damaged(id)) is not None:
                service.delete_damaged(broken, request)
            else:
                self._appliance.repository.point(id)  # PointNotFound: it is deleted
                return [f"restore point {id} is not damaged any more, so it stays"]
        except PointNotFound:
            return []
        except (ImagingError, StrongroomError) as err:
            return [str(err)]
        return []


def _point_words(wanted: Doomed, point: Point | None) -> str:
    parsed = ManifestName.parse(wanted.manifest)
    id = parsed.id if parsed else wanted.manifest
    if point is None:
        return f"restore point {id}, which is damaged or deleted"
    machine = point.manifest.machine
    return f"restore point {id} of {machine.name} of {format_utc(point.created_utc)}"


def differences(before: Rules, after: Rules) -> tuple[str, ...]:
    """What a change of the guard changes, a sentence each."""
    if not after.on:
        return ("the guard goes off: whoever works with the appliance deletes what they want",)
    told = []
    if before.delay_s != after.delay_s or not before.on:
        told.append(f"the delay: {_hours(before, before.delay_s)}{after.delay_s / 3600:g} hours")
    if before.keep_days != after.keep_days or not before.on:
        days = [f"{each.keep_days} days" if each.keep_days else "all" for each in (before, after)]
        told.append(f"guaranteed points: {f'{days[0]} → ' if before.on else ''}{days[1]}")
    if before.keep_points != after.keep_points or not before.on:
        told.append(
            f"guaranteed number: {f'{before.keep_points} → ' if before.on else ''}{after.keep_points} points a machine"
        )
    told += [
        f"{each.name} ({each.id}) becomes a person of the guard" for each in after.persons if each not in before.persons
    ]
    told += [f"{each.name} ({each.id}) is no person of the guard any more" for each in before.persons
             if each not in after.persons]  # fmt: skip
    return tuple(told)


def _hours(rules: Rules, delay_s: int) -> str:
    return f"{delay_s / 3600:g} → " if rules.on else ""
