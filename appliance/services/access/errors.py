"""Why somebody is not let do something."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.errors import StrongroomError


class AccessError(StrongroomError):
    """Nothing was begun."""


class NotAllowed(AccessError):
    def __init__(self, who: str, act: str, why: str, *, hint: str = "") -> None:
        super().__init__(
            f"{who} may not do this ({act}): {why}",
            hint=hint or "An admin can give another role, or grant the machine ('strongroom user edit').",
            act=act,
        )


class NotGranted(NotAllowed):
    """It is about a machine that is none of theirs, or of which it is not known whose it is."""


class PlaceNotAllowed(NotAllowed):
    """Disks would be written to a place that is not theirs to name."""

    def __init__(self, who: str, act: str, place: str, folders: Sequence[str]) -> None:
        inside = f"or a place in {' or '.join(folders)}, without '..' and links that lead out" if folders else "no path"
        super().__init__(
            who, act, f"disks may not go to {place}; name a storage pool, {inside}",
            hint="An admin can restore to any place, and name other folders for all in restore.folders.",
        )  # fmt: skip


class ReauthenticationNeeded(AccessError):
    """The same again, once they have proven who they are."""

    def __init__(self, who: str, act: str) -> None:
        super().__init__(
            f"{who} has to prove again who they are, to do this ({act})",
            hint="Give the password and the second factor, then try again.",
            act=act,
        )
