"""What can go wrong with the catalog. Losing it loses no backup, but what is under way; the hints say both."""

from __future__ import annotations

from collections.abc import Sequence

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


class CatalogUnreachable(CatalogError):
    """The server of a shared catalog does not answer, or went away."""

    retryable = True

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(
            f"catalog {where} cannot be reached: {reason}",
            hint="Start the server, or correct catalog.url. No restore point is lost; to restore without it, put"
            " STRONGROOM_CATALOG_URL= (nothing) before the command: the home's own catalog is used then, and made from"
            " the repository.",
            where=where,
        )


class CatalogDriverMissing(CatalogError):
    def __init__(self, reason: str) -> None:
        super().__init__(
            f"catalog.url names a PostgreSQL database, and its driver cannot be loaded: {reason}",
            hint="Install it: pip install 'strongroom[postgres]'.",
        )


class CatalogVersionUnknown(CatalogError):
    """A newer program has worked on it."""


class CatalogOfAnotherRepository(CatalogError):
    def __init__(self, where: str, known: str, repository: str) -> None:
        super().__init__(
            f"catalog {where} belongs to repository {known}, and this home uses {repository}",
            hint="Appliances share a catalog together with a repository: adopt that one, or give this home a database"
            " of its own (catalog.url).",
            known=known,
            repository=repository,
        )


class CatalogKeyMissing(CatalogError):
    """`file`: where this home would have the key. `others`: ids of the keys of other catalogs that it has."""

    def __init__(self, where: str, id: str, file: str, reason: str, *, others: Sequence[str] = (), kept: bool) -> None:
        also = f"; it has those of other catalogs ({', '.join(others)}), which do not open this one" if others else ""
        last = "If it is lost everywhere: 'strongroom user renew-key', and all set their second factors up anew."
        first = (
            "The repository keeps it: 'strongroom repository info' on this appliance takes it from there."
            if kept
            else f"Copy {file} (mode 0600) from another home that uses this catalog; or let a home that has it open the"
            " repository ('strongroom repository info'), then this one."
        )
        super().__init__(
            f"the second factors in catalog {where} are sealed with key {id}, and this home does not have it:"
            f" {reason}{also}",
            hint=f"{first} {last}",
            id=id,
            others=list(others),
        )


class HomeCopied(CatalogError):
    """Two homes say that they are the same appliance: what runs in the other would look dead here."""

    def __init__(self, file: str, id: str, name: str, home: str) -> None:
        super().__init__(
            f"the catalog knows this appliance ({id[:12]}) as the home {home} of {name}: this is a copy of it, or was"
            " moved",
            hint=f"Remove {file}: this home then is an appliance of its own. If the other one is gone for good,"
            f" 'strongroom appliance take-over {id[:12]}' takes on what it had under way.",
            id=id,
        )


class RecordMissing(CatalogError):
    def __init__(self, what: str, wanted: str, *, hint: str = "") -> None:
        super().__init__(f"there is no {what} {wanted}", hint=hint, wanted=wanted)


class RecordExists(CatalogError):
    def __init__(self, what: str, name: str, *, hint: str = "") -> None:
        super().__init__(f"there is a {what} {name} already", hint=hint, name=name)


class OfAnotherAppliance(CatalogError):
    """Only the appliance that began it knows whether its processes live."""

    def __init__(self, what: str, id: str, appliance: str) -> None:
        super().__init__(
            f"{what} {id[:12]} is of another appliance, {appliance}",
            hint="Give the command there. If that appliance is gone for good: strongroom appliance take-over"
            " APPLIANCE ('strongroom appliance list' shows them).",
            id=id,
            appliance=appliance,
        )


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


class RunEnded(CatalogError):
    def __init__(self, id: str, name: str, state: str) -> None:
        super().__init__(
            f"run {id[:12]} of {name} is over: it is {state}",
            hint="'strongroom run list' shows what waits and what runs.",
            id=id,
            state=state,
        )


class KeyUsedOtherwise(CatalogError):
    def __init__(self, key: str, run: str) -> None:
        super().__init__(
            f"the key {key!r} was used for something else, within a day: run {run[:12]}",
            hint="Use a new key for each run that is to be made; the same one to ask for the same run again.",
            run=run,
        )


class PolicyChanged(CatalogError):
    """Somebody else has changed it meanwhile."""

    def __init__(self, name: str, seen: int, version: int) -> None:
        super().__init__(
            f"policy {name} was changed meanwhile: it is version {version} now, and the change was made on {seen}",
            hint="Look at it as it is now, then change that.",
            name=name,
            seen=seen,
            version=version,
        )
