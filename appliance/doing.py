"""The act that goes on in this thread, to which whatever carries it out can add what it was about.

The rule: who begins an act (a command, a page, the scheduler) says which it is; the service that does it says on what,
and how, so that the audit tells the same whichever way it was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from appliance.audit import Result
from appliance.policy.selectors import Kind, Machine


@dataclass(frozen=True, slots=True)
class Subject:
    """What an act is about. `machine`: of machine acts, the one it is about. `filtered`: a list from which the caller
    leaves out what `Actor.granted` does not fit; only so is a list of everything shown to those who are limited."""

    kind: str = ""
    id: str = ""
    name: str = ""
    machine: Machine | None = None
    filtered: bool = False

    @classmethod
    def of_machine(cls, machine: Machine) -> Subject:
        return cls("machine", machine.id, machine.name, machine)


NOTHING: Final = Subject()
FILTERED: Final = Subject(filtered=True)


@dataclass(slots=True)
class Doing:
    """An act that goes on. What its body learns only on the way can be said of it: `subject`, and `note`.

    `told`: by the service that does it, and if that told anything, the audit has this and not what who began it said.
    """

    subject: Subject
    details: dict[str, object] = field(default_factory=dict)
    told: dict[str, object] = field(default_factory=dict)
    result: Result = Result.OK
    error: str = ""
    dropped: bool = False

    def note(self, **details: object) -> None:
        """Plain values, and no secrets."""
        self.details.update(details)

    def partly(self, why: str = "") -> None:
        """Done, but not all of it."""
        self.result, self.error = Result.PARTLY, why

    def failed(self, why: str) -> None:
        """It did not come to its end, although no error says so."""
        self.result, self.error = Result.FAILED, why

    def drop(self) -> None:
        """Nothing was done, nor tried: there is nothing to tell."""
        self.dropped = True


_now: ContextVar[Doing | None] = ContextVar("strongroom_doing", default=None)


@contextmanager
def going_on(doing: Doing) -> Iterator[None]:
    token = _now.set(doing)
    try:
        yield
    finally:
        _now.reset(token)


def about(subject: Subject | None = None, **details: object) -> None:
    """What the act that goes on is about, and how it is done; nothing, if none goes on here."""
    doing = _now.get()
    if doing is None:
        return
    if subject is not None:
        doing.subject = subject
    doing.told.update(details)


def machine_of(kind: str, name: str, uuid: str | None, host: str | None) -> Machine:
    """As selectors have it, without tags: of what is recorded of runs and restore points."""
    image = kind == Kind.IMAGE.value
    return Machine(Kind.IMAGE if image else Kind.VM, name if image else uuid or name, name, None if image else host)
