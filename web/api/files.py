"""Files out of restore points: volumes, folders, and what is taken of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import quote

from flask import Response
from pydantic import BaseModel, Field

from appliance.services.access import Act
from appliance.services.files.service import PAGE_MAX, Chosen, Entry, Found, Seen, Volume
from appliance.services.point_records import record_of
from appliance.services.points import PointService
from web import downloads
from web.acts import act
from web.api.callers import appliance, caller, looking, performing, subjects
from web.api.resources import Id, resource
from web.api.schemas import Out, list_of, schema_of, send, values_of
from web.current import files
from web.downloads import MIME_TYPE, OFFSET_MAX, place_asked, place_inside, shown_name

resources = resource("files", "Files out of restore points: nothing is mounted, and nothing of the machine runs.")
_LIMIT: Final = 200
_BYTES: Final = {MIME_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_PLACE: Final = (
    "`VOLUME:/PATH`, or `/PATH` where there is one volume that can be read. Names are bytes: `place` of a volume or an"
    " entry has them percent-encoded, and goes into the query as it is."
)
_Volume: Final = schema_of(Volume, "BareVolume", leave_out=frozenset({"journal"}))


class VolumeSeen(_Volume):  # type: ignore[misc,valid-type]
    caution: str = Field(description="Why the newest changes may be missing; empty where they are not.")
    place: str = Field(description="Of its root, for the query.")


class FileEntry(Out):
    name: str = Field(description="As it can be shown: what is no text is written as `\\xff`.")
    kind: Literal["file", "folder", "link", "other"]
    size_bytes: int
    modified_utc: datetime | None
    mode: int | None
    uid: int | None
    gid: int | None
    link: str = Field(description="What a link says. It is not followed.")
    problem: str = Field(description="Why it cannot be read; empty where it can be.")
    place: str = Field(description="Percent-encoded, for the query.")


class Folder(Out):
    volume: str
    path: str
    caution: str = Field(description="Why the newest changes may be missing; empty where they are not.")
    refused: int = Field(description="Entries with names that no file may have: they are not shown.")
    total: int
    next: int | None = Field(description="What to give as `offset` for the next page; null: this is the last.")
    items: list[FileEntry]


VolumeList: Final = list_of(VolumeSeen)


class DiskQuery(BaseModel):
    disk: str | None = Field(None, min_length=1, max_length=64, description="Only volumes of this disk.")


class PlaceQuery(DiskQuery):
    place: str = Field(min_length=1, max_length=4096, description=_PLACE)


class FolderQuery(PlaceQuery):
    offset: int = Field(0, ge=0, le=OFFSET_MAX)
    limit: int = Field(_LIMIT, ge=1, le=PAGE_MAX)


@resources.get("/points/<id>/volumes", summary="Volumes of a restore point's disks", responses={200: VolumeList})
@act(Act.FILE_BROWSE)
def list_volumes(path: Id, query: DiskQuery) -> Response:
    chosen = _chosen(path.id)
    with performing(chosen.subject):
        found = files().volumes(chosen.point, query.disk)
    return send(VolumeList, {"items": [_volume(each) for each in found]})


@resources.get("/points/<id>/files", summary="A folder of a restore point", responses={200: Folder})
@act(Act.FILE_BROWSE)
def list_folder(path: Id, query: FolderQuery) -> Response:
    """Folders first, then by name."""
    chosen = _chosen(path.id)
    with performing(chosen.subject):
        found = files().listing(chosen.point, place_asked(), query.offset, query.limit, query.disk)
    end = query.offset + len(found.listing.entries)
    return send(
        Folder,
        {
            "volume": found.volume.name, "path": f"/{shown_name('/'.join(found.path))}", "caution": found.caution,
            "refused": found.listing.refused, "total": found.listing.total,
            "next": end if end < found.listing.total else None,
            "items": [_entry(found, each) for each in found.listing.entries],
        },
    )  # fmt: skip


@resources.get("/points/<id>/file", summary="Take a file, or a folder as a tar", responses={200: {"content": _BYTES}})
@act(Act.FILE_READ)
def take_file(path: Id, query: PlaceQuery) -> Response:
    """It comes piece by piece. What cannot be whole, as a chunk is damaged, or the token does not count any more, is
    cut off: a file is shorter than `Content-Length`, and a tar ends without its last chunk."""
    chosen = _chosen(path.id)
    looking(chosen.subject)  # before it is told that as many as may are carried
    return downloads.download(chosen, caller(), performing(chosen.subject), query.disk)


def _chosen(wanted: str) -> Chosen:
    point = PointService(appliance()).resolve(wanted)
    return Chosen(point, subjects().point(record_of(point)))


def _volume(seen: Seen) -> dict[str, Any]:
    return values_of(_Volume, seen.volume) | {"caution": seen.caution, "place": _encoded(f"{seen.volume.name}:/")}


def _entry(found: Found, entry: Entry) -> dict[str, Any]:
    return {
        "name": shown_name(entry.name), "kind": entry.kind.value, "size_bytes": entry.size_bytes,
        "modified_utc": entry.modified_utc, "mode": entry.mode, "uid": entry.uid, "gid": entry.gid,
        "link": shown_name(entry.link) if entry.link else "", "problem": entry.problem,
        "place": _encoded(place_inside(found, entry.name)),
    }  # fmt: skip


def _encoded(place: str) -> str:
    return quote(place, safe="/:", errors="surrogateescape")
