"""What a guard refuses, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imaging.errors import ImagingError

_ASK = (
    "ask for it: the same command with --ask PERSON; another person confirms it ('strongroom request confirm ID'), and"
    " after the delay 'strongroom request apply' carries it out"
)


class Guarded(ImagingError):
    """The guard does not let this go without a request that a second person has confirmed."""

    def __init__(self, what: str, why: str, *, append_only: bool) -> None:
        hint = "nobody can change that: the repository is append-only" if append_only else _ASK
        super().__init__(f"the repository's guard does not let {what}: {why}", hint=hint)
        self.what = what
        self.append_only = append_only


class NothingToAsk(ImagingError):
    def __init__(self, why: str) -> None:
        super().__init__(f"there is nothing to ask for: {why}", hint="do it without --ask")


class GuardRolledBack(ImagingError):
    """The repository's guard is older than what this appliance has seen of it."""

    def __init__(self, seen: int, found: int) -> None:
        super().__init__(
            f"the repository's guard was seen in state {seen}, and the newest now is {found or 'none'}, so nothing is"
            " deleted",
            hint=(
                "see who has changed its storage. If it was set back on purpose, remove the file 'guard' in the cache"
                " folder of this home"
            ),
        )
        self.seen = seen
        self.found = found


class GuardNoteUnreadable(ImagingError):
    """What this appliance has seen of the guard last cannot be told."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} does not tell which state of the repository's guard was seen last, so nothing is deleted:"
            f" {reason}",
            hint="remove that file, and see that the guard is as it should be ('strongroom repository guard show')",
        )


class GuardForged(ImagingError):
    """A state of the guard that those who could have let it be did not sign."""

    def __init__(self, number: int, detail: str) -> None:
        super().__init__(
            f"state {number} of the repository's guard is not what two of its persons signed ({detail}): nothing is"
            " deleted",
            hint="somebody who holds the repository's keys has written it: look for an appliance that was broken into",
        )
        self.number = number
        self.detail = detail


class GuardChanged(ImagingError):
    """Another change of the guard was faster."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"the guard was changed meanwhile: it is in state {number} now",
            hint="see 'strongroom repository guard show'",
        )


class RulesRefused(ImagingError):
    def __init__(self, detail: str) -> None:
        super().__init__(f"no guard works so: {detail}", hint="see 'strongroom repository guard on --help'")


class PersonUnknown(ImagingError):
    def __init__(self, name: str, known: Sequence[str], *, enrolled: bool = False) -> None:
        shown = ", ".join(known) or "none"
        where = "is no person of the guard" if enrolled else "is not enrolled here"
        super().__init__(f"{name!r} {where}; there are: {shown}", hint="see 'strongroom repository guard show'")
        self.name = name


class PersonExists(ImagingError):
    def __init__(self, name: str) -> None:
        super().__init__(f"a person of the name {name!r} is enrolled already", hint="take another name")


class PersonKeyLost(ImagingError):
    def __init__(self, name: str) -> None:
        super().__init__(
            f"no key of {name} in the repository can be read",
            hint="the others can put another person in their place: 'strongroom repository guard change'",
        )


class PassphraseWrong(ImagingError):
    def __init__(self, name: str) -> None:
        super().__init__(f"this is not {name}'s passphrase", hint="it is a person's own, and not the repository's")


class SamePerson(ImagingError):
    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} asked for this, and cannot confirm it", hint="another person of the guard has to confirm it"
        )


class RequestNotFound(ImagingError):
    def __init__(self, wanted: str) -> None:
        super().__init__(f"there is no request {wanted}", hint="see 'strongroom request list --all'")


class RequestAmbiguous(ImagingError):
    def __init__(self, wanted: str, count: int) -> None:
        super().__init__(f"{count} requests begin with {wanted}", hint="give more digits of the id")


class RequestNotReady(ImagingError):
    """It cannot be carried out, or confirmed, as it stands."""

    def __init__(self, request: str, why: str, hint: str = "") -> None:
        super().__init__(f"request {request} {why}", hint=hint or "see 'strongroom request show ID'")
        self.request = request


class NotCovered(ImagingError):
    """The request is about something else."""

    def __init__(self, request: str, what: str) -> None:
        super().__init__(f"request {request} does not say to {what}", hint="what is not in a request needs another one")
