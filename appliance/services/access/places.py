"""Where somebody may have disks written.

The rule: the appliance writes as root, and what it writes is a guest's; so who is not an admin names a storage pool of
the host, or a place in a folder that an admin has named for that (`restore.folders`). A service that takes a place asks
here, of whoever's act goes on, so that there is no way past it. What the appliance does by itself, such as a run whose
turn has come, goes where it was let go when it was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import PurePath

from appliance.acts import Act, Role
from appliance.services.access.actors import Actor
from appliance.services.access.errors import PlaceNotAllowed

_asking: ContextVar[tuple[Actor, Act] | None] = ContextVar("strongroom_asking", default=None)


@contextmanager
def asked_by(actor: Actor, act: Act) -> Iterator[None]:
    token = _asking.set((actor, act))
    try:
        yield
    finally:
        _asking.reset(token)


def check_place(folders: Sequence[str], place: str | None, *, here: bool = True) -> None:
    """Before anything is begun for it. `here`: it is on this machine. PlaceNotAllowed."""
    asking = _asking.get()
    if asking is not None and (error := place_refusal(*asking, folders, place, here=here)) is not None:
        raise error


def place_refusal(
    actor: Actor, act: Act, folders: Sequence[str], place: str | None, *, here: bool = True
) -> PlaceNotAllowed | None:
    """None: they may name it. Links are followed on this machine; of another, what is written counts."""
    if actor.trusted or actor.role is Role.ADMIN or place is None or "/" not in place:
        return None
    real = os.path.realpath if here else os.path.normpath
    within = place.startswith("/") and ".." not in PurePath(place).parts
    if within and any(PurePath(real(place)).is_relative_to(real(folder)) for folder in folders):
        return None
    return PlaceNotAllowed(f"{actor.kind} {actor.name}", act, place, folders)


def folder_of(storage: str | None, machine: str | None) -> str | None:
    """Where the disks of a machine of this name go: a storage pool, or a folder of its own in one."""
    return storage if storage is None or machine is None or "/" not in storage else str(PurePath(storage, machine))
