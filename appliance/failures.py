"""What kind of failure an error is, for programs: whether to look elsewhere, to wait, or to ask for something else.

The rule: one table, by class, so that console, API and command line mean the same by it. An error that is in no line
goes by what its class declares (to be tried again, wrong usage); else it is a conflict: it was asked of something that
is not in a state for it. What is no error of ours has no kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from appliance.catalog import errors as catalog
from appliance.errors import StrongroomError
from appliance.home import HomeUnusable, MachineKeyRejected, NoHome, NoRepositoryYet
from appliance.hypervisor import errors as hypervisor
from appliance.ownership import InUse
from appliance.paging import PageRefused
from appliance.policy.errors import PolicyInvalid
from appliance.policy.retention import NoRules
from appliance.services.access.errors import AccessError
from appliance.services.accounts import errors as accounts
from appliance.services.choosing import DiskNotNamed, DiskNotOnPoint, NothingThatOld, NotProtected
from appliance.services.inventory import HostInUse, MachineAmbiguous, NoHosts
from appliance.services.moments import MomentNotUnderstood
from appliance.services.policies.service import MachineUnknown, Renamed
from appliance.services.queue.messages import QueueUnusable
from appliance.services.recovery import errors as recovery
from appliance.services.restore import errors as restore
from appliance.services.status import NothingToDismiss
from appliance.settings import SettingsError
from imaging import errors as imaging
from imaging.filesystems import errors as filesystems
from imaging.guard.errors import Guarded, RequestAmbiguous, RequestNotFound


class Kind(StrEnum):
    MISSING = "missing"  # what is asked for is not there
    CONFLICT = "conflict"  # it is not in a state for that
    UNUSABLE = "unusable"  # what was given cannot be used, here or anywhere
    FORBIDDEN = "forbidden"
    THROTTLED = "throttled"  # too many attempts: the same again may do, later
    AWAY = "away"  # something that it needs does not answer, or is busy: the same again may do
    BROKEN = "broken"  # something that it needs is damaged, or full


@dataclass(frozen=True, slots=True)
class Failure:
    """`name` of the error's class; `facts` as `StrongroomError` has them."""

    kind: Kind
    name: str
    sentence: str
    hint: str
    facts: dict[str, object] = field(default_factory=dict)


_KINDS: Final[tuple[tuple[Kind, tuple[type[Exception], ...]], ...]] = (
    (
        Kind.MISSING,
        (
            catalog.RecordMissing, hypervisor.MachineNotFound, hypervisor.StorageNotFound, NotProtected,
            NothingThatOld, DiskNotOnPoint, MachineUnknown, NothingToDismiss, accounts.LinkUnusable,
            imaging.PointNotFound, imaging.HoldNotFound, imaging.SlotNotFound, RequestNotFound,
            filesystems.VolumeNotFound, filesystems.EntryNotFound,
        ),
    ),
    (
        Kind.UNUSABLE,
        (
            hypervisor.HostFieldRefused, MomentNotUnderstood, PolicyInvalid, Renamed, PageRefused, NoRules,
            DiskNotNamed, catalog.KeyUsedOtherwise, recovery.HostNotNamed, recovery.DestinationUnusable,
            recovery.NotAMachine, restore.NotAMachine, NoHome, imaging.PointAmbiguous, imaging.InvalidName,
            imaging.ImageUnreadable, RequestAmbiguous,
            imaging.ImageRefused, imaging.SourceError, accounts.PasswordUnfit, accounts.NameUnfit, accounts.CodeWrong,
            accounts.GrantsMissing, accounts.TokenUnfit, imaging.TargetRefused, imaging.AddressRefused,
            filesystems.PathRefused, filesystems.NotThatKind,
        ),
    ),
    (Kind.FORBIDDEN, (AccessError, Guarded)),
    (Kind.THROTTLED, (accounts.Throttled,)),
    (
        Kind.AWAY,
        (
            NoRepositoryYet, catalog.CatalogUnreachable, catalog.CatalogBusy, hypervisor.HostUnreachable, QueueUnusable,
            InUse, HostInUse, imaging.StoreUnavailable, imaging.SeriesBusy,
        ),
    ),
    (
        Kind.BROKEN,
        (
            HomeUnusable, MachineKeyRejected, SettingsError, catalog.CatalogDriverMissing,
            catalog.CatalogVersionUnknown, catalog.CatalogOfAnotherRepository, catalog.HomeCopied,
            imaging.Damaged, imaging.ObjectMissing, imaging.NotARepository, imaging.WrongVersion, imaging.WrongKey,
            imaging.NoSpace, imaging.StoreError, imaging.IndexUnavailable, imaging.ExportFailed,
        ),
    ),
)  # fmt: skip
_LAST: Final[tuple[tuple[type[Exception], Kind], ...]] = (
    (catalog.RecordExists, Kind.CONFLICT),
    (catalog.OfAnotherAppliance, Kind.CONFLICT),
    (catalog.StateConflict, Kind.CONFLICT),
    (catalog.RunEnded, Kind.CONFLICT),
    (catalog.PolicyChanged, Kind.CONFLICT),
    (catalog.CatalogError, Kind.BROKEN),  # the engine's own
)

_NAMES_NOTHING: Final = (
    catalog.RecordMissing, hypervisor.HypervisorError, NoHosts, MachineAmbiguous, NotProtected,
    imaging.PointNotFound, imaging.PointAmbiguous, imaging.Damaged,
)  # fmt: skip

_USAGE: Final = 2  # the exit code of what whoever asked can mend by asking otherwise


def failure_of(error: Exception) -> Failure | None:
    """None: it is nothing that we raise on purpose, and what it says is for the log alone."""
    if isinstance(
        error, restore.NotPossible
    ):  # told is what stands in the way, and of which part of the question that is
        told = failure_of(error.why)
        return None if told is None else replace(told, facts=told.facts | error.facts)
    if isinstance(error, StrongroomError):
        return Failure(_kind(error), type(error).__name__, str(error), error.hint, dict(error.facts))
    if isinstance(error, imaging.ImagingError):
        return Failure(_kind(error), type(error).__name__, str(error), error.hint)
    return None


def names_nothing(error: Exception) -> bool:
    """Whether it may be what a look for something by its name or id ends with that finds nothing, not one thing alone,
    or nothing that tells what it is."""
    return isinstance(error, _NAMES_NOTHING)


def _kind(error: Exception) -> Kind:
    for kind, classes in _KINDS:
        if isinstance(error, classes):
            return kind
    for which, kind in _LAST:
        if isinstance(error, which):
            return kind
    if getattr(error, "retryable", False):
        return Kind.AWAY
    return Kind.UNUSABLE if getattr(error, "exit_code", None) == _USAGE else Kind.CONFLICT
