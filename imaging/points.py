"""Restore points: which manifests count, finding one, deleting one, and the holds that keep one.

Rules: manifests are listed before tombstones, and those before leases: a lease is visible before its manifest, so no
manifest of an unfinished run is taken for one whose lease was tidied away. One damaged object never hides the others.
Deleting writes a tombstone and nothing else.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from blake3 import blake3

from imaging import canonical, manifest
from imaging.canonical import Fields
from imaging.clock import Clock
from imaging.envelope import ObjectType
from imaging.errors import (
    Damaged,
    HoldNotFound,
    ImagingError,
    ObjectExists,
    ObjectMissing,
    PointAmbiguous,
    PointHeld,
    PointNotFound,
    StillReadable,
    StoreUnavailable,
    WrongVersion,
)
from imaging.guard.acts import Act, LiftProtection, Permit, deletion_of
from imaging.leases import LeaseListing, Leases, Standing, lease_object
from imaging.manifest import Manifest, ManifestName, tombstone_name
from imaging.objects import SealedObjects

_log = logging.getLogger(__name__)

PROTECTED: Final = "protected"
PURPOSES: Final = ("recovery", "export", "mount", "restore", "verification", PROTECTED)
_PREFIX: Final = re.compile(r"[0-9a-f]{1,32}")
_HOLD: Final = re.compile(r"holds/([0-9a-f]{32})")
_TRACE: Final = re.compile(
    r"(?:manifests|tombstones)/[0-9a-f]{32}/([0-9]{10})-[0-9a-f]{32}|claims/[0-9a-f]{32}/([0-9]{10})"
)


@dataclass(frozen=True, slots=True)
class Point:
    """A restore point that counts. `name` is its manifest's, `hash` the BLAKE3 of that object's bytes."""

    name: str
    hash: bytes
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def series(self) -> str:
        return self.manifest.series

    @property
    def generation(self) -> int:
        return self.manifest.generation

    @property
    def created_utc(self) -> datetime:
        return self.manifest.created_utc


@dataclass(frozen=True, slots=True)
class DamagedPoint:
    """A restore point that should be there and cannot be read, and why."""

    name: str
    error: ImagingError

    @property
    def id(self) -> str:
        parsed = ManifestName.parse(self.name)
        return parsed.id if parsed else self.name


@dataclass(frozen=True, slots=True)
class Survey:
    """Points, oldest first, and those that are damaged."""

    points: tuple[Point, ...]
    damaged: tuple[DamagedPoint, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    id: str
    point: str
    purpose: str
    owner: str
    created_utc: datetime
    manifest: str


@dataclass(frozen=True, slots=True)
class DamagedHold:
    """One of which nobody can tell what it keeps."""

    id: str
    error: ImagingError


class Points:
    """Borrows everything."""

    def __init__(self, objects: SealedObjects, leases: Leases, clock: Clock) -> None:
        self._objects = objects
        self._store = objects.store
        self._leases = leases
        self._clock = clock
        self._read: dict[str, Point] = {}
        self._reading = threading.Lock()

    def survey(self, series: str | None = None) -> Survey:
        """Every point of the series, or of all."""
        below = f"{series}/" if series else ""
        names = self._manifests(below)
        tombstones = self._tombstones(below) if names else set()
        listing = self._leases.list()
        read: dict[str, Point] = {}
        points: list[Point] = []
        damaged: list[DamagedPoint] = []
        for name in names:
            if tombstone_name(name) in tombstones:
                continue
            try:
                point = read[name] = self._point(name)
                if self._counts(point, listing):
                    points.append(point)
            except ObjectMissing:
                continue  # removed since it was listed
            except (Damaged, StoreUnavailable, WrongVersion) as error:
                damaged.append(DamagedPoint(name, error))
        if series is None:
            damaged.extend(self._lost(set(names), {point.manifest.lease for point in read.values()}, listing))
            with self._reading:
                self._read = {name: found for name in names if (found := read.get(name) or self._read.get(name))}
        return Survey(tuple(_oldest_first(points)), tuple(sorted(damaged, key=lambda each: each.name)))

    def _manifests(self, below: str) -> list[str]:
        return [
            listed.name
            for listed in self._store.list("manifests/" + below)
            if ManifestName.parse(listed.name) is not None
        ]

    def _tombstones(self, below: str) -> set[str]:
        return {listed.name for listed in self._store.list("tombstones/" + below)}

    def _point(self, name: str) -> Point:
        with self._reading:
            found = self._read.get(name)
        if found is None:
            opened = self._objects.read_kept(ObjectType.MANIFEST, name)
            found = Point(name, opened.hash, manifest.decode(opened.body, name))
            with self._reading:
                self._read[name] = found
        return found

    def _counts(self, point: Point, listing: LeaseListing | None) -> bool:
        lease = point.manifest.lease
        try:
            standing = self._leases.standing(lease, listing)
            end = self._leases.end(lease) if standing == Standing.COMMITTED else None
        except (Damaged, WrongVersion) as error:
            raise Damaged(point.name, f"whether its run committed it cannot be told: {error}") from error
        if end is None:
            return standing == Standing.TIDIED
        if end.manifest != point.name:
            return False
        if end.hash != point.hash:
            raise Damaged(point.name, "it is not the manifest that its run committed")
        return True

    def _lost(self, present: set[str], leases: set[str], listing: LeaseListing) -> Iterator[DamagedPoint]:
        """Points that a run committed and whose manifest is not there, though nobody deleted them."""
        for lease, parts in listing.parts.items():
            if "end" not in parts or lease in leases:
                continue
            try:
                end = self._leases.end(lease)
            except (Damaged, StoreUnavailable, WrongVersion):
                continue  # it may have ended without a point: verify names it
            if end is None or end.manifest is None or end.manifest in present:
                continue
            if ManifestName.parse(end.manifest) is not None and self._is_lost(end.manifest, lease):
                yield DamagedPoint(end.manifest, ObjectMissing(end.manifest))

    def _is_lost(self, name: str, lease: str) -> bool:
        """Asked of the store itself: since the manifests were listed, a run may have committed this one, or a
        collection removed it, which takes the end away first."""
        return (
            not self._store.exists(tombstone_name(name))
            and not self._store.exists(name)
            and self._store.exists(lease_object(lease, "end"))
        )

    def is_there(self, name: str) -> bool:
        """Whether the manifest is in the store, and no tombstone of it: asked of the store itself."""
        return self._store.exists(name) and not self._store.exists(tombstone_name(name))

    def is_buried(self, name: str) -> bool:
        """Whether a manifest has a tombstone: asked of the store itself."""
        return self._store.exists(tombstone_name(name))

    def present(self) -> list[Point]:
        """Every manifest that is in the store and can be read, whether it counts or not. Damaged, for the first that
        cannot, unless it was deleted: what it needs is not known."""
        found: list[Point] = []
        for name in self._manifests(""):
            try:
                found.append(self._point(name))
            except ObjectMissing:
                continue  # removed since it was listed
            except Damaged:
                if not self.is_buried(name):
                    raise
        return found

    def inert(self, leases: set[str]) -> list[tuple[str, str]]:
        """(manifest, lease) of those that were written under these leases."""
        if not leases:
            return []
        return [(each.name, each.manifest.lease) for each in self.present() if each.manifest.lease in leases]

    def generations(self, series: str) -> Iterator[int]:
        """Every generation of the series that left a trace."""
        for prefix in ("manifests/", "tombstones/", "claims/"):
            for listed in self._store.list(f"{prefix}{series}/"):
                found = _TRACE.fullmatch(listed.name)
                if found is not None:
                    yield int(found[1] or found[2])

    def find(self, wanted: str) -> Point:
        """The point of this id, or of the only id that begins so. PointNotFound, PointAmbiguous, Damaged."""
        prefix = wanted.strip().lower()
        if not _PREFIX.fullmatch(prefix):
            raise PointNotFound(wanted)
        names = [name for name in self._manifests("") if ManifestName.parse(name).id.startswith(prefix)]  # type: ignore[union-attr]
        found: list[Point] = []
        failures: list[ImagingError] = []
        for name in names:
            try:
                if not self._store.exists(tombstone_name(name)):
                    point = self._point(name)
                    if self._counts(point, None):
                        found.append(point)
            except ObjectMissing:
                continue
            except (Damaged, StoreUnavailable, WrongVersion) as error:
                failures.append(error)
        if len(found) > 1:
            raise PointAmbiguous(wanted, [point.id for point in found])
        if found and not failures:
            return found[0]
        if failures:
            raise failures[0]
        raise PointNotFound(wanted)

    # Deleting and holding

    def delete(self, point: Point | DamagedPoint, by: str, permit: Permit) -> str:
        """Writes the tombstone; returns its name. PointHeld while a hold is on it; repeating it changes nothing. Of a
        damaged point, StillReadable where its manifest is not what is damaged.

        Whatever is raised, the point is not deleted, or was before.
        """
        permit.check(deletion_of([doomed(point)]))
        stated = point.hash if isinstance(point, Point) else self._hash_of_remains(point)
        self._check_unheld(point)
        name = tombstone_name(point.name)
        if self._store.exists(name):
            return name
        try:
            values: dict[str, object] = {
                "by": by,
                "created_utc": canonical.utc_text(self._clock.now_utc()),
                "hash": stated.hex(),
            }
            if permit.request is not None:
                values["request"] = permit.request
            self._objects.create_json(ObjectType.TOMBSTONE, name, values)
            self._check_unheld(point)  # a hold placed meanwhile was visible before its owner looked for the tombstone
        except ObjectExists:
            return name
        except BaseException:
            self._take_back(name, "the restore point counts as deleted until it is removed")
            raise
        return name

    def _hash_of_remains(self, point: DamagedPoint) -> bytes:
        """Of the bytes in the manifest's place. What a newer Strongroom wrote, or a store does not give now, is not
        damaged."""
        if isinstance(point.error, (WrongVersion, StoreUnavailable)):
            raise StillReadable(point.id, str(point.error)) from point.error
        try:
            return blake3(self._store.get(point.name)).digest()
        except ObjectMissing:
            return blake3().digest()

    def _take_back(self, name: str, otherwise: str) -> None:
        """Removes what this process has just written, or may have: what went wrong before is what the caller is
        told."""
        try:
            self._store.delete_many([name])
        except ImagingError as error:
            _log.error("%s could not be taken back, so %s: %s", name, otherwise, error)

    def _check_unheld(self, point: Point | DamagedPoint) -> None:
        purposes = [hold.purpose for hold in self.holds() if hold.manifest == point.name]
        if purposes:
            raise PointHeld(point.id, purposes)

    def hold(self, point: Point, purpose: str, owner: str) -> Hold:
        """Keeps the point from being deleted until release(). PointNotFound when it has just been deleted."""
        if purpose not in PURPOSES:
            raise ValueError(f"there are no holds for {purpose!r}")
        made = Hold(
            secrets.token_hex(16), point.id, purpose, owner, self._clock.now_utc().replace(microsecond=0), point.name
        )
        name = f"holds/{made.id}"
        try:
            self._objects.create_json(
                ObjectType.HOLD,
                name,
                {
                    "created_utc": canonical.utc_text(made.created_utc),
                    "id": made.id,
                    "manifest": made.manifest,
                    "owner": made.owner,
                    "purpose": made.purpose,
                },
            )
            if not self.is_there(point.name):
                raise PointNotFound(point.id)
        except BaseException:
            self._take_back(name, f"restore point {point.id} stays held until that hold is released")
            raise
        return made

    def release(self, hold_id: str, permits: Callable[[Act], Permit]) -> None:
        """HoldNotFound; what `permits` raises, which is asked where the hold is a protection, or may be."""
        name = f"holds/{hold_id}"
        if not _HOLD.fullmatch(name):
            raise HoldNotFound(hold_id)
        try:
            act = self._protection(hold_id, name)
            if act is not None:
                permits(act).check(act)
            self._store.delete(name)
        except ObjectMissing as error:
            raise HoldNotFound(hold_id) from error

    def _protection(self, hold_id: str, name: str) -> LiftProtection | None:
        try:
            fields = self._objects.read_json(ObjectType.HOLD, name)
            lasting = fields.one_of("purpose", PURPOSES) == PROTECTED
            return LiftProtection(hold_id, fields.text("manifest")) if lasting else None
        except (Damaged, WrongVersion):
            return LiftProtection(hold_id, None)

    def holds(self) -> list[Hold]:
        """Every hold, oldest first. Damaged, WrongVersion: what a hold that cannot be read protects is not known, so
        nothing is deleted."""
        found, damaged = self.survey_holds()
        for each in damaged:
            raise each.error
        return found

    def survey_holds(self) -> tuple[list[Hold], list[DamagedHold]]:
        """Every hold, oldest first, and those that cannot be read."""
        found: list[Hold] = []
        damaged: list[DamagedHold] = []
        for listed in self._store.list("holds/"):
            if (named := _HOLD.fullmatch(listed.name)) is None:
                continue
            try:
                found.append(_decode_hold(self._objects.read_json(ObjectType.HOLD, listed.name)))
            except ObjectMissing:
                continue
            except Damaged as error:
                hint = f"what it keeps is not known; 'strongroom repository hold release {named[1]}' lets go of it"
                damaged.append(DamagedHold(named[1], Damaged(error.name, error.detail, hint=hint)))
            except WrongVersion as error:
                damaged.append(DamagedHold(named[1], error))
        return sorted(found, key=lambda hold: (hold.created_utc, hold.id)), damaged


def _decode_hold(fields: Fields) -> Hold:
    """Damaged."""
    held = fields.text("manifest")
    parsed = ManifestName.parse(held)
    return Hold(
        id=fields.hex("id", 16).hex(),
        point=parsed.id if parsed else held,
        purpose=fields.one_of("purpose", PURPOSES),
        owner=fields.text("owner"),
        created_utc=fields.utc("created_utc"),
        manifest=held,
    )


def doomed(point: Point | DamagedPoint) -> tuple[str, bytes | None]:
    """How an act names it."""
    return point.name, point.hash if isinstance(point, Point) else None


def _oldest_first(points: list[Point]) -> list[Point]:
    """By time, but within a series by generation, whatever the clock said."""
    latest: dict[str, datetime] = {}
    keyed: list[tuple[datetime, str, int, Point]] = []
    for point in sorted(points, key=lambda point: (point.series, point.generation)):
        moment = max(point.created_utc, latest.get(point.series, point.created_utc))
        latest[point.series] = moment
        keyed.append((moment, point.series, point.generation, point))
    return [entry[3] for entry in sorted(keyed, key=lambda entry: entry[:3])]
