"""Files out of restore points of another appliance, over its API.

The rule: as `remote` has it. Names come as the query has them, percent-encoded, as they are bytes; one that is none is
no answer. What is taken is written here as what is taken here is: a tar is passed on, and what it lacks is read on its
way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote, unquote

from appliance.models import PointRecord
from appliance.remote.client import Client
from appliance.remote.errors import RemoteUnknown
from appliance.services.files.following import Following, TarUnfit
from appliance.services.files.service import Found, Seen, Taken
from imaging.filesystems.entries import Entry, Journal, Kind, Listing, Volume, is_name, split
from imaging.filesystems.session import Hole, Piece

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class RemoteFiles:
    """FilesService. Borrows the client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def of(self, name: str, wanted: str) -> RemotePointFiles:
        found = self._client.read(PointRecord, self._client.get("/points/meant", {"machine": name, "point": wanted}))
        return RemotePointFiles(self._client, found.id)


class RemotePointFiles:
    """PointFiles. Borrows the client."""

    def __init__(self, client: Client, id: str) -> None:
        self._client = client
        self._path = f"/points/{quote(id, safe='')}"
        self.id = id

    def volumes(self, disk: str | None = None) -> tuple[Seen, ...]:
        items = self._client.get(f"{self._path}/volumes", {"disk": disk})["items"]
        return tuple(
            Seen(self._client.read(Volume, each | {"journal": Journal.UNKNOWN}), str(each["caution"])) for each in items
        )

    def listing(self, place: str, offset: int, limit: int, disk: str | None = None) -> Found:
        query = {"place": place, "offset": offset, "limit": limit, "disk": disk}
        found = self._client.get(f"{self._path}/files", query)
        volume = str(found["volume"])
        entries = tuple(self._entry(each, volume) for each in found["items"])
        if not entries and offset < int(found["total"]):
            raise RemoteUnknown(self._client.url, "a part of a folder that has nothing, and more after it")
        path = split(str(found["path"]))
        if path is None:
            raise RemoteUnknown(self._client.url, "a path that is none")
        listing = Listing(entries, int(found["total"]), int(found["refused"]))
        return Found(Volume(volume, "", "", "", 0, Journal.UNKNOWN), path, listing, str(found["caution"]))

    @contextmanager
    def take(self, place: str, disk: str | None = None) -> Iterator[Taken]:
        with self._client.stream(f"{self._path}/file", {"place": place, "disk": disk}) as (headers, pieces):
            name = unquote(headers.get("Content-Disposition", "").rpartition("filename*=UTF-8''")[2])
            if not is_name(name):
                raise RemoteUnknown(self._client.url, "a file whose name is none")
            length = headers.get("Content-Length")
            size_bytes = int(length) if length is not None and length.isdigit() else None
            kind = Kind.FOLDER if size_bytes is None else Kind.FILE
            entry = Entry(name, kind, size_bytes or 0, _modified_ns(headers), None, None, None, 0)
            tar = Following() if kind is Kind.FOLDER else None
            if tar is not None:
                pieces = self._followed(pieces, tar)
            yield Taken(name, entry, size_bytes, _sparse(pieces), headers.get("Strongroom-Caution", ""), tar)

    def _followed(self, pieces: Iterator[bytes], tar: Following) -> Iterator[bytes]:
        """RemoteUnknown."""
        try:
            yield from tar.stream(pieces)
        except TarUnfit as err:
            raise RemoteUnknown(self._client.url, f"a tar that cannot be read ({err})") from err

    def _entry(self, told: Any, volume: str) -> Entry:
        """RemoteUnknown."""
        path = split(unquote(str(told["place"]), errors="surrogateescape").removeprefix(f"{volume}:"))
        if not path:
            raise RemoteUnknown(self._client.url, "an entry whose name is none")
        moment = self._client.read(datetime, told["modified_utc"]) if told["modified_utc"] is not None else None
        fields = {
            "name": "", "modified_ns": None if moment is None else _ns(moment), "number": 0,
            **{each: told[each] for each in ("kind", "size_bytes", "mode", "uid", "gid", "link", "problem")},
        }  # fmt: skip
        return replace(self._client.read(Entry, fields), name=path[-1])  # which is not always text


def _modified_ns(headers: Mapping[str, str]) -> int | None:
    try:
        return _ns(parsedate_to_datetime(headers.get("Last-Modified", "")))
    except (ValueError, TypeError):  # there is none, or it has no zone
        return None


def _ns(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND * 1000


def _sparse(pieces: Iterator[bytes]) -> Iterator[Piece]:
    """Pieces of zeros as holes."""
    for piece in pieces:
        yield Hole(len(piece)) if piece.count(0) == len(piece) else piece
