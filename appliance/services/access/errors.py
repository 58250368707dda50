"""Why somebody is not let do something."""

from __future__ import annotations

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


class ReauthenticationNeeded(AccessError):
    """The same again, once they have proven who they are."""

    def __init__(self, who: str, act: str) -> None:
        super().__init__(
            f"{who} has to prove again who they are, to do this ({act})",
            hint="Give the password and the second factor, then try again.",
            act=act,
        )
