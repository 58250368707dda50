"""What a restore that meets damage has to say: which byte ranges cannot be had, and what can be done.

The rule: whatever failed first stays the cause; that nothing more could be found out about it hides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from appliance.services.restore.errors import PartDamaged
from imaging.errors import ChunkMissing, Damaged, ImagingError, ObjectMissing
from imaging.soundness import known_damage

if TYPE_CHECKING:
    from imaging.manifest import DiskEntry, FileEntry
    from imaging.repository import Repository

MET: tuple[type[ImagingError], ...] = (Damaged, ChunkMissing, ObjectMissing)


@contextmanager
def telling_damage(
    repository: Repository, part: DiskEntry | FileEntry, *, also: tuple[type[ImagingError], ...] = ()
) -> Iterator[None]:
    """PartDamaged where data of this disk or file was met that is damaged; `also`: what that may look like besides."""
    try:
        yield
    except (*MET, *also) as err:
        try:
            damage = known_damage(repository, [part])
        except ImagingError:
            raise err  # noqa: B904 - the first error is the one to report
        if not damage:
            raise
        raise PartDamaged(damage[0]) from err
