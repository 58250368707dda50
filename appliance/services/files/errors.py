"""What goes wrong when files are taken out of restore points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from appliance.errors import StrongroomError


class VolumeNotNamed(StrongroomError):
    exit_code: ClassVar[int] = 2

    def __init__(self, place: str, volumes: Sequence[str]) -> None:
        shown = ", ".join(volumes) or "none that can be read"
        super().__init__(
            f"{place!r} does not say on which volume: there are {shown}" if volumes else "no volume can be read",
            hint="Give VOLUME:/PATH. 'strongroom files list' without a path shows the volumes.",
            volumes=list(volumes),
        )


class PlaceRefused(StrongroomError):
    exit_code: ClassVar[int] = 2

    def __init__(self, place: str) -> None:
        super().__init__(f"{place!r} is no path within a volume", hint="Give VOLUME:/PATH, without '..'.")


class TargetTaken(StrongroomError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists already", hint="Give --force to replace it, or another --to.")


class TargetUnfit(StrongroomError):
    exit_code: ClassVar[int] = 2

    def __init__(self, target: str, reason: str, hint: str) -> None:
        super().__init__(f"{target} cannot be the target: {reason}", hint=hint)


class TooManyReaders(StrongroomError):
    """As many restore points are being read as may be at once."""

    retryable: ClassVar[bool] = True

    def __init__(self, most: int) -> None:
        super().__init__(
            f"files are being read from {most} restore points already",
            hint="Try again in a moment, when a download has ended.",
        )


class NoLongerAllowed(StrongroomError):
    """In the midst of a download."""

    def __init__(self) -> None:
        super().__init__("whoever asked for it may not any more: their session or token has ended, or gives less")
