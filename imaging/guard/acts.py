"""What can be asked for, said exactly, and the leave to do it.

Rules: an act names its objects by what cannot become another: a point by its manifest and that one's hash, a key slot
and a hold by their random ids, rules by all that they say. A permit is for exactly that, and is made by the guard alone
(tests/unit/test_guard_is_passed.py looks).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Final, TypeAlias

from imaging.canonical import Fields
from imaging.guard.errors import NotCovered
from imaging.guard.rules import Rules
from imaging.manifest import ManifestName

POINTS_MAX: Final = 20_000
STATES_MAX: Final = 9_999_999_999


@dataclass(frozen=True, slots=True)
class Doomed:
    """A point, by its manifest's name and hash; None: it is damaged, and what is in its place is not known."""

    manifest: str
    hash: bytes | None


@dataclass(frozen=True, slots=True)
class DeletePoints:
    kind: ClassVar[str] = "delete-points"
    points: tuple[Doomed, ...]

    def covers(self, other: Act) -> bool:
        return isinstance(other, DeletePoints) and set(other.points) <= set(self.points)

    def describe(self) -> str:
        if len(self.points) == 1:
            parsed = ManifestName.parse(self.points[0].manifest)
            return f"delete restore point {parsed.id if parsed else self.points[0].manifest}"
        return f"delete {len(self.points)} restore points"


@dataclass(frozen=True, slots=True)
class RemoveKey:
    kind: ClassVar[str] = "remove-key"
    slot: str

    def covers(self, other: Act) -> bool:
        return self == other

    def describe(self) -> str:
        return f"remove key slot {self.slot}"


@dataclass(frozen=True, slots=True)
class LiftProtection:
    """`manifest` None: the hold cannot be read, so that it may be one."""

    kind: ClassVar[str] = "lift-protection"
    hold: str
    manifest: str | None

    def covers(self, other: Act) -> bool:
        return self == other

    def describe(self) -> str:
        parsed = ManifestName.parse(self.manifest or "")
        if parsed is None:
            return f"release hold {self.hold}, which cannot be read and may be a protection"
        return f"lift the protection of restore point {parsed.id}"


@dataclass(frozen=True, slots=True)
class ChangeGuard:
    """To the state of that number."""

    kind: ClassVar[str] = "change-guard"
    number: int
    rules: Rules

    def covers(self, other: Act) -> bool:
        return self == other

    def describe(self) -> str:
        return "change the guard" if self.rules.on else "turn the guard off"


Act: TypeAlias = DeletePoints | RemoveKey | LiftProtection | ChangeGuard


def encode_act(act: Act) -> dict[str, object]:
    match act:
        case DeletePoints():
            points = [
                {"hash": each.hash.hex() if each.hash else None, "manifest": each.manifest} for each in act.points
            ]
            return {"kind": act.kind, "points": points}
        case RemoveKey():
            return {"kind": act.kind, "slot": act.slot}
        case LiftProtection():
            return {"hold": act.hold, "kind": act.kind, "manifest": act.manifest}
        case ChangeGuard():
            return {"kind": act.kind, "number": act.number, "rules": act.rules.as_json()}


def decode_act(fields: Fields) -> Act:
    """Damaged."""
    kind = fields.one_of("kind", (DeletePoints.kind, RemoveKey.kind, LiftProtection.kind, ChangeGuard.kind))
    if kind == RemoveKey.kind:
        return RemoveKey(fields.hex("slot", 16).hex())
    if kind == LiftProtection.kind:
        return LiftProtection(fields.hex("hold", 16).hex(), fields.optional_text("manifest"))
    if kind == ChangeGuard.kind:
        return ChangeGuard(fields.integer("number", 1, STATES_MAX), Rules.of(fields.record("rules")))
    found = tuple(
        Doomed(_manifest(each), each.optional_hex("hash", 32)) for each in fields.records("points", POINTS_MAX)
    )
    if not found:
        raise fields.damaged("points", "is empty")
    return DeletePoints(found)


def _manifest(fields: Fields) -> str:
    name = fields.text("manifest")
    if ManifestName.parse(name) is None:
        raise fields.damaged("manifest", "is no manifest's name")
    return name


_ISSUED: Final = object()


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to carry out an act. `request`: the one that it was given for, None where nothing had to be asked."""

    act: Act
    request: str | None
    issued: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.issued is not _ISSUED:
            raise TypeError("a permit is given by the guard, and made by nobody else")

    def check(self, act: Act) -> None:
        """NotCovered, for anything but what the permit is for."""
        if not self.act.covers(act):
            raise NotCovered(self.request or "(none)", act.describe())


def issue(act: Act, request: str | None) -> Permit:
    """For the guard."""
    return Permit(act, request, _ISSUED)


def deletion_of(points: Iterable[tuple[str, bytes | None]]) -> DeletePoints:
    return DeletePoints(tuple(Doomed(name, hash) for name, hash in points))
