"""What a restore point is a copy of: its notes say so."""

from __future__ import annotations

import re
from typing import Final

from imaging.points import Point

_COPIED_FROM: Final = re.compile(r"copied from restore point ([0-9a-f]{32}) of repository ([0-9a-f]{32})")


def copied_from(point: Point, repository_id: bytes) -> str:
    """The note on a copy that tells of which point it is one."""
    return f"copied from restore point {point.id} of repository {repository_id.hex()}"


def origins(point: Point) -> list[tuple[str, str]]:
    """(repository, id) of what it is a copy of, and what that was a copy of, in the order in which they were noted;
    empty for what was backed up here."""
    found = (_COPIED_FROM.fullmatch(note) for note in point.manifest.notes)
    return [(each[2], each[1]) for each in found if each]


def lineage(point: Point, repository_id: bytes) -> frozenset[tuple[str, str]]:
    """(repository, id) of the point, and of all that it is a copy of. Two points that share one hold the same."""
    return frozenset([(repository_id.hex(), point.id), *origins(point)])
