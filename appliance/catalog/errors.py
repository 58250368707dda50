"""What can go wrong with the catalog. Losing it loses no backup, but what is under way; the hints say both."""

from __future__ import annotations

from appliance.errors import StrongroomError

REBUILD_HINT = (
    "This file alone knows which machines run out of the repository, which thaws and clean-ups are owed, mounts, hosts"
    " and past runs; 'If the catalog is lost' in docs/operations.md tells how to look after those. No restore point is"
    " lost: move the file away, and the next command makes a new catalog from the repository."
)


class CatalogError(StrongroomError):
    """The catalog's engine failed."""


class CatalogBusy(CatalogError):
    retryable = True


class CatalogVersionUnknown(CatalogError):
    """A newer program has worked on it."""


class RecordMissing(CatalogError):
    def __init__(self, what: str, wanted: str, *, hint: str = "") -> None:
        super().__init__(f"there is no {what} {wanted}", hint=hint, wanted=wanted)


class RecordExists(CatalogError):
    def __init__(self, what: str, name: str, *, hint: str = "") -> None:
        super().__init__(f"there is a {what} {name} already", hint=hint, name=name)


class StateConflict(CatalogError):
    """Somebody else moved the record on in the meantime, or the step does not exist."""

    def __init__(self, what: str, id: str, found: str, wanted: str) -> None:
        super().__init__(
            f"{what} {id} is {found} and cannot become {wanted}",
            hint="See 'strongroom recovery list' for where it stands now.",
            id=id,
            found=found,
            wanted=wanted,
        )
